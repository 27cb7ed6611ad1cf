"""A reply that goes round in circles is stopped with a reason, asked for again, and at last about halves."""

import json

import pytest
from PIL import Image

from qvl.backends.fake import FakeModel
from qvl.cli.main import main
from qvl.errors import PromptError
from qvl.geometry import Size
from qvl.inputs.pages import list_pages
from qvl.tasks import open as door
from qvl.tasks.journal import Journal
from qvl.tasks.pages import read_pages
from qvl.tasks.retry import ask_watched, check_retry
from qvl.tasks.run import run_task

LOOP = "The quick brown fox jumps over the lazy dog near the river bank.\n" * 40
LOOPING_BOX = (
    '[{"bbox_2d": [28, 28, 56, 56], "label": "a"}' + ', {"bbox_2d": [84, 84, 112, 112], "label": "b"}' * 9
)


def box(*corners: int, label: str = "a") -> str:
    return json.dumps([{"bbox_2d": corners, "label": label}])


def page(*corners: int, text: str) -> str:
    return f'<p data-bbox="{" ".join(map(str, corners))}">{text}</p>'


@pytest.fixture
def tall():
    return Image.new("RGB", (280, 1120), "white")


@pytest.fixture
def fake(monkeypatch):
    def use(answers):
        model = FakeModel(answers)
        monkeypatch.setattr(door, "open_backend", lambda *a, **k: model)
        return model

    return use


@pytest.fixture
def picture(tmp_path, tall):
    tall.save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_a_reply_that_ends_by_itself_is_asked_for_once(tall):
    model = FakeModel(box(1, 2, 30, 40))
    assert run_task(model, "boxes", [tall], "a", retry="crop").warnings == ()
    assert len(model.calls) == 1


def test_no_retry_keeps_what_came_before_the_circle(tall):
    model = FakeModel(LOOPING_BOX)
    found = run_task(model, "boxes", [tall], "a", retry="no")
    assert [b.label for b in found.result] == ["a", "b"]
    assert len(model.calls) == 1
    assert found.answer.finish_reason == "repetition"
    assert "came 4 times" in found.warnings[0]


def test_another_seed_is_tried_with_the_reason_told(tall):
    model = FakeModel([LOOPING_BOX, box(28, 28, 56, 56)])
    found = run_task(model, "boxes", [tall], "a", temperature=0)
    assert [b.label for b in found.result] == ["a"]
    assert [c.settings.get("seed") for c in model.calls] == [None, 1]
    assert model.calls[1].settings["temperature"] == 0.5
    assert found.warnings[0].startswith("try 1: ")


def test_halves_are_asked_about_when_all_seeds_go_round(tall):
    model = FakeModel([LOOPING_BOX, LOOPING_BOX, box(28, 56, 140, 252), box(28, 84, 140, 168)])
    found = run_task(model, "boxes", [tall], "a", retry="crop")
    assert [c.media[0].original for c in model.calls] == [Size(1120, 280)] * 2 + [Size(576, 280)] * 2
    # the lower half begins at 1120 - 576 = 544; 576 rows are seen as 588
    by = 576 / model.calls[2].media[0].seen.height
    assert [tuple(map(round, b.rect)) for b in found.result] == [
        (28, round(56 * by), 140, round(252 * by)),
        (28, round(544 + 84 * by), 140, round(544 + 168 * by)),
    ]
    assert any("halves" in line for line in found.warnings)


def test_a_wide_picture_is_cut_across_its_width():
    model = FakeModel([LOOPING_BOX, LOOPING_BOX, box(28, 28, 56, 56), box(28, 28, 56, 56)])
    run_task(model, "boxes", [Image.new("RGB", (1120, 280))], "a", retry="crop")
    assert [c.media[0].original for c in model.calls[2:]] == [Size(280, 576)] * 2


def test_one_thing_on_the_cut_is_found_once(tall):
    upper, lower = 560 - 14, 16 - 14  # the same rows: 544 + 2 = 546
    scale = 588 / 576
    model = FakeModel(
        [
            LOOPING_BOX,
            LOOPING_BOX,
            box(28, round(upper * scale), 140, round(576 * scale)),
            box(28, round(lower * scale), 140, round(32 * scale)),
        ]
    )
    assert len(run_task(model, "boxes", [tall], "a", retry="crop").result) == 1


def test_a_page_read_in_halves_is_one_page_in_order(tall):
    model = FakeModel([LOOP, LOOP, page(0, 0, 280, 100, text="upper"), page(0, 100, 280, 200, text="lower")])
    found = run_task(model, "document", [tall], retry="crop")
    assert [b.text for b in found.result.blocks] == ["upper", "lower"]
    assert found.result.blocks[1].box.y1 > 544
    assert len(found.parts) == 2
    assert found.picture is None


def test_counts_and_texts_of_halves_are_added_up(tall):
    model = FakeModel([LOOPING_BOX, LOOPING_BOX, box(1, 2, 30, 40), box(1, 2, 30, 40)])
    answer = run_task(model, "boxes", [tall], "a", retry="crop").answer
    halves = [c.media[0].visual_tokens for c in model.calls[2:]]
    assert answer.visual_tokens == sum(halves)
    assert answer.text.count("bbox_2d") == 2
    assert answer.finish_reason == "stop"


def test_when_halves_go_round_too_the_best_try_is_kept(tall):
    model = FakeModel([LOOPING_BOX] * 4)
    found = run_task(model, "boxes", [tall], "a", retry="crop")
    assert [b.label for b in found.result] == ["a", "b"]
    assert [line.partition(":")[0] for line in found.warnings] == [
        "try 1",
        "try 2",
        "part 1 of 2",
        "part 2 of 2",
    ]


def test_a_picture_too_small_to_cut_is_left_whole():
    model = FakeModel([LOOPING_BOX] * 2)
    run_task(model, "boxes", [Image.new("RGB", (56, 56))], "a", retry="crop")
    assert len(model.calls) == 2


def test_an_unknown_way_is_refused_with_the_known_ones():
    with pytest.raises(PromptError, match="no, seed, crop"):
        check_retry("maybe")


def test_a_half_read_page_is_gone_on_with_from_its_journal(tmp_path, picture):
    upper, lower = page(0, 0, 280, 100, text="upper"), page(0, 100, 280, 200, text="lower")
    refs = list_pages([picture])
    path = tmp_path / "j"
    first = next(
        read_pages(FakeModel([LOOP, LOOP, upper, lower]), refs, Journal(path, {"a": 1}), retry="crop")
    )
    again = next(read_pages(FakeModel([]), refs, Journal(path, {"a": 1}), retry="crop"))
    assert again.resumed
    assert [(b.text, b.box) for b in again.page.blocks] == [(b.text, b.box) for b in first.page.blocks]
    assert len(again.page.blocks) == 2


def test_text_reaches_the_listener_of_every_try(tall):
    said = []
    ask_watched(
        lambda crop, drawn: FakeModel([LOOP] if not drawn else ["end"]).stream(tall, "?"),
        retry="seed",
        on_text=said.append,
    )
    assert said[-1] == "end"
    assert len(said) > 5


# -------------------------------------------------------------------------------------------------- verbs


def test_ask_with_retry_stops_a_plain_answer_and_says_why(fake, capsys, picture):
    model = fake([LOOP, "A white page."])
    assert main(["ask", "--retry", "seed", picture, "What?"]) == 0
    out, err = capsys.readouterr()
    assert out == "A white page.\n"
    assert "try 1: the same text came" in err
    assert len(model.calls) == 2


def test_ask_with_retry_no_keeps_the_beginning(fake, capsys, picture):
    fake(["Once.\n" + LOOP])
    assert main(["ask", "--retry", "no", picture, "What?"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Once.\nThe quick")
    assert len(out) < 200
    assert "stopped at character" in err


def test_ask_with_retry_crop_answers_about_halves(fake, capsys, picture):
    model = fake([LOOP, LOOP, "upper", "lower"])
    assert main(["ask", "--retry", "crop", picture, "What?"]) == 0
    assert capsys.readouterr().out == "upper\nlower\n"
    assert [c.media[0].original.height for c in model.calls] == [1120, 1120, 576, 576]


def test_read_takes_retry_too(fake, capsys, picture):
    fake([LOOP, LOOP, page(0, 0, 280, 100, text="upper"), page(0, 100, 280, 200, text="lower")])
    assert main(["read", "--retry", "crop", picture]) == 0
    out, err = capsys.readouterr()
    assert out == "upper\n\nlower\n"
    assert "try 2: the same text came" in err


@pytest.mark.parametrize("verb", [["ask", "--retry", "maybe", "?"], ["read", "--retry", "maybe", "a.png"]])
def test_a_wrong_retry_is_one_line(capsys, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (56, 56)).save("a.png")
    assert main(verb) == 2
    assert "no, seed, crop" in capsys.readouterr().err
