"""ModelConfig objects of the family, written by hand from the published shapes, for the plan room's tests."""

from dataclasses import replace
from typing import Any

from qvl.catalog import generations
from qvl.catalog.config import ModelConfig, TextConfig, VisionConfig

TOKENS = dict(image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4)


def model(family: str, text: TextConfig, vision: VisionConfig) -> ModelConfig:
    return ModelConfig(generation=generations.by_name(family), text=text, vision=vision, **TOKENS)


def text_2(hidden: int, layers: int, heads: int, kv: int, inner: int, vocab: int, **more: Any) -> TextConfig:
    fields: dict[str, Any] = dict(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=inner,
        vocab_size=vocab,
        head_dim=128,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=(16, 24, 24),
        attention_bias=True,
    )
    return TextConfig(**(fields | more))


def text_3(hidden: int, layers: int, heads: int, kv: int, inner: int, **more: Any) -> TextConfig:
    fields: dict[str, Any] = dict(
        attention_bias=False,
        qk_norm=True,
        mrope_section=(24, 20, 20),
        mrope_interleaved=True,
        rope_theta=5e6,
        max_position_embeddings=262144,
    )
    return text_2(hidden, layers, heads, kv, inner, 151936, **(fields | more))


def vision_2(out: int) -> VisionConfig:
    return VisionConfig(
        depth=32, hidden_size=1280, intermediate_size=5120, num_heads=16, out_hidden_size=out, patch_size=14
    )


def vision_2_5(out: int, inner: int = 3420) -> VisionConfig:
    return VisionConfig(
        depth=32,
        hidden_size=1280,
        intermediate_size=inner,
        num_heads=16,
        out_hidden_size=out,
        patch_size=14,
        window_size=112,
        fullatt_block_indexes=(7, 15, 23, 31),
        tokens_per_second=2.0,
    )


def vision_3(out: int, small: bool = False, deepstack: bool = True) -> VisionConfig:
    taps = (5, 11, 17) if small else (8, 16, 24)
    return VisionConfig(
        depth=24 if small else 27,
        hidden_size=1024 if small else 1152,
        intermediate_size=4096 if small else 4304,
        num_heads=16,
        out_hidden_size=out,
        patch_size=16,
        num_position_embeddings=2304,
        deepstack_visual_indexes=taps if deepstack else (),
    )


def text_3_5(
    hidden: int, layers: int, heads: int, kv: int, inner: int, value_heads: int, **more: Any
) -> TextConfig:
    kinds = tuple("full_attention" if i % 4 == 3 else "linear_attention" for i in range(layers))
    fields: dict[str, Any] = dict(
        head_dim=256,
        vocab_size=248320,
        attn_output_gate=True,
        zero_centered_norm=True,
        partial_rotary_factor=0.25,
        mrope_section=(11, 11, 10),
        layer_types=kinds,
        linear_num_key_heads=16,
        linear_num_value_heads=value_heads,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
    )
    base = text_3(hidden, layers, heads, kv, inner)
    return replace(base, **(fields | more))


def moe(experts: int, per_token: int, inner: int, shared: int = 0) -> dict[str, int]:
    return dict(
        num_experts=experts,
        num_experts_per_tok=per_token,
        moe_intermediate_size=inner,
        shared_expert_intermediate_size=shared,
    )


FIRST = model(
    "qwen_vl",
    text_2(4096, 32, 32, 32, 11008, 151936, mrope_section=(), seq_length=2048),
    VisionConfig(
        depth=48,
        hidden_size=1664,
        intermediate_size=8192,
        num_heads=16,
        out_hidden_size=4096,
        patch_size=14,
        spatial_merge_size=1,
        temporal_patch_size=1,
        image_size=448,
        num_queries=256,
        num_position_embeddings=256,
    ),
)

MODELS: dict[str, ModelConfig] = {
    "Qwen-VL": FIRST,
    "Qwen2-VL-2B": model(
        "qwen2_vl", text_2(1536, 28, 12, 2, 8960, 151936, tie_word_embeddings=True), vision_2(1536)
    ),
    "Qwen2-VL-7B": model("qwen2_vl", text_2(3584, 28, 28, 4, 18944, 152064), vision_2(3584)),
    "Qwen2-VL-72B": model("qwen2_vl", text_2(8192, 80, 64, 8, 29568, 152064), vision_2(8192)),
    "Qwen2.5-VL-3B": model(
        "qwen2_5_vl", text_2(2048, 36, 16, 2, 11008, 151936, tie_word_embeddings=True), vision_2_5(2048)
    ),
    "Qwen2.5-VL-7B": model("qwen2_5_vl", text_2(3584, 28, 28, 4, 18944, 152064), vision_2_5(3584)),
    "Qwen2.5-VL-32B": model("qwen2_5_vl", text_2(5120, 64, 40, 8, 27648, 152064), vision_2_5(5120, 3456)),
    "Qwen2.5-VL-72B": model("qwen2_5_vl", text_2(8192, 80, 64, 8, 29568, 152064), vision_2_5(8192, 3456)),
    "Qwen3-VL-2B": model(
        "qwen3_vl", text_3(2048, 28, 16, 8, 6144, tie_word_embeddings=True), vision_3(2048, small=True)
    ),
    "Qwen3-VL-4B": model(
        "qwen3_vl", text_3(2560, 36, 32, 8, 9728, tie_word_embeddings=True), vision_3(2560, small=True)
    ),
    "Qwen3-VL-8B": model("qwen3_vl", text_3(4096, 36, 32, 8, 12288), vision_3(4096)),
    "Qwen3-VL-32B": model("qwen3_vl", text_3(5120, 64, 64, 8, 25600), vision_3(5120)),
    "Qwen3-VL-30B-A3B": model(
        "qwen3_vl_moe", text_3(2048, 48, 32, 4, 6144, **moe(128, 8, 768)), vision_3(2048)
    ),
    "Qwen3-VL-235B-A22B": model(
        "qwen3_vl_moe", text_3(4096, 94, 64, 4, 12288, **moe(128, 8, 1536)), vision_3(4096)
    ),
    "Qwen3.5-0.8B": model(
        "qwen3_5",
        text_3_5(1024, 24, 8, 2, 3584, 16, tie_word_embeddings=True),
        VisionConfig(
            depth=12,
            hidden_size=768,
            intermediate_size=3072,
            num_heads=12,
            out_hidden_size=1024,
            patch_size=16,
            num_position_embeddings=2304,
        ),
    ),
    "Qwen3.5-9B": model("qwen3_5", text_3_5(4096, 32, 16, 4, 12288, 32), vision_3(4096, deepstack=False)),
    "Qwen3.5-27B": model("qwen3_5", text_3_5(5120, 64, 24, 4, 17408, 48), vision_3(5120, deepstack=False)),
    "Qwen3.5-35B-A3B": model(
        "qwen3_5_moe",
        text_3_5(2048, 40, 16, 2, 0, 32, **moe(256, 8, 512, 512)),
        vision_3(2048, deepstack=False),
    ),
    "Qwen3.5-397B-A17B": model(
        "qwen3_5_moe",
        text_3_5(4096, 60, 32, 2, 0, 64, **moe(512, 10, 1024, 1024)),
        vision_3(4096, deepstack=False),
    ),
}

# A shape small enough to reason about by hand; head_dim is not hidden_size / heads on purpose.
TINY = model(
    "qwen3_vl",
    text_3(256, 4, 4, 2, 512, head_dim=128, vocab_size=1000),
    VisionConfig(
        depth=2,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        out_hidden_size=256,
        patch_size=16,
        num_position_embeddings=16,
        deepstack_visual_indexes=(0,),
    ),
)
