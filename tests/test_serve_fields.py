"""Fields as real clients write them: what changes nothing is accepted and named in the log once."""

import importlib.util
import json
import logging
from pathlib import Path

import pytest

import qvl
from qvl.serve import fields
from serve_live import asking, live, picture

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    with live(qvl.load(tiny_checkpoint, max_num_seqs=4)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.openai()


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch):
    monkeypatch.setattr(fields, "_told", set())


def answered(server, **body):
    answer = server.chat(**body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_documented_table_is_the_schemas():
    spec = importlib.util.spec_from_file_location("serve_fields", ROOT / "benchmarks/serve_fields.py")
    printed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(printed)
    table = printed.table()
    assert table in (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    assert "| `parallel_tool_calls` | OpenAI and vLLM | done |" in table
    assert "| `store` | OpenAI | accepted without effect: nothing is stored |" in table


@pytest.mark.parametrize(
    "extra",
    [
        {"service_tier": "flex", "store": True, "metadata": {"a": "b"}, "prompt_cache_key": "k", "user": "u"},
        {
            "safety_identifier": "s",
            "prompt_cache_retention": "24h",
            "prompt_cache_options": {"mode": "explicit"},
        },
        {"verbosity": "low", "modalities": ["text"], "prediction": {"type": "content", "content": "x"}},
        {"parallel_tool_calls": False},
        {"parallel_tool_calls": True, "tools": []},
        {"tool_choice": "auto"},
        {"reasoning_effort": "high"},
        {"chat_template_kwargs": {"enable_thinking": False, "some_kwarg": {"a": 1}}},
        {"best_of": 1, "use_beam_search": False, "skip_special_tokens": True, "length_penalty": 1.0},
        {"min_tokens": 0, "echo": False, "bad_words": [], "include_reasoning": True, "priority": 3},
        {"functions": [], "function_call": "none", "audio": None, "web_search_options": None},
        {"top_logprobs": 0},
        {"stream_options": {"include_usage": True}},
        {"an_invented_field": 1},
        {"cache_salt": "xyz", "request_id": "r", "kv_transfer_params": {}, "detail": None},
    ],
    ids=lambda extra: "-".join(extra)[:50],
)
def test_what_changes_nothing_is_accepted(server, extra):
    plain, same = answered(server), answered(server, **extra)
    assert same["choices"][0]["message"] == plain["choices"][0]["message"]
    assert same["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


def test_names_hints_and_addresses_inside_messages_are_accepted(server):
    url = picture()["image_url"]["url"]
    plain = answered(server, messages=asking("What?", picture()))
    messages = [
        {
            "role": "user",
            "name": "me",
            "id": "m1",
            "content": [
                {"type": "image_url", "image_url": url, "cache_control": {"type": "ephemeral"}, "uuid": "u"},
                {
                    "type": "text",
                    "text": "What?",
                    "prompt_cache_breakpoint": {"mode": "explicit"},
                    "annotations": [],
                },
            ],
        }
    ]
    same = answered(server, messages=messages)
    assert same["choices"][0]["message"] == plain["choices"][0]["message"]
    assert same["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


def test_the_log_names_a_field_once(server, caplog):
    caplog.set_level(logging.INFO, "qvl.serve")
    for _ in range(3):
        answered(
            server, store=True, an_invented_field=1, messages=[{"role": "user", "content": "x", "color": 2}]
        )
        answered(server, chat_template_kwargs={"enable_thinking": False})
    lines = [record.getMessage() for record in caplog.records if record.name == "qvl.serve.fields"]
    assert lines == [
        "request field 'store' is accepted and has no effect: nothing is stored",
        "request field 'an_invented_field' is accepted and has no effect: not known",
        "request field 'messages.color' is accepted and has no effect: not known",
        "request field 'chat_template_kwargs.enable_thinking' is accepted and has no effect: "
        "the template doesn't use it",
    ]


def test_invented_names_do_not_fill_the_log(server, caplog):
    caplog.set_level(logging.INFO, "qvl.serve")
    for at in range(3):
        answered(server, **{f"zz{at}_{i}": 1 for i in range(150)})
    assert sum(record.name == "qvl.serve.fields" for record in caplog.records) == 200


def test_what_parse_and_stream_returned_may_be_sent_back(client):
    from pydantic import BaseModel

    class Paid(BaseModel):
        paid: bool

    tools = [
        {
            "type": "function",
            "function": {
                "name": "pay",
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {"now": {"type": "boolean"}},
                    "required": ["now"],
                    "additionalProperties": False,
                },
            },
        }
    ]
    common = {"model": "tiny", "max_tokens": 200}
    parsed = client.chat.completions.parse(**common, messages=asking("What?"), response_format=Paid)
    called = client.chat.completions.parse(
        **common, messages=asking("What?"), tools=tools, tool_choice="required"
    )
    with client.chat.completions.stream(
        **common, messages=asking("What?"), tools=tools, tool_choice="required"
    ) as stream:
        streamed = stream.get_final_completion()
    assert parsed.choices[0].message.parsed is not None
    for before in (parsed, called, streamed):
        message = before.choices[0].message
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": "done"} for call in message.tool_calls or []
        ]
        messages = [*asking("What?"), message.model_dump(), *results, *asking("And now?")]
        assert (
            client.chat.completions.create(**common, messages=messages, tools=tools).usage.prompt_tokens > 60
        )


def test_a_refusal_and_reasoning_sent_back_reach_the_prompt(server):
    def prompt(**message):
        messages = [*asking("What?"), {"role": "assistant", **message}, *asking("Why?")]
        return answered(server, messages=messages)["usage"]["prompt_tokens"]

    as_content = prompt(content="I won't say so.")
    assert prompt(content=None, refusal="I won't say so.") == as_content
    assert prompt(content=[{"type": "refusal", "refusal": "I won't say so."}]) == as_content


def test_continuous_usage_counts_the_tokens_of_each_piece(client):
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=asking("What?"),
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, chunks[-1].usage.completion_tokens)
    assert len({chunk.usage.prompt_tokens for chunk in chunks}) == 1


def test_a_bias_decides_tokens(server):
    tokenizer = server.service.processor.tokenizer
    (wanted,) = tokenizer.encode("A")
    always = answered(server, logit_bias={str(wanted): 100.0})
    assert always["choices"][0]["message"]["content"] == "A" * 6
    never = answered(
        server, logit_bias={str(wanted): 100.0, str(tokenizer.encode("B")[0]): -100.0}, temperature=1
    )
    assert never["choices"][0]["message"]["content"] == "A" * 6


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({"choice": ["yes", "no", 'a "quoted" é']}, lambda text: text in ("yes", "no", 'a "quoted" é')),
        (
            {"regex": r"[0-9]{3}-[a-c]"},
            lambda text: len(text) == 5 and text[:3].isdigit() and text[4] in "abc",
        ),
        ({"grammar": 'start: "a" | "b" start'}, lambda text: text.strip("b") == "a"),
        ({"json": {"type": "boolean"}}, lambda text: type(json.loads(text)) is bool),
        ({"json": '{"type": "boolean"}'}, lambda text: type(json.loads(text)) is bool),
        ({"json_object": True}, lambda text: text.startswith("{")),
    ],
    ids=["choice", "regex", "grammar", "json", "json text", "json_object"],
)
def test_structured_outputs_keep_to_their_form(server, wanted, fits):
    for seed in range(3):
        body = answered(server, structured_outputs=wanted, temperature=1.0, seed=seed, max_tokens=60)
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "stop" or "json_object" in wanted or "grammar" in wanted, choice
        if choice["finish_reason"] == "stop" or "json_object" in wanted:
            assert fits(choice["message"]["content"]), choice


def test_a_forced_calls_arguments_are_streamed(client):
    parameters = {
        "type": "object",
        "properties": {"words": {"type": "string", "minLength": 20, "maxLength": 30}},
        "required": ["words"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "say", "parameters": parameters}}]
    whole = {"model": "tiny", "messages": asking("What?"), "tools": tools, "tool_choice": "required"}
    pieces = [
        call
        for chunk in client.chat.completions.create(**whole, max_tokens=200, stream=True)
        for choice in chunk.choices
        for call in choice.delta.tool_calls or []
    ]
    assert pieces[0].function.name == "say"
    assert [call.function.name for call in pieces[1:]] == [None] * (len(pieces) - 1)
    assert len(pieces) > 5
    (call,) = client.chat.completions.create(**whole, max_tokens=200).choices[0].message.tool_calls
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments


def test_an_answer_goes_on_with_the_last_message(server):
    begun = {"role": "assistant", "content": "It is"}
    new = answered(server, messages=[*asking("What?"), begun])
    on = answered(
        server, messages=[*asking("What?"), begun], continue_final_message=True, add_generation_prompt=False
    )
    assert on["usage"]["prompt_tokens"] < new["usage"]["prompt_tokens"]
    counted = server.post("/tokenize", messages=[*asking("What?"), begun], continue_final_message=True).json()
    assert counted["count"] == on["usage"]["prompt_tokens"]
    tokenizer = server.service.processor.tokenizer
    assert tokenizer.decode(counted["tokens"]).endswith("It is")


def test_effort_none_turns_thinking_off_where_the_template_can():
    from qvl.serve.chat import conversation_of
    from qvl.serve.schema import ChatRequest

    def variables(**body):
        return conversation_of(ChatRequest(model="m", messages=asking(), **body)).template_variables

    assert variables() == {}
    assert variables(reasoning_effort="none") == {"enable_thinking": False}
    assert variables(reasoning_effort="low") == {"enable_thinking": True}
    assert variables(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}) == {
        "enable_thinking": False
    }
