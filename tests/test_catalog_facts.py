"""Single facts that a slip of the pen would change: each beside what its source prints."""

import pytest

from qvl.catalog import config_of, find_device, find_model
from qvl.catalog.devices import _device
from qvl.catalog.figures import read_json
from qvl.catalog.models import _model, models, regressions
from qvl.catalog.scores import scores_of, used
from qvl.errors import CatalogError


def score(model, benchmark, variant):
    return next(
        s.value for s in scores_of(model) if (s.benchmark.name, s.benchmark.variant) == (benchmark, variant)
    )


@pytest.mark.parametrize(
    ("model", "benchmark", "variant", "value"),
    [
        # Qwen2.5-VL report, table of the guide's chapter 3
        ("Qwen2.5-VL-72B-Instruct", "DocVQA", "test", 96.4),
        ("Qwen2.5-VL-72B-Instruct", "OCRBench_v2", "English", 61.5),
        ("Qwen2.5-VL-72B-Instruct", "OCRBench_v2", "Chinese", 63.7),
        ("Qwen2.5-VL-72B-Instruct", "MathVista", "testmini", 74.8),
        ("Qwen2.5-VL-72B-Instruct", "MMMU", "val", 70.2),
        ("Qwen2.5-VL-72B-Instruct", "Video-MME", "overall, without subtitles", 73.3),
        ("Qwen2.5-VL-72B-Instruct", "Video-MME", "overall, with subtitles", 79.1),
        ("Qwen2.5-VL-72B-Instruct", "Charades-STA", "test", 50.9),
        ("Qwen2.5-VL-72B-Instruct", "AITZ", "test EM", 83.2),
        # cells that the guide leaves empty
        ("Qwen2.5-VL-32B-Instruct", "DocVQA", "test", 94.8),
        ("Qwen2.5-VL-32B-Instruct", "OCRBench_v2", "English", 57.2),
        ("Qwen2.5-VL-32B-Instruct", "Video-MME", "overall, without subtitles", 70.5),
        ("Qwen2.5-VL-32B-Instruct", "Charades-STA", "test", 54.2),
        ("Qwen2.5-VL-32B-Instruct", "AITZ", "test EM", 83.1),
        # Qwen2-VL report
        ("Qwen2-VL-7B-Instruct", "DocVQA", "test", 94.5),
        ("Qwen2-VL-7B-Instruct", "OCRBench", "all", 845),
        ("Qwen2-VL-2B-Instruct", "OCRBench", "all", 794),
        ("Qwen2-VL-2B-Instruct", "MathVista", "testmini", 43.0),
        # Qwen3-VL report
        ("Qwen3-VL-235B-A22B-Thinking", "MathVista", "testmini", 85.8),
        ("Qwen3-VL-8B-Instruct", "OCRBench", "all", 896),
        ("Qwen3-VL-2B-Instruct", "ScreenSpot-Pro", "all", 48.5),
        # Qwen-VL README
        ("Qwen-VL", "DocVQA", "test", 65.1),
        ("Qwen-VL", "RefCOCO", "testA", 92.26),
    ],
)
def test_scores_are_as_printed(model, benchmark, variant, value):
    assert score(model, benchmark, variant) == value


@pytest.mark.parametrize(
    ("model", "precision", "benchmark", "value"),
    [
        ("Qwen2-VL-7B-Instruct", "awq", "MMMU", 53.66),
        ("Qwen2-VL-2B-Instruct", "awq", "MathVista", 39.90),
        ("Qwen2-VL-72B-Instruct", "gptq-int8", "DocVQA", 95.84),
        ("Qwen2.5-VL-7B-Instruct", "awq", "MMMU", 55.6),
        ("Qwen2.5-VL-3B-Instruct", "gptq-int4", "MathVista", 45.75),
        ("Qwen2.5-VL-72B-Instruct", "int8", "DocVQA", 94.71),
    ],
)
def test_quantised_scores_are_as_printed(model, precision, benchmark, value):
    found = [
        s.value
        for s in used()
        if (s.model, s.precision, s.benchmark.name) == (model, precision, benchmark) and s.series
    ]
    assert value in found


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("qwen-vl", 2048),
        ("qwen2-vl-7b", 32768),
        ("qwen2.5-vl-72b", 128000),
        ("qwen3-vl-2b", 262144),
        ("qwen3-vl-235b-a22b-thinking", 262144),
        ("qwen-vl-max", 131072),
        ("qwen3-vl-flash", 262144),
    ],
)
def test_contexts(model, tokens):
    assert find_model(model).context.value == tokens


@pytest.mark.parametrize(
    "model", [m for m in models() if m.shape and m.family != "qwen_vl"], ids=lambda m: m.name
)
def test_the_context_is_the_shapes_own(model):
    assert config_of(model).text.max_position_embeddings == model.context.value


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("qwen2-vl-2b", "0.6.1"),
        ("qwen2.5-vl-7b", "0.7.2"),
        ("qwen3-vl-32b", "0.11.0"),
        ("qwen3.5-9b", "0.17.0"),
    ],
)
def test_first_vllm_versions(model, version):
    assert find_model(model).engines["vllm"].value == version


@pytest.mark.parametrize(
    ("model", "heads", "kv_heads", "head_dim", "hidden"),
    [
        ("qwen-vl", 32, 32, 128, 4096),
        ("qwen2-vl-2b", 12, 2, 128, 1536),
        ("qwen2.5-vl-3b", 16, 2, 128, 2048),
        ("qwen2.5-vl-32b", 40, 8, 128, 5120),
        ("qwen3-vl-4b", 32, 8, 128, 2560),
        ("qwen3-vl-235b-a22b", 64, 4, 128, 4096),
        ("qwen3.5-0.8b", 8, 2, 256, 1024),
        ("qwen3.5-397b-a17b", 32, 2, 256, 4096),
    ],
)
def test_attention_shapes(model, heads, kv_heads, head_dim, hidden):
    text = config_of(model).text
    assert (text.num_attention_heads, text.num_key_value_heads) == (heads, kv_heads)
    assert (text.head_dim, text.hidden_size) == (head_dim, hidden)


@pytest.mark.parametrize("model", [m for m in models() if m.shape], ids=lambda m: m.name)
def test_shapes_are_whole(model):
    """What every network of these families needs of its numbers."""
    config = config_of(model)
    text, vision = config.text, config.vision
    assert text.num_attention_heads % text.num_key_value_heads == 0
    assert vision.hidden_size % vision.num_heads == 0
    assert vision.out_hidden_size == text.hidden_size
    if text.mrope_section:
        assert 2 * sum(text.mrope_section) == text.rotary_dim
    if text.num_experts:
        assert 0 < text.num_experts_per_tok < text.num_experts
        assert text.moe_intermediate_size > 0
    if text.layer_types:
        assert len(text.layer_types) == text.num_hidden_layers
    assert max(vision.deepstack_visual_indexes, default=0) < vision.depth
    assert max(vision.fullatt_block_indexes, default=0) < vision.depth


@pytest.mark.parametrize(
    ("device", "gib", "gb_per_s", "bf16", "watts"),
    [
        ("rtx3060", 12, 360, 25, 170),
        ("rtx4090", 24, 1008, 165, 450),
        ("rtx5090", 32, 1792, 210, 575),
        ("a100", 80, 2039, 312, 400),
        ("a100-pcie", 80, 1935, 312, 300),
        ("h100", 80, 3350, 989, 700),
        ("h20", 96, 4000, 148, 400),
        ("mi300x", 192, 5300, 1307, 750),
    ],
)
def test_device_figures(device, gib, gb_per_s, bf16, watts):
    d = find_device(device)
    assert (d.memory.value, d.bandwidth.value, d.rates["bf16"].value, d.watts.value) == (
        gib,
        gb_per_s,
        bf16,
        watts,
    )


def test_decimal_gigabytes_are_not_taken_for_binary_ones():
    for name, most in (("h200", 141), ("b200", 180)):
        assert find_device(name).memory_bytes <= most * 10**9


def test_four_bit_floats_are_blackwells_and_cdna4s():
    from qvl.catalog.devices import devices

    assert {d.name for d in devices() if "fp4" in d.rates} == {
        *("b200", "b300", "gb200", "gb300", "gb10", "thor"),  # Blackwell
        "mi355x",  # CDNA 4; MI300X and MI325X have none
    }


def test_official_checkpoints_are_under_the_makers_name():
    for m in models():
        for c in m.checkpoints:
            assert c.official == c.hub_id.startswith("Qwen/"), c.hub_id


def test_a_checkpoints_name_tells_its_precision():
    marks = {"awq": "awq", "gptq-int4": ("int4", "w4a16"), "gptq-int8": "int8", "fp8": "fp8", "int8": "w8a8",
             "nvfp4": "nvfp4"}  # fmt: skip
    for m in models():
        for c in m.checkpoints[1:]:
            wanted = marks[c.precision]
            wanted = (wanted,) if isinstance(wanted, str) else wanted
            assert any(w in c.hub_id.lower() for w in wanted), c


def test_regressions_name_a_thread_and_a_way_out():
    families = {m.family for m in models()}
    for r in regressions():
        assert any(ch.isdigit() for ch in r.note), r
        assert r.escape
        assert set(r.families) <= families


# Data that is wrong is refused when it is read


def test_a_device_with_an_unknown_key_is_refused():
    raw = {**read_json("devices.json")[0], "colour": "green"}
    with pytest.raises(CatalogError, match="colour"):
        _device(raw)


def test_a_device_with_an_unknown_rate_is_refused():
    raw = read_json("devices.json")[0]
    with pytest.raises(CatalogError, match=r"fp3.*bf16"):
        _device({**raw, "tops": {"fp3": {"value": 1, "source": "recalled"}}})


def test_a_model_with_an_unknown_key_is_refused():
    raw = {**read_json("models.json")["models"][0], "mood": "good"}
    with pytest.raises(CatalogError, match="mood"):
        _model(raw)


def test_a_model_under_a_licence_that_is_not_described_is_refused():
    raw = read_json("models.json")["models"][0]
    with pytest.raises(CatalogError, match="wtfpl"):
        _model({**raw, "licence": {"value": "wtfpl", "source": "guide"}})


def test_a_checkpoint_from_an_unknown_source_is_refused():
    raw = read_json("models.json")["models"][2]
    broken = [{**raw["checkpoints"][0], "source": "hearsay"}]
    with pytest.raises(CatalogError, match="hearsay"):
        _model({**raw, "checkpoints": broken})
