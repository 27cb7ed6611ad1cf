"""PyTorch's int4 matrix product on a GPU beside its dequantised reference and bf16: errors and times as JSON.

    python benchmarks/gpu/int4_matmul.py [--rows 1 8 64 512] [--repeat 50]

For the layers of Qwen2.5-VL-7B in groups of 128, symmetric and with zero points. Exit status 1 when an answer differs
from the reference by more than bf16 rounding explains. Needs a GPU of compute capability 8.0 or later.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as F

from qvl.models.linear import QuantizedLinear
from qvl.models.quantized.int4_matmul import Int4Linear

SHAPES = {"qkv": (4608, 3584), "o": (3584, 3584), "gate_up": (37888, 3584), "down": (3584, 18944)}
GROUP = 128
TOLERANCE = 0.02  # of the largest output: bf16 keeps 8 bits, and shifts are rounded to it


def milliseconds(run, repeat: int) -> dict[str, float]:
    for _ in range(5):
        run()
    times = []
    for _ in range(repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    times.sort()
    return {
        "median": statistics.median(times),
        "p10": times[len(times) // 10],
        "p90": times[9 * len(times) // 10],
    }


def measure(name: str, zeros: bool, rows: int, repeat: int) -> dict:
    out, inn = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (out, inn), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(out, inn // GROUP, generator=generator) * 0.01 + 0.001).bfloat16()
    points = torch.randint(0, 16, scales.shape, generator=generator) if zeros else None
    layer = QuantizedLinear.from_codes(codes, 4, scales, points, group_size=GROUP)
    fast, device = Int4Linear(layer, torch.device("cuda")), torch.device("cuda")
    weight = layer.dequantize().to(device)
    x = torch.randn(rows, inn, generator=generator).to(device, torch.bfloat16)
    reference = F.linear(x.float(), weight)
    error = float((fast(x).float() - reference).abs().max() / reference.abs().max())
    half = weight.bfloat16()
    return {
        "layer": name,
        "zero_points": zeros,
        "rows": rows,
        "largest_relative_error": error,
        "int4_ms": milliseconds(lambda: fast(x), repeat),
        "bf16_ms": milliseconds(lambda: F.linear(x, half), repeat),
        "int4_bytes": fast.num_bytes,
        "bf16_bytes": half.numel() * 2,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--repeat", type=int, default=50)
    args = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 8:
        print(
            json.dumps({"skipped": "no GPU of compute capability 8.0 or later", "torch": torch.__version__})
        )
        return 0
    cells = [
        measure(name, zeros, rows, args.repeat)
        for name in SHAPES
        for zeros in (False, True)
        for rows in args.rows
    ]
    worst = max(cell["largest_relative_error"] for cell in cells)
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "group_size": GROUP,
                "worst_relative_error": worst,
                "ok": worst < TOLERANCE,
                "cells": cells,
            }
        )
    )
    return int(worst >= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
