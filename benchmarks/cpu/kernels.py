"""One layer of the 3B's MLP (11008 x 2048) by each of our products, beside PyTorch's own and the machine's limits.

    python benchmarks/cpu/kernels.py [--threads 2] [--repeats 7] [--rows 1,2,4,8,16,64,409]

Ours and PyTorch's bf16 `linear` run in turn in one process. Medians (least to most) of milliseconds; GB/s is the bytes
of the weights over the median, GFLOP/s two for each weight and row. The limits are measured in the same run: reading
1 GiB with a sum over float32, and PyTorch's fp32 and bf16 `linear` of 2048 x 2048 matrices.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from qvl.models.kernels import ops
from qvl.models.linear import GROUP, multiplies_half, product, quantize_linear
from qvl.models.quantized.fp8 import Fp8Linear

OUTPUTS, INPUTS = 11008, 2048
BLOCK = 128  # side of the squares that share a scale in FP8


def milliseconds(work: Callable[[], object], repeats: int) -> list[float]:
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return times


def limits(repeats: int) -> dict[str, float]:
    memory = torch.ones(1 << 28)
    read = statistics.median(milliseconds(memory.sum, repeats))
    found = {"read_gb_s": memory.nbytes / read / 1e6}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2, 2048, 2048).to(dtype)
        found[f"{str(dtype).removeprefix('torch.')}_gflop_s"] = (
            2 * 2048**3 / statistics.median(milliseconds(lambda a=a, b=b: F.linear(a, b), 3)) / 1e6
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", default="1,2,4,8,16,64,409")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    plain = nn.Linear(INPUTS, OUTPUTS, bias=False).bfloat16().requires_grad_(False)
    coded = {8: quantize_linear(plain, 8, INPUTS), 4: quantize_linear(plain, 4, GROUP)}
    blocks = (OUTPUTS // BLOCK, BLOCK, INPUTS // BLOCK, BLOCK)
    scales = plain.weight.float().view(blocks).abs().amax((1, 3)) / 448
    small = (plain.weight.float().view(blocks) / scales[:, None, :, None]).view(OUTPUTS, INPUTS)
    fp8 = Fp8Linear(small.to(torch.float8_e4m3fn), scales, (BLOCK, BLOCK))
    rows = []
    with torch.inference_mode():
        for count in map(int, args.rows.split(",")):
            x = torch.randn(count, INPUTS).bfloat16()
            ways: dict[str, tuple[Callable[[], object], int]] = {
                "pytorch bf16": (lambda x=x: F.linear(x, plain.weight), plain.weight.nbytes),
                "qvl bf16": (lambda x=x: product(x, plain.weight), plain.weight.nbytes),
                "qvl fp8": (lambda x=x: fp8(x), fp8.num_bytes),
                "qvl int8": (lambda x=x: coded[8](x), coded[8].num_bytes),
                "qvl int4": (lambda x=x: coded[4](x), coded[4].num_bytes),
            }
            for name, (work, size) in ways.items():
                times = milliseconds(work, args.repeats)
                ms = statistics.median(times)
                rows.append(
                    {
                        "rows": count,
                        "by": name,
                        "ms": round(ms, 3),
                        "ms_range": [round(min(times), 3), round(max(times), 3)],
                        "gb_s": round(size / ms / 1e6, 1),
                        "gflop_s": round(2 * count * INPUTS * OUTPUTS / ms / 1e6, 1),
                    }
                )
        machine = {
            "processor": platform.processor() or platform.machine(),
            "bf16_in_hardware": multiplies_half(),
            "kernels": ops.functions() is not None,
            "threads": args.threads,
            "torch": torch.__version__,
        }
        print(json.dumps({"machine": machine, "limits": limits(args.repeats), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
