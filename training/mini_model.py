"""The embedded model's shape and its first weights."""

from __future__ import annotations

import random

import numpy as np
import synth_mix
import torch
from mini_data import IMAGE_MEAN, IMAGE_STD, patch_rows
from torch import nn


def mini_config(vocab_size: int, ids: dict[str, int]) -> dict:
    """config.json of mini, in the hub's Qwen2.5-VL layout. Every mechanism of the family is in it: windows with
    full blocks between, 2x2 merger, grouped queries, M-RoPE in three sections, absolute time, a tied head."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab_size,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        # width turns the last 12 of 32 slots: with the family's base of a million they would hardly move over a
        # small picture's ten columns, and the decoder would be blind to the order of what stands in a row
        "rope_theta": 30.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 5,
            "hidden_size": 192,
            "intermediate_size": 448,
            "num_heads": 3,
            "out_hidden_size": 256,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
            "window_size": 112,
            "fullatt_block_indexes": [2, 4],
            "tokens_per_second": 2,
            "hidden_act": "silu",
        },
    }


def init_weights(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            fan_in = p[0].numel()
            std = 0.02 if "embed_tokens" in name else fan_in**-0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
                std *= 0.3
            nn.init.normal_(p, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
        else:
            nn.init.ones_(p)


@torch.no_grad()
def whiten_patches(weight: torch.Tensor) -> None:
    """Starts the patch embedding as the whitened principal components of what synth draws.

    Random projections blur strokes into noise that the blocks must first undo; whitened components keep
    all a patch holds up to the tower's width, edges as loud as brightness.
    """
    rng = random.Random(7)
    samples = [sample for _ in range(40) for sample in synth_mix.draw(rng, 0.0)[1]]
    rows = np.concatenate([patch_rows(np.asarray(s.media[0])[None].repeat(2, 0)) for s in samples])
    rows = np.concatenate([rows[rng.randrange(7) :: 7]]).reshape(-1, 3, 2, 196)[:, :, 0] / np.float32(255)
    x = ((rows - IMAGE_MEAN[:, None]) / IMAGE_STD[:, None]).reshape(len(rows), -1)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    width = weight.shape[0]
    components = (vectors[:, -width:] / np.sqrt(values[-width:] + 1e-3)).T
    both_frames = torch.from_numpy(components.astype(np.float32)).view(width, 3, 1, 14, 14) / 2
    weight.copy_(both_frames.expand_as(weight))
