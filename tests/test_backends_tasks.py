"""Places, pages, moments and actions from a backend: the words sent, and what comes back in the original picture."""

import json

import numpy as np
import pytest
from PIL import Image

from qvl.backends.fake import FakeModel
from qvl.catalog import generations
from qvl.errors import BackendError, OutputError, PromptError
from qvl.geometry import Size
from qvl.outputs.actions import Click, Swipe
from qvl.outputs.boxes import write_boxes
from qvl.outputs.mapping import PictureMap, iou, picture_map
from qvl.synth import make
from qvl.tasks.prompts import task_prompt, tool_system_prompt
from qvl.tasks.run import draw_result, run_task

FAMILIES = sorted(generations.names())
LATER = [f for f in FAMILIES if f != "qwen_vl"]


def boxes_model(family, truth):
    """Answers as this family writes, from the sizes it was really shown."""

    def answer(media, question):
        return write_boxes(
            [(b.label, b[:4]) for b in truth], family, PictureMap(media[0].original, media[0].seen)
        )

    return FakeModel(answer, family=family)


def clip(frames=8, fps=2.0):
    return {"type": "video", "video": np.zeros((frames, 56, 84, 3), np.uint8), "sample_fps": fps}


# --------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_known_box_lands_in_the_original_picture_for_every_family(family):
    sample = make("find", 5, 1)
    picture = sample.media[0].resize((937, 701))  # a size that every family changes
    wide, high = 937 / sample.media[0].width, 701 / sample.media[0].height
    box = sample.boxes[0]
    left, right = round(box.x1 * wide), round(box.x2 * wide)
    truth = box._replace(x1=left, x2=right, y1=round(box.y1 * high), y2=round(box.y2 * high))
    found = run_task(boxes_model(family, [truth]), "boxes", [picture], sample.question)
    assert found.reason is None
    (placed,) = found.result
    assert placed.label == truth.label
    assert iou(placed.rect, truth[:4]) >= 0.95  # whole numbers of 1000 over 937 pixels, on a box of about 150


def test_max_pixels_moves_the_seen_picture_and_not_the_box():
    truth = make("find", 5, 1).boxes[0]._replace(x1=200, y1=100, x2=600, y2=500)
    picture = Image.new("RGB", (1000, 800))
    found = run_task(
        boxes_model("qwen2_5_vl", [truth]), "boxes", [picture], "Locate it.", max_pixels=280 * 280
    )
    assert max(found.picture.seen) <= 400
    assert iou(next(iter(found.result)).rect, truth[:4]) >= 0.97


def test_each_family_is_asked_in_the_words_it_was_taught():
    assert "bbox coordinates in JSON" in task_prompt("boxes", "qwen2_5_vl", "Locate the cat.").question
    assert "JSON" not in task_prompt("boxes", "qwen2_vl", "Locate the cat.").question
    own = "Give bbox_2d of the cat as JSON."
    assert task_prompt("boxes", "qwen2_5_vl", own).question == own
    older, later = (task_prompt("document", f, "") for f in ("qwen2_5_vl", "qwen3_vl"))
    assert (older.question, older.media_first) == ("QwenVL HTML ", False)
    assert (later.question, later.media_first) == ("qwenvl html", True)
    assert "mm:ss.ff" in task_prompt("moment", "qwen2_5_vl", "a ball falls").question


def test_the_embedded_model_is_asked_the_questions_it_was_taught():
    assert (
        task_prompt("boxes", "qwen2_5_vl", "Locate the red circle", model="mini").question
        == "Locate the red circle."
    )
    for said in ("a red ball appears", "the red ball is on screen.", "red ball"):
        for task in ("moment", "events"):
            asked = task_prompt(task, "qwen2_5_vl", said, model="mini").question
            assert asked == "From when to when is the red ball on screen?"
    asked = "When does the red ball appear?"
    assert task_prompt("moment", "qwen2_5_vl", asked, model="mini").question == asked


def test_the_older_document_prompt_stands_before_its_picture():
    model = FakeModel("<p data-bbox='1 2 3 4'>x</p>")
    run_task(model, "document", [Image.new("RGB", (56, 56))])
    assert [item["type"] for item in model.calls[0].messages[0]["content"]] == ["text", "image"]


def test_nothing_found_says_why_and_makes_nothing_up():
    found = run_task(
        FakeModel("I see no such thing."), "boxes", [Image.new("RGB", (56, 56))], "Locate the cat."
    )
    assert len(found.result) == 0
    assert "no box" in found.reason
    assert json.loads(json.dumps(found.to_dict()))["items"] == []


# ------------------------------------------------------------------------------------------------ documents


@pytest.mark.parametrize("seed", [1, 2])
def test_a_drawn_page_comes_back_with_its_blocks_in_place(seed):
    sample = make("page", seed, 1)
    page = sample.media[0]
    found = run_task(FakeModel(sample.answer), "document", [page], page_number=3)
    assert found.result.number == 3
    seen = found.picture.seen
    scaled = [
        (b.x1 * page.width / seen.width, b.y1 * page.height / seen.height, b.x2 * page.width / seen.width,
         b.y2 * page.height / seen.height)
        for b in sample.boxes
    ]  # fmt: skip
    placed = [block.box for block in found.result.walk() if block.box]
    assert all(max(iou(p, b) for p in placed) > 0.98 for b in scaled)
    assert sample.boxes[0].text in found.result.text
    assert json.dumps(found.to_dict())


def test_a_family_that_writes_no_pages_is_said_so():
    found = run_task(FakeModel("<p>x</p>", family="qwen2_vl"), "document", [Image.new("RGB", (56, 56))])
    assert "not taught to write pages" in found.warnings[0]


# --------------------------------------------------------------------------------------------------- times


def test_times_are_seconds_checked_against_the_clip():
    found = run_task(
        FakeModel("The event happens in 00:01.00 - 00:09.00."), "moment", [clip()], "a ball falls"
    )
    (event,) = found.result
    assert (event.start, event.end, event.clamped) == (1.0, 4.0, True)
    assert any("clamped" in line for line in found.all_warnings)


def test_frame_numbers_count_the_frames_that_were_shown():
    found = run_task(FakeModel("frame 2 to frame 6"), "events", [clip(fps=2.0)], "List what happens.")
    (event,) = found.result
    assert (event.start, event.end) == (1.0, 3.0)


# ------------------------------------------------------------------------------------------------- actions


def call(name, **arguments):
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


@pytest.mark.parametrize("family", LATER)
def test_a_click_lands_on_the_real_screen(family):
    screen = Image.new("RGB", (1920, 1080))
    scale = generations.by_name(family).coordinates.scale

    def answer(media, question):
        wide, high = (scale, scale) if scale else (media[0].seen.width, media[0].seen.height)
        return call("computer_use", action="left_click", coordinate=[wide / 4, high / 2])

    model = FakeModel(answer, family=family)
    (click,) = run_task(model, "actions", [screen], "Press OK").result.items
    assert isinstance(click, Click)
    assert (click.x, click.y) == pytest.approx((480, 540), abs=0.01)
    seen = model.calls[0].media[0].seen
    told = f"{seen.width}x{seen.height}" if scale is None else "1000x1000"
    assert told in model.calls[0].system


def test_the_phone_tool_has_the_numbers_of_its_generation():
    size = Size(2408, 1092)
    assert "1092x2408" in tool_system_prompt("qwen2_5_vl", "mobile_use", size)
    assert "999x999" in tool_system_prompt("qwen3_vl", "mobile_use", size)
    reply = call("mobile_use", action="swipe", coordinate=[0, 0], coordinate2=[999, 999])
    screen = Image.new("RGB", (540, 1200))
    found = run_task(FakeModel(reply, family="qwen3_vl"), "actions", [screen], "Scroll", tool="mobile_use")
    (swipe,) = found.result.items
    assert isinstance(swipe, Swipe)
    assert (swipe.to_x, swipe.to_y) == (539, 1199)


def test_every_action_that_is_offered_can_be_read():
    from qvl.outputs.actions import TOOLS

    for tool, known in TOOLS.items():
        for family in LATER:
            schema = (
                tool_system_prompt(family, tool, Size(100, 100)).split("<tools>\n")[1].split("\n</tools>")[0]
            )
            offered = json.loads(schema)["function"]["parameters"]["properties"]["action"]["enum"]
            assert set(offered) <= set(known)


def test_the_embedded_models_point_is_read_as_a_click_and_said_so():
    sample = make("screen", 3, 1)
    found = run_task(FakeModel(sample.answer, name="mini"), "actions", [sample.media[0]], sample.question)
    (click,) = found.result.items
    box = sample.boxes[0]
    assert box.x1 <= click.x <= box.x2
    assert box.y1 <= click.y <= box.y2
    assert any("read as a click" in line for line in found.all_warnings)
    other = run_task(FakeModel(sample.answer, name="other"), "actions", [sample.media[0]], sample.question)
    assert other.result.items == ()


# --------------------------------------------------------------------------------------------- repetition


LOOP = "<p data-bbox='1 2 30 40'>The same line again and again, without an end in sight.</p>\n"


def test_a_reply_that_repeats_itself_is_asked_again_another_way():
    model = FakeModel(["<html><body>\n" + LOOP * 200, "<h1 data-bbox='1 2 30 40'>Title</h1>"])
    found = run_task(model, "document", [Image.new("RGB", (280, 280))], max_new_tokens=500)
    assert found.result.text == "Title"
    assert "try 1" in found.warnings[0]
    assert "temperature" not in model.calls[0].settings
    assert (model.calls[1].settings["seed"], model.calls[1].settings["max_new_tokens"]) == (1, 500)


def test_a_reply_that_only_repeats_keeps_what_came_before():
    model = FakeModel(LOOP * 200)
    found = run_task(model, "document", [Image.new("RGB", (280, 280))])
    assert found.answer.finish_reason == "repetition"
    assert len(found.answer.text) < 5 * len(LOOP)
    assert len(found.warnings) == len(model.calls) == 2
    assert found.picture is not None


def test_a_cut_answer_is_said_so():
    found = run_task(
        FakeModel("one two three four"), "boxes", [Image.new("RGB", (56, 56))], "?", max_new_tokens=2
    )
    assert "cut after 2 tokens" in found.warnings[0]


# ------------------------------------------------------------------------------------------------ mistakes


def test_a_task_needs_one_picture_or_one_clip_and_a_question():
    model, picture = FakeModel("x"), Image.new("RGB", (56, 56))
    for task, media, words in (
        ("boxes", [], "exactly one image, got none"),
        ("boxes", [picture, picture], "got image, image"),
        ("boxes", [clip()], "got video"),
        ("moment", [picture], "exactly one video, got image"),
    ):
        with pytest.raises(PromptError, match=words):
            run_task(model, task, media, "What?")
    with pytest.raises(PromptError, match="no question"):
        run_task(model, "boxes", [picture], "  ")
    with pytest.raises(PromptError, match="Qwen-VL was not trained for"):
        run_task(FakeModel("x", family="qwen_vl"), "actions", [picture], "Press OK")
    assert model.calls == []


def test_an_unknown_family_is_an_error_and_not_a_guess():
    with pytest.raises(OutputError, match="--family"):
        run_task(
            FakeModel("[]", family=None, name="secret-model"), "boxes", [Image.new("RGB", (56, 56))], "Locate"
        )


def test_drawings_show_what_was_found_and_refuse_times():
    picture = Image.new("RGB", (280, 280), "white")
    found = run_task(
        FakeModel('[{"bbox_2d": [50, 60, 150, 160], "label": "x"}]'), "boxes", [picture], "Locate x"
    )
    drawing = draw_result(found, picture)
    assert drawing.image.getpixel((50, 110)) != (255, 255, 255)
    assert drawing.image.getpixel((100, 110)) == (255, 255, 255)
    with pytest.raises(OutputError, match="times"):
        draw_result(run_task(FakeModel("00:01"), "moment", [clip()], "x"), picture)


# --------------------------------------------------------------------------------------------- the fake


def test_the_fake_answers_by_list_by_question_or_by_function():
    assert [FakeModel(["a", "b"]).ask_many([([], "1"), ([], "2")])[i].text for i in (0, 1)] == ["a", "b"]
    assert FakeModel({"1": "one"}).ask([], "1").text == "one"
    assert FakeModel(lambda media, question: f"{len(media)} {question}").ask([], "q").text == "0 q"
    with pytest.raises(BackendError, match="used up"):
        FakeModel([]).ask([], "q")
    with pytest.raises(BackendError, match="no answer to 'q'"):
        FakeModel({"1": "one"}).ask([], "q")
    with pytest.raises(BackendError, match="down"):
        FakeModel(BackendError("down")).ask([], "q")


def test_the_fakes_stream_gives_its_answer_in_pieces_and_can_be_left():
    stream = FakeModel("one\ntwo\n").stream([Image.new("RGB", (56, 56))], "q")
    assert tuple(stream.media[0].seen) == (56, 56)
    assert list(stream) == ["one\n", "two\n"]
    assert stream.answer.text == "one\ntwo\n"
    left = FakeModel("one\ntwo\n").stream([], "q")
    next(left)
    left.close()
    with pytest.raises(PromptError):
        left.finish()


def test_native_and_fake_see_a_picture_at_the_same_size(tiny_checkpoint):
    import qvl

    model = qvl.load(tiny_checkpoint)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 131, 3), dtype=np.uint8))
    ours = model.ask([picture], "What?", max_new_tokens=2)
    theirs = FakeModel("x", limits=model.limits, family=model.family).ask([picture], "What?")
    assert ours.media == theirs.media
    assert model.stream([picture], "What?", max_new_tokens=2).media == ours.media
    found = run_task(model, "boxes", [picture], "Locate it", max_new_tokens=8)
    assert found.picture == picture_map(Size(90, 131), model.family, model.limits)
