"""The system prompt of benchmarks about screens: the tool that each generation was taught, with the screen's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qvl.catalog.generations import by_name
from qvl.catalog.generations.qwen2_vl import QWEN2_VL
from qvl.evaluate.samples import Sample
from qvl.geometry import Size
from qvl.outputs.mapping import seen_size
from qvl.tasks.prompts import Tool, tool_system_prompt


def screen_system(tool: Tool) -> Callable[[Sample, str], str | None]:
    """The tool's schema with the screen's size as the model sees it; None for a generation that wasn't taught it."""

    def system(sample: Sample, generation: str) -> str | None:
        if not knows_tools(generation):
            return None
        return tool_system_prompt(generation, tool, seen_size(original_size(sample.media[0]), generation))

    return system


def knows_tools(generation: str) -> bool:
    return bool(generation) and by_name(generation).takes_video and generation != QWEN2_VL.name


def original_size(medium: Any) -> Size:
    """Of a file, of which only the head is read, or of an image in memory."""
    from PIL import Image

    if isinstance(medium, str):
        with Image.open(medium) as image:
            width, height = image.size
    else:
        width, height = medium.size
    return Size(height, width)
