"""The embedded model as it ships: a checkpoint like any other, the same in transformers, and small."""

from pathlib import Path

import pytest
import torch

import qvl
from qvl.evaluate.score_synth import find_box, iou, score
from qvl.synth import TEST_SEEDS, make

MINI = Path(qvl.__file__).parent / "mini"


@pytest.fixture(scope="module")
def mini():
    return qvl.load("mini")


def test_weights_are_at_most_24_mb_in_bf16():
    from safetensors import safe_open

    files = list(MINI.glob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) <= 24_000_000
    with safe_open(files[0], "pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_it_has_every_mechanism_of_the_family():
    from qvl.catalog.config import read_config

    config = read_config(MINI)
    assert config.family == "qwen2_5_vl"
    full = set(config.vision.fullatt_block_indexes)
    assert 0 < len(full) < config.vision.depth, "full blocks and windows"
    assert config.vision.spatial_merge_size == 2
    assert config.vision.tokens_per_second > 0
    assert len(config.text.mrope_section) == 3
    assert config.text.num_key_value_heads < config.text.num_attention_heads


def test_transformers_gives_the_same_tokens(mini):
    """float32 on both sides: bf16 kernels may break ties differently."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(MINI, dtype=torch.float32)
    ours = qvl.load(MINI, dtype="fp32")
    from qvl.inputs.processor import Processor

    processor = Processor.from_pretrained(MINI)
    for kind in ("read", "field", "find", "count"):
        sample = make(kind, TEST_SEEDS.start + 1, 1)
        content = [{"type": "image", "image": sample.media[0]}, {"type": "text", "text": sample.question}]
        inputs = processor([{"role": "user", "content": content}])
        ids = torch.from_numpy(inputs.input_ids)[None]
        out = reference.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(inputs.media[0].patches),
            image_grid_thw=torch.tensor([list(inputs.media[0].grid)]),
            max_new_tokens=48,
            do_sample=False,
        )
        new = [t for t in out[0, ids.shape[1] :].tolist() if t not in ours.model.config.eos_token_ids]
        answer = ours.ask([sample.media[0]], sample.question, max_new_tokens=48, temperature=0)
        assert answer.text == processor.tokenizer.decode(new), kind


def test_asking_many_at_once_answers_as_one_by_one(mini):
    pairs = []
    for seed in range(6):
        sample = make("read", TEST_SEEDS.start + seed, 1)
        pairs.append(([sample.media[0]], sample.question))
    together = [a.text for a in mini.ask_many(pairs, temperature=0)]
    assert together == [mini.ask(media, question, temperature=0).text for media, question in pairs]


def test_it_answers_the_demo_question(mini):
    receipt = Path(__file__).parent.parent / "examples" / "receipt.png"
    assert mini.ask([str(receipt)], "What is the total?").text == "14.27"


def test_it_boxes_the_demo_picture(mini):
    shapes = Path(__file__).parent.parent / "examples" / "shapes.png"
    (red,) = (
        s.box for s in make("count", TEST_SEEDS[0], 1).shapes if (s.colour, s.kind) == ("red", "circle")
    )
    found = find_box(mini.ask([str(shapes)], "Locate the red circle.").text)
    assert found is not None
    assert iou(found, red) >= 0.5


@pytest.mark.parametrize(("kind", "least"), [("read", 0.5), ("field", 0.5), ("count", 0.35), ("find", 0.65)])
def test_scores_hold_on_unseen_pictures(mini, kind, least):
    """A guard against a broken package, well below docs/mini.md's figures; `qvl synth --score mini` measures."""
    samples = [make(kind, TEST_SEEDS.start + i, 1) for i in range(24)]
    answers = mini.ask_many([(list(s.media), s.question) for s in samples], temperature=0, max_new_tokens=64)
    assert sum(score(s, a.text) for s, a in zip(samples, answers)) / len(samples) >= least
