"""Trains `mini`, the embedded model, from nothing on synth's pictures.

usage: python training/train_mini.py --out runs/mini --minutes 60      (again: goes on where it stopped)

What is drawn is in synth_mix.py, drawings.py and targets.py; how a micro-batch is laid out in mini_data.py; the
losses in mini_step.py; when what is learned in mini_schedule.py. A micro-batch is of one kind, so that lengths are
alike.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import synth_mix
import torch
import torch.distributed as dist
from mini_data import Collator, batches, draw_ahead, to_torch
from mini_model import init_weights, mini_config, whiten_patches
from mini_schedule import SAVE_EVERY, WARM_UP, dense_weight, minutes_until, rate
from mini_step import Step, average_gradients, make_heads, make_optimizers, share_matrices
from pack_mini import pack
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/mini"))
    p.add_argument("--minutes", type=float, default=60.0, help="length of this run")
    p.add_argument(
        "--total-minutes", type=float, default=0.0, help="length of the schedule (default: this run)"
    )
    p.add_argument(
        "--until", help="HH:MM in UTC, instead of --minutes: the run ends then, whatever else runs"
    )
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--decay-minutes", type=float, default=30.0, help="at the end, the rate falls to nothing")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--ranks", type=int, default=1, help="processes that share each step (CPU: one a core)")
    p.add_argument("--threads", type=int, default=1, help="for each rank")
    p.add_argument("--workers", type=int, default=0, help="processes that draw ahead; 0 draws in the step")
    p.add_argument("--micro-batches", type=int, default=2, help="per step")
    p.add_argument("--start", type=Path, help="packed weights to start from where --out holds no state")
    p.add_argument("--fresh-optimizer", action="store_true", help="keep weights, start moments anew")
    p.add_argument("--stop-steps", type=int, default=0)
    a = p.parse_args()
    if a.until:
        a.minutes = minutes_until(a.until, datetime.now(UTC))
    a.out.mkdir(parents=True, exist_ok=True)
    if a.start and not (a.out / "tokenizer.json").exists():
        shutil.copy(a.start / "tokenizer.json", a.out)
    if not (a.out / "tokenizer.json").exists():
        synth_mix.make_tokenizer().save(str(a.out / "tokenizer.json"))
    if a.ranks == 1:
        train(0, a)
    else:
        torch.multiprocessing.spawn(train, (a,), nprocs=a.ranks)


def train(rank: int, a: argparse.Namespace) -> None:
    from qvl.catalog.config import read_config
    from qvl.models.checkpoint import save_model
    from qvl.models.qwen2_5_vl import Qwen25VL

    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    say = print if rank == 0 else lambda *_, **__: None
    if a.ranks > 1:
        store = dist.FileStore(str(a.out / f"ranks.{os.getppid()}"), a.ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=a.ranks)
    tokenizer_file = a.out / "tokenizer.json"
    collate = Collator(str(tokenizer_file))
    t = collate.tokenizer.token_to_id
    vocab = math.ceil(collate.tokenizer.get_vocab_size() / 64) * 64
    config = mini_config(vocab, {s: t(s) for s in synth_mix.SPECIAL})
    (a.out / "config.json").write_text(json.dumps(config, indent=2))
    model = Qwen25VL(read_config(config)).to(a.device)
    init_weights(model)
    whiten_patches(model.visual.patch_embed.proj.weight)
    heads = make_heads()
    heads.to(a.device)
    num_parameters = sum(x.numel() for x in model.parameters())
    say(f"mini: {num_parameters:,} parameters, {num_parameters * 2 / 1e6:.1f} MB in bf16", flush=True)
    optimizers, matrices = make_optimizers(model, heads, a.lr, rank, a.ranks)
    state_file = a.out / "state.pt"
    step, pictures, elapsed, fresh = 0, 0, 0.0, True
    if state_file.exists():
        state = torch.load(state_file, map_location=a.device, weights_only=True)
        model.load_state_dict(state["model"])
        shapes = {name: x.shape for name, x in heads.state_dict().items()}
        kept = {name: x for name, x in state["heads"].items() if shapes.get(name) == x.shape}
        new_heads = heads.load_state_dict(kept, strict=False).missing_keys  # after a change of them
        if new_heads:
            say(f"heads that start anew: {', '.join(new_heads)}", flush=True)
        if not a.fresh_optimizer:
            moments = torch.load(moments_file(a.out, rank), weights_only=True)
            for o, s in zip(optimizers[:1] if new_heads else optimizers, moments):
                o.load_state_dict(s)
            fresh = False
        step, pictures, elapsed = state["step"], state["pictures"], state["elapsed"]
        say(f"goes on from step {step}, {pictures:,} pictures, {elapsed / 60:.1f} min", flush=True)
    elif a.start:
        model.load_state_dict(load_file(a.start / "model.safetensors"))
        former = json.loads((a.start / "training.json").read_text())
        step, pictures, elapsed = former["step"], former["pictures"], former["elapsed"]
        say(f"starts from {a.start.name} after step {step}, {pictures:,} pictures; moments anew", flush=True)
    first = step if fresh else step - WARM_UP  # moments that start anew need a low rate at first
    run = Step(model, heads, (collate.image_pad, collate.video_pad))
    total = 60 * (a.total_minutes or elapsed / 60 + a.minutes)
    end = elapsed + 60 * a.minutes
    progress = mp.Value("d", elapsed / total)
    seed = (step + 1) * 64 + rank
    if a.workers:
        queue: mp.Queue = mp.Queue(maxsize=8)
        for w in range(a.workers):
            job = (str(tokenizer_file), progress, seed * 64 + w, queue)
            mp.Process(target=draw_ahead, args=job, daemon=True).start()
        source = iter(queue.get, None)
    else:
        source = batches(str(tokenizer_file), progress, seed)
    parameters = [*model.parameters(), *heads.parameters()]
    parent = os.getppid()
    curve = (a.out / "curve.jsonl").open("a")
    means: dict[str, dict[str, float]] = {}
    last, saved = time.monotonic(), elapsed
    window_pictures, waited = 0, 0.0
    cuda = a.device.startswith("cuda")
    # on the CPU the fused kernel's backward is slower than plain products for segments this short
    attention = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    attention = attention if cuda else [SDPBackend.MATH]
    # a CPU that has to emulate bf16 multiplies it at an eighth of fp32's speed
    half = cuda or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    try:
        while elapsed < end and not (a.stop_steps and step >= a.stop_steps):
            if os.getppid() != parent:
                raise SystemExit("the process that started this rank is gone")
            began = time.monotonic()
            done = elapsed / total
            progress.value = done
            lr = rate(a.lr, step - first, end - elapsed, 60 * a.decay_minutes)
            for o in optimizers:
                for g in o.param_groups:
                    g["lr"] = lr
            for _ in range(a.micro_batches):
                w0 = time.monotonic()
                kind, batch = next(source)
                waited += time.monotonic() - w0
                b = to_torch(batch, a.device)
                with torch.autocast("cuda" if cuda else "cpu", torch.bfloat16, half), sdpa_kernel(attention):
                    loss, seen = run(b, dense_weight(done))
                    (loss / a.micro_batches).backward()
                window_pictures += batch["size"]
                pictures += batch["size"] * a.ranks
                old = means.setdefault(kind, seen)
                for k, v in seen.items():
                    if v == v:
                        old[k] = old[k] * 0.9 + v * 0.1 if old.get(k) == old.get(k) and k in old else v
            if a.ranks > 1:
                average_gradients(parameters, a.ranks)
            nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)
            for o in optimizers:
                o.step()
                o.zero_grad(set_to_none=True)
            if a.ranks > 1:
                share_matrices(matrices, a.ranks)
            step += 1
            now = time.monotonic()
            elapsed += now - began
            if a.ranks > 1:  # the ranks must agree on the time, for it rules the learning rate and the end
                clock = torch.tensor([elapsed], dtype=torch.float64)
                dist.broadcast(clock, 0)
                elapsed = clock.item()
            if rank == 0 and (step % 50 == 0 or step < 4):
                speed = a.ranks * window_pictures / (now - last)
                line = {
                    "step": step,
                    "minutes": round(elapsed / 60, 2),
                    "pictures": pictures,
                    "per_second": round(speed, 1),
                    "waited": round(waited / (now - last), 2),
                    "lr": lr,
                    "kinds": {k: {n: round(v, 3) for n, v in m.items()} for k, m in means.items()},
                }
                curve.write(json.dumps(line) + "\n")
                curve.flush()
                short = "  ".join(f"{kind} {in_short(m)}" for kind, m in sorted(means.items()))
                say(
                    f"{step} {elapsed / 60:.1f}m {speed:.0f}/s w{waited / (now - last):.2f} | {short}",
                    flush=True,
                )
                last, window_pictures, waited = now, 0, 0.0
            if elapsed - saved > SAVE_EVERY:  # all ranks have the same clock, so all save at this step
                save(a.out, rank, model, heads, optimizers, step, pictures, elapsed)
                saved = elapsed
    finally:
        save(a.out, rank, model, heads, optimizers, step, pictures, elapsed)
    if rank == 0:
        save_model(model.to(torch.bfloat16), a.out)
        (a.out / "config.json").write_text(json.dumps(config, indent=2))  # with what only transformers reads


def in_short(m: dict[str, float]) -> str:
    """One lesson's state for the terminal: loss, tokens and answers right, glyphs known, pixels off."""
    named = (
        ("", "answer"),
        ("tok", "token"),
        ("ex", "exact"),
        ("g", "tower.acc_glyph"),
        ("px", "late.pixels"),
        ("s", "late.acc_seconds"),
    )
    return " ".join(
        f"{name} {m[key]:.2f}".strip() for name, key in named if m.get(key) == m.get(key) and key in m
    )


def moments_file(out: Path, rank: int) -> Path:
    return out / f"moments.{rank}.pt"


def save(out: Path, rank: int, model, heads, optimizers, step: int, pictures: int, elapsed: float) -> None:
    write(moments_file(out, rank), [o.state_dict() for o in optimizers])
    if rank == 0:
        state = {"model": model.state_dict(), "heads": heads.state_dict()}
        write(out / "state.pt", state | {"step": step, "pictures": pictures, "elapsed": elapsed})
        pack(out, out / "packed.new")  # what can be asked while the training goes on
        shutil.rmtree(out / "packed", ignore_errors=True)
        (out / "packed.new").rename(out / "packed")


def write(file: Path, content) -> None:
    """Whole or not at all: a stop in the middle leaves the former file."""
    torch.save(content, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


if __name__ == "__main__":
    main()
