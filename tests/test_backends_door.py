"""One door: `qvl.load` gives the same object for whatever is behind it, and that object does all there is to do."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qvl
from openai_server import openai_server, says, usage
from qvl.backends.base import Backend, Capabilities, Stream
from qvl.backends.fake import FakeModel, FakeStream
from qvl.backends.http import HttpModel, HttpStream
from qvl.backends.native import AnswerStream, NativeModel
from qvl.cli.main import main
from qvl.errors import BackendError, CapacityError, CheckpointError, PromptError
from qvl.outputs.actions import Click
from qvl.outputs.blocks import Page
from qvl.tasks import open as door
from qvl.tasks.model import Model

BOX = '[{"bbox_2d": [28, 56, 140, 252], "label": "cat"}]'
PAGE = '<h1 data-bbox="10 10 100 30">Title</h1><p data-bbox="10 40 200 60">Words.</p>'
CALL = '<tool_call>{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [50, 60]}}</tool_call>'


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (280, 280), "white").save(path)
    return path


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with openai_server() as running:
        yield running


@pytest.mark.parametrize("kind", [NativeModel, HttpModel, FakeModel, Model])
def test_every_backend_asks_by_the_same_methods(kind):
    assert issubclass(kind, Backend)
    wanted = [name for name, _ in inspect.getmembers(Backend, inspect.isfunction) if not name.startswith("_")]
    assert set(wanted) >= {"ask", "stream", "chat", "stream_chat", "ask_many"}
    for name in wanted:
        parameters = inspect.signature(getattr(kind, name)).parameters
        assert list(parameters) == list(inspect.signature(getattr(Backend, name)).parameters), name


@pytest.mark.parametrize("kind", [AnswerStream, HttpStream, FakeStream])
def test_streams_leave_their_ends_to_the_one_base_class(kind):
    assert issubclass(kind, Stream)
    assert {"__enter__", "__exit__", "__del__", "__next__", "finish", "close"} & set(vars(kind)) == set()


def test_a_folder_is_our_own_engine(tiny_checkpoint):
    assert isinstance(qvl.load(tiny_checkpoint).backend, NativeModel)
    assert isinstance(qvl.load(str(tiny_checkpoint)).backend, NativeModel)


def test_an_address_is_a_server(server):
    from openai_server import reply

    server.play(reply(200, {"data": [{"id": "Qwen/Qwen2.5-VL-7B-Instruct"}]}))
    assert isinstance(qvl.load(server.url).backend, HttpModel)


def test_a_served_name_goes_with_an_endpoint(server):
    model = qvl.load("Qwen/Qwen2.5-VL-7B-Instruct", endpoint=server.url)
    assert (model.name, server.seen) == ("Qwen/Qwen2.5-VL-7B-Instruct", [])


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("qwen2.5-vl-7b-awq", "Qwen/Qwen2.5-VL-7B-Instruct-AWQ"),
        ("Qwen-VL-Chat", "Qwen/Qwen-VL-Chat"),
        ("Qwen/Qwen2.5-VL-7B-Instruct-AWQ", "Qwen/Qwen2.5-VL-7B-Instruct-AWQ"),
        ("somebody/else", "somebody/else"),
    ],
)
def test_a_name_that_the_catalogue_lists_is_fetched_from_the_hub(name, hub_id, monkeypatch):
    class Fetched(Exception):
        pass

    def fetch(source, revision):
        raise Fetched(str(source))

    monkeypatch.setattr("qvl.checkpoint.hub._fetch", fetch)
    with pytest.raises(Fetched, match=f"^{hub_id}$"):
        qvl.load(name)


def test_a_folder_of_a_listed_name_goes_before_the_hub(tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "Qwen2.5-VL-7B").symlink_to(tiny_checkpoint)
    monkeypatch.chdir(tmp_path)
    assert qvl.load("Qwen2.5-VL-7B").name == "Qwen2.5-VL-7B"


def test_an_unknown_name_is_told_what_a_name_may_be_and_the_nearest_known():
    with pytest.raises(
        CheckpointError, match=r"no such folder; a hub id looks like .* did you mean qwen2.5-vl-7b"
    ):
        qvl.load("qwen2.5-vl-77b")


def test_nothing_named_is_the_embedded_model(monkeypatch):
    opened = []
    monkeypatch.setattr(
        "qvl.backends.native.load", lambda source, **options: opened.append((source, options)) or FakeModel()
    )
    door.open_backend()
    door.open_backend("mini", max_num_seqs=2, dtype=None)
    assert opened == [("mini", {"mapped": False}), ("mini", {"mapped": False, "max_num_seqs": 2})]


def test_boxes_are_in_pixels_of_the_picture(picture):
    found = Model(FakeModel(BOX)).boxes(picture, "the cat")
    assert [(b.label, tuple(map(round, b.rect))) for b in found.result] == [("cat", (28, 56, 140, 252))]


def test_a_served_model_finds_boxes_by_the_same_words(server, picture):
    server.play(says(BOX, counts=usage(300)))
    found = qvl.load("Qwen/Qwen2.5-VL-7B-Instruct", endpoint=server.url).boxes(picture, "the cat")
    assert [b.label for b in found.result] == ["cat"]


def test_a_page_is_read_into_its_blocks(picture):
    page = Model(FakeModel(PAGE)).page(picture).result
    assert isinstance(page, Page)
    assert page.text == "Title\nWords."


def test_a_document_is_read_page_by_page(tmp_path):
    path = tmp_path / "book.pdf"
    pages = [Image.new("RGB", (140, 280), "white") for _ in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:], resolution=72)
    read = Model(FakeModel(PAGE)).read(path, pages="2-3")
    assert [(r.page.number, r.page.text) for r in read] == [(2, "Title\nWords."), (3, "Title\nWords.")]


def test_several_files_are_one_document(picture):
    assert [r.page.number for r in Model(FakeModel(PAGE)).read([picture, picture])] == [1, 2]


def test_moments_and_events_are_in_seconds():
    frames = [Image.new("RGB", (56, 56))] * 8
    clip = {"type": "video", "video": frames, "sample_fps": 2.0}
    model = qvl.load("fake:The event happens in 00:01.00 - 00:02.50.")
    for found in (model.find_moment(clip, "a ball"), model.events(clip, "What happens?")):
        assert [(e.start, e.end) for e in found.result] == [(1.0, 2.5)]


def test_actions_are_on_the_real_screen(picture):
    found = Model(FakeModel(CALL)).actions(picture, "Press OK.")
    assert found.result.items == (Click(50.0, 60.0),)


def test_actions_on_a_phone_are_asked_for_as_such(picture):
    model = Model(FakeModel("none"))
    model.actions(picture, "Press OK.", tool="mobile_use")
    assert "mobile_use" in model.calls[0].system


def test_settings_reach_the_model(picture):
    model = Model(FakeModel(BOX))
    model.boxes(picture, "the cat", max_new_tokens=99)
    assert model.calls[0].settings == {"max_new_tokens": 99}


def test_one_picture_may_be_given_bare(picture):
    model = FakeModel("a")
    array = np.zeros((56, 56, 3), dtype=np.uint8)
    for media in (picture, [picture], str(picture), array, (array,)):
        assert model.ask(media, "?").text == "a"
        assert len(model.calls[-1].media) == 1


def test_a_closed_stream_has_no_answer(picture):
    stream = FakeModel("a\nb\n").stream(picture, "?")
    assert next(stream) == "a\n"
    stream.close()
    with pytest.raises(PromptError, match="closed"):
        stream.finish()


def test_leaving_the_block_closes_the_stream(picture):
    with FakeModel("a\nb\n").stream(picture, "?") as stream:
        assert next(stream) == "a\n"
    assert list(stream) == []


@pytest.mark.parametrize("verb", ["ask", "find-moment"])
def test_the_verbs_of_one_question_leave_the_weights_in_the_file(verb, tiny_checkpoint, monkeypatch):
    """Answers begin seconds sooner; a server has weights of its own, and the verb goes on to it all the same."""
    asked = []

    def load(source, **options):
        asked.append(options["mapped"])
        raise CapacityError("seen")

    monkeypatch.setattr("qvl.backends.native.load", load)
    media = "examples/receipt.png" if verb == "ask" else "examples/clip.mp4"
    assert main([verb, media, "What?", "--model", str(tiny_checkpoint)]) == 2
    assert asked == [True]


def test_an_address_ignores_where_our_own_weights_would_lie(server):
    model = door.open_backend("Qwen/Qwen2.5-VL-7B-Instruct", endpoint=server.url, mapped=True)
    assert isinstance(model.backend, HttpModel)


def test_a_backend_that_is_open_is_taken_as_it_is(picture):
    fake = FakeModel(BOX)
    model = qvl.load(fake)
    assert model.backend is fake
    assert model.boxes(picture, "the cat").result.items
    assert qvl.load(model) is model
    assert len(model.calls) == 1  # what only this backend has is reached through


def test_the_fake_is_a_source_like_any_other(tmp_path):
    assert qvl.load("fake:10.36").ask([], "What is the total?").text == "10.36"
    path = tmp_path / "answers.json"
    path.write_text('["first", "second"]')
    model = qvl.load(f"fake:{path}")
    assert [model.ask([], "?").text for _ in range(2)] == ["first", "second"]
    path.write_text('{"What is the total?": "10.36"}')
    assert qvl.load(f"fake:{path}", family="qwen3_vl").ask([], "What is the total?").text == "10.36"


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_a_file_that_holds_no_answers_is_refused(text, tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(text)
    with pytest.raises(BackendError, match=r"answers\.json: "):
        qvl.load(f"fake:{path}")


def test_the_verb_ask_takes_a_fake_model(picture, capsys):
    assert main(["ask", str(picture), "What?", "--model", "fake:a cat"]) == 0
    assert capsys.readouterr().out == "a cat\n"


@pytest.mark.parametrize("kind", [NativeModel, HttpModel])
def test_a_backend_says_by_its_class_what_it_can(kind):
    assert isinstance(vars(kind)["can"], Capabilities)


def test_what_a_backend_says_it_can_is_so(tiny_checkpoint):
    for model in (qvl.load(tiny_checkpoint), qvl.load("fake:a")):
        answer = model.ask([], "What?", max_new_tokens=2, logprobs=1)
        assert bool(answer.logprobs) == model.can.logprobs
        assert bool(answer.token_ids) == model.can.token_ids == (model.token_bytes is not None)
        assert (model.peak_memory_bytes is not None) == model.can.local
        if not model.can.raw:
            with pytest.raises(BackendError, match="no raw requests"):
                model.post({})


def test_nothing_asks_which_backend_it_has():
    """Found by reading: `hasattr`, `getattr` and `isinstance` on a backend anywhere in the package."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in (Path(qvl.__file__).parent).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"(hasattr|getattr|isinstance)\((\w+\.)*(backend|chat|asker|endpoint\.backend)\b", line)
    ]
    assert found == ["model.py: return getattr(self.backend, name)"]


def test_the_tasks_that_backends_had_in_0_1_work_for_one_more_release(picture):
    with pytest.warns(DeprecationWarning, match=r"FakeModel\.boxes is now qvl\.tasks\.model\.Model\.boxes"):
        found = FakeModel(BOX).boxes(picture, "the cat")
    assert [b.label for b in found.result] == ["cat"]


def test_a_model_asks_its_backend_for_all_that_backends_say_of_themselves():
    """What has a default in `Backend` and isn't forwarded would be answered with that default."""
    said = {name for name, value in vars(Backend).items() if isinstance(value, property)}
    made_of_others = {"ask", "stream", "aask", "astream", "astream_chat", "aask_many"}
    methods = {
        name for name, value in vars(Backend).items() if inspect.isfunction(value) and name[:2] != "__"
    }
    assert said | (methods - made_of_others) <= set(vars(Model))
