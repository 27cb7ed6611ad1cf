"""Vision, prefill and decode of one checkpoint on the CPU, by qvl or by transformers, as one JSON object.

    python benchmarks/cpu/decode.py CHECKPOINT                 ours
    python benchmarks/cpu/decode.py CHECKPOINT --peer          transformers, timed at the same points

Both see one random picture and the same token ids, greedy, in the checkpoint's own dtype. Weights don't change the
speed, so a random checkpoint of the true shape will do, and no tokenizer is needed. Absolute figures drift with the
machine: run both in turn, in one sitting, and quote the ratio of the medians.

    first_token_s    from the picture's patches to the first token: vision + prefill
    decode_tok_s     (new tokens - 1) / (last token - first token); of a batch the tokens of all while all are answered
    decode_cpu_s     processor seconds for each of those tokens, all threads together: with --threads 1 this is what
                     the wall clock would say on a machine with nothing else to do
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qvl.catalog.config import ModelConfig, read_config
from qvl.geometry import Grid, PixelLimits, Size, visual_token_count
from qvl.inputs.patches import to_patches
from qvl.inputs.positions import VisualBlock, mrope_positions
from qvl.inputs.processor import MediaSpan, ModelInputs


def make_inputs(config: ModelConfig, height: int, width: int, num_text_tokens: int) -> ModelInputs:
    """A picture of noise after a few text tokens, and the rest of the text behind it."""
    rng = np.random.default_rng(0)
    vision = config.vision
    limits = PixelLimits(
        1,
        1 << 30,
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
    )
    patches, grid = to_patches(rng.integers(0, 255, (1, height, width, 3), dtype=np.uint8), limits)
    count = visual_token_count(grid, vision.spatial_merge_size)
    text = rng.integers(0, min(config.text.vocab_size, config.vision_start_token_id) // 2, num_text_tokens)
    start = num_text_tokens // 2
    ids = np.concatenate(
        [
            text[: start - 1],
            [config.vision_start_token_id],
            np.full(count, config.image_token_id),
            [config.vision_end_token_id],
            text[start + 1 :],
        ]
    )
    positions, delta = mrope_positions(
        len(ids), [VisualBlock(start, grid)], vision.spatial_merge_size, vision.tokens_per_second
    )
    span = MediaSpan(
        kind="image",
        patches=patches,
        grid=Grid(*grid),
        start=start,
        num_tokens=count,
        digest="noise",
        original=Size(height, width),
        seen=Size(height, width),
    )
    return ModelInputs(input_ids=ids.astype(np.int64), positions=positions, rope_delta=delta, media=(span,))


class NoText:
    """Stands in for a tokenizer: every row of the vocabulary is a token, and none has text."""

    def __init__(self, num_tokens: int):
        self.num_tokens = num_tokens

    def __len__(self) -> int:
        return self.num_tokens

    def stream(self) -> NoText:
        return self

    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def time_ours(
    folder: Path, config: ModelConfig, inputs: ModelInputs, args: argparse.Namespace
) -> dict[str, Any]:
    from qvl.backends.native import available_bytes
    from qvl.engine.engine import Engine, EngineOptions
    from qvl.engine.memory import plan_memory
    from qvl.inputs.sampling import SamplingParams
    from qvl.models.checkpoint import load_model

    began = time.perf_counter()
    small = None if args.weights == "auto" else args.weights
    model = load_model(folder, copy=not args.mapped, weights=small)
    load_s = time.perf_counter() - began
    short = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[model.dtype]
    memory = plan_memory(
        config,
        precision=small or short,  # type: ignore[arg-type]
        kv_dtype=short,  # type: ignore[arg-type]
        available_bytes=available_bytes(torch.device("cpu")),
        max_model_len=inputs.num_tokens + args.new_tokens,
        max_num_seqs=args.batch,
        feature_bytes=0,
    )
    options = EngineOptions(max_num_seqs=args.batch, prefix_caching=False)
    engine = Engine(model, NoText(config.text.vocab_size), memory, options=options)  # type: ignore[arg-type]
    params = SamplingParams(max_new_tokens=args.new_tokens, ignore_eos=True, temperature=0.0)
    runs = []
    for _ in range(args.repeats + 1):
        for _ in range(args.batch):
            engine.submit(inputs, params)
        stamps, cpu, began, last = [], [], time.perf_counter(), None
        begun, ended, prefilled, full = set(), 0, 0, 0
        while engine.has_work:
            events = [event for event in engine.step() if event.token_ids]
            stamps.append((time.perf_counter(), sum(len(event.token_ids) for event in events)))
            cpu.append(time.process_time())
            last = next((event.usage for event in events if event.usage), last)
            if len(begun) < args.batch:
                begun |= {event.request_id for event in events}
                prefilled = len(stamps) - 1
            ended += sum(event.finish_reason is not None for event in events)
            full = len(stamps) - 1 if not ended or args.batch == 1 else full
        assert last is not None
        if full <= prefilled:
            raise SystemExit("the first answer ended before the last began: give more --new-tokens")
        later = sum(count for _, count in stamps[prefilled + 1 : full + 1])
        runs.append(
            {
                "vision_s": last.vision_s,
                "first_token_s": stamps[prefilled][0] - began,
                "decode_tok_s": later / (stamps[full][0] - stamps[prefilled][0]),
                "decode_cpu_s": (cpu[full] - cpu[prefilled]) / later,
            }
        )
    planned = planned_terms(config, small or short, short, args)
    return {
        "engine": "qvl",
        "load_s": load_s,
        "planned_bytes": sum(planned.values()),
        "planned": planned,
        "anonymous_bytes": anonymous_bytes(),
        "runs": runs[1:],
    }


def planned_terms(
    config: ModelConfig, precision: str, kv_dtype: str, args: argparse.Namespace
) -> dict[str, int]:
    """What `qvl fit` says of this work on a CPU, by term."""
    from qvl.catalog.devices import parse_hardware
    from qvl.plan.request import FitRequest
    from qvl.plan.resolve import resolve
    from qvl.plan.terms import memory_terms
    from qvl.plan.workload import Image, Workload

    width, height = map(int, args.size.split("x"))
    work = Workload(
        images=(Image(width, height),),
        prompt_tokens=args.text_tokens,
        answer_tokens=args.new_tokens,
        concurrency=args.batch,
    )
    request = FitRequest(
        config=config,
        workload=work,
        engine="qvl",
        precision=precision,
        kv_dtype=kv_dtype,
        hardware=parse_hardware("cpu"),
    )
    return {term.name: term.bytes for term in memory_terms(resolve(request))[0]}


def anonymous_bytes() -> int:
    """Memory of the process that no file backs, at the end."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def time_transformers(
    folder: Path, config: ModelConfig, inputs: ModelInputs, args: argparse.Namespace
) -> dict[str, Any]:
    import transformers
    from transformers import AutoModelForImageTextToText, StoppingCriteria

    class Stamps(StoppingCriteria):
        def __init__(self) -> None:
            self.times: list[float] = []
            self.cpu: list[float] = []

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            self.times.append(time.perf_counter())
            self.cpu.append(time.process_time())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    began = time.perf_counter()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    load_s = time.perf_counter() - began
    (span,) = inputs.media
    ids = torch.from_numpy(inputs.input_ids)[None].expand(args.batch, -1)
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(span.patches).repeat(args.batch, 1).to(model.dtype),
        "image_grid_thw": torch.tensor([span.grid]).expand(args.batch, -1),
    }
    runs = []
    for _ in range(args.repeats + 1):
        stamps, began = Stamps(), time.perf_counter()
        with torch.inference_mode():
            model.generate(
                **given,
                max_new_tokens=args.new_tokens,
                min_new_tokens=args.new_tokens,
                do_sample=False,
                stopping_criteria=[stamps],
            )
        later = args.batch * (len(stamps.times) - 1)
        runs.append(
            {
                "first_token_s": stamps.times[0] - began,
                "decode_tok_s": later / (stamps.times[-1] - stamps.times[0]),
                "decode_cpu_s": (stamps.cpu[-1] - stamps.cpu[0]) / later,
            }
        )
    return {"engine": f"transformers {transformers.__version__}", "load_s": load_s, "runs": runs[1:]}


def machine() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    return {"cpu": model, "load_average": os.getloadavg()[0], "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--mapped", action="store_true", help="ours: leave the weights in the mapped file")
    parser.add_argument("--weights", default="auto", help="ours: auto, int8 or int4")
    parser.add_argument("--size", default="672x448", help="WIDTHxHEIGHT of the picture, multiples of 28")
    parser.add_argument("--text-tokens", type=int, default=25)
    parser.add_argument("--new-tokens", type=int, default=17)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="after one that isn't counted")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    width, height = map(int, args.size.split("x"))
    config = read_config(args.checkpoint)
    inputs = make_inputs(config, height, width, args.text_tokens)
    result = (time_transformers if args.peer else time_ours)(args.checkpoint, config, inputs, args)
    names = [name for name in result["runs"][0]]
    result |= {name: statistics.median(run[name] for run in result["runs"]) for name in names}
    result |= {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "prompt_tokens": inputs.num_tokens,
        "visual_tokens": inputs.num_visual_tokens,
        "dtype": config.dtype,
        "weights": args.weights,
        "batch": args.batch,
        "threads": args.threads,
        "torch": torch.__version__,
        "machine": machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
