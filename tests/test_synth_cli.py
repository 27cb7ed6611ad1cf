"""The verb `qvl synth`: what it writes and how it scores."""

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from qvl.cli.main import main
from qvl.synth import TEST_SEEDS, Clip, make
from qvl.tasks import open as door


def test_drawing_writes_each_picture_and_one_line_about_it(tmp_path, capsys):
    assert main(["synth", "--kind", "receipt", "--seed", "7", "-n", "2", "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "samples.jsonl").read_text(encoding="utf-8") == printed
    records = [json.loads(line) for line in printed.splitlines()]
    assert [r["seed"] for r in records] == [7, 8]
    for r in records:
        sample = make("receipt", r["seed"])
        assert (r["question"], r["answer"]) == (sample.question, sample.answer)
        assert r["boxes"][0]["text"] == sample.answer
        saved = np.asarray(Image.open(tmp_path / r["media"][0]))
        assert (saved == np.asarray(sample.media[0])).all()


def test_both_pictures_of_a_pair_are_written(tmp_path):
    assert main(["synth", "--kind", "pair", "-o", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["pair-0-d1-1.png", "pair-0-d1-2.png"]


def test_a_clip_is_written_as_a_video_with_its_own_frame_times(tmp_path):
    av = pytest.importorskip("av")
    assert main(["synth", "--kind", "clip", "--seed", "1", "-o", str(tmp_path)]) == 0
    clip = make("clip", 1).media[0]
    assert isinstance(clip, Clip)
    with av.open(str(tmp_path / "clip-1-d1.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [float(f.time) for f in frames] == [i / clip.fps for i in range(len(clip.frames))]
    for frame, truth in zip(frames, clip.frames):
        # H.264 with halved colour moves edges by some levels, not the picture.
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - truth).mean() < 4


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--kind", "nothing", "-o", "x"], "'nothing'"),
        (["-o", "x"], "no --kind"),
        (["--kind", "read"], "add -o FOLDER"),
        (["--kind", "read", "-n", "0", "-o", "x"], "needs at least 1"),
        (["--kind", "read", "--difficulty", "9", "-o", "x"], "9 is outside 0..3"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["synth", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["synth", "--kind", "read", "-o", str(tmp_path / "file" / "in")]) == 2
    assert "can't write to" in capsys.readouterr().err


@dataclass
class Answer:
    text: str


class Oracle:
    """Knows the samples of the test seeds; wrong on every odd seed."""

    def __init__(self, kinds, seeds):
        self.samples = [make(k, s) for k in kinds for s in seeds]
        self.asked = 0

    def ask_many(self, questions, max_new_tokens):
        return [self._ask(media, question) for media, question in questions]

    def _ask(self, media, question):
        sample = self.samples[self.asked]
        self.asked += 1
        assert question == sample.question
        assert (np.asarray(media[0]) == np.asarray(sample.media[0])).all()
        return Answer(sample.answer if sample.seed % 2 == 0 else "no idea")


def test_score_prints_share_and_interval_per_kind(monkeypatch, capsys):
    seeds = TEST_SEEDS[:20]
    model = Oracle(["read", "count"], seeds)
    monkeypatch.setattr(door, "open_backend", lambda source, **_: model)
    assert main(["synth", "--score", "any", "--kind", "read", "--kind", "count", "-n", "20", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["seed0"] == TEST_SEEDS.start
    assert [(r["kind"], r["n"], r["right"]) for r in report["kinds"]] == [("read", 20, 10), ("count", 20, 10)]
    assert report["kinds"][0]["low"] == pytest.approx(0.2993, abs=1e-4)
    assert "read 20/20" in err


def test_score_table_says_what_right_means(monkeypatch, capsys):
    model = Oracle(["find"], range(40, 44))
    monkeypatch.setattr(door, "open_backend", lambda source, **_: model)
    assert main(["synth", "--score", "any", "--kind", "find", "-n", "4", "--seed0", "40"]) == 0
    out = capsys.readouterr().out
    assert "IoU >= 0.5" in out
    assert "50.0%" in out
    assert "seeds from 40" in out


def test_help_needs_no_numpy():
    code = (
        "import sys; from qvl.cli.main import main; main(['synth', '--help']); "
        "print([m for m in ('numpy', 'PIL', 'torch', 'av') if m in sys.modules], file=sys.stderr)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--kind" in out.stdout
    assert out.stderr.strip() == "[]"
