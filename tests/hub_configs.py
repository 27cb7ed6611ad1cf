"""config.json of the Qwen2-VL and Qwen2.5-VL models, in the flat layout of the hub's files."""

from __future__ import annotations

from typing import Any

# name → family, hidden, layers, heads, kv heads, inner, vocab, tied, tower's inner width
SIZES: dict[str, tuple[str, int, int, int, int, int, int, bool, int]] = {
    "Qwen2-VL-2B": ("qwen2_vl", 1536, 28, 12, 2, 8960, 151936, True, 5120),
    "Qwen2-VL-7B": ("qwen2_vl", 3584, 28, 28, 4, 18944, 152064, False, 5120),
    "Qwen2-VL-72B": ("qwen2_vl", 8192, 80, 64, 8, 29568, 152064, False, 5120),
    "Qwen2.5-VL-3B": ("qwen2_5_vl", 2048, 36, 16, 2, 11008, 151936, True, 3420),
    "Qwen2.5-VL-7B": ("qwen2_5_vl", 3584, 28, 28, 4, 18944, 152064, False, 3420),
    "Qwen2.5-VL-32B": ("qwen2_5_vl", 5120, 64, 40, 8, 27648, 152064, False, 3456),
    "Qwen2.5-VL-72B": ("qwen2_5_vl", 8192, 80, 64, 8, 29568, 152064, False, 3456),
}

# whole model, tower without merger, merger, decoder with embedding and final norm, head (0: tied)
PARAMETERS: dict[str, tuple[int, int, int, int, int]] = {
    "Qwen2-VL-2B": (2_208_985_600, 631_183_360, 34_087_936, 1_543_714_304, 0),
    "Qwen2-VL-7B": (8_291_375_616, 631_183_360, 44_575_744, 7_070_619_136, 544_997_376),
    "Qwen2-VL-72B": (73_405_560_320, 631_183_360, 68_173_312, 71_460_495_360, 1_245_708_288),
    "Qwen2.5-VL-3B": (3_754_622_976, 631_975_680, 36_708_608, 3_085_938_688, 0),
    "Qwen2.5-VL-7B": (8_292_166_656, 631_975_680, 44_574_464, 7_070_619_136, 544_997_376),
    "Qwen2.5-VL-32B": (33_452_718_336, 636_401_664, 52_440_320, 31_985_308_672, 778_567_680),
    "Qwen2.5-VL-72B": (73_410_777_344, 636_401_664, 68_172_032, 71_460_495_360, 1_245_708_288),
}


def hub_config(name: str) -> dict[str, Any]:
    family, hidden, layers, heads, kv_heads, inner, vocab, tied, tower_inner = SIZES[name]
    vision: dict[str, Any] = dict(
        depth=32, num_heads=16, in_chans=3, patch_size=14, spatial_merge_size=2, spatial_patch_size=14
    )
    if family == "qwen2_vl":
        vision |= dict(embed_dim=1280, mlp_ratio=4, hidden_size=hidden, temporal_patch_size=2)
        architecture = "Qwen2VLForConditionalGeneration"
    else:
        vision |= dict(
            hidden_act="silu",
            hidden_size=1280,
            intermediate_size=tower_inner,
            out_hidden_size=hidden,
            window_size=112,
            fullatt_block_indexes=[7, 15, 23, 31],
            tokens_per_second=2,
            temporal_patch_size=2,
        )
        architecture = "Qwen2_5_VLForConditionalGeneration"
    return dict(
        architectures=[architecture],
        attention_dropout=0.0,
        bos_token_id=151643,
        eos_token_id=151645,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        vision_token_id=151654,
        image_token_id=151655,
        video_token_id=151656,
        hidden_act="silu",
        hidden_size=hidden,
        initializer_range=0.02,
        intermediate_size=inner,
        max_position_embeddings=32768 if family == "qwen2_vl" else 128000,
        max_window_layers=layers,
        model_type=family,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-06,
        rope_theta=1000000.0,
        sliding_window=32768,
        tie_word_embeddings=tied,
        torch_dtype="bfloat16",
        transformers_version="4.41.2",
        use_cache=True,
        use_sliding_window=False,
        vision_config=vision,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        vocab_size=vocab,
    )
