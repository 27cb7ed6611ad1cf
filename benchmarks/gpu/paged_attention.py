"""The Triton kernel of paged decode attention against its reference: errors, and on a GPU times and bytes a second.

    python benchmarks/gpu/paged_attention.py
    TRITON_INTERPRET=1 python benchmarks/gpu/paged_attention.py --dry-run       the kernel itself, on the CPU

Without TRITON_INTERPRET a dry run has no kernel to run and compares the reference with PyTorch's attention over
gathered blocks. Goals: at most 3 bf16 roundings from the fp32 reference, and 80% of the measured copy bandwidth for one
long and for 64 middling sequences in the 7B's shape.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from common import arguments, copy_bandwidth, device_of, goal, report, seconds
from torch import Tensor

from qvl.engine.kv import KVStore, PagedAttention, Span
from qvl.engine.paged_decode import paged_decode_reference

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
# of the largest output: three roundings in the dtype of the queries, of the weights before they multiply the values and
# of the output, with one to spare
TOLERANCE = {"fp32": 1e-5, "bf16": 3 * 2**-8, "fp16": 3 * 2**-11, "fp8": 3 * 2**-8}
WANTED = 0.8


class Case(NamedTuple):
    name: str
    lengths: list[int]
    heads: tuple[int, int, int]  # query heads, key/value heads, head dim
    kv: str
    splits: int | None = None
    is_timed: bool = False


SMALL = [
    Case("one token", [1], (4, 2, 16), "fp32"),
    Case("no whole block", [5, 33, 64, 65], (4, 2, 16), "fp32"),
    Case("split in three", [1, 70, 200], (4, 2, 16), "fp32", 3),
    Case("more splits than tokens", [3, 130], (4, 4, 16), "fp32", 8),
    Case("seven queries a key", [100, 17], (14, 2, 32), "bf16", 2),
    Case("head of 80", [90, 64], (4, 2, 80), "bf16", 2),
    Case("fp16", [129], (4, 1, 16), "fp16", 2),
    Case("8-bit keys", [100, 40], (14, 2, 32), "fp8", 2),
]
LARGE = [
    Case("7B, one of 32768", [32768], (28, 4, 128), "bf16", None, True),
    Case("7B, 64 of 2048", [2048] * 64, (28, 4, 128), "bf16", None, True),
    Case("7B, 64 of 2048 in 8 bits", [2048] * 64, (28, 4, 128), "fp8", None, True),
    Case("3B, lengths from 1 to 4096", [1 + 65 * i for i in range(64)], (16, 2, 128), "bf16"),
]


def by_interpreter() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def setting(case: Case, device: torch.device, block_size: int = 16) -> tuple[KVStore, Tensor, Tensor, Tensor]:
    """A store with scattered blocks, NaN where nothing was written; queries, tables and lengths."""
    generator = torch.Generator(device).manual_seed(len(case.name))
    num_heads, num_kv_heads, head_dim = case.heads
    needed = [-(-n // block_size) for n in case.lengths]
    order = torch.randperm(sum(needed) + 3, generator=generator, device=device)
    wide = torch.bfloat16 if case.kv == "fp8" else DTYPES[case.kv]
    store = KVStore([0], len(order), block_size, num_kv_heads, head_dim, dtype=DTYPES[case.kv], device=device)
    for held in (store._keys[0], store._values[0]):
        held.fill_(0x7F if store.is_8bit else float("nan"))
    tables = torch.zeros(len(needed), max(needed), dtype=torch.int32, device=device)
    start = 0
    for row, (count, length) in enumerate(zip(needed, case.lengths)):
        tables[row, :count] = order[start : start + count]
        start += count
        slots = store.slots(tables[row, :count].tolist(), length)
        k, v = torch.randn(2, length, num_kv_heads, head_dim, generator=generator, device=device).to(wide)
        store.write(0, slots, k, v)
    q = torch.randn(len(needed), num_heads, head_dim, generator=generator, device=device).to(wide)
    return store, q, tables, torch.tensor(case.lengths, dtype=torch.int32, device=device)


def gathered(store: KVStore, q: Tensor, tables: Tensor, ends: Tensor) -> Tensor:
    """The ordinary path. It writes the newest token's keys and values anew, so it's given what the store holds."""
    lengths = ends.tolist()
    spans = [Span(row, 1, n - 1, tables[row].tolist()) for row, n in enumerate(lengths)]
    newest = torch.cat([store.slots(span.blocks, span.end)[-1:] for span in spans])
    k, v = store.read(0, newest, q.dtype)
    return PagedAttention(store, spans)(0, q, k, v)


def measure(case: Case, device: torch.device, bandwidth: float | None) -> dict[str, Any]:
    store, q, tables, ends = setting(case, device)
    reads = (store._keys[0], store._values[0], tables, ends, store.block_size)
    exact = paged_decode_reference(q.float(), *reads)
    if device.type == "cuda" or by_interpreter():
        from qvl.engine import triton_decode

        def run() -> Tensor:
            return triton_decode.paged_decode(q, *reads, num_splits=case.splits)
    else:

        def run() -> Tensor:
            return gathered(store, q, tables, ends)

    error = float((run().float() - exact).abs().max() / exact.abs().max())
    cell: dict[str, Any] = {"case": case.name, "kv": case.kv, "splits": case.splits, "error": error}
    cell["tolerance"] = TOLERANCE[case.kv]
    if case.is_timed and bandwidth is not None:
        cell["seconds"] = seconds(run, device, 20)
        read = 2 * sum(case.lengths) * case.heads[1] * case.heads[2] * store._keys[0].element_size()
        cell["share_of_bandwidth"] = read / cell["seconds"]["median"] / bandwidth
    return cell


def main(argv: list[str] | None = None) -> int:
    args = arguments(__doc__ or "").parse_args(argv)
    device = device_of(args)
    bandwidth = None if args.dry_run else copy_bandwidth(device)
    cases = SMALL if args.dry_run else SMALL + LARGE
    cells = [measure(case, device, bandwidth) for case in cases]
    goals = [goal(f"{c['case']}: error", c["error"], c["tolerance"], at_most=True) for c in cells]
    goals += [
        goal(f"{c['case']}: share of copy bandwidth", c["share_of_bandwidth"], WANTED)
        for c in cells
        if "share_of_bandwidth" in c and c["kv"] == "bf16"
    ]
    runs = "triton" if not args.dry_run else "interpreter" if by_interpreter() else "gathered blocks"
    result = {"form": runs, "copy_bytes_per_s": bandwidth, "cells": cells}
    return report(args, "paged_attention", result, goals)


if __name__ == "__main__":
    raise SystemExit(main())
