"""The embedded model's trainer: it must show the model exactly what `ask` shows it, and go on where it stopped."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "training"))

import synth_mix
import train_mini
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
    batch = train_mini.Collator(str(MINI / "tokenizer.json"))([sample], dense=False)
    n = asked.num_tokens
    np.testing.assert_array_equal(batch["ids"][0, :n], asked.input_ids)
    np.testing.assert_array_equal(batch["pos"][:, 0, :n], asked.positions)
    patches = train_mini.to_torch(batch, "cpu")["patches"].numpy()
    np.testing.assert_allclose(patches, np.concatenate([m.patches for m in asked.media]), atol=1e-6)


def test_the_loss_is_on_the_answer_and_its_end_alone():
    collate = train_mini.Collator(str(MINI / "tokenizer.json"))
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
    assert synth_mix.shares(1.0)[[x.kind for x in synth_mix.LESSONS].index("find")] == 0


def test_what_a_question_asks_for_is_known_by_kind_and_colour():
    what = synth_mix.what_is_asked
    assert what("Locate the red cross.") == (SHAPE_CLASS["cross"], COLOUR_CLASS["red"])
    assert what("How many crosses do you see?") == (SHAPE_CLASS["cross"], 0)
    assert what("Count the pink shapes.") == (0, COLOUR_CLASS["pink"])
    assert what("How many shapes are there?") == (0, 0)
    assert what("What is the total?") is None


@pytest.mark.parametrize("kind", ["find", "count", "field", "chart", "screen"])
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


def test_a_picture_asked_several_questions_gives_each_the_logits_it_has_alone():
    model = load_model(MINI, dtype="float32")
    collate = train_mini.Collator(str(MINI / "tokenizer.json"))
    samples = [make("find", 0, 1), make("find", 1, 1)]

    def logits(batch):
        b = train_mini.to_torch(batch, "cpu")
        ids = b["ids"].view(-1)
        features = model.encode_media(b["patches"], b["grids"])
        hidden = model.merge_features(model.embed(ids), ids, features)
        hidden = model.decode(hidden, b["pos"].view(3, -1), train_mini.BranchAttention(b["branch"]))
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
    at = (pixels / train_mini.BIN).long()
    right = torch.nn.functional.one_hot(at, train_mini.NUM_BINS).float().flatten(1) * 8
    beside, far = right.roll(1, 1), right.roll(9, 1)
    losses = [float(train_mini.bin_loss(x, pixels)) for x in (right, beside, far)]
    assert losses == sorted(losses)
    assert losses[1] - losses[0] > 0.5


def test_each_digit_of_a_box_knows_the_coordinate_it_belongs_to():
    collate = train_mini.Collator(str(MINI / "tokenizer.json"))
    sample = make("find", 5, 1)
    answer = collate.encode(sample.answer)
    found = collate.coordinates(answer, tuple(sample.boxes[0][:4]))
    written = [t for t, c in zip(map(collate.tokenizer.id_to_token, answer), found) if c >= 0]
    assert "".join(written) == "".join(map(str, sample.boxes[0][:4]))
    assert [c for c in dict.fromkeys(found) if c >= 0] == list(dict.fromkeys(sample.boxes[0][:4]))


def test_capitals_and_digits_are_single_tokens():
    tokenizer = train_mini.Collator(str(MINI / "tokenizer.json")).tokenizer
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
