"""docs/make_pictures.py: what it draws without a model is on target, and what it says of a model's answer is true."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvl.backends.fake import FakeModel
from qvl.inputs.image import load_image
from qvl.tasks import open as door

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "make_pictures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_pictures"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_pictures"]


@pytest.fixture
def says(monkeypatch, tmp_path):
    """The verbs get a model that answers this; pictures go to a folder of the test's own."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "images"
    folder.mkdir()

    def use(answer, family="qwen2_5_vl"):
        model = FakeModel(answer, family=family)
        monkeypatch.setattr(door, "open_backend", lambda *a, **k: model)
        return folder

    return use


def box_json(x1, y1, x2, y2, label="red circle"):
    return json.dumps([{"bbox_2d": [x1, y1, x2, y2], "label": label}])


def seen(name, *values):
    """Places of the file as the model sees it."""
    from qvl.geometry import Size
    from qvl.outputs.mapping import picture_map

    image = load_image(str(ROOT / "examples" / name))
    picture = picture_map(Size(image.height, image.width), "qwen2_5_vl")
    found = []
    for x, y in zip(values[::2], values[1::2], strict=True):
        found += [x * picture.seen.width / image.width, y * picture.seen.height / image.height]
    return found


# ------------------------------------------------------------------------------------------------- with a model


def test_a_box_on_the_circle_is_called_right_with_its_iou(script, says):
    folder = says(box_json(*seen("shapes.png", 82, 88, 115, 121)))
    found = script.boxes(folder, "mini")
    assert found.words == "It said 82 88 115 121. The red circle is at 82 88 115 121: IoU 1.00, right."
    assert found.files == ("images/boxes.png",)
    before = load_image(str(ROOT / "examples" / "shapes.png"))
    drawn = Image.open(folder / "boxes.png")
    times = drawn.width // before.width
    after = np.asarray(drawn, dtype=int)[104 * times, 82 * times]
    assert np.abs(after - np.asarray(before, dtype=int)[104, 82]).sum() > 30  # its left edge is drawn there


def test_a_box_elsewhere_is_called_wrong(script, says):
    folder = says(box_json(*seen("shapes.png", 10, 106, 56, 151)))
    assert script.boxes(folder, "mini").words.endswith("IoU 0.00, wrong.")


def test_of_several_boxes_the_best_counts_and_all_are_told(script, says):
    reply = [{"bbox_2d": seen("shapes.png", *b)} for b in ((0, 0, 9, 9), (82, 88, 115, 121))]
    words = script.boxes(says(json.dumps(reply)), "mini").words
    assert words.startswith("It said 0 0 9 9; 82 88 115 121.")
    assert words.endswith("right.")


def test_no_box_is_told_and_shows_no_picture(script, says):
    found = script.boxes(says("I see none."), "mini")
    assert found.files == ()
    assert "no box" in found.words
    assert "wrong" in found.words


def test_the_true_page_lands_on_all_its_blocks(script, says):
    sample = script.example("page.png")
    found = script.document(says(sample.answer), "mini")
    assert found.words.startswith("It wrote 3 blocks with a place. The page has 3; 3 of them")
    assert found.files == ("images/document.png",)


def test_blocks_in_wrong_places_do_not_land(script, says):
    wrong = '<html><body><p data-bbox="0 0 20 9">Travel</p></body></html>'
    assert (
        "It wrote 1 blocks with a place. The page has 3; 0 of them"
        in script.document(says(wrong), "mini").words
    )


@pytest.mark.parametrize(("at", "verdict"), [((19, 99), "right"), ((191, 161), "wrong")])
def test_a_click_is_right_when_it_lies_in_the_box_to_tick(script, says, at, verdict):
    call = {
        "name": "computer_use",
        "arguments": {"action": "left_click", "coordinate": seen("screen.png", *at)},
    }
    found = script.actions(says(f"<tool_call>{json.dumps(call)}</tool_call>"), "mini")
    assert found.words.endswith(f"{verdict}.")
    assert found.files == ("images/action.png",)


def test_frames_of_the_moment_are_shown_and_older_ones_removed(script, says):
    folder = says('[{"start_time": "00:03.00", "end_time": "00:04.00", "description": "x"}]')
    (folder / "clip-9-start.png").write_bytes(b"old")
    found = script.moment(folder, "mini")
    assert found.files == ("images/clip-1-start.png", "images/clip-1-end.png")
    assert "3.0 to 4.0 s" in found.words
    assert "From 3.0 to 4.0 seconds." in found.words
    assert sorted(p.name for p in folder.iterdir()) == ["clip-1-end.png", "clip-1-start.png"]


def test_a_model_that_finds_nothing_leaves_no_stale_picture(script, says):
    folder = says("nothing")
    for name in ("boxes.png", "document.png", "action.png"):
        (folder / name).write_bytes(b"old")
    text = script.account(folder, "mini")
    assert sorted(p.name for p in folder.iterdir()) == ["dark.png", "dry_run.png", "labels.png"]
    for name in ("boxes", "document", "action", "clip"):
        assert f"images/{name}" not in text


def test_the_command_that_is_shown_is_the_one_that_was_run(script, says, monkeypatch):
    folder = says("nothing")
    run = []
    monkeypatch.setattr(script, "qvl", run.append)
    for entry in (script.boxes, script.document, script.actions, script.moment):
        shown = entry(folder, "mini").title
        ran = [w.replace(f"{folder}/", "").replace(str(folder), ".") for w in run[-1]]
        assert ran[-3:] == ["--model", "mini", "--json"]
        assert shown == script.command(ran[:-3])


# ------------------------------------------------------------------------------------------------- without one


def test_known_boxes_lie_on_their_shapes(script):
    for sample in (script.example("shapes.png"), script.make("count", script.TEST_SEEDS[46], 2)):
        image = np.asarray(script.enlarged(sample), dtype=int)
        paper = image[2, 2]
        for box in script.places(sample):
            middle = image[int(box.y1 + box.y2) // 2, int(box.x1 + box.x2) // 2]
            assert np.abs(middle - paper).sum() > 60, box.label


def test_the_dark_picture_is_dark(script):
    image = script.enlarged(script.make("count", script.TEST_SEEDS[46], 2))
    assert np.asarray(image.convert("L")).mean() < 70


def test_clicks_of_the_dry_run_land_in_the_elements_that_they_mean(script, monkeypatch):
    done = []
    monkeypatch.setattr(script.DryRun, "execute", lambda self, action: done.append(action))
    script.dry_run()
    at = {b.label: b for b in script.example("screen.png").extra["element_boxes"]}
    clicks = [a for a in done if hasattr(a, "x")]
    assert len(done) == 4
    for click, label in zip(clicks, ("Title field", "Send news checkbox", "Send button"), strict=True):
        box = at[label]
        assert box.x1 < click.x / script.SCALE < box.x2, label
        assert box.y1 < click.y / script.SCALE < box.y2, label


def test_where_a_font_is_missing_the_older_picture_stays_and_the_words_say_so(script, tmp_path, monkeypatch):
    from qvl.outputs.draw import Drawing

    blank = Drawing(
        Image.new("RGB", (4, 4)), ("#1 stands for '원': no installed font has all its characters",)
    )
    monkeypatch.setattr(script, "KNOWN", {"labels.png": (lambda: blank, "Labels")})
    (tmp_path / "labels.png").write_bytes(b"older")
    (found,) = script.known(tmp_path)
    assert (tmp_path / "labels.png").read_bytes() == b"older"
    assert "#1 stands for" in found.words
    (tmp_path / "labels.png").unlink()
    script.known(tmp_path)
    assert Image.open(tmp_path / "labels.png").size == (4, 4)


# ------------------------------------------------------------------------------------------------- the page


def test_the_page_shows_every_picture_there_is_and_no_other():
    shown = set(re.findall(r"\]\(images/([^)]+)\)", PAGE))
    assert shown == {p.name for p in (ROOT / "docs" / "images").iterdir()}
    assert {"labels.png", "dark.png", "dry_run.png"} <= shown


def test_the_page_names_the_weights_of_the_answers():
    assert re.search(r"By mini \(weights sha256 [0-9a-f]{12}\)", PAGE)


def test_rewriting_changes_what_is_between_the_marks_and_nothing_else(script):
    page = f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n"
    again = script.rewritten(page, "new")
    assert again == f"before\n{script.BEGIN}\nnew\n{script.END}\nafter\n"
    assert script.rewritten(again, "new") == again


@pytest.mark.parametrize("page", ["", "<!-- pictures -->", "<!-- /pictures -->"])
def test_a_page_without_both_marks_is_refused(script, page):
    with pytest.raises(ValueError, match="needs the lines"):
        script.rewritten(page, "new")


def test_weights_are_told_apart_by_their_bytes(script, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    one = script.fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert script.fingerprint(str(tmp_path)) != one
    assert script.fingerprint("http://a.example/v1") == "http://a.example/v1"


# ------------------------------------------------------------------------------------------------- labels


def test_a_label_without_room_above_its_box_stands_below_it_and_not_on_what_it_names(script):
    at = script.Rect(40, 2, 120, 60)
    box = script.Box(**at._asdict(), label="label", seen=at, written=tuple(at))
    drawn = np.asarray(script.draw_places(Image.new("RGB", (300, 300), "white"), [box]).image)
    assert (drawn[10:54, 48:112] == 255).all()
    assert (drawn[64:76, 40:64] != 255).any()


def test_a_label_stands_below_its_box_where_another_label_is_above_it(script):
    rects = [script.Rect(40, 120, 120, 160), script.Rect(50, 124, 130, 200)]
    boxes = [script.Box(**r._asdict(), label="label", seen=r, written=tuple(r)) for r in rects]
    drawn = np.asarray(script.draw_places(Image.new("RGB", (300, 300), "white"), boxes).image)
    assert (drawn[204:216, 50:74] != 255).any()
