"""A checkpoint of a model's true shape with random bf16 weights, in the hub's layout: for speed and parity runs.

usage: python benchmarks/cpu/make_random.py OUT [--model Qwen2.5-VL-3B] [--seed 0] [--tokenizer FOLDER]

Takes as much memory and disk as the weights (7.0 GiB for the 3B). transformers 4.57.6 and 5.x read the result.
--tokenizer copies tokenizer.json, so that programs that start from text can use it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from qvl.catalog.models import config_of
from qvl.models import build
from qvl.models.checkpoint import save_model
from qvl.units import format_bytes, format_count

PREPROCESSOR = dict(
    image_processor_type="Qwen2VLImageProcessor",
    processor_class="Qwen2_5_VLProcessor",
    min_pixels=56 * 56,
    max_pixels=28 * 28 * 16384,
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
    image_mean=[0.48145466, 0.4578275, 0.40821073],
    image_std=[0.26862954, 0.26130258, 0.27577711],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="Qwen2.5-VL-3B")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path)
    args = parser.parse_args()

    started = time.perf_counter()
    config = replace(config_of(args.model), dtype="bfloat16", eos_token_ids=(151645,))
    with torch.device("meta"):
        model = build(config)
    random = torch.Generator().manual_seed(args.seed)
    for name, p in list(model.named_parameters()):
        weight = torch.empty(p.shape, dtype=torch.bfloat16)
        weight.normal_(0, 0.02, generator=random)
        if p.ndim == 1 and not name.endswith("bias"):
            weight += 1  # norms
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Parameter(weight, requires_grad=False))
    save_model(model, args.out, max_shard_bytes=2 * 10**9)
    (args.out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2))
    if args.tokenizer:
        shutil.copy(args.tokenizer / "tokenizer.json", args.out)
        kind = dict(tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>")
        (args.out / "tokenizer_config.json").write_text(json.dumps(kind))
    parameters = sum(p.numel() for p in model.parameters())
    size = sum(p.stat().st_size for p in args.out.glob("*.safetensors"))
    seconds = time.perf_counter() - started
    print(f"{args.out}: {format_count(parameters)} parameters, {format_bytes(size)}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
