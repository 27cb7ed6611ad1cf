"""Does vLLM's own argument parser accept what `qvl launch` prints, and its config classes the media settings?

Two steps, because vLLM lives in an environment of its own (docs/launch.md says how to make it):

    python benchmarks/launch_parse.py write pairs.json      # with qvl installed
    python benchmarks/launch_parse.py parse pairs.json      # with vLLM installed; starts no engine

`parse` exits 1 if any command is refused, or if a parsed value differs from what the plan meant.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

PICTURES = ["--image", "1240x1754x2", "--prompt-tokens", "500", "--answer-tokens", "1000"]
CLIP = ["--video", "60s@2fps", "--concurrency", "2"]
# model, hardware, further words for `qvl launch`
PAIRS: list[tuple[str, str, list[str]]] = [
    ("qwen2-vl-2b", "rtx3060", PICTURES),
    ("qwen2-vl-2b", "rtx4090", [*PICTURES, "--precision", "awq"]),
    ("qwen2-vl-2b", "t4", [*PICTURES, "--concurrency", "1", "--max-pixels", "1003520"]),
    ("qwen2-vl-7b", "rtx4090", [*PICTURES, "--precision", "gptq-int4"]),
    ("qwen2-vl-7b", "a10", [*PICTURES, "--concurrency", "2"]),
    ("qwen2-vl-7b", "2xl4", [*PICTURES, "--precision", "gptq-int8"]),
    ("qwen2-vl-7b", "v100-32", PICTURES),
    ("qwen2-vl-72b", "4xa100", PICTURES),
    ("qwen2-vl-72b", "2xh200", PICTURES),
    ("qwen2-vl-72b", "a100", [*PICTURES, "--precision", "awq"]),
    ("qwen2.5-vl-3b", "rtx3060", [*PICTURES, "--concurrency", "1"]),
    ("qwen2.5-vl-3b", "rtx4090", PICTURES),
    ("qwen2.5-vl-3b", "l4", [*PICTURES, "--precision", "awq"]),
    ("qwen2.5-vl-3b", "rtx5090", [*PICTURES, "--media-domain", "a.example.org", "--media-domain", "b.example.org"]),
    ("qwen2.5-vl-7b", "rtx4090", [*PICTURES, "--concurrency", "2"]),
    ("qwen2.5-vl-7b", "2xl40s", PICTURES),
    ("qwen2.5-vl-7b", "4xa100", PICTURES),
    ("qwen2.5-vl-7b", "a100", [*PICTURES, "--precision", "fp8"]),
    ("qwen2.5-vl-7b", "l40s", [*PICTURES, "--precision", "awq", "--kv-dtype", "fp8"]),
    ("qwen2.5-vl-7b", "h100", CLIP),
    ("qwen2.5-vl-7b", "h100", ["--text-only"]),
    ("qwen2.5-vl-7b", "rtxa6000", [*PICTURES, "--media-path", "/srv/pictures", "--enforce-eager"]),
    ("qwen2.5-vl-32b", "h100", [*PICTURES, "--concurrency", "1"]),
    ("qwen2.5-vl-32b", "2xa100", PICTURES),
    ("qwen2.5-vl-32b", "2xl40s", [*PICTURES, "--precision", "fp8"]),
    ("qwen2.5-vl-32b", "rtxpro6000", [*PICTURES, "--precision", "awq"]),
    ("qwen2.5-vl-72b", "4xh100", PICTURES),
    ("qwen2.5-vl-72b", "8xh100", PICTURES),
    ("qwen2.5-vl-72b", "2xh200", PICTURES),
    ("qwen2.5-vl-72b", "h100", [*PICTURES, "--precision", "awq"]),
    ("qwen2.5-vl-72b", "b200", [*PICTURES, "--precision", "fp8"]),
    ("qwen3-vl-2b", "rtx3060", PICTURES),
    ("qwen3-vl-2b", "rtx4090", [*PICTURES, "--precision", "fp8"]),
    ("qwen3-vl-4b", "rtx4090", PICTURES),
    ("qwen3-vl-4b", "l4", [*PICTURES, "--precision", "fp8"]),
    ("qwen3-vl-8b", "l40s", PICTURES),
    ("qwen3-vl-8b", "l40s", [*PICTURES, *CLIP]),
    ("qwen3-vl-8b", "rtx5090", [*PICTURES, "--precision", "fp8"]),
    ("qwen3-vl-8b-thinking", "h100", PICTURES),
    ("qwen3-vl-32b", "h200", PICTURES),
    ("qwen3-vl-32b", "2xh100", PICTURES),
    ("qwen3-vl-32b", "l40s", [*PICTURES, "--precision", "fp8", "--concurrency", "4"]),
    ("qwen3-vl-30b-a3b", "h100", PICTURES),
    ("qwen3-vl-30b-a3b", "4xl40s", [*PICTURES, "--precision", "fp8"]),
    ("qwen3-vl-30b-a3b", "4xl40s", ["--precision", "fp8", "--tensor-parallel-size", "4", "--expert-parallel"]),
    ("qwen3-vl-30b-a3b-thinking", "2xa100", PICTURES),
    ("qwen3-vl-235b-a22b", "8xh100", [*PICTURES, "--precision", "fp8"]),
    ("qwen3-vl-235b-a22b", "8xh200", PICTURES),
    ("qwen3-vl-235b-a22b", "4xh100", [*PICTURES, "--precision", "fp8", "--tensor-parallel-size", "4"]),
    ("qwen3.5-0.8b", "rtx3060", PICTURES),
    ("qwen3.5-9b", "rtxa6000", PICTURES),
    ("qwen3.5-27b", "2xl40s", PICTURES),
    ("qwen3.5-27b", "h100", CLIP),
    ("qwen3.5-35b-a3b", "h100", [*PICTURES, "--precision", "fp8"]),
]  # fmt: skip


def write(path: Path) -> int:
    """Plans every pair and stores the words of its command."""
    import contextlib
    import io

    from qvl.cli.main import main

    found, failed = [], 0
    for model, gpu, more in PAIRS:
        out, err = io.StringIO(), io.StringIO()
        words = ["launch", model, "--gpu", gpu, "--engine", "vllm@0.32", "--json", *more]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
        if code:
            print(f"{model} on {gpu} {' '.join(more)}: {err.getvalue().strip()}", file=sys.stderr)
            failed += 1
            continue
        plan = json.loads(out.getvalue())
        found.append({"name": f"{model} on {gpu} {' '.join(more)}", "command": plan["command"]})
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found)} commands written to {path}")
    return 1 if failed else 0


def parse(path: Path) -> int:
    """Lets vLLM's parser read each command, and its config class the media settings."""
    import vllm
    from vllm.config.multimodal import MultiModalConfig
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    refused = 0
    for plan in json.loads(path.read_text(encoding="utf-8")):
        words = plan["command"]
        assert words[:2] == ["vllm", "serve"], words
        try:
            args = parser.parse_args(words[2:])
            validate_parsed_serve_args(args)
            media = {}
            if not args.language_model_only:
                config = MultiModalConfig(
                    limit_per_prompt=args.limit_mm_per_prompt,
                    mm_processor_kwargs=args.mm_processor_kwargs,
                    media_io_kwargs=args.media_io_kwargs or {},
                    mm_encoder_tp_mode=args.mm_encoder_tp_mode,
                )
                media = {k: config.limit_per_prompt[k] for k in config.limit_per_prompt}
            wrong = _differences(words, args)
        except (Exception, SystemExit) as e:
            wrong, media = [f"{type(e).__name__}: {e}"], {}
        refused += bool(wrong)
        state = "refused" if wrong else "accepted"
        print(f"{state}  {plan['name']}  {'; '.join(wrong) or media or 'text only'}")
    total = len(json.loads(path.read_text(encoding="utf-8")))
    print(f"vLLM {vllm.__version__}: {total - refused} of {total} accepted, {refused} refused")
    return 1 if refused else 0


def _differences(words: list[str], args: argparse.Namespace) -> list[str]:
    """Values that the parser understood otherwise than they were written."""
    meant = {
        "--max-model-len": "max_model_len",
        "--tensor-parallel-size": "tensor_parallel_size",
        "--data-parallel-size": "data_parallel_size",
        "--gpu-memory-utilization": "gpu_memory_utilization",
        "--max-num-seqs": "max_num_seqs",
        "--max-num-batched-tokens": "max_num_batched_tokens",
        "--limit-mm-per-prompt": "limit_mm_per_prompt",
        "--mm-processor-kwargs": "mm_processor_kwargs",
        "--media-io-kwargs": "media_io_kwargs",
    }
    found = []
    for flag, name in meant.items():
        if flag in words:
            written = json.loads(words[words.index(flag) + 1])
            if getattr(args, name) != written:
                found.append(f"{flag}: {getattr(args, name)!r} instead of {written!r}")
    if "--allowed-media-domains" not in words or not getattr(args, "allowed_media_domains", None):
        found.append("no list of allowed hosts: every address would be fetched")
    return found


if __name__ == "__main__":
    verbs = {"write": write, "parse": parse}
    if len(sys.argv) != 3 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    sys.exit(verbs[sys.argv[1]](Path(sys.argv[2])))
