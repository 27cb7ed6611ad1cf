"""Activation formulas against what the reference modules really allocate (transformers 4.57.6, CPU, tiny sizes)."""

from dataclasses import replace

import pytest

from plan_shapes import MODELS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="4.57")

from qvl.plan.engines.training import layer_activation_bytes, tower_activation_bytes  # noqa: E402
from qvl.plan.terms import prefill_activation_bytes, vision_activation_bytes  # noqa: E402

W, SIDE = 256, 16  # width of the tower, patches a side


def allocated(run) -> tuple[int, int]:
    """(peak, still held) bytes that `run` allocates, from the profiler's allocation events."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        kept = run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        now += e.nbytes()
        peak = max(peak, now)
    del kept
    return peak, now


def tower(family: str, depth: int):
    """(reference tower, our config) of a tiny size."""
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl as c25
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as m25
    from transformers.models.qwen2_vl import configuration_qwen2_vl as c2
    from transformers.models.qwen2_vl import modeling_qwen2_vl as m2
    from transformers.models.qwen3_vl import configuration_qwen3_vl as c3
    from transformers.models.qwen3_vl import modeling_qwen3_vl as m3

    common = dict(depth=depth, num_heads=4)
    if family == "qwen2_vl":
        inner, patch = 4 * W, 14
        config = c2.Qwen2VLVisionConfig(embed_dim=W, hidden_size=512, mlp_ratio=4, patch_size=14, **common)
        build = m2.Qwen2VisionTransformerPretrainedModel
    elif family == "qwen2_5_vl":
        inner, patch = 684, 14
        config = c25.Qwen2_5_VLVisionConfig(
            hidden_size=W,
            intermediate_size=684,
            out_hidden_size=512,
            patch_size=14,
            fullatt_block_indexes=[1],
            **common,
        )
        build = m25.Qwen2_5_VisionTransformerPretrainedModel
    else:
        inner, patch = 956, 16
        config = c3.Qwen3VLVisionConfig(
            hidden_size=W,
            intermediate_size=956,
            out_hidden_size=512,
            patch_size=16,
            deepstack_visual_indexes=[],
            **common,
        )
        build = m3.Qwen3VLVisionModel
    config._attn_implementation = "sdpa"
    name = {"qwen2_vl": "Qwen2-VL-7B", "qwen2_5_vl": "Qwen2.5-VL-7B", "qwen3_vl": "Qwen3-VL-8B"}[family]
    vision = replace(
        MODELS[name].vision,
        depth=depth,
        hidden_size=W,
        num_heads=4,
        intermediate_size=inner,
        patch_size=patch,
    )
    return build(config).to(torch.bfloat16).eval(), replace(MODELS[name], vision=vision)


FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@pytest.mark.parametrize("family", FAMILIES)
def test_tower_peak_is_what_one_block_holds(family):
    model, config = tower(family, 2)
    patches = SIDE * SIDE
    x = torch.zeros(patches, config.vision.patch_dim, dtype=torch.bfloat16)

    def run():
        with torch.no_grad():
            return model(x, torch.tensor([[1, SIDE, SIDE]]))

    run()
    peak, _ = allocated(run)
    ours = vision_activation_bytes(config, patches, patches, flash=True, fused_rotary=False)
    # at this width indices and angles weigh more than at 1,280
    assert ours == pytest.approx(peak, rel=0.12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_block_keeps_what_we_count_for_the_backward_pass(family):
    held = []
    for depth in (2, 4):
        model, config = tower(family, depth)
        x = torch.zeros(SIDE * SIDE, config.vision.patch_dim, dtype=torch.bfloat16)
        grid = torch.tensor([[1, SIDE, SIDE]])
        held.append(allocated(lambda model=model, x=x, grid=grid: model(x, grid))[1])
    per_block = (held[1] - held[0]) / 2 / SIDE**2
    assert tower_activation_bytes(config) == pytest.approx(per_block, rel=0.06)


def decoder(layers: int):
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    config = Qwen2_5_VLTextConfig(
        vocab_size=64, hidden_size=256, intermediate_size=2048, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]},
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    text = replace(
        MODELS["Qwen2.5-VL-7B"].text,
        hidden_size=256, intermediate_size=2048, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64,
    )  # fmt: skip
    return Qwen2_5_VLTextModel(config).to(torch.bfloat16), replace(MODELS["Qwen2.5-VL-7B"], text=text)


def test_prefill_peak_is_what_one_layer_holds():
    model, config = decoder(2)
    x = torch.zeros(1, 256, 256, dtype=torch.bfloat16)

    def run():
        with torch.no_grad():
            return model(inputs_embeds=x, use_cache=False)

    run()
    peak, _ = allocated(run)
    # angles of three axes come on top at this head size
    assert prefill_activation_bytes(config, 256) == pytest.approx(peak, rel=0.12)


def test_a_decoder_layer_keeps_what_we_count_for_the_backward_pass():
    held = []
    for layers in (2, 4):
        model, config = decoder(layers)
        x = torch.zeros(1, 256, 256, dtype=torch.bfloat16)
        held.append(allocated(lambda model=model, x=x: model(inputs_embeds=x, use_cache=False))[1])
    assert layer_activation_bytes(config) == pytest.approx((held[1] - held[0]) / 2 / 256, rel=0.06)
