"""Qwen3-VL through the engine: features wider than the model (DeepStack) survive every cut, mix and cache hit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TOKEN_ID, VOCAB_SIZE
from qvl.backends.answer import conversation
from qvl.catalog import generations
from qvl.catalog.config import ModelConfig, TextConfig, VisionConfig
from qvl.engine.engine import Engine, EngineOptions
from qvl.engine.memory import plan_memory
from qvl.inputs.processor import ModelInputs, Processor
from qvl.inputs.sampling import SamplingParams
from qvl.models import build
from qvl.models.attention import CausalAttention
from qvl.models.base import VisionLanguageModel, initialize
from qvl.models.checkpoint import load_model, save_model
from qvl.units import GiB

TEXT = TextConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,  # wider than 32 / 4
    vocab_size=VOCAB_SIZE,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    mrope_section=(4, 2, 2),
    mrope_interleaved=True,
    qk_norm=True,
    attention_bias=False,
)
TEXTS = {
    "qwen3_vl": TEXT,
    "qwen3_vl_moe": replace(TEXT, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=12),
}
VISION = VisionConfig(
    depth=4,
    hidden_size=32,
    intermediate_size=40,
    num_heads=2,
    out_hidden_size=32,
    patch_size=16,
    num_position_embeddings=36,
    deepstack_visual_indexes=(0, 2, 3),
)
GREEDY = SamplingParams(max_new_tokens=10, ignore_eos=True)
BLOCK = 4


@pytest.fixture(scope="module", params=TEXTS)
def tiny(request, tmp_path_factory, tiny_checkpoint: Path) -> tuple[VisionLanguageModel, Processor]:
    """A random Qwen3-VL that was written as a checkpoint and read back, with the tiny tokenizer."""
    config = ModelConfig(
        generation=generations.by_name(request.param),
        text=TEXTS[request.param],
        vision=VISION,
        image_token_id=TOKEN_ID["<|image_pad|>"],
        video_token_id=TOKEN_ID["<|video_pad|>"],
        vision_start_token_id=TOKEN_ID["<|vision_start|>"],
        vision_end_token_id=TOKEN_ID["<|vision_end|>"],
        eos_token_ids=(TOKEN_ID["<|im_end|>"],),
        dtype="float32",
    )
    model = build(config).eval().requires_grad_(False)
    initialize(model, 0.2, torch.Generator().manual_seed(3))
    folder = tmp_path_factory.mktemp(request.param)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_checkpoint / name, folder / name)
    sizes = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(sizes | {"size": {"shortest_edge": 1024, "longest_edge": 1 << 20}}), encoding="utf-8"
    )
    save_model(model, folder)
    return load_model(folder), Processor.from_pretrained(folder)


def make_engine(tiny, num_tokens: int = 2048, **options) -> Engine:
    model, processor = tiny
    memory = plan_memory(
        model.config,
        precision="fp32",
        kv_dtype="fp32",
        available_bytes=GiB,
        block_size=BLOCK,
        kv_bytes=num_tokens * 4 * 2 * 2 * 16 * 4,
        max_model_len=num_tokens,
        feature_bytes=1 << 20,
    )
    return Engine(model, processor.tokenizer, memory, options=EngineOptions(**options))


def picture(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def prompts(tiny) -> list[ModelInputs]:
    """Text alone, one picture, two pictures, a clip of two moments with a picture."""
    _, processor = tiny
    frames = np.stack([picture(9, 64, 96)] * 2 + [picture(8, 64, 96)] * 2)
    clip = {"type": "video", "video": frames, "sample_fps": 2.0}
    return [
        processor(conversation(media, question))
        for media, question in (
            ([], "the system in the inn"),
            ([picture(1)], "What is the total?"),
            ([picture(2, 128, 64), picture(1)], "Which?"),
            ([clip, picture(3)], "When?"),
        )
    ]


@pytest.fixture(scope="module")
def reference(tiny, prompts) -> list[list[int]]:
    """Greedy tokens by full contiguous forwards, one for each token, with no cache of any kind."""
    return [greedy(tiny, inputs) for inputs in prompts]


def greedy(tiny, inputs: ModelInputs, deepstack: bool = True) -> list[int]:
    model, processor = tiny
    answer: list[int] = []
    with torch.inference_mode():
        features = [model.encode_media(torch.from_numpy(m.patches), [m.grid]) for m in inputs.media]
        if not deepstack:
            features = [feature[:, : TEXT.hidden_size] for feature in features]
        for _ in range(10):
            ids = torch.tensor([*inputs.input_ids.tolist(), *answer])
            more = torch.arange(len(answer)) + len(inputs.input_ids) + inputs.rope_delta
            positions = torch.cat([torch.from_numpy(inputs.positions), more.expand(3, -1)], dim=1)
            hidden = model.embed(ids)
            if features:
                hidden = model.merge_features(hidden, ids, torch.cat(features))
            hidden = model.decode(hidden, positions, CausalAttention([len(ids)]))
            answer.append(int(model.logits(hidden[-1:])[0, : len(processor.tokenizer)].argmax()))
    return answer


def run(engine: Engine, requests: list[ModelInputs]) -> list[list[int]]:
    """Greedy tokens of requests that are submitted together."""
    tokens: dict[int, list[int]] = {engine.submit(inputs, GREEDY): [] for inputs in requests}
    while engine.has_work:
        for event in engine.step():
            assert event.finish_reason in (None, "length"), event.error
            tokens[event.request_id] += event.token_ids
        engine.check()
    return list(tokens.values())


def test_the_reference_depends_on_deepstack(tiny, prompts, reference):
    """Otherwise an engine that loses those features would pass every test here."""
    assert greedy(tiny, prompts[1], deepstack=False) != reference[1]


def test_each_request_alone_equals_the_full_forward(tiny, prompts, reference):
    for inputs, wanted in zip(prompts, reference):
        assert run(make_engine(tiny), [inputs]) == [wanted]


def test_text_rows_and_picture_rows_share_a_step(tiny, prompts, reference):
    assert run(make_engine(tiny), prompts) == reference
    assert len({tuple(answer) for answer in reference}) == len(reference)


@pytest.mark.parametrize("step", [1, 5, 17])
def test_a_chunk_that_ends_inside_a_picture_takes_its_share_of_the_deep_features(
    tiny, prompts, reference, step
):
    engine = make_engine(tiny, max_num_batched_tokens=step)
    assert run(engine, prompts) == reference


def test_a_prefix_hit_that_ends_inside_a_picture_goes_on_with_the_rest_of_it(tiny, prompts, reference):
    engine = make_engine(tiny)
    run(engine, [prompts[1]])
    (span,) = prompts[1].media
    kept = span.start // BLOCK + 2
    assert span.start < kept * BLOCK < span.start + span.num_tokens
    # what lies at an answer's end is evicted first
    pool = engine._pool
    pool.free(pool.allocate(pool.num_free - kept))
    engine.submit(prompts[1], GREEDY)
    events = engine.step()
    while engine.has_work:
        events += engine.step()
    assert [token for event in events for token in event.token_ids] == reference[1]
    assert events[-1].usage.cached_tokens == kept * BLOCK


def test_features_are_budgeted_with_their_full_width(tiny, prompts):
    engine = make_engine(tiny)
    run(engine, [prompts[1]])
    (entry,) = engine._features._entries.values()
    assert entry.num_bytes == entry.value.numel() * entry.value.element_size()
    assert entry.value.shape[1] == TEXT.hidden_size * (1 + len(VISION.deepstack_visual_indexes))
