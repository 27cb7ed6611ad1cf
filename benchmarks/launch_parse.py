"""Do the engines' own argument parsers accept what `qvl launch` prints, and vLLM's config class the media settings?

Two steps, because an engine lives in an environment of its own (docs/launch.md says how to make them):

    python benchmarks/launch_parse.py write pairs.json [sglang]   # with qvl installed; vllm@0.32 if left out
    python benchmarks/launch_parse.py parse pairs.json            # with that engine installed; starts nothing

`parse` exits 1 if any command is refused, or if a parsed value differs from what the plan meant.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    # odd ones: wide mixtures, several sizes and clips at once, little pictures, many pictures, hosts and folders
    ("qwen3.5-397b-a17b", "8xb200", PICTURES),
    ("qwen3.5-35b-a3b", "4xl40s", ["--image", "640x480x4", "--video", "30s@1fps", "--concurrency", "2"]),
    ("qwen3-vl-32b-thinking", "8xrtx3090", [*PICTURES, "--answer-tokens", "16000"]),
    ("qwen3-vl-235b-a22b", "8xh100", ["--precision", "fp8", "--tensor-parallel-size", "8", "--expert-parallel"]),
    ("qwen3-vl-235b-a22b", "8xb200", [*PICTURES, "--precision", "nvfp4", "--kv-dtype", "fp8"]),
    ("qwen3-vl-30b-a3b", "2xrtxpro6000", [*CLIP, "--expert-parallel", "--tensor-parallel-size", "2"]),
    ("qwen3-vl-2b", "l4", ["--image", "100x80x60", "--min-pixels", "65536", "--max-pixels", "262144"]),
    ("qwen3-vl-4b", "a100", ["--video", "600s@1fps", "--video-size", "1920x1080", "--concurrency", "1"]),
    ("qwen2.5-vl-7b", "16xh100", [*PICTURES, "--concurrency", "64"]),
    ("qwen2.5-vl-72b", "16xa100", [*PICTURES, "--tensor-parallel-size", "8"]),
    ("qwen2.5-vl-3b", "h20", ["--image", "4000x3000", "--image", "640x480x8", "--port", "8443", "--host", "::1"]),
    ("qwen2.5-vl-72b", "2xb200", [*PICTURES, "--precision", "fp8", "--max-model-len", "65536", "--kv-dtype", "fp8"]),
]  # fmt: skip


def write(path: Path, engine: str = "vllm@0.32") -> int:
    """Plans every pair and stores the words of its command; a refusal counts as failed and is printed."""
    import io

    from qvl.cli.main import main

    found, failed = [], 0
    for model, gpu, more in PAIRS:
        out, err = io.StringIO(), io.StringIO()
        words = ["launch", model, "--gpu", gpu, "--engine", engine, "--json", *more]
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
    """Lets the engine's parser read each command."""
    plans = json.loads(path.read_text(encoding="utf-8"))
    return (parse_vllm if plans[0]["command"][0] == "vllm" else parse_sglang)(plans)


def parse_sglang(plans: list[dict[str, Any]]) -> int:
    """SGLang's parser and its ServerArgs record; what it resolves from a downloaded config is not tried."""
    from importlib.metadata import version

    from sglang.srt.server_args import prepare_server_args

    meant = {
        "--model-path": "model_path",
        "--context-length": "context_length",
        "--mem-fraction-static": "mem_fraction_static",
        "--max-running-requests": "max_running_requests",
        "--chunked-prefill-size": "chunked_prefill_size",
        "--tp-size": "tp_size",
        "--dp-size": "dp_size",
        "--ep-size": "ep_size",
        "--kv-cache-dtype": "kv_cache_dtype",
        "--limit-mm-data-per-request": "limit_mm_data_per_request",
        "--mm-process-config": "mm_process_config",
        "--host": "host",
        "--port": "port",
    }

    def read(words: list[str]) -> tuple[list[str], object]:
        args = prepare_server_args(words[3:])
        wrong = _different(words, args, meant)
        if not args.allowed_media_domains:
            wrong.append("no list of allowed hosts: every address would be fetched")
        return wrong, args.limit_mm_data_per_request or "text only"

    return _report(f"SGLang {version('sglang')}", plans, read)


def parse_vllm(plans: list[dict[str, Any]]) -> int:
    """vLLM's serve parser, its check of serve arguments, and its config class for the media settings."""
    import vllm
    from vllm.config.multimodal import MultiModalConfig
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())

    def read(words: list[str]) -> tuple[list[str], object]:
        args = parser.parse_args(words[2:])
        validate_parsed_serve_args(args)
        media: object = "text only"
        if not args.language_model_only:
            config = MultiModalConfig(
                limit_per_prompt=args.limit_mm_per_prompt,
                mm_processor_kwargs=args.mm_processor_kwargs,
                media_io_kwargs=args.media_io_kwargs or {},
                mm_encoder_tp_mode=args.mm_encoder_tp_mode,
            )
            media = {k: config.limit_per_prompt[k] for k in config.limit_per_prompt}
        return _differences(words, args), media

    return _report(f"vLLM {vllm.__version__}", plans, read)


def _report(
    engine: str, plans: list[dict[str, Any]], read: Callable[[list[str]], tuple[list[str], object]]
) -> int:
    refused = 0
    for plan in plans:
        try:
            wrong, media = read(plan["command"])
        except (Exception, SystemExit) as e:
            wrong, media = [f"{type(e).__name__}: {e}"], ""
        refused += bool(wrong)
        print(f"{'refused' if wrong else 'accepted'}  {plan['name']}  {'; '.join(wrong) or media}")
    print(f"{engine}: {len(plans) - refused} of {len(plans)} accepted, {refused} refused")
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
    found = _different(words, args, meant)
    if "--allowed-media-domains" not in words or not getattr(args, "allowed_media_domains", None):
        found.append("no list of allowed hosts: every address would be fetched")
    return found


def _different(words: list[str], args: Any, meant: dict[str, str]) -> list[str]:
    """Flags whose value the parser holds is not the one that was written."""
    found = []
    for flag, name in meant.items():
        if flag in words:
            written: Any = words[words.index(flag) + 1]
            if getattr(args, name) != written:
                with contextlib.suppress(ValueError):
                    written = json.loads(written)
            if getattr(args, name) != written:
                found.append(f"{flag}: {getattr(args, name)!r} instead of {written!r}")
    return found


if __name__ == "__main__":
    verb, *rest = sys.argv[1:] or [""]
    if verb == "write" and len(rest) in (1, 2):
        sys.exit(write(Path(rest[0]), *rest[1:]))
    if verb == "parse" and len(rest) == 1:
        sys.exit(parse(Path(rest[0])))
    sys.exit(__doc__)
