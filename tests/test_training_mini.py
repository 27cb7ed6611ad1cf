"""The embedded model's trainer: it must show the model exactly what `ask` shows it, and go on where it stopped."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "training"))

import drawings
import mini_data
import mini_schedule
import mini_step
import synth_mix
import targets
from targets import CELL, COLOUR_CLASS, GLYPH_CLASS, IGNORE, SHAPE_CLASS, dense_targets

from qvl.inputs.processor import Processor
from qvl.models.checkpoint import load_model
from qvl.synth import KINDS, TRAIN_SEEDS, Clip, make

MINI = ROOT / "src" / "qvl" / "mini"


def as_item(medium):
    if isinstance(medium, Clip):
        return {"type": "video", "video": list(medium.frames), "sample_fps": medium.fps}
    return {"type": "image", "image": medium}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_training_shows_what_the_processor_shows(kind):
    sample = make(kind, 5, 1)
    content = [*map(as_item, sample.media), {"type": "text", "text": sample.question}]
    asked = Processor.from_pretrained(MINI)([{"role": "user", "content": content}])
    batch = mini_data.Collator(str(MINI / "tokenizer.json"))([sample], dense=False)
    n = asked.num_tokens
    np.testing.assert_array_equal(batch["ids"][0, :n], asked.input_ids)
    np.testing.assert_array_equal(batch["pos"][:, 0, :n], asked.positions)
    patches = mini_data.to_torch(batch, "cpu")["patches"].numpy()
    np.testing.assert_allclose(patches, np.concatenate([m.patches for m in asked.media]), atol=1e-6)


def test_the_loss_is_on_the_answer_and_its_end_alone():
    collate = mini_data.Collator(str(MINI / "tokenizer.json"))
    sample = make("read", 3, 1)
    batch = collate([sample, make("read", 4, 1)], dense=False)
    after = np.flatnonzero(batch["mask"][0]) + 1
    text = collate.tokenizer.decode(batch["ids"][0, after].tolist(), skip_special_tokens=False)
    assert text == sample.answer + "<|im_end|>"


def test_dense_targets_name_the_glyphs_under_each_cell():
    sample = make("read", 11, 1)
    targets = dense_targets(sample)
    columns = sample.media[0].width // CELL
    found = targets["glyph"]
    assert (found > 0).sum() == len(sample.glyphs)
    for glyph in sample.glyphs:
        x, y = (glyph.x0 + glyph.x1) / 2, (glyph.y0 + glyph.y1) / 2
        near = [
            (int(y // CELL) + dy) * columns + int(x // CELL) + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)
        ]
        assert any(GLYPH_CLASS[glyph.char] in found[c] for c in near if 0 <= c < len(found)), glyph
    assert set(targets["index"][found > 0]) == set(range(len(sample.answer)))
    assert (targets["index"][found == 0] == IGNORE).all()


def test_lessons_draw_from_training_seeds_and_later_stages_hold_the_test_level():
    rng = random.Random(0)
    seen = set()
    for done in (0.0, 0.3, 0.6, 1.0):
        for _ in range(12):
            name, samples, questions = synth_mix.draw(rng, done)
            assert questions >= 1
            seen.add(name)
            assert all(s.seed in TRAIN_SEEDS for s in samples if hasattr(s, "seed"))
    assert {"sheet", "read1", "field1"} <= seen
    assert mini_schedule.shares(1.0)[[x.kind for x in mini_schedule.LESSONS].index("find")] == 0


def test_half_of_the_last_stages_goes_to_the_kinds_that_had_least_and_a_twentieth_to_the_unreadable():
    shares = dict.fromkeys((x.kind for x in mini_schedule.LESSONS), 0.0)
    for lesson, share in zip(mini_schedule.LESSONS, mini_schedule.shares(1.0)):
        shares[lesson.kind] += share / sum(mini_schedule.shares(1.0))
    assert shares["screen"] > 0.13
    assert shares["chart"] > 0.13
    assert shares["clip"] + shares["events"] > 0.09
    assert 0.04 < shares["unreadable"] < 0.07
    assert min(shares["field"], shares["count"]) > 0.08


def test_what_a_question_asks_for_is_known_by_kind_and_colour():
    what = synth_mix.what_is_asked
    assert what("Locate the red cross.") == (SHAPE_CLASS["cross"], COLOUR_CLASS["red"])
    assert what("How many crosses do you see?") == (SHAPE_CLASS["cross"], 0)
    assert what("Count the pink shapes.") == (0, COLOUR_CLASS["pink"])
    assert what("How many shapes are there?") == (0, 0)
    assert what("What is the total?") is None


@pytest.mark.parametrize("kind", ["find", "count", "field", "chart", "screen", "pair", "clip"])
def test_further_questions_about_a_picture_are_answered_by_what_was_drawn(kind):
    rng = random.Random(3)
    for seed in range(40):
        sample = make(kind, seed, 1)
        own, *more = synth_mix.questions_of(sample, rng, 5)
        assert (own.question, own.answer) == (sample.question, sample.answer)
        assert len(more) <= 4
        for asked in more:
            if kind == "find":
                box = json.loads(asked.answer)[0]
                drawn = {(f"{s.colour} {s.kind}", tuple(s.box)) for s in sample.shapes}
                assert (box["label"], tuple(box["bbox_2d"])) in drawn
                assert asked.box == tuple(box["bbox_2d"])
                assert box["label"] in asked.question
            elif kind == "count":
                noun = (
                    asked.question.removesuffix(" are there?").removesuffix(" do you see?").removesuffix(".")
                )
                noun = noun.removeprefix("How many ").removeprefix("Count the ")
                words = [
                    w.removesuffix("es") if w == "crosses" else w.removesuffix("s") for w in noun.split()
                ]
                facts = [{s.kind, s.colour, "shape"} for s in sample.shapes]
                assert asked.answer == str(sum(set(words) <= f for f in facts)), asked
            elif kind == "field":
                assert asked.answer in sample.extra["fields"].values()
                if "number" in asked.question and "phone" not in asked.question:
                    assert asked.answer == sample.extra["fields"]["number"]
            elif kind == "chart" and "value of" in asked.question:
                name = asked.question.rstrip("?.").rpartition(" ")[2]
                assert asked.answer == str(sample.extra["values"][name])
                assert asked.label == name
                assert next(b for b in sample.extra["mark_boxes"] if b.label == name)[:4] == asked.box
            elif kind == "screen":
                element = next(b for b in sample.extra["element_boxes"] if b.text == asked.label)
                assert asked.label in asked.question
                assert asked.box == element[:4]
                x, y = json.loads(asked.answer)["point_2d"]
                assert asked.written == (x, y)
                assert element.x1 <= x < element.x2
                assert element.y1 <= y < element.y2
            elif kind == "pair" and sample.extra["task"] == "more":
                shape = asked.question.removeprefix("Which picture has more ").removeprefix("Where are more ")
                shape = shape.partition(",")[0].replace("crosses", "cross")
                shape = shape if shape == "cross" else shape.removesuffix("s")
                counts = [sum(s.kind == shape and s.picture == i for s in sample.shapes) for i in (0, 1)]
                assert asked.answer == ("second" if counts[1] > counts[0] else "first")
                assert counts[0] != counts[1]
            elif kind == "pair":
                first, second = sample.extra["texts"]
                same = "yes" if first == second else "no"
                assert asked.answer == (
                    first if "first" in asked.question else second if "second" in asked.question else same
                )
            elif kind == "clip":
                assert asked.seconds == (0.0, sample.media[0].seconds)
                assert sample.extra["label"] not in asked.question


def test_a_windows_labels_and_a_charts_names_know_the_box_they_lead_to():
    for kind, boxes in (("screen", "element_boxes"), ("chart", "mark_boxes")):
        for seed in range(20):
            sample = make(kind, seed, 1)
            targets, columns = dense_targets(sample), sample.media[0].width // CELL
            seen = {tuple(np.round(b * 100)) for b in targets["box"][targets["shape"][:, 0] > 0]}
            assert seen <= {tuple(b[:4]) for b in sample.extra[boxes]}
            assert (
                targets["shape"][targets["shape"][:, 0] > 0, 1] == IGNORE
            ).all()  # they have no colour name
            for box in sample.extra[boxes]:
                x, y = (box.x1 + box.x2) // 2, (box.y1 + box.y2) // 2
                if box.x2 - box.x1 > 2 * CELL and box.y2 - box.y1 > 10 and kind == "screen":
                    cell = y // CELL * columns + x // CELL
                    assert SHAPE_CLASS[box.label.rpartition(" ")[2]] == targets["shape"][cell, 0]


def test_a_charts_printed_value_has_the_role_of_its_name():
    sample = make("chart", 4, 1)
    roles = {targets.role_of(name) for name in sample.extra["values"]}
    found = dense_targets(sample)["role"]
    for name, value in sample.extra["values"].items():
        glyphs = [g for g in sample.glyphs if g.char in str(value)]
        assert glyphs
        assert (found == targets.role_of(name)).sum() >= 2, name  # on the name and on the value
    assert roles <= set(found.ravel())


def test_each_token_of_a_clip_knows_in_which_of_its_frames_the_shape_is():
    seen = set()
    for seed in range(30):
        sample = make("clip", seed, 1)
        start, end = (round(2 * sample.extra[f"{at}_seconds"]) for at in ("start", "end"))
        found = dense_targets(sample)
        rows, columns = (side // CELL for side in sample.media[0].frames.shape[1:3])
        box = sample.boxes[0]
        x, y = (box.x1 + box.x2) // 2 // CELL, (box.y1 + box.y2) // 2 // CELL
        when = found["when"].reshape(-1, rows, columns)[:, y, x]
        own = (found["box"].reshape(-1, rows, columns, 4)[:, y, x] * 100).round()
        for t, value in enumerate(when):
            if tuple(own[t]) == tuple(box[:4]):
                assert value == (start <= 2 * t < end) + 2 * (start <= 2 * t + 1 < end)
                seen.add(int(value))
            else:
                assert not start <= 2 * t < end or not start <= 2 * t + 1 < end
    assert seen == {1, 2, 3}


def test_a_pairs_pictures_have_targets_of_their_own():
    sample = next(s for s in (make("pair", seed, 1) for seed in range(50)) if s.extra["task"] == "nth")
    for picture, text in enumerate(sample.extra["texts"]):
        found = dense_targets(sample, picture)["glyph"]
        assert sorted(found[found > 0]) == sorted(GLYPH_CLASS[c] for c in text)


@pytest.mark.parametrize("draw", sorted(synth_mix.DRAWINGS))
def test_drawings_of_other_code_are_laid_out_with_targets_that_fit(draw):
    rng = random.Random(8)
    drawn = [synth_mix.DRAWINGS[draw](rng) for _ in range(12)]
    collate = mini_data.Collator(str(MINI / "tokenizer.json"))
    batch = collate(drawn, questions=3, rng=rng)
    cells = sum(g.t * g.h * g.w for g in batch["grids"]) // 4
    for key in ("glyph", "shape", "box", "when", "place", "role"):
        assert len(batch["t_" + key]) == cells
    for key in ("number", "answer_box", "what", "role", "seconds", "coordinate"):
        assert len(batch[key]) == batch["mask"].sum()
    for medium in (m for d in drawn for m in d.media):
        width, height = (medium.frames.shape[2:0:-1]) if isinstance(medium, Clip) else medium.size
        assert width % CELL == height % CELL == 0


def test_every_question_about_an_unreadable_image_has_the_honest_answer():
    rng = random.Random(2)
    for _ in range(60):
        drawn = drawings.unreadable(rng)
        assert len(drawn.asked) >= 3
        assert {a.answer for a in drawn.asked} == {drawings.UNREADABLE}
        if drawn.shapes:  # of a scene one can tell where its shapes are: only reading is refused
            assert not any(a.question.startswith(("How many", "Locate", "Count")) for a in drawn.asked)


def test_text_by_other_code_lies_where_its_targets_say():
    rng = random.Random(4)
    for _ in range(20):
        drawn = drawings.plain_text(rng)
        assert "".join(g.char for g in drawn.glyphs) == drawn.answer.replace(" ", "")
        grey = np.asarray(drawn.media[0].convert("L")).astype(int)
        ink = np.argwhere(abs(grey - grey[0, 0]) > 60)
        top, left = ink.min(0)
        bottom, right = ink.max(0)
        assert abs(drawn.glyphs[0].x0 - left) <= 5
        assert abs(drawn.glyphs[-1].x1 - right) <= 9
        assert min(g.y0 for g in drawn.glyphs) <= top + 4
        assert max(g.y1 for g in drawn.glyphs) >= bottom - 4


def test_pillows_default_font_is_left_for_tests():
    assert not any("Aileron" in path for path in drawings.font_files())
    assert any("DejaVuSans.ttf" in path for path in drawings.font_files())


def test_each_shape_of_an_events_clip_is_on_screen_in_the_seconds_answered():
    rng = random.Random(6)
    for _ in range(20):
        drawn = drawings.events(rng)
        for asked in drawn.asked:
            start, end = (round(2 * s) for s in asked.seconds)
            name = next(n for n in {f"{s.colour} {s.kind}" for s in drawn.shapes} if n in asked.question)
            frames = {s.picture for s in drawn.shapes if f"{s.colour} {s.kind}" == name}
            assert frames == set(range(start, end))
            assert asked.answer == f"From {start / 2:.1f} to {end / 2:.1f} seconds."


def test_the_end_of_a_run_can_be_given_by_the_clock():
    at = datetime(2026, 12, 1, 23, 30, tzinfo=UTC)
    assert mini_schedule.minutes_until("00:15", at) == 45
    assert mini_schedule.minutes_until("23:45", at) == 15


def test_a_picture_asked_several_questions_gives_each_the_logits_it_has_alone():
    model = load_model(MINI, dtype="float32")
    collate = mini_data.Collator(str(MINI / "tokenizer.json"))
    samples = [make("find", 0, 1), make("find", 1, 1)]

    def logits(batch):
        b = mini_data.to_torch(batch, "cpu")
        ids = b["ids"].view(-1)
        features = model.encode_media(b["patches"], b["grids"])
        hidden = model.merge_features(model.embed(ids), ids, features)
        hidden = model.decode(hidden, b["pos"].view(3, -1), mini_step.BranchAttention(b["branch"]))
        return model.logits(hidden[b["mask"].view(-1)])

    with torch.no_grad():
        together = collate(samples, questions=3, rng=random.Random(1))
        many = logits(together)
        rng, number = random.Random(1), 0
        for sample in samples:
            for asked in synth_mix.questions_of(sample, rng, 3):
                alone = collate([replace(sample, question=asked.question, answer=asked.answer)])
                torch.testing.assert_close(
                    many[torch.from_numpy(together["number"]) == number], logits(alone), atol=1e-4, rtol=1e-4
                )
                number += 1
    assert number > len(samples)


def test_bins_are_cheapest_at_the_true_coordinate():
    pixels = torch.tensor([[12.0, 50.0, 101.0, 222.0]])
    at = (pixels / mini_step.BIN).long()
    right = torch.nn.functional.one_hot(at, mini_step.NUM_BINS).float().flatten(1) * 8
    beside, far = right.roll(1, 1), right.roll(9, 1)
    losses = [float(mini_step.bin_loss(x, pixels)) for x in (right, beside, far)]
    assert losses == sorted(losses)
    assert losses[1] - losses[0] > 0.5


def test_each_digit_of_a_box_knows_the_coordinate_it_belongs_to():
    collate = mini_data.Collator(str(MINI / "tokenizer.json"))
    sample = make("find", 5, 1)
    answer = collate.encode(sample.answer)
    found = collate.coordinates(answer, tuple(sample.boxes[0][:4]))
    written = [t for t, c in zip(map(collate.tokenizer.id_to_token, answer), found) if c >= 0]
    assert "".join(written) == "".join(map(str, sample.boxes[0][:4]))
    assert [c for c in dict.fromkeys(found) if c >= 0] == list(dict.fromkeys(sample.boxes[0][:4]))


def test_capitals_and_digits_are_single_tokens():
    tokenizer = mini_data.Collator(str(MINI / "tokenizer.json")).tokenizer
    assert len(tokenizer.encode("AB3K9", add_special_tokens=False).ids) == 5


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path):
    def run(steps: int) -> str:
        command = [sys.executable, str(ROOT / "training" / "train_mini.py"), "--out", str(tmp_path)]
        done = subprocess.run(
            [*command, "--minutes", "5", "--stop-steps", str(steps), "--device", "cpu"],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    run(1)
    assert "goes on from step 1," in run(2)
    assert (tmp_path / "model.safetensors").exists()


def test_training_can_start_from_the_packed_weights(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "training" / "train_mini.py"),
        "--out",
        str(tmp_path),
        "--start",
        str(MINI),
    ]
    options = [
        "--minutes",
        "5",
        "--stop-steps",
        "1",
        "--device",
        "cpu",
    ]  # it is past step 1: saves without a step
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert "starts from mini after step" in done.stdout
    from safetensors.torch import load_file

    packed, saved = load_file(MINI / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert packed.keys() == saved.keys()
    assert all((packed[name] == saved[name]).all() for name in packed)


def test_our_muon_steps_as_pytorchs_does():
    from muon import Muon, orthogonal

    torch.manual_seed(0)
    start = [torch.randn(s) for s in ((6, 9), (9, 6), (6, 9), (8, 8))]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.1, weight_decay=0.02, ns_steps=4),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.02, ns_steps=4, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, first in zip(ours, theirs, start):
        moved = (b - first).norm()
        assert (a - b).norm() < 0.02 * moved  # PyTorch's iterates in bf16
    singular = torch.linalg.svdvals(orthogonal(torch.randn(4, 20, 12), 5))
    assert 0.4 < singular.min() < singular.max() < 1.4


def test_the_rate_rises_when_moments_are_new_and_falls_to_nothing_at_the_end():
    hour = 3600.0
    assert mini_schedule.rate(1.0, 0, hour, 60) == 1 / mini_schedule.WARM_UP
    assert mini_schedule.rate(1.0, 500, hour, hour) == 1.0
    assert mini_schedule.rate(1.0, 500, hour / 4, hour) == 0.25
    assert mini_schedule.rate(1.0, 500, -1.0, hour) == 0.0
