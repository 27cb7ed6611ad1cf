"""/v1/responses and /v1/completions, as the openai package sees them."""

import json

import openai
import pytest

import qvl
from serve_live import asking, data_url, live, png


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    with live(qvl.load(tiny_checkpoint, max_num_seqs=4)) as running:
        yield running
        running.wait_until_idle()


@pytest.fixture(scope="module")
def client(server):
    return server.openai()


def image():
    return {"type": "input_image", "image_url": data_url(png()), "detail": "auto"}


def asked(*parts):
    return [{"role": "user", "content": [*parts, {"type": "input_text", "text": "What?"}]}]


SAY = {
    "type": "object",
    "properties": {"words": {"type": "string", "minLength": 20, "maxLength": 30}},
    "required": ["words"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "say", "description": "Says it.", "parameters": SAY, "strict": True}


def test_a_response_is_what_chat_answers(server, client):
    response = client.responses.create(
        model="tiny", instructions="Be brief.", input=asked(image()), max_output_tokens=8
    )
    chat = server.post(
        model="tiny",
        messages=[
            {"role": "system", "content": "Be brief."},
            *asking("What?", {"type": "image_url", "image_url": {"url": image()["image_url"]}}),
        ],
        max_tokens=8,
    ).json()
    assert response.output_text == chat["choices"][0]["message"]["content"]
    assert (response.usage.input_tokens, response.usage.output_tokens) == (chat["usage"]["prompt_tokens"], 8)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"
    plain = client.responses.create(model="tiny", input="What?", max_output_tokens=8)
    assert plain.output_text == server.chat(max_tokens=8).json()["choices"][0]["message"]["content"]


def test_a_streamed_response_is_the_whole_one_in_pieces(client):
    whole = client.responses.create(model="tiny", input=asked(image()), max_output_tokens=12)
    events = list(
        client.responses.create(model="tiny", input=asked(image()), max_output_tokens=12, stream=True)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert "".join(event.delta for event in events[4:-4]) == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.total_tokens == whole.usage.total_tokens


def test_the_packages_own_stream_puts_it_together(client):
    form = {"format": {"type": "json_schema", "name": "say", "schema": SAY, "strict": True}}
    with client.responses.stream(model="tiny", input="What?", text=form) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.status == "completed"
    assert 20 <= len(json.loads(final.output_text)["words"]) <= 30


def test_calls_come_as_items_and_go_back_with_their_results(client):
    common = {"model": "tiny", "tools": [TOOL], "max_output_tokens": 200}
    first = client.responses.create(**common, input="What?", tool_choice="required")
    (call,) = first.output
    assert (call.type, call.name, first.status) == ("function_call", "say", "completed")
    assert 20 <= len(json.loads(call.arguments)["words"]) <= 30
    events = list(client.responses.create(**common, input="What?", tool_choice="required", stream=True))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    assert len(deltas) > 3
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "said"}
    back = [{"role": "user", "content": "What?"}, *[item.to_dict() for item in first.output], result]
    second = client.responses.create(**common | {"max_output_tokens": 4}, input=back)
    assert second.usage.input_tokens > first.usage.input_tokens + 20
    named = client.responses.create(**common, input="What?", tool_choice={"type": "function", "name": "say"})
    assert named.output[0].name == "say"


def test_a_response_keeps_to_its_format(client):
    from pydantic import BaseModel

    class Paid(BaseModel):
        paid: bool

    response = client.responses.parse(model="tiny", input=asked(image()), text_format=Paid)
    assert isinstance(response.output_parsed, Paid)


def test_thoughts_are_an_item_of_their_own(client):
    sent = [
        {"role": "user", "content": "What?"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "It.", "annotations": []}]},
        {"role": "user", "content": "Why?"},
    ]
    assert client.responses.create(model="tiny", input=sent, max_output_tokens=4).output_text is not None


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", ""),
        ({"background": True}, "background", "False"),
        ({"tools": [{"type": "web_search"}]}, "tools", "'web_search' is not supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "'item_reference' is not supported"),
        ({"input": asked({"type": "input_file", "file_id": "x"})}, "input[0].content[0]", "'input_file'"),
        (
            {"input": asked({"type": "input_image", "file_id": "x"})},
            "input[0].content[0].image_url.url",
            "string",
        ),
        ({"temperature": 9}, "temperature", "less than or equal to 2"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_its_place(server, body, param, words):
    answer = server.post("/v1/responses", **{"model": "tiny", "input": "x"} | body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text
    assert words in answer.json()["error"]["message"]


# completions


def test_a_completion_goes_on_with_the_prompt_as_it_stands(server, client):
    chat = server.chat(max_tokens=8).json()
    tokens = server.post("/tokenize", messages=asking("What?")).json()["tokens"]
    text = server.post("/detokenize", tokens=tokens).json()["prompt"]
    for prompt in (text, tokens):
        completion = client.completions.create(model="tiny", prompt=prompt, max_tokens=8)
        assert completion.choices[0].text == chat["choices"][0]["message"]["content"]
        assert completion.usage.prompt_tokens == len(tokens)
        assert completion.choices[0].finish_reason == chat["choices"][0]["finish_reason"]
    chunks = list(client.completions.create(model="tiny", prompt=text, max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == completion.choices[0].text
    assert client.completions.create(model="tiny", prompt=text).usage.completion_tokens <= 16


def test_several_prompts_and_answers_come_in_their_order(client):
    alone = [
        client.completions.create(model="tiny", prompt=p, max_tokens=6).choices[0].text for p in ("a", "bc")
    ]
    both = client.completions.create(model="tiny", prompt=["a", "bc"], max_tokens=6, n=2)
    assert [choice.text for choice in both.choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]


def test_a_completions_log_probabilities_have_offsets(client):
    (choice,) = client.completions.create(model="tiny", prompt="a", max_tokens=6, logprobs=2).choices
    told = choice.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 6
    assert all(len(top) <= 2 for top in told.top_logprobs)
    assert told.text_offset[0] == 0
    usage = list(
        client.completions.create(
            model="tiny", prompt="a", max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
    )[-1].usage
    assert usage.completion_tokens == 6


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": []}, "is empty"),
        ({"prompt": ""}, "no tokens"),
        ({"prompt": [10**6]}, "there are"),
        ({"prompt": "<|image_pad|>"}, "placeholder of an image"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
    ids=str,
)
def test_a_prompt_that_cannot_be_is_refused(server, body, words):
    answer = server.post("/v1/completions", **{"model": "tiny", "prompt": "x"} | body)
    assert answer.status_code == 400, answer.text
    assert words in answer.text


def test_completions_keep_to_structured_outputs(client):
    completion = client.completions.create(
        model="tiny", prompt="x", extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert completion.choices[0].text in ("yes", "no")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
