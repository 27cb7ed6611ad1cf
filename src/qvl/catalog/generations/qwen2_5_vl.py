"""Qwen2.5-VL (2025): window attention in the tower, absolute time, coordinates in pixels, QwenVL HTML.

Source: transformers 4.57.6 configuration_qwen2_5_vl; the published config.json files.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from qvl.catalog.generations.generation import SEEN_PIXELS, ModelConfig, Prompts, Tower
from qvl.catalog.generations.keys import Keys
from qvl.catalog.generations.qwen2_vl import QWEN2_VL, merger, read_flat, write_flat
from qvl.catalog.generations.shape import VisionConfig
from qvl.catalog.generations.tensors import TensorKind, TensorTable, decoder, tower_blocks
from qvl.catalog.generations.writing import plain


def _read_vision(k: Keys, text_hidden: int, common: dict[str, Any]) -> VisionConfig:
    vision = VisionConfig(
        hidden_size=k.integer("hidden_size"),
        intermediate_size=k.integer("intermediate_size"),
        out_hidden_size=k.integer("out_hidden_size", text_hidden),
        window_size=k.integer("window_size", 112),
        fullatt_block_indexes=k.integers("fullatt_block_indexes", (7, 15, 23, 31)),
        tokens_per_second=k.number("tokens_per_second"),  # a class default is 4, every hub file says 2
        **common,
    )
    unit = vision.patch_size * vision.spatial_merge_size
    k.require(
        vision.window_size % unit == 0,
        f"window_size {vision.window_size} is not a whole number of {unit}-pixel units",
    )
    k.require(
        max(vision.fullatt_block_indexes, default=0) < vision.depth,
        f"fullatt_block_indexes {list(vision.fullatt_block_indexes)} go past depth {vision.depth}",
    )
    return vision


def _write(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision
    return write_flat(
        config,
        dict(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            out_hidden_size=vision.out_hidden_size,
            window_size=vision.window_size,
            fullatt_block_indexes=list(vision.fullatt_block_indexes),
            tokens_per_second=plain(vision.tokens_per_second),
        ),
    )


def _tensors(config: ModelConfig) -> TensorTable:
    found: list[TensorKind] = []
    vision = config.vision
    blocks = tower_blocks(found, vision, norm_bias=False, patch_bias=False)
    blocks.linear("gate_proj", vision.hidden_size, vision.intermediate_size, True)
    blocks.linear("up_proj", vision.hidden_size, vision.intermediate_size, True)
    blocks.linear("down_proj", vision.intermediate_size, vision.hidden_size, True, "row")
    merger(found, vision, norm_bias=False)
    decoder(found, config.text)
    return TensorTable(tuple(found))


QWEN2_5_VL = replace(
    QWEN2_VL,
    name="qwen2_5_vl",
    title="Qwen2.5-VL",
    model_types=("qwen2_5_vl",),
    architecture="Qwen2_5_VLForConditionalGeneration",
    name_parts=("qwen2.5-vl", "qwen2-5-vl", "qwen2.5vl", "qwen25-vl", "qwen25vl"),
    read=partial(read_flat, read_vision=_read_vision),
    write=_write,
    tensors=_tensors,
    network="qvl.models.qwen2_5_vl:Qwen25VL",
    knows_seconds=True,
    tower=Tower("rms", "silu"),
    prompts=Prompts(
        boxes="Report the bbox coordinates in JSON format.",
        page="QwenVL HTML ",  # the blank at its end is part of it
        page_first=True,
    ),
    coordinates=SEEN_PIXELS,
    place_style="json",
    transformers_trims=(4, 54),
)
