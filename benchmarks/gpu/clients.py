"""64 clients at once in the true 7B shape: tokens a second, against one client, and how long the first token takes.

    python benchmarks/gpu/clients.py [--model Qwen2.5-VL-7B] [--clients 64] [--new-tokens 128]

Each has its own picture of 672x448 and question. Goal: 20 times the tokens of one client; batches share the weights'
bytes, so anything near 1 means that the batch isn't one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from common import (
    arguments,
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

from qvl.inputs.processor import ModelInputs


def own(inputs: ModelInputs, client: int) -> ModelInputs:
    """The same picture under another name, so that nothing is shared."""
    media = tuple(replace(span, digest=f"{span.digest}-{client}") for span in inputs.media)
    return replace(inputs, media=media)


def decode_rate(run: dict[str, Any]) -> float:
    """Tokens a second from the moment when everybody has its first one."""
    since = max(run["first"])
    later = [(at, count) for at, count in run["steps"] if at > since]
    return sum(count for _, count in later) / (later[-1][0] - since)


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default="Qwen2.5-VL-7B")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    args = parser.parse_args(argv)
    device = device_of(args)
    config = shape(args.model, args.dry_run)
    clients, num_new, size, num_text = args.clients, args.new_tokens, (448, 672), 64
    if args.dry_run:
        clients, num_new, size, num_text = 3, 8, (56, 84), 16
    model = random_model(config, device, torch.bfloat16)
    inputs = make_inputs(config, *size, num_text)
    engine, memory = make_engine(model, inputs.num_tokens + num_new, clients)
    generate(engine, [own(inputs, -1 - i) for i in range(clients)], 4)  # warms up
    one = generate(engine, [own(inputs, 0)], num_new)
    many = generate(engine, [own(inputs, 1 + i) for i in range(clients)], num_new)
    rates = {"one": decode_rate(one), "many": decode_rate(many)}
    result = {
        "model": args.model,
        "clients": clients,
        "prompt_tokens": inputs.num_tokens,
        "new_tokens": num_new,
        "decode_tokens_per_s": rates,
        "whole_tokens_per_s": clients * num_new / many["steps"][-1][0],
        "first_token_s": spread(many["first"]),
        "same_answers": len({tuple(answer) for answer in many["answers"]}) == 1,
        "static_decode": engine.static_decode,
        "memory": str(memory),
    }
    goals = [goal("tokens of all clients over one client's", rates["many"] / rates["one"], 20.0)]
    return report(args, "clients", result, goals)


if __name__ == "__main__":
    raise SystemExit(main())
