"""What the scripts of this folder share: shapes with random weights, an engine without a tokenizer, measured limits.

Nothing here needs a checkpoint or a network. With --dry-run a script does all it does on the CPU at a tiny size, and
its figures mean nothing; that is what tests/test_benchmarks_gpu.py runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("qvl") is None:  # a bare machine: the checkout isn't installed
    sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from qvl.catalog.config import ModelConfig  # noqa: E402
from qvl.catalog.models import config_of  # noqa: E402
from qvl.engine.engine import Engine, EngineOptions  # noqa: E402
from qvl.engine.memory import EngineMemory, plan_memory  # noqa: E402
from qvl.inputs.processor import ModelInputs  # noqa: E402
from qvl.inputs.sampling import SamplingParams  # noqa: E402
from qvl.models import build  # noqa: E402
from qvl.models.base import VisionLanguageModel  # noqa: E402

_spec = importlib.util.spec_from_file_location("cpu_decode", ROOT / "benchmarks" / "cpu" / "decode.py")
assert _spec is not None
assert _spec.loader is not None
cpu_decode = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cpu_decode)
make_inputs, NoText = cpu_decode.make_inputs, cpu_decode.NoText


def arguments(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the JSON")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny")
    return parser


def device_of(args: argparse.Namespace) -> torch.device:
    if args.dry_run:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here: add --dry-run to see whether the script works")
    return torch.device("cuda", torch.cuda.current_device())


def shape(name: str, dry_run: bool) -> ModelConfig:
    """The model's true shape, or the same architecture with 2 layers and 1,024 rows of vocabulary."""
    config = replace(config_of(name), eos_token_ids=())
    if not dry_run:
        return config
    text = replace(
        config.text,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        mrope_section=(2, 3, 3),
        vocab_size=1024,
    )
    vision = replace(
        config.vision,
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        out_hidden_size=64,
        fullatt_block_indexes=(1,),
    )
    ids = dict(image_token_id=1000, video_token_id=1001, vision_start_token_id=1002, vision_end_token_id=1003)
    return replace(config, text=text, vision=vision, **ids)


def random_model(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> VisionLanguageModel:
    """Weights drawn on the device itself: N(0, 0.02), norms around one."""
    with torch.device("meta"):
        model = build(config)
    generator = torch.Generator(device).manual_seed(seed)
    for name, meta in list(model.named_parameters()):
        weight = torch.empty(meta.shape, dtype=dtype, device=device)
        weight.normal_(0, 0.02, generator=generator)
        if meta.ndim == 1 and not name.endswith("bias"):
            weight += 1  # norms
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Parameter(weight, requires_grad=False))
    return model.eval()


SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def make_engine(
    model: VisionLanguageModel, max_model_len: int, max_num_seqs: int = 1, **options: Any
) -> tuple[Engine, EngineMemory]:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = 1 << 30
    memory = plan_memory(
        model.config,
        precision=SHORT[model.dtype],  # type: ignore[arg-type]
        kv_dtype=SHORT[model.dtype],  # type: ignore[arg-type]
        available_bytes=free + weights,
        device=model.device.type,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
    )
    chosen = EngineOptions(max_num_seqs=max_num_seqs, prefix_caching=False, **options)
    return Engine(model, NoText(model.config.text.vocab_size), memory, options=chosen), memory


def generate(engine: Engine, prompts: list[ModelInputs], num_tokens: int) -> dict[str, Any]:
    """Greedy answers to all prompts at once. Seconds to each step's end, and how many tokens it brought."""
    params = SamplingParams(max_new_tokens=num_tokens, ignore_eos=True, temperature=0.0)
    began = time.perf_counter()
    answers: dict[int, list[int]] = {engine.submit(inputs, params): [] for inputs in prompts}
    first: dict[int, float] = {}
    steps = []
    while engine.has_work:
        events = engine.step()  # comes back with the tokens, so the device has finished
        now = time.perf_counter() - began
        steps.append((now, sum(len(event.token_ids) for event in events)))
        for event in events:
            if event.error:
                raise RuntimeError(event.error)
            answers[event.request_id] += event.token_ids
            if event.token_ids:
                first.setdefault(event.request_id, now)
    return {"steps": steps, "first": list(first.values()), "answers": list(answers.values())}


def seconds(run: Callable[[], Any], device: torch.device, repeat: int, warm: int = 2) -> dict[str, float]:
    """Median and spread of one call, by the device's own clock where it has one."""
    times = []
    for i in range(warm + repeat):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize(device)
            taken = start.elapsed_time(end) / 1000
        else:
            began = time.perf_counter()
            run()
            taken = time.perf_counter() - began
        if i >= warm:
            times.append(taken)
    return spread(times)


def spread(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    last = len(values) - 1
    return {
        "median": statistics.median(values),
        "p10": values[round(0.1 * last)],
        "p90": values[round(0.9 * last)],
        "n": len(values),
    }


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy on the device, read and written bytes both counted."""
    size = 1 << (32 if device.type == "cuda" else 20)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device, 10)["median"]


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product of random numbers (zeros would run at higher clocks)."""
    side = 8192 if device.type == "cuda" else 64
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / seconds(lambda: a @ b, device, 10, warm=3)["median"]


def goal(name: str, value: float, wanted: float, *, at_most: bool = False) -> dict[str, Any]:
    met = value <= wanted if at_most else value >= wanted
    return {"goal": name, "value": value, "wanted": wanted, "met": bool(met)}


def report(args: argparse.Namespace, script: str, result: dict[str, Any], goals: list[dict[str, Any]]) -> int:
    """Writes OUT/script.json and prints it. Returns the exit status: 1 when a goal is missed on a GPU."""
    on_gpu = not args.dry_run
    where = torch.cuda.get_device_name() if on_gpu else "CPU, dry run: the figures mean nothing"
    whole = {
        "script": script,
        "device": where,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "python": platform.python_version(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "dry_run": args.dry_run,
        "goals": goals,
        **result,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(whole, indent=1)
    (args.out / f"{script}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(on_gpu and not all(g["met"] for g in goals))
