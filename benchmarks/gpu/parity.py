"""The same random weights in bf16 on the GPU and in float32 on the CPU: features, logits and likeliest tokens.

    python benchmarks/gpu/parity.py [--models Qwen2.5-VL-3B]

The yardstick is bf16 on the CPU: rounding alone puts it at some distance from float32, and the GPU may be at most
1.5 times as far. The tiny shape goes first; the 3B takes about 25 GB of host memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from common import arguments, device_of, goal, make_inputs, random_model, report, shape
from torch import Tensor

from qvl.inputs.processor import ModelInputs
from qvl.models.attention import CausalAttention
from qvl.models.base import VisionLanguageModel

WANTED = 1.5


@torch.inference_mode()
def outputs(model: VisionLanguageModel, inputs: ModelInputs) -> dict[str, Tensor]:
    device = model.device
    (span,) = inputs.media
    patches = torch.from_numpy(span.patches).to(device, model.dtype)
    features = model.encode_media(patches, [span.grid])
    ids = torch.from_numpy(inputs.input_ids).to(device)
    hidden = model.merge_features(model.embed(ids), ids, features)
    attend = CausalAttention([len(ids)], device=device)
    hidden = model.decode(hidden, torch.from_numpy(inputs.positions).to(device), attend)
    return {"features": features.float().cpu(), "logits": model.logits(hidden).float().cpu()}


def distance(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact values."""
    return float((found - exact).norm() / exact.norm())


def compare(
    name: str, tiny: bool, size: tuple[int, int], num_text: int, device: torch.device
) -> dict[str, Any]:
    config = shape(name, tiny)
    model = random_model(config, device, torch.bfloat16)
    inputs = make_inputs(config, *size, num_text)
    on_device = outputs(model, inputs)
    half = copy.deepcopy(model).to("cpu")
    del model
    on_host = outputs(half, inputs)
    exact = outputs(half.float(), inputs)
    cell: dict[str, Any] = {"model": name, "tiny": tiny, "tokens": inputs.num_tokens}
    for part in ("features", "logits"):
        cell[f"{part}_device"] = distance(on_device[part], exact[part])
        cell[f"{part}_cpu_bf16"] = distance(on_host[part], exact[part])
        cell[f"{part}_ratio"] = cell[f"{part}_device"] / max(cell[f"{part}_cpu_bf16"], 1e-6)
    cell["same_likeliest"] = float(
        (on_device["logits"].argmax(-1) == exact["logits"].argmax(-1)).float().mean()
    )
    cell["finite"] = bool(torch.isfinite(on_device["logits"]).all())
    return cell


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--models", nargs="*", default=["Qwen2.5-VL-3B"])
    args = parser.parse_args(argv)
    device = device_of(args)
    cells = [compare("Qwen2.5-VL-3B", True, (56, 84), 25, device)]
    if not args.dry_run:
        cells += [compare(name, False, (448, 672), 64, device) for name in args.models]
    goals = [
        goal(f"{c['model']}{' tiny' if c['tiny'] else ''}: {part}", c[f"{part}_ratio"], WANTED, at_most=True)
        for c in cells
        for part in ("features", "logits")
    ]
    goals.append(goal("all logits finite", min(float(c["finite"]) for c in cells), 1.0))
    return report(args, "parity", {"cells": cells}, goals)


if __name__ == "__main__":
    raise SystemExit(main())
