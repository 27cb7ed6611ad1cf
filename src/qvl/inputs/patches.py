"""Pixels ↔ the rows of numbers that the vision tower takes, and the resize before it.

One row is one patch, flattened as channel, frame, row, column. Rows follow merge blocks, so that every
merge_size² rows in a run make one visual token:

    patch (row, col) of a 4x4 grid:  00 01 10 11 | 02 03 12 13 | 20 21 30 31 | 22 23 32 33

Source: the Qwen2-VL image processor of transformers 4.57.6 (the slow one, whose resize is PIL's).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from qvl import moved
from qvl.catalog.generations.generation import CLIP_MEAN, CLIP_STD
from qvl.errors import MediaError
from qvl.geometry import Grid, PixelLimits, Size


def resize(image: Image.Image, size: Size) -> Image.Image:
    """Bicubic on 8-bit values, as PIL does it. torchvision's differs by a few levels; this is the pinned one."""
    if image.size == (size.width, size.height):
        return image
    return image.resize((size.width, size.height), Image.Resampling.BICUBIC)


def _level_table(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """float32 (3, 256): what each 8-bit level becomes. Same roundings as the reference, at a 256th of its work."""
    # the reference multiplies in float64, rounds to float32, and only then subtracts and divides
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean32, std32 = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    return (levels[None, :] - mean32[:, None]) / std32[:, None]


def to_patches(
    frames: np.ndarray,
    limits: PixelLimits,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> tuple[np.ndarray, Grid]:
    """(T, H, W, 3) frames, uint8 or float on the scale 0–255, sides multiples of `limits.factor`.

    The last frame is repeated until T is a multiple of temporal_patch_size, so a still becomes a pair.
    Returns: float32 (P, 3 * temporal_patch_size * patch_size²) in merge-block order, and their grid.
    Raises: MediaError for another shape or sides that don't divide.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] < 1:
        raise MediaError(f"frames have shape {frames.shape}; needed: (frames, height, width, 3)")
    _, height, width, _ = frames.shape
    tp, p, m = limits.temporal_patch_size, limits.patch_size, limits.merge_size
    if height < 1 or width < 1 or height % limits.factor or width % limits.factor:
        raise MediaError(
            f"frames of {width}x{height} pixels can't be cut: sides must be multiples of {p * m}"
        )
    if len(frames) % tp:
        frames = np.concatenate([frames, np.repeat(frames[-1:], tp - len(frames) % tp, axis=0)])
    grid = Grid(len(frames) // tp, height // p, width // p)
    blocks = frames.reshape(grid.t, tp, grid.h // m, m, p, grid.w // m, m, p, 3)
    rows = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(grid.num_patches, 3, -1)
    if frames.dtype == np.uint8:
        patches = np.empty(rows.shape, np.float32)
        for channel, table in enumerate(_level_table(mean, std)):
            np.take(table, rows[:, channel], out=patches[:, channel], mode="clip")
    else:
        scaled = (rows.astype(np.float64) * (1 / 255)).astype(np.float32)
        patches = (scaled - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]
    return patches.reshape(grid.num_patches, -1), grid


def from_patches(
    patches: np.ndarray,
    grid: Grid,
    limits: PixelLimits,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> np.ndarray:
    """Inverse of to_patches, exact for 8-bit frames: uint8 (T, H, W, 3), what the model sees."""
    tp, p, m = limits.temporal_patch_size, limits.patch_size, limits.merge_size
    if patches.shape != (grid.num_patches, 3 * tp * p * p):
        raise MediaError(
            f"patches have shape {patches.shape}; grid {tuple(grid)} needs {(grid.num_patches, 3 * tp * p * p)}"
        )
    rows = patches.reshape(grid.num_patches, 3, -1)
    levels = rows * np.asarray(std, np.float32)[:, None] + np.asarray(mean, np.float32)[:, None]
    levels = np.clip(np.rint(levels * 255), 0, 255).astype(np.uint8)
    blocks = levels.reshape(grid.t, grid.h // m, grid.w // m, m, m, 3, tp, p, p)
    frames: np.ndarray = blocks.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
    return frames.reshape(grid.t * tp, grid.h * p, grid.w * p, 3)


__getattr__ = moved.names(__name__)
