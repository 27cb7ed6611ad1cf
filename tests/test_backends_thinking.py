"""What a thinking model thought is told apart from what it answered, by every backend, verb and the server."""

import dataclasses
import io
import json
import shutil

import pytest
from rich.console import Console

import qvl
from conftest import CHAT_TEMPLATE
from openai_server import delta, openai_server, says, streams, usage
from qvl.backends.fake import FakeModel
from qvl.backends.http import connect
from qvl.cli.chat import Talk
from qvl.cli.main import main
from qvl.engine.engine import Event, Usage
from qvl.tasks import open as door
from qvl.tasks.run import run_task
from serve_live import asking, live

THOUGHTFUL = "<think>\nThe circle is red.\n</think>\n\nred"
OPENING_TEMPLATE = CHAT_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
assert OPENING_TEMPLATE != CHAT_TEMPLATE


@pytest.fixture(scope="module")
def server():
    with openai_server() as running:
        yield running


def thinking_model(server, name="Qwen/Qwen3-VL-8B-Thinking"):
    return connect(server.url, name)


# ----------------------------------------------------------------------------------------- over HTTP


def test_a_server_that_parts_thoughts_is_believed(server):
    server.play(says("\n\nred", reasoning_content="\nThe circle is red.\n"))
    answer = thinking_model(server).ask([], "?")
    assert (answer.text, answer.reasoning) == ("red", "The circle is red.")


def test_the_other_name_of_the_field_is_read_too(server):
    server.play(says("red", reasoning="hm", reasoning_content=None))
    assert thinking_model(server).ask([], "?").reasoning == "hm"


def test_thoughts_that_a_server_leaves_in_the_text_are_parted_here(server):
    server.play(says(THOUGHTFUL))
    answer = thinking_model(server).ask([], "?")
    assert (answer.text, answer.reasoning) == ("red", "The circle is red.")


@pytest.mark.parametrize("name", ["Qwen/Qwen3-VL-8B-Thinking", "Qwen/Qwen3.5-9B"])
def test_thoughts_without_their_opening_tag_are_parted_too(server, name):
    server.play(says(THOUGHTFUL.removeprefix("<think>")))
    answer = thinking_model(server, name).ask([], "?")
    assert (answer.text, answer.reasoning) == ("red", "The circle is red.")


def test_a_cut_thought_is_no_answer(server):
    server.play(says("The circle is", "length"), says("", "length", reasoning_content="The circle is"))
    for _ in range(2):
        answer = thinking_model(server).ask([], "?")
        assert (answer.text, answer.reasoning) == ("", "The circle is")


def test_a_server_that_hides_thoughts_gives_an_answer(server):
    server.play(says("red", "stop"))
    answer = thinking_model(server).ask([], "?")
    assert (answer.text, answer.reasoning) == ("red", "")


def parts(stream):
    found = list(stream.pieces())
    return "".join(p.text for p in found if p.thought), "".join(p.text for p in found if not p.thought)


def test_a_stream_of_parted_thoughts_keeps_them_apart(server):
    server.play(
        streams(
            delta(reasoning_content="The circle "),
            delta(reasoning_content="is red."),
            delta("\n\nr"),
            delta("ed", "stop"),
            {"choices": [], "usage": usage()},
        )
    )
    stream = thinking_model(server).stream([], "?")
    assert parts(stream) == ("The circle is red.", "red")
    assert (stream.answer.text, stream.answer.reasoning) == ("red", "The circle is red.")


@pytest.mark.parametrize("opening", ["<think>", ""])
def test_a_stream_of_thoughts_in_the_text_is_parted_on_its_way(server, opening):
    text = THOUGHTFUL.replace("<think>", opening)
    server.play(streams(*[delta(c) for c in text], delta("", "stop")))
    stream = thinking_model(server).stream([], "?")
    assert parts(stream) == ("The circle is red.", "red")
    assert (stream.answer.text, stream.answer.reasoning) == ("red", "The circle is red.")


def test_a_stream_of_a_server_that_hides_thoughts_ends_in_the_answer(server):
    server.play(streams(delta("re"), delta("d", "stop")))
    stream = thinking_model(server).stream([], "?")
    assert parts(stream)[1] == "red" == stream.answer.text
    assert stream.answer.reasoning == ""


def test_a_stream_cut_while_thinking_is_no_answer(server):
    server.play(streams(delta("hm, "), delta("so", "length")))
    stream = thinking_model(server).stream([], "?")
    assert "".join(stream) == ""
    assert (stream.answer.text, stream.answer.reasoning) == ("", "hm, so")


def test_a_server_that_runs_without_its_reasoning_parser_is_told_of(server):
    server.play(says(THOUGHTFUL.removeprefix("<think>")))
    assert "reasoning parser" in " ".join(thinking_model(server, "Qwen/Qwen3.5-9B").ask([], "?").notes)


# ------------------------------------------------------------------------------------ our own engine


@pytest.fixture(scope="module")
def opening(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with a template that opens the thinking, as Qwen3-VL-Thinking's does."""
    folder = tmp_path_factory.mktemp("thinking") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "chat_template.jinja").write_text(OPENING_TEMPLATE, encoding="utf-8")
    return qvl.load(folder, max_num_seqs=4)


def scripted(monkeypatch, model, *texts, finish="stop"):
    """The engine says these texts in place of the network's; its queue and cache stay real."""
    running, told = [], []

    def submit(inputs, params, constraint=None):
        running.append((len(told) + 1, list(texts)))
        told.append(inputs)
        return len(told)

    def step():
        events = []
        for request, left in list(running):
            text = left.pop(0)
            end = (
                {}
                if left
                else {"finish_reason": finish, "usage": Usage(9, 0, len(texts), 0, 0, 0.0, 0.0, 0.0, 0.0)}
            )
            events.append(Event(request, text=text, **end))
            if not left:
                running.remove((request, left))
        return events

    monkeypatch.setattr(model.engine, "submit", submit)
    monkeypatch.setattr(model.engine, "step", step)
    monkeypatch.setattr(model.engine, "cancel", lambda request: None)


def test_a_template_that_opens_thinking_makes_the_first_words_thoughts(opening, monkeypatch):
    scripted(monkeypatch, opening, "\nThe circle", " is red.\n</th", "ink>\n\nr", "ed")
    stream = opening.stream([], "?")
    assert "".join(stream) == "red"
    assert (stream.answer.text, stream.answer.reasoning) == ("red", "The circle is red.")


def test_many_questions_are_parted_each(opening, monkeypatch):
    scripted(monkeypatch, opening, "a</think>", "b")
    answers = opening.ask_many([([], "1"), ([], "2")])
    assert [(a.text, a.reasoning) for a in answers] == [("b", "a")] * 2


def test_a_thought_cut_by_the_limit_is_no_answer_here(opening):
    answer = opening.ask([], "?", max_new_tokens=5, ignore_eos=True)
    assert answer.text == ""
    assert answer.completion_tokens == 5
    assert answer.reasoning.strip() == answer.reasoning


def test_a_template_that_does_not_open_thinking_changes_nothing(tiny_checkpoint, monkeypatch):
    model = qvl.load(tiny_checkpoint)
    scripted(monkeypatch, model, "red ", "</think> blue")
    answer = model.ask([], "?")
    assert (answer.text, answer.reasoning) == ("red </think> blue", "")


def test_a_failing_device_ends_ask_many_in_an_error(tiny_checkpoint, monkeypatch):
    model = qvl.load(tiny_checkpoint)
    scripted(monkeypatch, model, "red")
    model.engine.step = lambda: [Event(1, finish_reason="error", error="out of memory")]
    with pytest.raises(qvl.errors.BackendError, match="out of memory"):
        model.ask_many([([], "?")])


# ------------------------------------------------------------------------------------------- verbs


@pytest.fixture
def fake(monkeypatch):
    def use(answers, **options):
        model = FakeModel(answers, **options)
        monkeypatch.setattr(door, "open_backend", lambda *a, **k: model)
        return model

    return use


def test_ask_prints_the_answer_without_the_thoughts(fake, capsys):
    fake(THOUGHTFUL)
    assert main(["ask", "What colour?"]) == 0
    assert capsys.readouterr() == ("red\n", "")


def test_ask_shows_thoughts_on_stderr_when_told(fake, capsys):
    fake(THOUGHTFUL)
    assert main(["ask", "--show-thinking", "What colour?"]) == 0
    assert capsys.readouterr() == ("red\n", "The circle is red.\n")


def test_shown_thoughts_end_in_a_line_of_their_own_before_the_answer(fake, monkeypatch):
    """On a terminal both streams are one."""
    fake(THOUGHTFUL)
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    assert main(["ask", "--show-thinking", "What colour?"]) == 0
    assert terminal.getvalue() == "The circle is red.\nred\n"


def test_ask_keeps_thoughts_apart_in_json(fake, capsys):
    fake(THOUGHTFUL)
    assert main(["ask", "--json", "What colour?"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["reasoning"]) == ("red", "The circle is red.")


def test_ask_says_when_the_model_still_thought(fake, capsys):
    fake("<think>hm")
    assert main(["ask", "What colour?"]) == 0
    out, err = capsys.readouterr()
    assert out == "\n"
    assert "still thought" in err
    assert "--max-new-tokens" in err


def test_boxes_of_a_thinking_model_are_those_of_its_answer(tmp_path):
    from PIL import Image

    reply = '<think>maybe [{"bbox_2d": [1, 2, 3, 4]}]</think>[{"bbox_2d": [28, 28, 56, 84], "label": "a"}]'
    found = run_task(FakeModel(reply), "boxes", [Image.new("RGB", (280, 280))], "a")
    assert [tuple(map(round, box.rect)) for box in found.result] == [(28, 28, 56, 84)]
    assert found.answer.reasoning.startswith("maybe")


def test_thoughts_that_go_round_in_circles_are_stopped(tmp_path):
    from PIL import Image

    loop = "<think>" + "Wait, let me look at the picture again to be sure of what it shows.\n" * 60
    model = FakeModel([loop, '[{"bbox_2d": [28, 28, 56, 84], "label": "a"}]'])
    found = run_task(model, "boxes", [Image.new("RGB", (280, 280))], "a")
    assert len(found.result) == 1
    assert "while thinking" in found.warnings[0]


def test_boxes_cut_while_thinking_are_none_with_the_cause():
    from PIL import Image

    found = run_task(FakeModel("<think>hm"), "boxes", [Image.new("RGB", (280, 280))], "a")
    assert not found.result.items
    assert "still thought" in found.warnings[0]


def test_chat_shows_thoughts_and_forgets_them():
    console = Console(file=io.StringIO(), width=200)
    talk = Talk(FakeModel(THOUGHTFUL), console, None, {})
    assert talk.hear("What colour?")
    assert "The circle is red." in console.file.getvalue()
    assert talk.messages[-1] == {"role": "assistant", "content": "red"}


def test_chat_says_when_the_model_still_thought():
    console = Console(file=io.StringIO(), width=200)
    talk = Talk(FakeModel("<think>The circle is"), console, None, {})
    assert talk.hear("What colour?")
    assert "The circle is" in console.file.getvalue()
    assert "still thought when it was cut" in console.file.getvalue()
    assert talk.messages[-1] == {"role": "assistant", "content": ""}


def test_chat_parts_thoughts_on_their_way(opening, monkeypatch):
    scripted(monkeypatch, opening, "\nThe circle", " is red.\n</th", "ink>\n\nr", "ed")
    console = Console(file=io.StringIO(), width=200)
    talk = Talk(opening, console, None, {})
    assert talk.hear("What colour?")
    assert console.file.getvalue().startswith("The circle is red.\n\nred\n")
    assert talk.messages[-1]["content"] == "red"


# ------------------------------------------------------------------------------------------ server


@pytest.fixture
def serving(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "chat_template.jinja").write_text(OPENING_TEMPLATE, encoding="utf-8")
    with live(qvl.load(folder, max_num_seqs=2)) as running:
        yield running


def test_the_server_parts_thoughts_whole_and_streamed_alike(serving):
    whole = serving.chat(max_tokens=5, ignore_eos=True).json()["choices"][0]["message"]
    assert whole["content"] == ""
    assert whole["reasoning_content"]
    body = serving.chat(max_tokens=5, ignore_eos=True, stream=True).text
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == whole["reasoning_content"]
    assert "".join(d.get("content", "") for d in deltas) == ""


def speaking(monkeypatch, running, *texts):
    """Tokens of the network's choice, whose text is these words, one a token. Returns settings of the request."""
    engine, told = running.service.model.engine, {}
    step = engine.step

    def say():
        events = []
        for event in step():
            at = told.get(event.request_id, 0)
            told[event.request_id] = at + len(event.token_ids)
            said = "".join(texts[at : at + len(event.token_ids)])
            events.append(dataclasses.replace(event, text=said))
        return events

    monkeypatch.setattr(engine, "step", say)
    return {"max_tokens": len(texts), "ignore_eos": True}


def deltas_of(reply):
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    return [choice["delta"] for event in events for choice in event["choices"]]


def of(deltas, name):
    return "".join(delta.get(name) or "" for delta in deltas)


WORDS = ["\nThe circle", " is red.\n</th", "ink>\n\nr", "ed"]


@pytest.mark.parametrize(
    ("words", "thought", "answer"),
    [
        (WORDS, "The circle is red.", "red"),
        (["<thi", "nk>hm", "\n", "</think", ">", "\n\n", "red"], "hm", "red"),  # it opens them again
        (["hm", " </", "b> a", "nd</think>re", "d</think>"], "hm </b> and", "red</think>"),
        (["hm", " so </", "thi"], "hm so </thi", ""),  # cut within the tag
        (["</think>", "red"], None, "red"),
    ],
)
def test_the_server_parts_thoughts_wherever_the_tag_is_cut(serving, monkeypatch, words, thought, answer):
    settings = speaking(monkeypatch, serving, *words)
    message = serving.chat(**settings).json()["choices"][0]["message"]
    assert (message.get("reasoning_content"), message["content"]) == (thought, answer)
    deltas = deltas_of(serving.chat(**settings, stream=True))
    assert (of(deltas, "reasoning_content") or None, of(deltas, "content")) == (thought, answer)
    kinds = ["reasoning_content" in d for d in deltas if of([d], "reasoning_content") or of([d], "content")]
    assert kinds == sorted(kinds, reverse=True)  # thoughts first, each delta of one kind


def test_a_model_that_opens_its_thoughts_itself_is_parted_by_the_server(tiny_checkpoint, monkeypatch):
    with live(qvl.load(tiny_checkpoint, max_num_seqs=2)) as running:
        settings = speaking(monkeypatch, running, "<thi", "nk>\nhm\n</thi", "nk>\n\nr", "ed")
        for message in running.chat(**settings, n=2).json()["choices"]:
            assert (message["message"]["reasoning_content"], message["message"]["content"]) == ("hm", "red")
        deltas = deltas_of(running.chat(**settings, stream=True))
        assert (of(deltas, "reasoning_content"), of(deltas, "content")) == ("hm", "red")
        settings = speaking(monkeypatch, running, "red </thi", "nk> blue")
        message = running.chat(**settings).json()["choices"][0]["message"]
        assert (message.get("reasoning_content"), message["content"]) == (None, "red </think> blue")


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_in_a_thought_is_none_and_one_after_it_is(serving, monkeypatch, stream):
    call = '<tool_call>\n{"name": "look", "arguments": {"n": %d}}\n</tool_call>'
    settings = speaking(monkeypatch, serving, f"perhaps {call % 1}", "</think>\n\n<tool_", (call % 2)[6:])
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": parameters}}]
    reply = serving.chat(**settings, tools=tools, stream=stream)
    said = deltas_of(reply) if stream else [reply.json()["choices"][0]["message"]]
    assert of(said, "reasoning_content") == f"perhaps {call % 1}"
    calls = [call for one in said for call in one.get("tool_calls") or ()]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"n": 2}]


def test_what_a_grammar_forces_is_the_answer(serving):
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["x"]}}}
    message = serving.chat(max_tokens=20, response_format=schema).json()["choices"][0]["message"]
    assert json.loads(message["content"]) == "x"
    assert "reasoning_content" not in message


def test_a_message_with_thoughts_can_be_sent_back(serving):
    earlier = {"role": "assistant", "content": "red", "reasoning_content": "The circle is red."}
    asked = [*asking("What colour?"), earlier, *asking("Sure?")]
    assert serving.chat(messages=asked).status_code == 200


def test_our_client_reads_our_server(serving):
    answer = connect(serving.url, "tiny").ask([], "What?", max_new_tokens=5, ignore_eos=True)
    assert answer.text == ""
    assert answer.reasoning
