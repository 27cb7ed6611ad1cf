"""bf16 logits of a 400-token prompt with a picture: our network against transformers, on one checkpoint.

usage: python benchmarks/cpu/parity_3b.py CHECKPOINT [--text-tokens 144] [--grid 28 36] [--json OUT] [--work FOLDER]

Each side runs in a process of its own, one after the other, so that memory holds one model at a time.
Prints, over all positions: top-1 agreement, cosine of the logits (smallest and mean), largest difference, with our
compiled kernels and without them; and how far transformers is from itself with another attention kernel (eager), the
noise floor of bf16.
make_random.py makes a checkpoint of the true shape.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

SIDES = ("ours", "ours_without_kernels", "sdpa", "eager")


def prompt(checkpoint: Path, text_tokens: int, height: int, width: int) -> dict[str, Any]:
    """Text, one picture, text, from a fixed seed; ids are ordinary tokens and the config's special ones."""
    from qvl.catalog.config import read_config

    config = read_config(checkpoint)
    random = torch.Generator().manual_seed(0)
    ordinary = min(150_000, config.image_token_id, config.vision_start_token_id)
    text = torch.randint(0, ordinary, (text_tokens,), generator=random)
    before, after = text[: text_tokens // 3], text[text_tokens // 3 :]
    places = torch.full((height * width // 4,), config.image_token_id)
    start, end = torch.tensor([config.vision_start_token_id]), torch.tensor([config.vision_end_token_id])
    patches = torch.randn(height * width, config.vision.patch_dim, generator=random)
    return dict(
        ids=torch.cat((before, start, places, end, after)),
        start=len(before) + 1,
        grid=(1, height, width),
        patches=patches,
    )


def run_ours(checkpoint: Path, p: dict[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
    from qvl.geometry import Grid
    from qvl.inputs.positions import VisualBlock, mrope_positions
    from qvl.models.attention import CausalAttention
    from qvl.models.checkpoint import load_model

    clock = [time.perf_counter()]
    model = load_model(checkpoint, dtype="bfloat16")
    clock.append(time.perf_counter())
    features = model.encode_media(p["patches"], [p["grid"]])
    clock.append(time.perf_counter())
    hidden = model.merge_features(model.embed(p["ids"]), p["ids"], features)
    positions = mrope_positions(len(p["ids"]), [VisualBlock(p["start"], Grid(*p["grid"]))]).positions
    attend = CausalAttention([len(p["ids"])])
    logits = model.logits(model.decode(hidden, torch.from_numpy(positions), attend))
    clock.append(time.perf_counter())
    return logits, dict(zip(("load_s", "vision_s", "text_s"), (b - a for a, b in pairwise(clock))))


def run_transformers(
    checkpoint: Path, p: dict[str, Any], attention: str
) -> tuple[torch.Tensor, dict[str, float]]:
    from transformers import AutoModelForImageTextToText

    clock = [time.perf_counter()]
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=torch.bfloat16, attn_implementation=attention
    ).eval()
    clock.append(time.perf_counter())
    ids = p["ids"][None]
    out = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=p["patches"],
        image_grid_thw=torch.tensor([p["grid"]]),
    )
    clock.append(time.perf_counter())
    return out.logits[0], dict(load_s=clock[1] - clock[0], vision_and_text_s=clock[2] - clock[1])


def compare(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    a, b = a.float(), b.float()
    cosine = torch.cosine_similarity(a, b, dim=-1)
    return dict(
        top1_agreement=(a.argmax(-1) == b.argmax(-1)).float().mean().item(),
        cosine_min=cosine.min().item(),
        cosine_mean=cosine.mean().item(),
        max_difference=(a - b).abs().max().item(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text-tokens", type=int, default=146)
    parser.add_argument("--grid", type=int, nargs=2, default=(28, 36), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--work", type=Path, help="keep each side's logits here; sides found there are not run again"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.side:
        with torch.inference_mode():
            p = prompt(args.checkpoint, args.text_tokens, *args.grid)
            if args.side in SIDES[:2]:
                logits, seconds = run_ours(args.checkpoint, p)
            else:
                logits, seconds = run_transformers(args.checkpoint, p, args.side)
            torch.save((logits.clone(), seconds), args.save)
        return

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = {}
        for side in SIDES:
            path = folder / f"{side}.pt"
            if not path.exists():
                command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--save", str(path)]
                kernels = {"QVL_KERNELS": "off"} if side == "ours_without_kernels" else {}
                subprocess.run(command, check=True, env=os.environ | kernels)
            results[side] = torch.load(path)
    import transformers

    report = dict(
        checkpoint=args.checkpoint.name,
        prompt_tokens=len(results["ours"][0]),
        versions=dict(torch=torch.__version__, transformers=transformers.__version__),
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads",
        **{
            f"{side}_vs_sdpa": compare(results[side][0], results["sdpa"][0])
            for side in SIDES
            if side != "sdpa"
        },
        seconds={side: {k: round(v, 1) for k, v in results[side][1].items()} for side in SIDES},
    )
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
