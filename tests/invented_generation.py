"""The record of an invented generation, which has nothing in common with a real one that a file could rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from qvl.catalog.generations.generation import Convention, Generation, ModelConfig, Prompts, Tower
from qvl.catalog.generations.shape import TextConfig, VisionConfig
from qvl.catalog.generations.tensors import TableWriter, TensorKind, TensorTable, decoder
from qvl.geometry import PixelLimits, VideoLimits

_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "eos_token_ids")


def _read(generation: Generation, raw: Mapping[str, Any], where: str) -> ModelConfig:
    text, vision, ids = raw["words"], raw["eyes"], dict(zip(_IDS, raw["marks"], strict=True))
    return ModelConfig(
        generation=generation,
        text=TextConfig(**{**text, "mrope_section": tuple(text["mrope_section"])}),
        vision=VisionConfig(**vision),
        dtype="float32",
        **{**ids, "eos_token_ids": tuple(ids["eos_token_ids"])},
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    fields = {
        part: {
            name: value
            for name, value in asdict(shape).items()
            if value != () and value != type(shape).__dataclass_fields__[name].default
        }
        for part, shape in (("words", config.text), ("eyes", config.vision))
    }
    return {"model_type": "nova", **fields, "marks": [getattr(config, name) for name in _IDS]}


def _tensors(config: ModelConfig) -> TensorTable:
    found: list[TensorKind] = []
    vision = config.vision
    width, patch = vision.hidden_size, vision.patch_size
    TableWriter(found, "tower", "visual.stem.").tensor(
        "proj.weight", width, 3, vision.temporal_patch_size, patch, patch, bias="proj.bias", kinds=("stem",)
    )
    unit = TableWriter(found, "tower", "visual.units.{}.", range(vision.depth))
    unit.norm("scale", width, True)
    unit.linear("look.qkv", width, 3 * width, True)
    unit.linear("look.proj", width, width, True, "row")
    unit.linear("wide", width, vision.intermediate_size, True)
    unit.linear("slim", vision.intermediate_size, width, True, "row")
    TableWriter(found, "merger", "visual.").linear(
        "bridge", width * vision.spatial_merge_size**2, vision.out_hidden_size, True
    )
    decoder(found, config.text)
    return TensorTable(tuple(found))


NOVA = Generation(
    name="nova_vl",
    title="Nova-VL",
    model_types=("nova",),
    architecture="NovaForConditionalGeneration",
    name_parts=("nova-vl",),
    read=_read,
    write=_write,
    tensors=_tensors,
    published=(("net.eyes.", "visual."), ("net.words.", "model.")),
    network="invented_network:Nova",
    image=PixelLimits(2 * 20**2, 50 * 20**2, patch_size=10),
    video=VideoLimits(
        min_pixels=20**2, max_pixels=8 * 20**2, total_pixels=64 * 20**2, patch_size=10, budget="frame"
    ),
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    tower=Tower("layer", "quick_gelu"),
    system="You look closely.",
    prompts=Prompts(boxes="Say where, in parts of 512.", page="<write/>"),
    coordinates=Convention("relative 0-512", 512),
)
