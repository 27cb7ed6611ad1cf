"""Tiny random networks of transformers, the oracle of the models room's tests, and prompts to feed both sides."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from qvl.geometry import Grid
from qvl.inputs.positions import Positions, VisualBlock, mrope_positions
from qvl.models.attention import CausalAttention
from qvl.models.base import VisionLanguageModel

IMAGE, VIDEO, START, END = 200, 201, 202, 203
VOCAB = 210
SPECIAL = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END
)
PATCH_DIM = 1176

# name → (text, vision): widths, head counts, head sizes, windows and depths that differ from each other
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grouped": (
        dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, mrope_section=[2, 3, 3]),
        dict(width=48, num_heads=4, depth=4, fullatt_block_indexes=[1, 3]),
    ),
    "one_kv_head": (
        dict(hidden_size=96, num_attention_heads=6, num_key_value_heads=1, mrope_section=[4, 2, 2]),
        dict(width=64, num_heads=2, depth=3, fullatt_block_indexes=[0], window_size=56),
    ),
    "tied_all_heads": (
        dict(
            hidden_size=40, num_attention_heads=5, num_key_value_heads=5, mrope_section=[1, 1, 2], tied=True
        ),
        dict(width=32, num_heads=1, depth=2, fullatt_block_indexes=[1], window_size=84),
    ),
}


def reference(family: str, shape: str = "grouped", seed: int = 0) -> Any:
    """A float32 network of transformers 4.57.6, with weights large enough for answers to differ."""
    import transformers as hf

    if family.startswith("qwen3_vl"):
        return _reference_3(family, shape, seed)
    text, vision = (dict(part) for part in SHAPES[shape])
    tied = text.pop("tied", False)
    width = vision.pop("width")
    common = dict(
        intermediate_size=72,
        num_hidden_layers=3,
        vocab_size=VOCAB,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
        eos_token_id=None,
        bos_token_id=None,
    )
    rope = {"type": "mrope", "mrope_section": text.pop("mrope_section")}
    text = {**common, **text, "rope_scaling": rope}
    if family == "qwen2_vl":
        for key in ("fullatt_block_indexes", "window_size"):
            vision.pop(key, None)
        vision |= dict(embed_dim=width, hidden_size=text["hidden_size"], mlp_ratio=2.5)
        config = hf.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **SPECIAL)
        kind = hf.Qwen2VLForConditionalGeneration
    else:
        vision |= dict(
            hidden_size=width,
            out_hidden_size=text["hidden_size"],
            intermediate_size=2 * width - 4,  # not a multiple of anything, like the published 3420
            tokens_per_second=2,
        )
        config = hf.Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=tied, **SPECIAL
        )
        kind = hf.Qwen2_5_VLForConditionalGeneration
    return _with_weights(kind, config, seed, tied)


def _reference_3(family: str, shape: str, seed: int) -> Any:
    import transformers as hf

    text, vision = (dict(part) for part in SHAPES_3[shape])
    moe = text.pop("moe", {})
    tied = text.pop("tied", False)
    common = dict(
        intermediate_size=72,
        num_hidden_layers=4,
        vocab_size=VOCAB,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
        eos_token_id=None,
        bos_token_id=None,
    )
    rope = dict(rope_type="default", mrope_interleaved=True, mrope_section=text.pop("mrope_section"))
    text = {**common, **text, "rope_scaling": rope}
    vision |= dict(out_hidden_size=text["hidden_size"], patch_size=16)
    if family == "qwen3_vl_moe":
        text |= dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20, **moe)
        config = hf.Qwen3VLMoeConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=tied, **SPECIAL
        )
        return _with_weights(hf.Qwen3VLMoeForConditionalGeneration, config, seed, tied)
    config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **SPECIAL)
    return _with_weights(hf.Qwen3VLForConditionalGeneration, config, seed, tied)


def _with_weights(kind: Any, config: Any, seed: int, tied: bool) -> Any:
    torch.manual_seed(seed)
    network = kind(config).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim > 1:
                # a tied table of size 1 would make every network repeat its last token
                table = 0.1 if tied else 1.0
                inputs = p.shape[1] if "experts" in name else p[0].numel()
                p.normal_(0, table if "embed_tokens" in name else inputs**-0.5)
            else:
                p.normal_(1.0 if "norm" in name or "ln_q" in name else 0.0, 0.1)
    return network


# Qwen3-VL: heads that are wider or narrower than hidden_size / heads, taps in and out of order of depth
SHAPES_3: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "wide_heads": (
        dict(
            hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16, mrope_section=[4, 2, 2]
        ),
        dict(
            hidden_size=48,
            num_heads=4,
            depth=5,
            intermediate_size=100,
            num_position_embeddings=36,
            deepstack_visual_indexes=[1, 2, 4],
        ),
    ),
    "narrow_heads": (
        dict(
            hidden_size=64,
            num_attention_heads=6,
            num_key_value_heads=1,
            head_dim=8,
            mrope_section=[2, 1, 1],
            tied=True,
        ),
        dict(
            hidden_size=32,
            num_heads=2,
            depth=3,
            intermediate_size=52,
            num_position_embeddings=2304,
            deepstack_visual_indexes=[0, 2],
        ),
    ),
}


@contextmanager
def both(family: str, folder: Path, shape: str = "grouped", seed: int = 0) -> Iterator[tuple[Any, Any]]:
    """The reference and our network that read what the reference saved."""
    from qvl.models.checkpoint import load_model

    theirs = reference(family, shape, seed)
    theirs.save_pretrained(folder)
    ours = load_model(folder)
    with torch.no_grad():
        yield theirs, ours


@dataclass
class Prompt:
    """Text and media in order. Media are (kind, grid); videos are sampled at two frames a second.

    For Qwen3-VL a video is one block for each temporal patch, with text (its time) before it.
    """

    parts: Sequence[Any]
    seed: int = 0
    family: str = ""
    ids: list[int] = field(default_factory=list)
    blocks: list[VisualBlock] = field(default_factory=list)
    media: list[tuple[str, Grid, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        for part in self.parts:
            if isinstance(part, int):
                self.ids += torch.randint(0, IMAGE, (part,), generator=random).tolist()
                continue
            kind, grid = part[0], Grid(*part[1])
            per_frame = self.family.startswith("qwen3_vl") and kind == "video"
            count = grid.t * grid.h * grid.w
            patch_dim = 1536 if self.family.startswith("qwen3_vl") else PATCH_DIM
            self.media.append((kind, grid, torch.randn(count, patch_dim, generator=random)))
            for _ in range(grid.t if per_frame else 1):
                if per_frame:
                    self.ids += torch.randint(0, IMAGE, (3,), generator=random).tolist()
                block = grid._replace(t=1) if per_frame else grid
                self.ids.append(START)
                seconds = 1.0 if kind == "video" and not per_frame else None
                self.blocks.append(VisualBlock(len(self.ids), block, seconds))
                self.ids += [VIDEO if kind == "video" else IMAGE] * (block.t * block.h * block.w // 4) + [END]

    def positions(self, family: str, num_generated: int = 0) -> Positions:
        rate = 2.0 if family == "qwen2_5_vl" else 0.0
        return mrope_positions(len(self.ids) + num_generated, self.blocks, 2, rate)


def media_kwargs(prompts: Sequence[Prompt], family: str) -> dict[str, Any]:
    """What the reference's forward takes for the pictures and videos of a batch."""
    kwargs: dict[str, Any] = {}
    for kind, pixels, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        media = [m for p in prompts for m in p.media if m[0] == kind]
        if media:
            kwargs[pixels] = torch.cat([patches for _, _, patches in media])
            kwargs[grids] = torch.tensor([grid for _, grid, _ in media])
            if kind == "video" and family == "qwen2_5_vl":
                kwargs["second_per_grid_ts"] = [1.0] * len(media)
    return kwargs


def our_hidden(model: VisionLanguageModel, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Embeddings of all prompts, packed, with the media written in."""
    ids = torch.tensor([i for p in prompts for i in p.ids])
    hidden = model.embed(ids)
    media = [m for p in prompts for m in p.media]
    if media:
        features = model.encode_media(torch.cat([m[2] for m in media]), [m[1] for m in media])
        hidden = model.merge_features(hidden, ids, features)
    return hidden


def our_logits(model: VisionLanguageModel, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Logits of all prompts, packed."""
    family = model.config.family
    positions = torch.cat([torch.from_numpy(p.positions(family).positions) for p in prompts], dim=1)
    attend = CausalAttention([len(p.ids) for p in prompts])
    return model.logits(model.decode(our_hidden(model, prompts), positions, attend))


@contextmanager
def peak_growth() -> Iterator[list[int]]:
    """Puts into the list, at exit, how many bytes this process's peak memory rose above where it began."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        pytest.skip("peak memory is read from /proc, which only Linux has")

    def read(key: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    with suppress(OSError, AttributeError):  # what earlier tests freed would hide what this one takes
        ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    before, result = read("VmRSS"), []
    yield result
    result.append(read("VmHWM") - before)
