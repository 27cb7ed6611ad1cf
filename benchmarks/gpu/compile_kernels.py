"""The Triton kernels compiled for GPUs that aren't here: that they compile, and what they take of a processor.

    python benchmarks/gpu/compile_kernels.py [--capability 80 89 90] [--out runs/gpu]

needs Triton and a checkout, no GPU. For each capability, storage of keys and values and head width: registers of a
thread, bytes spilled, shared memory of a program. Ends with 1 when a kernel doesn't compile, spills more than a few
registers, or takes more shared memory than the GPU has.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qvl.engine import triton_decode

# KiB of shared memory that a program may have: CUDA C++ Programming Guide 13.0, table of compute capabilities
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227}
NUM_SPLITS = 16
FEW_BYTES = 16
# head width, query heads a key/value head: Qwen2.5-VL-7B, Qwen3-VL-8B, a width that is no power of two
SHAPES = ((128, 7), (128, 4), (80, 1))
STORED = {
    "bf16": ("bf16", "bf16"),
    "fp16": ("fp16", "fp16"),
    "fp8": ("bf16", "fp8e4nv"),
    "fp32": ("fp32", "fp32"),
}


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and the bytes that didn't fit into them."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    return {"registers": used["REG"], "spilled_bytes": used["STACK"] + used["LOCAL"]}


def compiled(fn: Any, types: dict[str, str], constants: dict[str, Any], capability: int) -> dict[str, Any]:
    signature = {name: "constexpr" if name in constants else types[name] for name in fn.arg_names}
    # addresses and strides are multiples of 16, as the launcher finds them to be: loads are as wide as that allows
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(fn.arg_names)
        if name not in constants and (types[name].startswith("*") or "stride" in name)
    }
    source = ASTSource(fn, signature, constexprs=constants, attrs=attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    return {"shared_bytes": kernel.metadata.shared, **resources(kernel.asm["cubin"])}


def kernels(
    head_dim: int, group: int, query: str, held: str
) -> dict[str, tuple[Any, dict[str, str], dict[str, Any]]]:
    """Name → function, types of its arguments, constants: as triton_decode.paged_decode starts them."""
    least, width = triton_decode.LEAST_ROWS, triton.next_power_of_2(head_dim)
    strides = ("q_stride_b", "q_stride_n", "kv_stride_s", "kv_stride_k", "blocks_stride")
    common = {
        "num_heads": group * 4,
        "head_dim": head_dim,
        "num_splits": NUM_SPLITS,
        "WIDTH": max(least, width),
    }
    split_types = {
        "q_ptr": f"*{query}",
        "keys_ptr": f"*{held}",
        "values_ptr": f"*{held}",
        "blocks_ptr": "*i32",
        "ends_ptr": "*i64",
        "partial_ptr": "*fp32",
        "lse_ptr": "*fp32",
        "scale": "fp32",
        **dict.fromkeys(strides, "i32"),
    }
    split = common | {
        "group": group,
        "block_size": 16,
        "ROWS": max(least, triton.next_power_of_2(group)),
        "TILE": triton_decode.FP32_TILE if query == "fp32" else triton_decode.TILE,
        "WIDEN": False,
    }
    combine_types = {"partial_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": f"*{query}"}
    combine = common | {"SPLITS": NUM_SPLITS}
    return {
        "split": (triton_decode._split_kernel, split_types, split),
        "combine": (triton_decode._combine_kernel, combine_types, combine),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--capability", type=int, nargs="+", default=[80, 89, 90], choices=sorted(SHARED_KIB))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    rows, wrong = [], 0
    for capability in args.capability:
        for stored, (query, held) in STORED.items():
            if stored == "fp8" and capability < 89:
                continue  # paged_decode.has_kernel says so
            for head_dim, group in SHAPES:
                for name, (fn, types, constants) in kernels(head_dim, group, query, held).items():
                    row: dict[str, Any] = {
                        "capability": capability, "kernel": name, "stored": stored, "head_dim": head_dim, "group": group
                    }  # fmt: skip
                    try:
                        row |= compiled(fn, types, constants, capability)
                        row["fits"] = row["shared_bytes"] <= SHARED_KIB[capability] * 1024
                        row["passed"] = row["fits"] and row["spilled_bytes"] <= FEW_BYTES
                    except Exception as e:  # whatever the compiler finds: it is the result
                        row |= {"passed": False, "error": f"{type(e).__name__}: {str(e)[:300]}"}
                    wrong += not row["passed"]
                    rows.append(row)
                    print(json.dumps(row))
    result = {"triton": triton.__version__, "kernels": rows}
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "compile_kernels.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows) - wrong} of {len(rows)} compile and fit, Triton {triton.__version__}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
