"""Bytes the plan names against bytes the device gave, after a full batch with pictures has run.

    python benchmarks/gpu/memory.py [--model Qwen2.5-VL-7B] [--clients 8]

Planned: weights, KV and features from `plan_memory`, and the largest activations from plan.engines. Measured: the peak
that PyTorch's allocator handed out. Goal: within 3%. What the driver takes besides (context, kernels) is given apart.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from common import arguments, device_of, generate, goal, make_engine, make_inputs, random_model, report, shape

from clients import own
from qvl.plan.terms import encoder_bytes_per_token, prefill_activation_bytes


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default="Qwen2.5-VL-7B")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--max-model-len", type=int, default=8192)
    args = parser.parse_args(argv)
    device = device_of(args)
    config = shape(args.model, args.dry_run)
    clients, limit, size, num_new = args.clients, args.max_model_len, (896, 1344), 16
    if args.dry_run:
        clients, limit, size, num_new = 2, 64, (56, 84), 4
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        free_before = torch.cuda.mem_get_info(device)[0]
    model = random_model(config, device, torch.bfloat16)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    engine, memory = make_engine(model, limit, clients)
    inputs = make_inputs(config, *size, 32)
    generate(engine, [own(inputs, i) for i in range(clients)], num_new)
    features = clients * inputs.num_visual_tokens * encoder_bytes_per_token(config, model.dtype.itemsize)
    activations = prefill_activation_bytes(config, engine.options.max_num_batched_tokens)
    held = memory.weights_bytes + memory.kv_bytes + min(memory.feature_bytes, features)
    result: dict[str, Any] = {
        "model": args.model,
        "clients": clients,
        "planned": {
            "weights": memory.weights_bytes,
            "kv": memory.kv_bytes,
            "features": min(memory.feature_bytes, features),
            "activations": activations,
        },
        "held_weights": weights,
    }
    goals = [goal("weights, off by", abs(weights / memory.weights_bytes - 1), 0.001, at_most=True)]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        result["measured"] = {
            "peak_allocated": peak,
            "peak_reserved": torch.cuda.max_memory_reserved(device),
            "taken_from_device": free_before - torch.cuda.mem_get_info(device)[0],
        }
        off = abs((held + activations) / peak - 1)
        goals.append(goal("planned against measured peak, off by", off, 0.03, at_most=True))
    return report(args, "memory", result, goals)


if __name__ == "__main__":
    raise SystemExit(main())
