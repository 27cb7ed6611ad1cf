"""Tool calls in the family's words, and answers kept to schemas: what a random model can only do when made to."""

import json

import pytest

import qvl
from qvl.errors import PromptError
from qvl.inputs.tokenizer import Tokenizer
from qvl.serve.problems import Problem
from qvl.serve.structured import Grammars
from qvl.serve.tools import Call, CallReader, ForcedCallReader, call_grammar, readable, write_tools
from serve_live import asking, live, picture


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    with live(qvl.load(tiny_checkpoint, max_num_seqs=4)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.openai()


def tool(name, **properties):
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


SMALL = {"type": "integer", "minimum": 0, "maximum": 99}
TOOLS = [tool("lookup", n=SMALL), tool("click", x=SMALL, y=SMALL)]


def read(pieces, names=("lookup",)):
    """Texts joined, calls as (name, arguments)."""
    reader, said = CallReader(names), []
    for piece in [*pieces, None]:
        for one in reader.finish() if piece is None else reader.push(piece):
            if isinstance(one, Call):
                said.append((one.name, json.loads(one.arguments)))
            elif said and isinstance(said[-1], str):
                said[-1] += one
            else:
                said.append(one)
    return said


CALL = '<tool_call>\n{"name": "lookup", "arguments": {"n": 3}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain text", ["plain text"]),
        ("a < b and <tool", ["a < b and <tool"]),
        ("ends in space \n", ["ends in space \n"]),
        (CALL, [("lookup", {"n": 3})]),
        (f"Let me see.\n{CALL}", ["Let me see.", ("lookup", {"n": 3})]),
        (f"{CALL}\n{CALL}", [("lookup", {"n": 3}), ("lookup", {"n": 3})]),
        (f"{CALL}\nDone.", [("lookup", {"n": 3}), "Done."]),
        (CALL.removesuffix("\n</tool_call>"), [("lookup", {"n": 3})]),
        (CALL.replace("lookup", "unknown"), [CALL.replace("lookup", "unknown")]),
        ("<tool_call>{not json}</tool_call>", ["<tool_call>{not json}</tool_call>"]),
        ("<tool_call>[1]</tool_call>", ["<tool_call>[1]</tool_call>"]),
        ('<tool_call>{"name": "lookup', ['<tool_call>{"name": "lookup']),
        ('<tool_call>{"name": "lookup"}</tool_call>', [("lookup", {})]),
    ],
)
def test_calls_are_read_however_the_text_is_cut(text, said):
    for size in (1, 2, 3, 7, len(text)):
        assert read([text[i : i + size] for i in range(0, len(text), size)]) == said, size


def test_text_is_not_held_back_longer_than_a_tag_may_need():
    reader = CallReader(["f"])
    assert reader.push("hello <b>") == ["hello <b>"]
    assert reader.push("x <to") == ["x"]
    assert reader.push("day>") == [" <today>"]


def test_a_second_call_is_left_out_where_only_one_is_wanted():
    (call,) = CallReader(["lookup"], one=True).push(f"{CALL}\n{CALL}")
    assert call.name == "lookup"


@pytest.mark.parametrize("size", [1, 2, 7, 500])
def test_a_forced_calls_arguments_come_as_they_are_written(size):
    arguments = '{"a": "} \\" {", "b": [1, {"c": 2}]}'
    text = f'<tool_call>\n{{"name": "look\\"up", "arguments": {arguments}}}\n</tool_call>'
    reader = ForcedCallReader()
    said = [one for at in range(0, len(text), size) for one in reader.push(text[at : at + size])]
    first, *more = said + reader.finish()
    assert (first.name, first.arguments, first.goes_on) == ('look"up', "", False)
    assert "".join(one.arguments for one in more) == arguments
    assert all(one.goes_on and one.id == first.id for one in more)
    assert len(more) > 10 or size > 2


def test_arguments_written_as_text_stay_as_they_are():
    (call,) = CallReader(["f"]).push('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>')
    assert call.arguments == '{"a": 1}'


def test_templates_without_tools_are_helped_in_the_familys_words():
    messages = [
        {"role": "user", "content": "What is n?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "function": {"name": "lookup", "arguments": '{"n": 3}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]},
    ]
    system, user, call, result = write_tools(messages, TOOLS)
    assert system["role"] == "system"
    assert json.dumps(TOOLS[0]) in system["content"]
    assert user == messages[0]
    assert call == {"role": "assistant", "content": CALL}
    assert result == {"role": "user", "content": "<tool_response>\n42\n</tool_response>"}


def test_a_system_text_stays_before_the_tools():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    system, _ = write_tools(messages, TOOLS)
    assert system["content"].startswith("Be brief.\n\n# Tools")
    assert write_tools(messages, []) == messages


def test_arguments_that_are_no_json_are_refused():
    call = {"function": {"name": "f", "arguments": "{"}}
    with pytest.raises(PromptError, match="arguments of the call of f are not JSON"):
        write_tools([{"role": "assistant", "content": "", "tool_calls": [call]}], [])


# over HTTP


def create(client, **settings):
    body = {"model": "tiny", "messages": asking("What?", picture()), "max_tokens": 200} | settings
    return client.chat.completions.create(**body)


def test_a_required_call_is_made_and_valid(client):
    for seed in range(3):
        (choice,) = create(client, tools=TOOLS, tool_choice="required", temperature=1.5, seed=seed).choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == ({"n"} if call.function.name == "lookup" else {"x", "y"})
        assert all(0 <= value <= 99 for value in arguments.values())


def test_a_named_call_is_that_one(client):
    choice = {"type": "function", "function": {"name": "click"}}
    (answer,) = create(client, tools=TOOLS, tool_choice=choice).choices
    assert answer.message.tool_calls[0].function.name == "click"


def test_a_streamed_call_is_put_together_by_the_package(client):
    with client.chat.completions.stream(
        model="tiny", messages=asking("What?"), max_tokens=200, tools=TOOLS, tool_choice="required"
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert call.function.name in ("lookup", "click")
    assert final.choices[0].finish_reason == "tool_calls"


def test_a_call_and_its_result_may_be_sent_back(client):
    first = create(client, tools=TOOLS, tool_choice="required").choices[0].message
    messages = [
        *asking("What?"),
        first.model_dump(),
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "42"},
    ]
    answer = create(client, messages=messages, tools=TOOLS, max_tokens=4)
    assert (
        answer.usage.prompt_tokens > create(client, messages=messages[:1], max_tokens=4).usage.prompt_tokens
    )


def test_tools_are_in_the_prompt_unless_the_choice_is_none(client):
    def count(**settings):
        return create(client, max_tokens=1, **settings).usage.prompt_tokens

    assert count() == count(tools=TOOLS, tool_choice="none") < count(tools=TOOLS)


SCHEMA = {
    "type": "object",
    "properties": {"total": SMALL, "paid": {"type": "boolean"}, "currency": {"enum": ["EUR", "KRW"]}},
    "required": ["total", "paid", "currency"],
    "additionalProperties": False,
}


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "receipt", "schema": schema, "strict": True}}


def test_an_answer_keeps_to_its_schema(client):
    for seed in range(3):
        answer = create(client, response_format=schema_format(SCHEMA), temperature=1.5, seed=seed, n=2)
        for choice in answer.choices:
            said = json.loads(choice.message.content)
            assert set(said) == {"total", "paid", "currency"}
            assert type(said["paid"]) is bool
            assert said["currency"] in ("EUR", "KRW")
            assert choice.finish_reason == "stop"


def test_the_package_parses_into_a_pydantic_model(client):
    from typing import Annotated, Literal

    from pydantic import BaseModel, Field

    class Receipt(BaseModel):
        total: Annotated[int, Field(ge=0, le=99)]
        paid: bool
        currency: Literal["EUR", "KRW"]

    answer = client.chat.completions.parse(
        model="tiny", messages=asking("What?"), max_tokens=200, response_format=Receipt
    )
    assert isinstance(answer.choices[0].message.parsed, Receipt)


def test_json_object_begins_an_object(client):
    (choice,) = create(client, response_format={"type": "json_object"}, max_tokens=40).choices
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"$ref": "http://127.0.0.1/x.json"}, {"type": "string", "pattern": "("}]
)
def test_a_schema_that_cannot_be_kept_to_is_refused(server, schema):
    answer = server.chat(response_format=schema_format(schema))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == "response_format"
    assert error["code"] == "invalid_schema"
    server.wait_until_idle()


def test_with_schema_and_tools_the_answer_is_a_call_or_keeps_to_the_schema(server, client):
    tokenizer = server.service.processor.tokenizer
    kinds = set()
    for seed in range(12):
        bias = {str(tokenizer.encode_parts([(("{", "<tool_call>")[seed % 2], True)])[0]): 100.0}
        (choice,) = create(
            client,
            response_format=schema_format(SCHEMA),
            tools=TOOLS,
            temperature=1.5,
            seed=seed,
            logit_bias=bias,
        ).choices
        if choice.finish_reason == "length":  # the bias held in strings too
            continue
        kinds.add(choice.finish_reason)
        if choice.finish_reason == "tool_calls":
            assert all(call.function.name in ("lookup", "click") for call in choice.message.tool_calls)
        else:
            assert set(json.loads(choice.message.content)) == {"total", "paid", "currency"}
    assert kinds == {"stop", "tool_calls"}


def test_two_tools_of_one_name_and_a_choice_of_none_are_refused(server):
    assert "same name twice" in server.chat(tools=[TOOLS[0], TOOLS[0]]).text
    named = {"type": "function", "function": {"name": "fly"}}
    assert "'fly'; tools are lookup, click" in server.chat(tools=TOOLS, tool_choice=named).text


# grammars alone


@pytest.fixture(scope="module")
def grammars(tiny_checkpoint):
    tokenizer = Tokenizer.from_pretrained(tiny_checkpoint)
    return tokenizer, Grammars(tokenizer, tokenizer.id_of("<|im_end|>"))


def test_a_grammar_allows_what_fits_and_the_end_at_the_end_alone(grammars):
    tokenizer, made = grammars
    end = tokenizer.id_of("<|im_end|>")
    constraint = made.json({"enum": ["ab"]})
    for char in '"ab"':
        allowed = constraint.allowed()
        (token,) = tokenizer.encode(char)
        assert allowed[token]
        assert not allowed[end]
        assert allowed.sum() <= 2
        constraint.accept(token)
    assert constraint.allowed().nonzero()[0].tolist() == [end]
    constraint.accept(end)
    assert constraint.allowed().nonzero()[0].tolist() == [end]


def test_a_grammar_never_allows_a_control_token(grammars):
    tokenizer, made = grammars
    constraint = made.json({"type": "string"})
    constraint.accept(tokenizer.encode('"')[0])
    allowed = constraint.allowed()
    assert allowed.any()
    assert not any(allowed[i] for i in tokenizer.control_ids)


def test_two_answers_of_one_schema_do_not_share_their_state(grammars):
    tokenizer, made = grammars
    one, other = made.json({"enum": [12]}), made.json({"enum": [12]})
    one.accept(tokenizer.encode("1")[0])
    assert one.allowed().tolist() != other.allowed().tolist()


def test_a_token_that_does_not_fit_leaves_only_the_end(grammars):
    tokenizer, made = grammars
    constraint = made.json({"enum": [12]})
    constraint.accept(tokenizer.encode("x")[0])
    assert constraint.allowed().nonzero()[0].tolist() == [tokenizer.id_of("<|im_end|>")]


def test_a_request_cannot_change_how_its_schema_is_read(grammars):
    _, made = grammars
    made.json({"x-guidance": {"whitespace_flexible": True}, "enum": [1]})
    assert 'whitespace_flexible": true' not in call_grammar(
        [{"function": {"name": "f", "parameters": {"x-guidance": {"whitespace_flexible": True}}}}],
        frozenset(),
    )


def test_tags_that_are_tokens_come_as_tokens():
    assert call_grammar(TOOLS, frozenset(["<tool_call>", "</tool_call>"])).startswith("start: <tool_call>")
    assert call_grammar(TOOLS, frozenset()).startswith('start: "<tool_call>"')


def test_a_broken_grammar_is_a_refusal(grammars):
    _, made = grammars
    with pytest.raises(Problem, match="tools: its schema"):
        made.lark("start: (")


def test_a_forced_call_begins_with_the_tags_own_token(tiny_checkpoint):
    raw = json.loads((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    first = 1 + max(token["id"] for token in raw["added_tokens"])
    for i, text in enumerate(("<tool_call>", "</tool_call>")):
        raw["added_tokens"].append({**raw["added_tokens"][0], "content": text, "id": first + i})
    tokenizer = Tokenizer.from_json(raw)
    made = Grammars(tokenizer, tokenizer.id_of("<|im_end|>"))
    constraint = made.lark(call_grammar(TOOLS[:1], frozenset(tokenizer.special)))
    assert constraint.allowed().nonzero()[0].tolist() == [first]
    rest = '\n{"name": "lookup", "arguments": {"n": 3}}\n'
    for token in [first, *tokenizer.encode(rest), first + 1]:
        assert constraint.allowed()[token], token
        constraint.accept(token)
    assert constraint.allowed().nonzero()[0].tolist() == [tokenizer.id_of("<|im_end|>")]


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "is_closed"),
    [
        (OBJECT, True),
        (OBJECT | {"additionalProperties": True}, False),
        (OBJECT | {"required": ["b"]}, False),
        (OBJECT | {"required": [{}]}, False),
        ({"type": "object"}, False),
        ({"$defs": {"properties": OBJECT}, "$ref": "#/$defs/properties"}, True),
        ({"properties": {"properties": {"type": "string"}}}, True),
        ({"allOf": [OBJECT, {"properties": {"b": {}}}]}, False),
        (OBJECT | {"anyOf": [{"required": ["a"]}]}, False),
        ({"enum": [OBJECT]}, False),
    ],
    ids=str,
)
def test_an_object_holds_what_its_schema_names(schema, is_closed):
    text = json.dumps(readable(schema))
    assert ('"additionalProperties": false' in text) == is_closed
    assert readable(schema)["properties"]["properties"] == {"type": "string"} if "string" in text else True


def test_no_keys_are_invented_where_a_schema_leaves_that_open(client):
    open_tool = tool("lookup", n=SMALL)
    del open_tool["function"]["parameters"]["additionalProperties"]
    for seed in range(3):
        (choice,) = create(
            client, tools=[open_tool], tool_choice="required", temperature=1.5, seed=seed
        ).choices
        (call,) = choice.message.tool_calls
        assert set(json.loads(call.function.arguments)) == {"n"}
