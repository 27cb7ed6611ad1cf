"""Qwen3.5 against transformers 5.23 (stored answers, see tests/oracles/make_qwen3_5.py), its parts, its files.

Tolerances: issue A's, tower 1e-4 and logits 1e-3. The largest difference seen is 1.1e-4 where logits are about 3; an
fp64 run of our network lies at least as far from the stored answers as from our fp32 ones.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import qwen3_5_tiny as tiny
from qvl.catalog.config import TextConfig, config_dict, read_config
from qvl.catalog.models import config_of
from qvl.errors import CheckpointError, ConfigError
from qvl.geometry import Grid
from qvl.inputs.positions import VisualBlock, mrope_positions
from qvl.models import build
from qvl.models.attention import CausalAttention, State, runs
from qvl.models.base import VisionLanguageModel, initialize
from qvl.models.checkpoint import load_model, save_model
from qvl.models.decoder import mrope_axes
from qvl.models.delta_net import GatedDeltaNet, chunked_delta_rule, delta_rule, recurrent_delta_rule
from qvl.models.layers import CenteredRMSNorm, RMSNorm, apply_rope
from qvl.models.moe import Experts, MixtureOfExperts
from qvl.plan.parameters import parameter_counts

TOWER, LOGITS = 1e-4, 1e-3
GOLDEN = np.load(Path(__file__).parent / "data" / "qwen3_5_golden.npz")
NAMES = list(tiny.SHAPES)
ALL = [(name, label) for name in NAMES for label in tiny.PROMPTS]

# whole model, tower with merger; facts/architecture.md 2.5
PARAMETERS = {
    "Qwen3.5-0.8B": (852_985_920, 100_592_896),
    "Qwen3.5-9B": (9_409_813_744, 456_010_480),
    "Qwen3.5-27B": (27_356_728_560, 460_730_096),
    "Qwen3.5-35B-A3B": (35_107_181_936, 446_571_248),
    "Qwen3.5-397B-A17B": (396_802_360_816, 456_010_480),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, VisionLanguageModel]:
    folder = tmp_path_factory.mktemp("qwen3_5")
    return {name: load_model(tiny.write(folder / name, name)) for name in NAMES}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


PROMPTS = dict(tiny.prompts())


def golden(*path: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN["/".join(path)])


def positions(prompt: tiny.Prompt, num_more: int = 0) -> torch.Tensor:
    blocks = [VisualBlock(start, Grid(*grid)) for start, grid in prompt.blocks]
    return torch.from_numpy(mrope_positions(len(prompt.ids) + num_more, blocks, 2).positions)


def features(model: VisionLanguageModel, prompt: tiny.Prompt, kind: str = "") -> torch.Tensor:
    media = [m for m in prompt.media if not kind or m[0] == kind]
    patches = torch.cat([torch.from_numpy(patches) for _, _, patches in media])
    return model.encode_media(patches, [grid for _, grid, _ in media])


def hidden(model: VisionLanguageModel, prompt: tiny.Prompt) -> torch.Tensor:
    ids = torch.tensor(prompt.ids)
    embedded = model.embed(ids)
    return model.merge_features(embedded, ids, features(model, prompt)) if prompt.media else embedded


def logits(model: VisionLanguageModel, prompts: list[tiny.Prompt]) -> torch.Tensor:
    packed = torch.cat([hidden(model, p) for p in prompts])
    places = torch.cat([positions(p) for p in prompts], dim=1)
    return model.logits(model.decode(packed, places, CausalAttention([len(p.ids) for p in prompts])))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    assert b.abs().max() > 0.5, "numbers this small prove nothing"
    return (a - b).abs().max().item()


# --- against the reference


@pytest.mark.parametrize("name", NAMES)
def test_tower_output_equals_the_reference(models, name: str) -> None:
    for label, prompt in PROMPTS.items():
        for kind in {kind for kind, _, _ in prompt.media}:
            expected = golden(name, label, f"{kind}_features")
            assert gap(features(models[name], prompt, kind), expected) < TOWER, label


@pytest.mark.parametrize(("name", "label"), ALL)
def test_positions_are_the_references(models, name: str, label: str) -> None:
    prompt = PROMPTS[label]
    assert torch.equal(positions(prompt), golden(name, label, "positions").long())
    delta = int(golden(name, label, "delta"))
    assert (positions(prompt, 3)[:, -3:] == torch.arange(3) + len(prompt.ids) + delta).all()


@pytest.mark.parametrize(("name", "label"), ALL)
def test_logits_of_prompts_with_media_equal_the_reference(models, name: str, label: str) -> None:
    assert gap(logits(models[name], [PROMPTS[label]]), golden(name, label, "logits")) < LOGITS


@pytest.mark.parametrize("name", NAMES)
def test_packed_prompts_equal_the_references_padded_batch(models, name: str) -> None:
    prompts = [PROMPTS[label] for label in tiny.BATCH]
    assert gap(logits(models[name], prompts), golden(name, "batch", "logits")) < LOGITS


class Cached(CausalAttention):
    """One sequence, all keys, values and states kept in lists: the simplest owner that can go on."""

    def __init__(self) -> None:
        self.kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.states: dict[int, State] = {}

    def __call__(self, layer, q_TNH, k_TKH, v_TKH):
        if layer in self.kv:
            k_TKH, v_TKH = (torch.cat(pair) for pair in zip(self.kv[layer], (k_TKH, v_TKH)))
        self.kv[layer] = k_TKH, v_TKH
        past = len(k_TKH) - len(q_TNH)
        mask = torch.ones(len(q_TNH), len(k_TKH), dtype=torch.bool).tril(past)
        q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return o[0].transpose(0, 1)

    def recur(self, layer, scan, *rows_T):
        out, self.states[layer] = scan(self.states.get(layer), *(x[None] for x in rows_T))
        return out[0]


def greedy(model: VisionLanguageModel, prompt: tiny.Prompt, name: str, label: str) -> list[int]:
    """64 tokens: the prompt at once, then one by one from the state it left."""
    attend = Cached()
    out = model.decode(hidden(model, prompt), positions(prompt), attend)
    tokens: list[int] = []
    delta = int(golden(name, label, "delta"))
    while len(tokens) < 64:
        tokens.append(int(model.logits(out[-1:]).argmax()))
        place = torch.full((3, 1), len(prompt.ids) + len(tokens) - 1 + delta)
        out = model.decode(model.embed(torch.tensor(tokens[-1:])), place, attend)
    return tokens


@pytest.mark.parametrize(("name", "label"), ALL)
def test_sixty_four_greedy_tokens_are_the_references(models, name: str, label: str) -> None:
    tokens = greedy(models[name], PROMPTS[label], name, label)
    assert tokens == golden(name, label, "tokens").tolist()
    assert len(set(tokens)) > 3, "a network that repeats itself compares little"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", ["images", "long"])
def test_bfloat16_stays_close_to_the_references_bfloat16(tmp_path: Path, name: str, label: str) -> None:
    """Same order of casts; what is left is summation order, which these random layers amplify at single tokens."""
    model = load_model(tiny.write(tmp_path, name), dtype="bfloat16")
    seen = features(model, PROMPTS[label]).float()
    cosine = torch.cosine_similarity(
        logits(model, [PROMPTS[label]]).float(), golden(name, label, "bf16_logits")
    )
    assert torch.cosine_similarity(seen, golden(name, label, "bf16_features")).min() > 0.9999
    assert cosine.median() > 0.998


def test_the_answers_were_made_by_the_version_that_the_docs_name() -> None:
    assert GOLDEN["versions"].tolist()[0] == "transformers 5.23.0"


# --- the delta rule


def drawn(batch: int, length: int, heads: int, keys: int, values: int, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    q, k = (F.normalize(torch.randn(batch, length, heads, keys, generator=random), dim=-1) for _ in "qk")
    v = torch.randn(batch, length, heads, values, generator=random)
    g = -F.softplus(3 * torch.randn(batch, length, heads, generator=random))
    beta = torch.rand(batch, length, heads, generator=random)
    return [q, k, v, g, beta, torch.randn(batch, heads, keys, values, generator=random)]


@given(
    length=st.integers(1, 150),
    chunk=st.sampled_from([1, 2, 5, 16, 64]),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_chunked_form_equals_the_recurrence(length: int, chunk: int, batch: int, seed: int) -> None:
    rows = drawn(batch, length, 2, 5, 3, seed)
    o, memory = recurrent_delta_rule(*rows)
    o_chunked, memory_chunked = chunked_delta_rule(*rows, chunk=chunk)
    torch.testing.assert_close(o_chunked, o, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(memory_chunked, memory, atol=2e-5, rtol=1e-4)


def test_recurrence_equals_the_rule_written_in_scalars() -> None:
    q, k, v, g, beta, memory = (x.double() for x in drawn(1, 7, 1, 3, 2))
    S = [[memory[0, 0, a, b].item() for b in range(2)] for a in range(3)]
    outputs = []
    for t in range(7):
        keep, write = float(torch.exp(g[0, t, 0])), float(beta[0, t, 0])
        key, query, value = (x[0, t, 0].tolist() for x in (k, q, v))
        for b in range(2):
            found = sum(keep * S[a][b] * key[a] for a in range(3))
            for a in range(3):
                S[a][b] = keep * S[a][b] + key[a] * write * (value[b] - found)
        outputs.append([sum(query[a] * S[a][b] for a in range(3)) for b in range(2)])
    o, after = recurrent_delta_rule(q, k, v, g, beta, memory)
    torch.testing.assert_close(o[0, :, 0], torch.tensor(outputs, dtype=torch.float64))
    torch.testing.assert_close(after[0, 0], torch.tensor(S, dtype=torch.float64))


def test_a_full_write_makes_the_memory_answer_its_key_with_the_value() -> None:
    q, k, v, g, beta, memory = drawn(1, 1, 1, 4, 3)
    _, after = recurrent_delta_rule(q, k, v, g, torch.ones_like(beta), memory)
    torch.testing.assert_close(k[0, 0, 0] @ after[0, 0], v[0, 0, 0])


def test_strong_forgetting_over_a_whole_chunk_stays_finite() -> None:
    """Sums of g near -2,000: their differences are fine, their exponentials alone would be 0 or infinite."""
    q, k, v, g, beta, memory = drawn(1, 130, 2, 5, 3)
    o, after = chunked_delta_rule(q, k, v, g - 30, beta, memory)
    expected, expected_after = recurrent_delta_rule(q, k, v, g - 30, beta, memory)
    assert o.isfinite().all()
    assert after.isfinite().all()
    torch.testing.assert_close(o, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after, expected_after, atol=1e-5, rtol=1e-4)


def layer_and_rows(name: str = "dense", length: int = 40) -> tuple[GatedDeltaNet, list[torch.Tensor]]:
    text = read_config(tiny.config_json(name)).text
    torch.manual_seed(1)
    layer = GatedDeltaNet(text, 0)
    initialize(layer, std=0.3, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(2)
    heads, channels = text.linear_num_value_heads, sum(layer.widths)
    qkv = torch.randn(2, length, channels, generator=random)
    return layer, [qkv, -torch.rand(2, length, heads, generator=random), torch.rand(2, length, heads)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cuts", [[1] * 40, [1, 39], [39, 1], [2, 2, 36], [17, 1, 22]])
def test_a_sequence_cut_anywhere_equals_the_whole(name: str, cuts: list[int]) -> None:
    """Pieces shorter than the convolution's kernel too: their last inputs come from the piece before."""
    layer, rows = layer_and_rows(name)
    whole, end = layer.scan(None, *rows)
    state, pieces = None, []
    for piece in zip(*(x.split(cuts, dim=1) for x in rows)):
        out, state = layer.scan(state, *piece)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state.memory, end.memory, atol=1e-5, rtol=1e-4)
    assert torch.equal(state.conv, end.conv)


def test_the_convolution_sees_the_tokens_before_and_never_those_after() -> None:
    layer, (qkv, g, beta) = layer_and_rows()
    out, _ = layer.scan(None, qkv, g, beta)
    changed = qkv.clone()
    changed[:, 20:] += 1
    again, _ = layer.scan(None, changed, g, beta)
    assert torch.equal(out[:, :20], again[:, :20])
    assert (out[:, 20:] - again[:, 20:]).abs().min() > 0


def test_the_state_has_the_same_size_whatever_the_length() -> None:
    layer, rows = layer_and_rows()
    short = layer.scan(None, *(x[:, :1] for x in rows))[1]
    long = layer.scan(None, *rows)[1]
    assert [x.shape for x in short] == [x.shape for x in long]
    assert long.memory.dtype == torch.float32


def test_runs_group_neighbours_of_equal_length_and_skip_empty_ones() -> None:
    rows = torch.arange(12)
    found = runs([1, 1, 0, 3, 3, 1, 3])
    assert [(run.first, run.num_sequences, run.length, run.row) for run in found] == [
        (0, 2, 1, 0), (3, 2, 3, 2), (5, 1, 1, 8), (6, 1, 3, 9)
    ]  # fmt: skip
    assert torch.cat([run.cut(rows).flatten() for run in found]).tolist() == list(range(12))


def test_gradients_flow_through_the_chunked_form_as_through_the_recurrence() -> None:
    with torch.enable_grad():
        rows = [x.double().requires_grad_() for x in drawn(1, 20, 2, 3, 2)]
        recurrent_delta_rule(*rows)[0].square().sum().backward()
        expected = [x.grad.clone() for x in rows]
        for x in rows:
            x.grad = None
        chunked_delta_rule(*rows, chunk=8)[0].square().sum().backward()
    for x, want in zip(rows, expected):
        torch.testing.assert_close(x.grad, want)


# --- the other parts


def test_centered_norm_is_the_plain_one_with_one_added_to_the_weight() -> None:
    x, plain, centered = torch.randn(3, 8), RMSNorm(8), CenteredRMSNorm(8)
    assert torch.allclose(centered(x), plain(x))  # fresh: distance zero from one
    plain.weight.fill_(1.5)
    centered.weight.fill_(0.5)
    assert torch.allclose(centered(x), plain(x))


def test_random_weights_leave_centered_norms_at_one() -> None:
    model = build(read_config(tiny.config_json("moe")))
    initialize(model, generator=torch.Generator().manual_seed(0))
    assert model.model.norm.weight.abs().max() == 0
    assert model.model.layers[0].linear_attn.norm.weight.min() == 1  # DeltaNet's own norm is a plain one


def test_rope_turns_the_first_part_of_a_head_and_leaves_the_rest() -> None:
    x = torch.randn(4, 2, 8)
    cos, sin = torch.randn(4, 6), torch.randn(4, 6)
    turned = apply_rope(x, cos, sin)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert torch.equal(turned[..., :6], apply_rope(x[..., :6], cos, sin))


def test_the_rotary_slots_are_the_published_ones() -> None:
    axes = mrope_axes(config_of("Qwen3.5-9B").text)
    assert "".join("THW"[axis] for axis in axes) == "THW" * 10 + "TH"


def mixture(**changes: object) -> MixtureOfExperts:
    text: TextConfig = replace(read_config(tiny.config_json("moe")).text, **changes)
    torch.manual_seed(0)
    block = MixtureOfExperts(text)
    initialize(block, std=0.4, generator=torch.Generator().manual_seed(3))
    return block


@pytest.mark.parametrize("inputs_first", [True, False])
def test_mixture_equals_every_expert_run_on_every_token(inputs_first: bool) -> None:
    block, x = mixture(expert_inputs_first=inputs_first), torch.randn(11, 48)
    scores = F.softmax(x @ block.gate.weight.T, dim=-1)
    best = scores.topk(3, dim=-1)
    expected = torch.zeros_like(x)
    for e in range(7):
        up, down = block.experts.gate_up_proj[e], block.experts.down_proj[e]
        up, down = (up, down) if inputs_first else (up.T, down.T)
        gate, value = (x @ up).split(18, dim=-1)
        share = (best.values * (best.indices == e)).sum(-1, keepdim=True) / best.values.sum(-1, keepdim=True)
        expected += share * ((F.silu(gate) * value) @ down)
    expected += torch.sigmoid(x @ block.shared_expert_gate.weight.T) * block.shared_expert(x)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)


def test_a_token_runs_its_own_experts_and_no_others(monkeypatch) -> None:
    ran: list[tuple[int, int]] = []
    forward = Experts.forward
    monkeypatch.setattr(Experts, "forward", lambda self, x, e: ran.append((e, len(x))) or forward(self, x, e))
    block, x = mixture(num_experts=128), torch.randn(1, 48)
    block(x)
    chosen = block.route(x)[1][0]
    assert len(ran) == 3
    assert sorted(ran) == sorted((e, 1) for e in chosen.tolist())


def test_a_mixture_without_tokens_gives_no_rows() -> None:
    assert mixture()(torch.empty(0, 48)).shape == (0, 48)


# --- files


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = build(config_of(name))
    whole = sum(p.numel() for p in model.parameters())
    assert (whole, sum(p.numel() for p in model.visual.parameters())) == PARAMETERS[name]
    assert parameter_counts(config_of(name)).total == whole


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_written_config_is_read_back_equal(name: str) -> None:
    config = replace(config_of(name), dtype="bfloat16")
    assert read_config(json.loads(json.dumps(config_dict(config)))) == config


@pytest.mark.parametrize("name", NAMES)
def test_the_tiny_models_have_the_hubs_tensors_and_no_others(models, name: str, tmp_path: Path) -> None:
    """The names are spelled out in qwen3_5_tiny; transformers reads that file too."""
    save_model(models[name], tmp_path)
    written = {k: v.shape for k, v in load_file(tmp_path / "model.safetensors").items()}
    assert written == tiny.tensor_shapes(tiny.config_json(name))


def test_experts_stored_one_by_one_are_read_as_the_fused_ones(models, tmp_path: Path) -> None:
    """The layout that transformers 5 writes; the hub's is fused."""
    single = load_model(tiny.write(tmp_path, "moe", split_experts=True))
    for (name, a), (_, b) in zip(single.named_parameters(), models["moe"].named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_missing_single_expert_is_named(tmp_path: Path) -> None:
    tiny.write(tmp_path, "moe", split_experts=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.language_model.layers.2.mlp.experts.5.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 missing: model\.layers\.2\.mlp\.experts\.5\.up_proj\.weight"
    ):
        load_model(tmp_path)


def test_a_transposed_expert_is_refused(tmp_path: Path) -> None:
    tiny.write(tmp_path, "moe", split_experts=True)
    weights = load_file(tmp_path / "model.safetensors")
    key = "model.language_model.layers.0.mlp.experts.0.down_proj.weight"
    weights[key] = np.ascontiguousarray(weights[key].T)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj\.weight \[18, 48\], should be \[48, 18\]"):
        load_model(tmp_path)


def test_a_clips_features_are_as_wide_as_the_text(models) -> None:
    seen = features(models["dense"], PROMPTS["video"])
    assert seen.shape[1] == models["dense"].config.text.hidden_size


def test_deepstack_in_a_config_is_refused() -> None:
    config = tiny.config_json("dense")
    config["vision_config"]["deepstack_visual_indexes"] = [0]
    with pytest.raises(ConfigError, match=r"Qwen3\.5 has no DeepStack"):
        read_config(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 33])
def test_the_convolution_equals_conv1d(dtype: torch.dtype, length: int) -> None:
    layer, _ = layer_and_rows()
    layer = layer.to(dtype)
    window = torch.randn(2, length + 2, sum(layer.widths), generator=torch.Generator().manual_seed(0)).to(
        dtype
    )
    expected = layer.conv1d(window.transpose(1, 2)).transpose(1, 2)
    assert expected.shape[1] == length
    torch.testing.assert_close(layer.convolve(window), expected)


@pytest.mark.parametrize("length", [1, 2, 64, 129, 300])
def test_the_faster_form_equals_the_recurrence_at_every_length(length: int) -> None:
    """One token, less than a chunk, whole chunks, and more than are taken at once."""
    rows = drawn(2, length, 2, 4, 3)
    for got, expected in zip(delta_rule(*rows), recurrent_delta_rule(*rows), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_a_kept_state_holds_no_more_than_itself() -> None:
    layer, rows = layer_and_rows(length=40)
    for tensor in layer.scan(None, *rows)[1]:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
