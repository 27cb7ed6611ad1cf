"""The first generation against a second, naive implementation (naive_qwen_vl.py), on tiny random weights, float32.

Tolerances: tower 1e-4 and logits 1e-3, as for the generations that have an oracle. Outputs are of size 1 to 5.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import naive_qwen_vl as naive
import quantized_writers as writers
import qvl
import qwen_vl_small as small
from qvl.catalog.config import read_config
from qvl.catalog.generations.qwen_vl import QWEN_VL
from qvl.checkpoint.check import check
from qvl.checkpoint.names import published_names, to_canonical, to_published
from qvl.errors import CheckpointError, ConfigError, MediaError, PromptError
from qvl.inputs.positions import first_generation_positions
from qvl.models import build
from qvl.models.attention import CausalAttention
from qvl.models.base import VisionLanguageModel
from qvl.models.checkpoint import load_model, save_model
from qvl.models.qwen_vl import logn_scale, rope_cos_sin, sincos_table, stretched

TOWER, LOGITS = 1e-4, 1e-3
IMG, END, PAD = small.ID["<img>"], small.ID["</img>"], small.ID["<imgpad>"]

# widths, head counts, grids and lengths that differ from each other; patches below, at and above the 16x16 table
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": small.tiny_config(),
    "wide": small.tiny_config(
        dict(width=60, heads=5, layers=3, output_dim=256, image_size=70, n_queries=25),
        hidden_size=256,
        num_attention_heads=2,
        kv_channels=128,
        num_hidden_layers=2,
        intermediate_size=120,
    ),
    "plain": small.tiny_config(
        dict(width=24, heads=1, layers=1, image_size=224, n_queries=4),
        use_logn_attn=False,
        use_dynamic_ntk=False,
        num_attention_heads=8,
        kv_channels=16,
    ),
    "published grid": small.tiny_config(dict(width=16, heads=2, layers=1, image_size=448, n_queries=256)),
}


class Case:
    """One checkpoint, our network of it, and what the naive one needs."""

    def __init__(self, config: dict[str, Any], seed: int = 0):
        self.raw = config
        weights = small.random_weights(config, seed)
        self.weights = {name: t.double().numpy() for name, t in weights.items()}
        self.config = read_config(config)
        self.model: VisionLanguageModel = build(self.config).eval().requires_grad_(False)
        self.model.load_state_dict({to_canonical(name): t for name, t in weights.items()})
        self.random = torch.Generator().manual_seed(seed + 1)

    def picture(self) -> np.ndarray:
        side = self.raw["visual"]["image_size"]
        return torch.randn(3, side, side, generator=self.random).numpy()

    def words(self, count: int) -> list[int]:
        return torch.randint(0, small.FIRST_SPECIAL, (count,), generator=self.random).tolist()

    def prompt(self, *parts: Any) -> tuple[list[int], list[np.ndarray]]:
        """Numbers are words, "picture" is one."""
        ids: list[int] = []
        pictures = []
        for part in parts:
            if part == "picture":
                pictures.append(self.picture())
                ids += [IMG, *[PAD] * self.raw["visual"]["n_queries"], END]
            else:
                ids += self.words(part)
        return ids, pictures

    def encode(self, pictures: list[np.ndarray]) -> torch.Tensor:
        patch = self.raw["visual"]["patch_size"]
        side = pictures[0].shape[1] // patch
        rows = [
            torch.from_numpy(p)
            .view(3, side, patch, side, patch)
            .permute(1, 3, 0, 2, 4)
            .flatten(2)
            .flatten(0, 1)
            for p in pictures
        ]
        return self.model.encode_media(torch.cat(rows), [(1, side, side)] * len(pictures))

    def hidden(self, ids: list[int], pictures: list[np.ndarray]) -> torch.Tensor:
        tokens = torch.tensor(ids)
        hidden = self.model.embed(tokens)
        return self.model.merge_features(hidden, tokens, self.encode(pictures)) if pictures else hidden

    def positions(self, num_tokens: int, prompt_length: int) -> torch.Tensor:
        length = self.raw["seq_length"] if self.raw["use_dynamic_ntk"] else 0
        lead = first_generation_positions(prompt_length, length).height_lead
        index = torch.arange(num_tokens)
        return torch.stack([index, index + lead, index])

    def logits(self, ids: list[int], pictures: list[np.ndarray], prompt_length: int = 0) -> torch.Tensor:
        positions = self.positions(len(ids), prompt_length or len(ids))
        out = self.model.decode(self.hidden(ids, pictures), positions, CausalAttention([len(ids)]))
        return self.model.logits(out)


def gap(ours: torch.Tensor, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.5, "numbers this small prove nothing"
    return float(np.abs(ours.numpy() - theirs).max())


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(SHAPES[request.param])


@pytest.fixture(scope="module")
def tiny() -> Case:
    return Case(SHAPES["tiny"], seed=5)


# --- the whole against the naive one


def test_features_of_several_pictures_equal_the_naive_ones(case: Case) -> None:
    pictures = [case.picture() for _ in range(3)]
    expected = np.concatenate([naive.features(p, case.weights, case.raw) for p in pictures])
    assert gap(case.encode(pictures), expected) < TOWER


PROMPTS = {
    "text": [9],
    "picture first": ["picture", 4],
    "pictures between words": [3, "picture", 2, "picture", 5],
    "as long as was trained": [64],
    "one longer": [65],
    "far longer": [40, "picture", 120],
}


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_equal_the_naive_ones(name: str, tiny: Case) -> None:
    ids, pictures = tiny.prompt(*PROMPTS[name])
    seen = [naive.features(p, tiny.weights, tiny.raw) for p in pictures]
    assert gap(tiny.logits(ids, pictures), naive.logits(ids, seen, tiny.weights, tiny.raw)) < LOGITS


@pytest.mark.parametrize("name", ["wide", "plain"])
def test_logits_of_other_shapes_equal_the_naive_ones(name: str) -> None:
    case = Case(SHAPES[name])
    ids, pictures = case.prompt(7, "picture", 60)
    seen = [naive.features(p, case.weights, case.raw) for p in pictures]
    assert gap(case.logits(ids, pictures), naive.logits(ids, seen, case.weights, case.raw)) < LOGITS


@pytest.mark.parametrize("num_words", [9, 40, 50])
def test_sixty_four_greedy_tokens_are_the_naive_ones(num_words: int, tiny: Case) -> None:
    """The answers cross seq_length, with a prompt before it, up to it and past it: the prompt's alpha stays."""
    ids, pictures = tiny.prompt(num_words, "picture")
    seen = [naive.features(p, tiny.weights, tiny.raw) for p in pictures]
    expected = naive.greedy(ids, seen, tiny.weights, tiny.raw, 64)
    tokens: list[int] = []
    for _ in range(64):
        tokens.append(int(tiny.logits([*ids, *tokens], pictures, len(ids))[-1].argmax()))
    assert tokens == expected
    assert len(set(tokens)) > 3, "a network that repeats itself compares little"


def test_prompts_of_different_stages_packed_together_equal_each_alone(tiny: Case) -> None:
    """Alpha is a token's own: prompts of alpha 1, 3 and 7 share one call."""
    prompts = [tiny.prompt(20), tiny.prompt(30, "picture", 40), tiny.prompt(150), tiny.prompt(5, "picture")]
    leads = [int((p[1] - p[0])[0]) for p in (tiny.positions(len(ids), len(ids)) for ids, _ in prompts)]
    assert leads == [0, 2, 6, 0]
    hidden = torch.cat([tiny.hidden(*prompt) for prompt in prompts])
    positions = torch.cat([tiny.positions(len(ids), len(ids)) for ids, _ in prompts], dim=1)
    out = tiny.model.decode(hidden, positions, CausalAttention([len(ids) for ids, _ in prompts]))
    alone = torch.cat([tiny.logits(*prompt) for prompt in prompts])
    assert (tiny.model.logits(out) - alone).abs().max() < 1e-5
    last = torch.tensor([len(hidden) - 1, 0])
    rows = tiny.model.decode(hidden, positions, CausalAttention([len(ids) for ids, _ in prompts]), last)
    assert (rows - out[last]).abs().max() < 1e-5


# --- what the naive one could share our mistakes in: known answers


def test_the_published_network_has_9_656_935_168_parameters_in_853_tensors() -> None:
    with torch.device("meta"):
        model = build(read_config(small.PUBLISHED))
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert sum(math.prod(shape) for shape in sizes.values()) == 9_656_935_168
    assert sum(p.numel() for p in model.visual.parameters()) == 1_842_770_688 + 76_054_528 + 16_785_408
    expected = small.shapes(small.PUBLISHED)
    published = published_names(sizes, QWEN_VL)
    assert {published[name]: shape for name, shape in sizes.items()} == expected
    assert len(expected) == 853


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("visual.conv1.weight", "transformer.visual.conv1.weight"),
        ("visual.transformer.resblocks.3.ln_1.bias", "transformer.visual.transformer.resblocks.3.ln_1.bias"),
        ("model.h.31.attn.c_attn.bias", "transformer.h.31.attn.c_attn.bias"),
        ("model.wte.weight", "transformer.wte.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_go_to_the_published_layout_and_back(ours: str, published: str) -> None:
    assert to_canonical(published) == to_canonical(ours) == ours
    assert to_published(ours, QWEN_VL) == to_published(published, QWEN_VL) == published


def test_the_adapters_table_tells_columns_in_its_first_half_and_rows_in_its_second() -> None:
    table = sincos_table(128, 4)
    assert torch.allclose(table, small.sincos(128, 4), atol=1e-6)
    place = 2 * 4 + 3  # row 2, column 3
    assert table[place, 0] == pytest.approx(math.sin(3), abs=1e-6)
    assert table[place, 32] == pytest.approx(math.cos(3), abs=1e-6)
    assert table[place, 64] == pytest.approx(math.sin(2), abs=1e-6)
    assert table[place, 96 + 1] == pytest.approx(math.cos(2 / 10000 ** (1 / 32)), abs=1e-6)


def test_a_built_network_has_the_fixed_table() -> None:
    model = build(read_config(small.tiny_config()))
    assert torch.allclose(model.visual.attn_pool.pos_embed, small.sincos(128, 4), atol=1e-6)
    assert not model.visual.attn_pool.pos_embed.requires_grad


def test_a_position_table_is_stretched_as_by_the_bicubic_kernel() -> None:
    table = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    for places in (64, 256, 1024, 25):
        expected = naive.stretch(table.double().numpy(), places)
        assert np.abs(stretched(table, places).numpy() - expected).max() < 1e-5
    assert torch.equal(stretched(table, 256), table)


def test_a_table_in_half_precision_is_stretched_in_full_precision() -> None:
    table = torch.randn(256, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(stretched(table, 1024), stretched(table.float(), 1024).bfloat16())


def test_logn_is_one_up_to_the_trained_length_and_the_logarithm_after() -> None:
    scale = logn_scale(torch.tensor([0, 2046, 2047, 2048, 4095, 8191]), 2048)
    expected = [1.0, 1.0, 1.0, math.log(2049, 2048), 12 / 11, 13 / 11]
    assert scale.tolist() == pytest.approx(expected, abs=1e-7)


def test_positions_turn_with_the_base_that_alpha_stretches() -> None:
    config = replace(read_config(small.tiny_config()).text, head_dim=128)
    positions = torch.tensor([[7, 7], [7, 9], [7, 7]])  # alpha 1 and 3
    cos, sin = rope_cos_sin(positions, config)
    assert cos[0, 5] == pytest.approx(math.cos(7 * 10000 ** (-10 / 128)), abs=1e-6)
    base = 10000 * 3 ** (128 / 126)
    assert sin[1, 5] == pytest.approx(math.sin(7 * base ** (-10 / 128)), abs=1e-6)
    assert torch.equal(cos[:, :64], cos[:, 64:])
    assert cos.dtype == torch.float32


@pytest.mark.parametrize(
    ("length", "alpha"),
    [(1, 1), (2048, 1), (2049, 3), (4096, 3), (4097, 7), (6144, 7), (8192, 7), (8193, 15)],
)
def test_alpha_goes_up_with_every_doubling(length: int, alpha: int) -> None:
    assert naive.alpha(length, {"use_dynamic_ntk": True, "seq_length": 2048}) == alpha
    positions, lead = first_generation_positions(length, 2048)
    assert lead == alpha - 1
    assert (positions[1] - positions[0] == lead).all()
    assert (positions[[0, 2]] == np.arange(length)).all()


def test_without_dynamic_ntk_no_axis_leads() -> None:
    assert first_generation_positions(9000).height_lead == 0


def test_the_gate_is_w2() -> None:
    model = build(read_config(small.tiny_config()))
    mlp = model.model.h[0].mlp
    with torch.no_grad():
        for p in mlp.parameters():
            p.zero_()
        mlp.w1.weight[0, 0], mlp.w2.weight[0, 0], mlp.c_proj.weight[0, 0] = 1.0, 1.0, 1.0
        mlp.w2.weight *= -100.0  # silu of a large negative number is nothing
        assert mlp(torch.ones(1, 128)).abs().max() < 1e-6
        mlp.w2.weight *= -1.0
        assert mlp(torch.ones(1, 128))[0, 0] == pytest.approx(100.0, rel=1e-4)


# --- refusals


@pytest.mark.parametrize("grid", [(1, 8, 6), (2, 8, 8), (1, 4, 4), (1, 16, 16)])
def test_another_grid_than_the_squares_is_refused(grid: tuple[int, int, int], tiny: Case) -> None:
    patches = torch.zeros(math.prod(grid), 588)
    with pytest.raises(
        MediaError, match=r"takes images of 1x8x8 patches \(112 pixels square\) and no videos"
    ):
        tiny.model.encode_media(patches, [grid])


def test_patches_that_do_not_fill_the_grid_are_refused(tiny: Case) -> None:
    with pytest.raises(MediaError, match=r"patches are \(63, 588\)"):
        tiny.model.encode_media(torch.zeros(63, 588), [(1, 8, 8)])


def test_another_number_of_placeholders_than_features_is_refused(tiny: Case) -> None:
    features = tiny.encode([tiny.picture()])
    ids = torch.tensor([PAD] * 15)
    with pytest.raises(PromptError, match="15 image and video placeholders, the media give 16"):
        tiny.model.merge_features(tiny.model.embed(ids), ids, features)


@pytest.mark.parametrize(
    ("visual", "match"),
    [
        (dict(n_queries=15), "15 queries of an image are no square"),
        (dict(output_dim=192), "192 is no multiple of 128"),
    ],
)
def test_a_shape_that_can_not_be_is_refused(visual: dict[str, Any], match: str) -> None:
    changes = {"hidden_size": 192, "num_attention_heads": 6} if "output_dim" in visual else {}
    with pytest.raises(ConfigError, match=match):
        build(read_config(small.tiny_config(visual, **changes)))


# --- checkpoints


def same(model: VisionLanguageModel, weights: dict[str, torch.Tensor]) -> bool:
    ours = dict(model.named_parameters())
    return all(torch.equal(ours[to_canonical(name)], t) for name, t in weights.items())


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("copy", [False, True])
def test_a_checkpoint_loads_from_either_form(form: str, copy: bool, tmp_path: Path) -> None:
    weights = small.write_checkpoint(tmp_path, form=form)
    model = load_model(tmp_path, copy=copy)
    assert same(model, weights)
    assert model.dtype == torch.float32
    assert not model.training


def test_a_single_bin_without_an_index_loads(tmp_path: Path) -> None:
    weights = small.write_checkpoint(tmp_path)
    for file in tmp_path.glob("pytorch_model*"):
        file.unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert same(load_model(tmp_path), weights)


def test_a_bin_from_before_archives_loads(tmp_path: Path) -> None:
    weights = small.write_checkpoint(tmp_path)
    for file in tmp_path.glob("pytorch_model*"):
        file.unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same(load_model(tmp_path), weights)


def test_bin_weights_are_converted_to_the_wanted_dtype(tmp_path: Path) -> None:
    weights = small.write_checkpoint(tmp_path)
    model = load_model(tmp_path, dtype="bfloat16")
    assert same(model, {name: t.bfloat16() for name, t in weights.items()})


def test_large_bin_tensors_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qvl.models import checkpoint

    monkeypatch.setattr(checkpoint, "_COPY_BATCH", 50_000)
    weights = small.write_checkpoint(tmp_path)
    assert same(load_model(tmp_path, copy=True), weights)


def test_safetensors_are_taken_where_both_forms_lie(tmp_path: Path) -> None:
    small.write_checkpoint(tmp_path, seed=1)
    weights = small.write_checkpoint(tmp_path, form="safetensors", seed=2)
    assert same(load_model(tmp_path), weights)


def test_a_bin_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    small.write_checkpoint(tmp_path)
    for file in tmp_path.glob("pytorch_model*"):
        file.unlink()
    proof = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (proof,)

    torch.save({"lm_head.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: holds more than tensors"):
        load_model(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize("content", [{"step": 3}, [torch.zeros(2)], {"model": {"w": torch.zeros(2)}}])
def test_a_bin_that_is_no_dict_of_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    small.write_checkpoint(tmp_path)
    for file in tmp_path.glob("pytorch_model*"):
        file.unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is not a dict of named tensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_a_bin_cut_short_is_refused_by_path(keep: int, tmp_path: Path) -> None:
    small.write_checkpoint(tmp_path)
    path = tmp_path / "pytorch_model-00002-of-00002.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00002\.bin: .*cut short"):
        load_model(tmp_path)


def test_a_missing_bin_shard_is_named(tmp_path: Path) -> None:
    small.write_checkpoint(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 weight files are missing: pytorch_model-00001"):
        load_model(tmp_path)


def test_missing_and_misshaped_tensors_are_named_together(tmp_path: Path) -> None:
    weights = small.random_weights(small.tiny_config())
    del weights["transformer.h.1.mlp.w2.weight"]
    weights["transformer.visual.proj"] = torch.zeros(128, 64)
    small.write_checkpoint(tmp_path, weights=weights)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    assert "1 missing: model.h.1.mlp.w2.weight" in str(caught.value)
    assert "visual.proj [128, 64], should be [128, 128]" in str(caught.value)


def test_a_saved_network_has_the_published_names_and_loads_again(tmp_path: Path) -> None:
    from safetensors import safe_open

    weights = small.write_checkpoint(tmp_path / "first")
    model = load_model(tmp_path / "first")
    save_model(model, tmp_path / "second")
    with safe_open(tmp_path / "second/model.safetensors", framework="pt") as saved:
        assert set(saved.keys()) == set(weights)
    again = load_model(tmp_path / "second")
    assert again.config == model.config
    assert same(again, weights)


def test_a_hub_snapshot_without_safetensors_fetches_the_bin_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    weights = small.write_checkpoint(tmp_path)
    asked: list[list[str]] = []

    def snapshot_download(repo_id: str, **kwargs: Any) -> str:
        asked.append(kwargs["allow_patterns"])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert same(load_model("Qwen/Qwen-VL-Chat"), weights)
    assert [any(".bin" in pattern for pattern in patterns) for patterns in asked] == [False, True]
    assert asked[1] == ["pytorch_model*.bin"]


# --- quantised


def test_a_gptq_file_of_the_chat_model_is_read_as_published(tmp_path: Path) -> None:
    """As Qwen-VL-Chat-Int4: the text model's five matrices a layer in codes, and no list of what stays plain."""
    plain, coded = tmp_path / "plain", tmp_path / "Qwen-VL-Chat-Int4"
    small.write_checkpoint(plain, form="safetensors")
    inside = re.compile(r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.(w1|w2|c_proj))")
    stands_for = writers.write(
        plain,
        coded,
        lambda weight: writers.gptq(weight, 4, 32),
        writers.gptq_config(4, 32),
        covers=lambda module: bool(inside.fullmatch(module)),
    )
    assert len(stands_for) == 5 * small.CONFIG["num_hidden_layers"]
    model = load_model(coded, dtype="float32")
    for module, weight in stands_for.items():
        layer = model.get_submodule(module.replace("transformer.", "model.", 1))
        assert torch.equal(layer.dequantize(), weight), module
    assert not check(coded).failed
    answer = qvl.load(coded).ask(
        [np.zeros((64, 64, 3), np.uint8)], "What?", max_new_tokens=3, ignore_eos=True
    )
    assert answer.completion_tokens == 3
