"""A 3840x2160 picture through the tower of the true 7B, against the device's measured matrix rate.

    python benchmarks/gpu/vision.py [--model Qwen2.5-VL-7B]

Arithmetic counted: two operations a weight and patch in the blocks and patch embedding, the merger's for each visual
token, and scores and sums of every attention (windows in most blocks, whole pictures in four). Goal: 50% of the rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import arguments, device_of, goal, matmul_rate, random_model, report, seconds, shape

from qvl.catalog.config import VisionConfig
from qvl.geometry import PixelLimits, Size, smart_resize
from qvl.inputs.patches import to_patches
from qvl.models.base import VisionLanguageModel
from qvl.models.qwen2_5_vl import window_index


def operations(model: VisionLanguageModel, grid: tuple[int, int, int]) -> dict[str, float]:
    """Linear layers and attention apart. Source: shapes alone; norms, rotation and softmax aren't counted."""
    vision: VisionConfig = model.config.vision
    patches = grid[0] * grid[1] * grid[2]
    unit = vision.spatial_merge_size**2
    merger = sum(p.numel() for p in model.visual.merger.parameters() if p.ndim > 1)
    rest = sum(p.numel() for p in model.visual.parameters() if p.ndim > 1) - merger
    windows = sum((n * unit) ** 2 for n in window_index([grid], vision).lengths)
    frames = grid[0] * (grid[1] * grid[2]) ** 2
    full = len(vision.fullatt_block_indexes)
    pairs = full * frames + (vision.depth - full) * windows
    return {
        "linear": 2.0 * patches * rest + 2.0 * patches / unit * merger,
        "attention": 4.0 * vision.hidden_size * pairs,
    }


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default="Qwen2.5-VL-7B")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args(argv)
    device = device_of(args)
    config = shape(args.model, args.dry_run)
    vision = config.vision
    limits = PixelLimits(
        1,
        1 << 30,
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
    )
    height, width = (84, 140) if args.dry_run else (2160, 3840)
    size: Size = smart_resize(height, width, limits)
    pixels = np.random.default_rng(0).integers(0, 255, (1, *size, 3), dtype=np.uint8)
    patches, grid = to_patches(pixels, limits)
    rate = matmul_rate(device, torch.bfloat16)
    model = random_model(config, device, torch.bfloat16)
    patches_PV = torch.from_numpy(patches).to(device, torch.bfloat16)
    with torch.inference_mode():
        whole = seconds(lambda: model.encode_media(patches_PV, [tuple(grid)]), device, args.repeat)
    counted = operations(model, tuple(grid))
    bound = sum(counted.values()) / rate
    result: dict[str, Any] = {
        "model": args.model,
        "seen": list(size),
        "patches": len(patches),
        "operations": counted,
        "matmul_per_s": rate,
        "encode_s": whole,
        "bound_s": bound,
    }
    goals = [goal("share of the matrix rate", bound / whole["median"], 0.5)]
    return report(args, "vision", result, goals)


if __name__ == "__main__":
    raise SystemExit(main())
