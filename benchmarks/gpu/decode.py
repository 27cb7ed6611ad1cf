"""One client's decoding in the true 7B shape: against the bytes it reads, and against transformers.

    python benchmarks/gpu/decode.py [--model Qwen2.5-VL-7B] [--new-tokens 256] [--no-peer]

A token reads every weight of the decoder and the head once, and the keys and values so far: those bytes over the
bandwidth of a copy on the same device are the shortest time. Goals: 85% of that bound, 6 times transformers.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch
from common import (
    SHORT,
    arguments,
    copy_bandwidth,
    device_of,
    generate,
    goal,
    make_engine,
    make_inputs,
    random_model,
    report,
    shape,
    spread,
)

from qvl.catalog.config import ModelConfig, config_dict
from qvl.models.base import VisionLanguageModel
from qvl.plan.memory import kv_bytes_per_token


def bytes_per_token(model: VisionLanguageModel, context: float) -> float:
    """Decoder and head once, one row of the table, and the context's keys and values."""
    table = model.model.embed_tokens.weight
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    if model.lm_head is not None:
        weights += model.lm_head.weight.numel() * model.lm_head.weight.element_size()
        weights -= table.numel() * table.element_size()
    kv = kv_bytes_per_token(model.config, SHORT[model.dtype])  # type: ignore[arg-type]
    return weights + kv * context


def gaps(steps: list[tuple[float, int]]) -> list[float]:
    """Seconds between tokens, the first one left out."""
    times = [at for at, count in steps if count]
    return [b - a for a, b in pairwise(times)]


def time_peer(
    config: ModelConfig, device: torch.device, ids: torch.Tensor, new_tokens: int
) -> dict[str, Any]:
    """transformers' generate on text alone, weights from nowhere; dtype and cache as it comes."""
    import transformers
    from transformers import AutoConfig, AutoModelForImageTextToText, StoppingCriteria

    class Stamps(StoppingCriteria):
        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if device.type == "cuda":
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    raw = config_dict(config)
    wanted = AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(wanted, dtype=torch.bfloat16).eval()
    stamps = Stamps()
    for _ in range(2):  # the first warms up
        stamps = Stamps()
        with torch.inference_mode():
            model.generate(
                input_ids=ids[None].to(device),
                attention_mask=torch.ones_like(ids)[None].to(device),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                stopping_criteria=[stamps],
            )
    between = spread([b - a for a, b in pairwise(stamps.times)])
    return {"version": transformers.__version__, "token_s": between}


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default="Qwen2.5-VL-7B")
    parser.add_argument("--text-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args(argv)
    device = device_of(args)
    config = shape(args.model, args.dry_run)
    num_text, num_new, size = args.text_tokens, args.new_tokens, (448, 672)
    if args.dry_run:
        num_text, num_new, size = 16, 6, (56, 84)
    bandwidth = copy_bandwidth(device)
    model = random_model(config, device, torch.bfloat16)
    inputs = make_inputs(config, *size, num_text)
    engine, memory = make_engine(model, inputs.num_tokens + num_new)
    generate(engine, [inputs], min(num_new, 16))  # warms up
    token = spread(gaps(generate(engine, [inputs], num_new)["steps"]))
    size_read = bytes_per_token(model, inputs.num_tokens + num_new / 2)
    bound = size_read / bandwidth
    result: dict[str, Any] = {
        "model": args.model,
        "prompt_tokens": inputs.num_tokens,
        "new_tokens": num_new,
        "token_s": token,
        "bytes_per_token": size_read,
        "copy_bytes_per_s": bandwidth,
        "bound_s": bound,
        "static_decode": engine.static_decode,
        "memory": str(memory),
    }
    goals = [goal("share of the bandwidth bound", bound / token["median"], 0.85)]
    if not args.no_peer:
        ids = torch.from_numpy(inputs.input_ids[inputs.input_ids < config.vision_start_token_id].copy())
        del model, engine
        if device.type == "cuda":
            torch.cuda.empty_cache()
        peer = time_peer(config, device, ids, min(num_new, 64))
        result["transformers"] = peer
        goals.append(goal("times transformers", peer["token_s"]["median"] / token["median"], 6.0))
    return report(args, "decode", result, goals)


if __name__ == "__main__":
    raise SystemExit(main())
