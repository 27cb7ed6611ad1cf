"""`qvl ask` with --boxes and its like, on a served model, `qvl read` and `qvl find-moment`: as a person sees them."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from openai_server import openai_server, refuses, says, usage
from qvl.backends.fake import FakeModel
from qvl.cli.find_moment import clock
from qvl.cli.main import main
from qvl.errors import BackendError
from qvl.synth import make
from qvl.tasks import open as door

BOX = '```json\n[{"bbox_2d": [50, 60, 150, 160], "label": "red circle"}]\n```'
PAGE = (
    '<html><body>\n<h1 data-bbox="10 10 100 30">Title</h1>\n<p data-bbox="10 40 200 60">Some words.</p>\n'
    '<table data-bbox="10 70 200 120"><tr><th>City</th><th>Price</th></tr><tr><td>Paris</td><td>3</td></tr></table>\n'
    "</body></html>"
)


@pytest.fixture
def fake(monkeypatch):
    """Every verb gets this model; `opened` is how it was asked for."""

    def use(answers, **options):
        model = FakeModel(answers, **options)
        model.opened = []
        monkeypatch.setattr(door, "open_backend", lambda *a, **k: (model.opened.append((a, k)), model)[1])
        return model

    return use


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (280, 280), "white").save(path)
    return str(path)


@pytest.fixture
def pdf(tmp_path):
    """Three pages, each a picture of its own size in points."""
    path = tmp_path / "book.pdf"
    pages = [Image.new("RGB", (140 * n, 280), "white") for n in (1, 2, 3)]
    pages[0].save(path, save_all=True, append_images=pages[1:], resolution=72)
    return str(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    import av

    path = tmp_path_factory.mktemp("clip") / "ball.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for grey in range(0, 240, 20):  # 12 frames, 3 seconds
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return str(path)


def qvl(capsys, *words) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


# ------------------------------------------------------------------------------------------------- ask


def test_boxes_are_printed_and_drawn_in_pixels_of_the_picture(capsys, fake, picture, tmp_path):
    model = fake(BOX)
    out_path = tmp_path / "out.png"
    code, out, err = qvl(capsys, "ask", "--boxes", "--draw", out_path, picture, "Locate the red circle")
    assert (code, out, err) == (0, "50.0 60.0 150.0 160.0  red circle\n", "")
    drawn = Image.open(out_path)
    assert drawn.size == (280, 280)
    assert drawn.getpixel((50, 110)) != (255, 255, 255)
    assert "bbox coordinates" in model.calls[0].question


def test_json_carries_the_answer_and_what_was_found(capsys, fake, picture):
    fake(BOX)
    code, out, _ = qvl(capsys, "ask", "--boxes", "--json", picture, "Locate the red circle")
    said = json.loads(out)
    assert code == 0
    assert said["answer"] == BOX
    assert said["found"]["task"] == "boxes"
    (item,) = said["found"]["items"]
    assert (item["x1"], item["label"]) == (50.0, "red circle")


def test_nothing_found_is_exit_1_with_the_reason_on_stderr(capsys, fake, picture):
    fake("I can't see one.")
    code, out, err = qvl(capsys, "ask", "--boxes", picture, "Locate the red circle")
    assert (code, out) == (1, "")
    assert err == "nothing found: no box, point or quad in the text; the answer was: I can't see one.\n"


def test_a_long_answer_without_a_finding_is_shown_short_and_cannot_steer_the_terminal(capsys, fake, picture):
    fake("\x1b[2J" + "no " * 500)
    err = qvl(capsys, "ask", "--boxes", "--retry", "no", picture, "Locate it")[2]
    assert "\x1b" not in err
    assert len(err.splitlines()[-1]) < 300


def test_doubts_and_repairs_go_to_stderr(capsys, fake, picture):
    fake('[{"bbox_2d": [50, 60, 900, 160], "label": "x",}')
    code, out, err = qvl(capsys, "ask", "--boxes", picture, "Locate x")
    assert code == 0
    assert out.startswith("50.0 60.0 280.0 160.0")
    assert "note: " in err
    assert "clamped" in err
    assert "repaired: " in err


def test_a_document_needs_no_question_and_comes_as_markdown(capsys, fake, picture):
    fake(PAGE)
    code, out, _ = qvl(capsys, "ask", "--document", picture)
    assert code == 0
    assert out.startswith("# Title\n\nSome words.\n\n| City | Price |")


def test_actions_are_described_and_nothing_is_done(capsys, fake, picture):
    reply = {"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [140, 70]}}
    fake(f"<tool_call>\n{json.dumps(reply)}\n</tool_call>")
    assert qvl(capsys, "ask", "--actions", picture, "Press OK")[:2] == (0, "click left (140, 70)\n")


def test_events_are_seconds_of_the_clip(capsys, fake, clip):
    fake('[{"start_time": "00:00.50", "end_time": "00:02.00", "description": "it brightens"}]')
    assert qvl(capsys, "ask", "--events", clip, "List the events.")[:2] == (0, "0.50 2.00  it brightens\n")


def test_an_answer_cannot_steer_the_terminal(capsys, fake, picture):
    fake('[{"bbox_2d": [5, 6, 15, 16], "label": "a\\u001b[31mb"}]')
    out = qvl(capsys, "ask", "--boxes", picture, "Locate x")[1]
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--boxes", "--events", "PICTURE", "x"], "exclude each other"),
        (["--draw", "o.png", "PICTURE", "x"], "--draw needs"),
        (["--events", "--draw", "o.png", "PICTURE", "x"], "--draw needs"),
        (["--phone", "PICTURE", "x"], "--phone goes with --actions"),
        (["--boxes", "--system", "s", "PICTURE", "x"], "--system can't be combined with --boxes"),
        (["--boxes", "PICTURE", "PICTURE", "x"], "exactly one image"),
        (["--boxes", "PICTURE"], "no question"),
        (["--boxes", "--draw", "nowhere/o.png", "PICTURE", "x"], "there is no folder nowhere"),
        (["--boxes", "--draw", "o.txt", "PICTURE", "x"], "the name of a drawing must end in .png"),
        (["--events", "PICTURE", "x"], "exactly one video"),
    ],
)
def test_mistakes_in_asking_are_one_line_and_exit_2(capsys, fake, picture, words, part):
    model = fake(BOX)
    code, _, err = qvl(capsys, "ask", *(picture if w == "PICTURE" else w for w in words))
    assert code == 2
    assert not model.calls, "the answer would be lost"
    assert part in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--family", "qwen3_vl"], "is for a server"),
        (["--api-key-env", "X"], "is for a server"),
        (["--high-resolution"], "is for a server"),
    ],
)
def test_options_of_a_server_need_an_endpoint(capsys, picture, words, part):
    code, _, err = qvl(capsys, "ask", *words, picture, "What?")
    assert code == 2
    assert part in err


# --------------------------------------------------------------------------------------------- a server


def test_a_served_model_is_asked_like_a_local_one(capsys, picture, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "sk-secret-1")
    with openai_server() as server:
        server.play(says("whole answer", counts=usage(130, 2)))
        words = [
            "ask",
            "--endpoint",
            server.url,
            "--model",
            "qwen2.5-vl-7b",
            "--api-key-env",
            "MY_KEY",
            "--stats",
        ]
        code, out, err = qvl(capsys, *words, picture, "What?")
        assert (code, out) == (0, "whole answer\n")
        assert "100 visual + 30 text = 130 prompt tokens" in err
        assert server.seen[0].headers["authorization"] == "Bearer sk-secret-1"
        server.play(says(BOX, counts=usage(40, 2)))
        drawn = tmp_path / "o.png"
        code, out, err = qvl(capsys, *words[:-1], "--boxes", "--draw", drawn, picture, "Locate it")
        assert (code, out) == (0, "50.0 60.0 150.0 160.0  red circle\n")
        assert "40 prompt tokens, the images alone take 100" in err  # this server shrinks: told, not hidden
        assert drawn.is_file()
        server.play(refuses(401, "bad key sk-secret-1"))
        code, out, err = qvl(capsys, *words, picture, "What?")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "sk-secret-1" not in err


def test_asking_a_server_imports_no_torch(picture):
    import subprocess
    import sys

    with openai_server() as server:
        server.play(says("hi"))
        script = (
            "import sys; from qvl.cli.main import main; "
            f"code = main(['ask', '--endpoint', {server.url!r}, '--model', 'qwen2.5-vl-7b', {picture!r}, 'What?']);"
            "print(code, 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["hi", "0", "False"], done.stderr


# ------------------------------------------------------------------------------------------------- read


def test_a_page_is_read_in_every_format(capsys, fake, picture, tmp_path):
    fake(PAGE)
    said = {
        form: qvl(capsys, "read", picture, "--to", form) for form in ("md", "html", "json", "csv", "layout")
    }
    assert [code for code, _, _ in said.values()] == [0] * 5
    assert said["md"][1].startswith("# Title")
    assert '<h1 data-bbox="10 10 100 30">Title</h1>' in said["html"][1]
    assert json.loads(said["json"][1])["pages"][0]["blocks"][0]["bbox"] == [10, 10, 100, 30]
    assert list(csv.reader(said["csv"][1].splitlines())) == [["City", "Price"], ["Paris", "3"]]
    assert json.loads(said["layout"][1])["pages"][0]["page"] == 1


def test_the_ending_of_the_file_names_the_format(capsys, fake, picture, tmp_path):
    fake(PAGE)
    for name, begins in (("a.html", "<!DOCTYPE"), ("a.json", "{"), ("a.csv", "City"), ("a.txt", "# Title")):
        assert qvl(capsys, "read", picture, "-o", tmp_path / name)[:2] == (0, "")
        assert (tmp_path / name).read_text().startswith(begins)


def test_a_pdf_is_read_page_by_page_with_progress_into_one_file(capsys, fake, pdf, tmp_path):
    model = fake([PAGE.replace("Title", f"Title {n}") for n in (1, 2, 3)])
    out_path = tmp_path / "out.md"
    code, out, err = qvl(capsys, "read", pdf, "-o", out_path, "--dpi", 144)
    text = out_path.read_text()
    assert (code, out) == (0, "")
    starts = [text.index(f"<!-- page {n} -->\n\n# Title {n}") for n in (1, 2, 3)]
    assert starts == sorted(starts)
    assert [line.split(",")[0] for line in err.splitlines()] == [f"page {n} of 3" for n in (1, 2, 3)]
    # drawn at twice the points' 72 to the inch
    assert [(c.media[0].original.width, c.media[0].original.height) for c in model.calls] == [
        (280, 560), (560, 560), (840, 560)
    ]  # fmt: skip
    assert list(tmp_path.glob("*.partial")) == []


def test_an_interrupted_reading_goes_on_where_it_stopped(capsys, fake, pdf, tmp_path):
    out_path = tmp_path / "out.md"
    fake([PAGE, BackendError("server went away")])
    code, _, err = qvl(capsys, "read", pdf, "-o", out_path)
    assert code == 2
    assert "1 of 3 pages are kept" in err
    assert "server went away" in err
    assert not out_path.exists()
    partial = tmp_path / "out.md.partial"
    partial.write_text(partial.read_text() + '{"page": "half a li')  # killed while it wrote
    model = fake([PAGE.replace("Title", f"Title {n}") for n in (2, 3)])
    code, _, err = qvl(capsys, "read", pdf, "-o", out_path)
    assert code == 0
    assert "going on after 1 of 3 pages" in err
    assert len(model.calls) == 2
    assert [f"# Title{n}\n" in out_path.read_text() for n in ("", " 2", " 3")] == [True] * 3
    assert not partial.exists()


def test_another_files_journal_is_not_gone_on_with(capsys, fake, pdf, tmp_path):
    out_path = tmp_path / "out.md"
    fake([PAGE, BackendError("away")])
    qvl(capsys, "read", pdf, "-o", out_path)
    model = fake(PAGE)
    code, _, err = qvl(capsys, "read", pdf, "-o", out_path, "--dpi", 100)
    assert code == 0
    assert "starting from scratch" in err
    assert len(model.calls) == 3


def test_pages_of_a_pdf_are_chosen_and_keep_their_numbers(capsys, fake, pdf):
    fake(PAGE)
    out = qvl(capsys, "read", pdf, "--pages", "3,1", "--to", "json")[1]
    assert [(p["page"], p["width"]) for p in json.loads(out)["pages"]] == [(3, 840), (1, 280)]


def test_several_tables_become_several_files(capsys, fake, pdf, tmp_path):
    fake(PAGE)
    code, _, err = qvl(capsys, "read", pdf, "-o", tmp_path / "t.csv")
    assert code == 0
    assert sorted(p.name for p in tmp_path.glob("*.csv")) == [f"t_page{n}_table1.csv" for n in (1, 2, 3)]
    assert "t_page2_table1.csv" in err


def test_blocks_are_drawn_on_each_page(capsys, fake, pdf, picture, tmp_path):
    fake(PAGE)
    assert qvl(capsys, "read", picture, "--draw", tmp_path / "d.png")[0] == 0
    assert Image.open(tmp_path / "d.png").getpixel((10, 20)) != (255, 255, 255)
    assert qvl(capsys, "read", pdf, "--draw", tmp_path / "e.png")[0] == 0
    assert [Image.open(tmp_path / f"e-{n}.png").size for n in (1, 2, 3)] == [
        (280, 560),
        (560, 560),
        (840, 560),
    ]


def test_a_small_context_keeps_half_of_it_for_the_page(capsys, fake, picture):
    asked = []
    for room, options in ((None, ()), (3000, ()), (3000, ("--max-new-tokens", 77)), (2000, ())):
        model = fake(PAGE, max_model_len=room)
        qvl(capsys, "read", picture, *options)
        asked.append(model.calls[0].settings["max_new_tokens"])
    assert asked == [4096, 1500, 77, 1000]


def test_pages_without_content_are_exit_1(capsys, fake, picture):
    fake("I am sorry.")
    code, _, err = qvl(capsys, "read", picture)
    assert code == 1
    assert "no document markup" in err
    fake("<html><body><p>x</p></body></html>")
    code, _, err = qvl(capsys, "read", picture, "--to", "csv")
    assert (code, "no table" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nowhere.pdf"], "no such file"),
        (["PDF", "--pages", "4"], "has pages 1 to 3"),
        (["PDF", "--pages", "1-"], "write them as"),
        (["PDF", "--pages", "2,2"], "named twice"),
        (["PICTURE", "--pages", "1"], "one PDF"),
        (["PDF", "--dpi", "5"], "from 18 to 1200"),
        (["PICTURE", "--to", "docx"], "known: md, html, json, csv, layout"),
        (["PICTURE", "-o", "no/such/folder.md"], "no folder"),
        (["PICTURE", "-o", "page.docx"], "give one with --to"),
        (["PICTURE", "--draw", "page.docx"], "the name of a drawing must end in .png"),
        (["BROKEN"], "can't be opened as a PDF"),
    ],
)
def test_mistakes_in_reading_are_told_before_any_model_is_loaded(
    capsys, fake, picture, pdf, tmp_path, words, part
):
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 and nothing that follows")
    model = fake(PAGE)
    places = {"PDF": pdf, "PICTURE": picture, "BROKEN": str(broken)}
    code, out, err = qvl(capsys, "read", *(places.get(w, w) for w in words))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert part in err
    assert model.opened == []


def test_a_drawn_page_is_read_whole(capsys, fake, tmp_path):
    sample = make("page", 3, 1)
    sample.media[0].save(tmp_path / "p.png")
    fake(sample.answer)
    code, out, _ = qvl(capsys, "read", tmp_path / "p.png", "--to", "md")
    assert code == 0
    for box in sample.boxes:
        if box.text and box.label in ("h1", "p"):
            assert box.text in out


# ------------------------------------------------------------------------------------------ find-moment


def test_a_moment_is_printed_and_its_frames_are_saved(capsys, fake, clip, tmp_path):
    model = fake("The event happens in 00:01.00 - 00:02.25.")
    code, out, _ = qvl(capsys, "find-moment", clip, "it is half bright", "--frames", tmp_path)
    assert code == 0
    assert out == "00:01.00 - 00:02.25\n"
    assert "it is half bright" in model.calls[0].question
    grey = [np.asarray(Image.open(tmp_path / f"ball-1-{end}.png")).mean() for end in ("start", "end")]
    assert grey == pytest.approx([4 * 20, 9 * 20], abs=4)  # 4 frames a second, each 20 brighter; H.264 rounds


def test_moments_as_json(capsys, fake, clip):
    fake("from 0.5 to 1.5 seconds")
    said = json.loads(qvl(capsys, "find-moment", clip, "x", "--json")[1])
    assert [(e["start"], e["end"]) for e in said["items"]] == [(0.5, 1.5)]
    assert said["frames"] == []


def test_no_moment_is_exit_1(capsys, fake, clip):
    fake("It never happens.")
    code, out, err = qvl(capsys, "find-moment", clip, "x")
    assert (code, out) == (1, "")
    assert "nothing found" in err


def test_mistakes_in_finding_are_one_line(capsys, fake, clip, picture, tmp_path):
    model = fake("00:01")
    for words, part in (
        (["nowhere.mp4", "x"], "no such file"),
        ([picture, "x"], "does not have the name of a video"),
        ([clip, "x", "--frames", tmp_path / "none"], "no such folder"),
    ):
        code, out, err = qvl(capsys, "find-moment", *words)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert part in err
    assert model.opened == []


def test_the_frame_at_a_time_is_the_one_on_screen_then(clip):
    from qvl.inputs.video import frames_at

    times = [0.0, 0.24, 0.25, 2.99, 99.0]
    grey = [np.asarray(frame).mean() / 20 for frame in frames_at(clip, times)]
    assert grey == pytest.approx([0, 0, 1, 11, 11], abs=0.2)


def test_times_are_written_as_clocks():
    assert [clock(s) for s in (0, 92.4, 59.999, 3692.4)] == ["00:00.00", "01:32.40", "01:00.00", "1:01:32.40"]
