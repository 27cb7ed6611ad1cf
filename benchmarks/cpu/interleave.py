"""How long a running answer waits for its tokens while large pictures arrive: with interleaving, and without.

    python benchmarks/cpu/interleave.py --model mini --image 1288x966 --pictures 4

One answer streams; pictures arrive while it does, each in a request of its own. Both ways run in turn, `--repeats`
times, on the engine alone (no HTTP). Tokens are timed as the engine's events bring them.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import time
from typing import Any

import numpy as np
import torch

import qvl
from qvl.backends.answer import conversation
from qvl.engine.engine import Engine, EngineOptions
from qvl.evaluate.load_requests import parse_size
from qvl.evaluate.load_test import percentile
from qvl.inputs.sampling import SamplingParams


def one_run(model: Any, pictures: list[Any], every: int, tokens: int, interleave: bool) -> dict[str, Any]:
    """Seconds between the stream's tokens, and from each picture's arrival to its first token."""
    options = EngineOptions(max_num_seqs=model.engine.options.max_num_seqs, interleave=interleave)
    engine = Engine(model.model, model.processor.tokenizer, model.memory, options=options)
    prompt = model.processor(conversation([], "Tell a long story."))
    # the engine has seen a prompt before, as it would have in service
    engine.submit(pictures[0], SamplingParams(max_new_tokens=4, ignore_eos=True))
    while engine.has_work:
        engine.step()
    stream = engine.submit(prompt, SamplingParams(max_new_tokens=tokens, ignore_eos=True))
    waiting = list(pictures[1:])
    asked: dict[int, float] = {}
    first: dict[int, float] = {}
    times: list[float] = []
    began = time.perf_counter()
    while engine.has_work:
        events = engine.step()
        now = time.perf_counter()
        for event in events:
            assert event.error is None, event.error
            if event.request_id == stream:
                times += [now] * len(event.token_ids)
                if waiting and len(times) % every == 0:
                    late = engine.submit(waiting.pop(0), SamplingParams(max_new_tokens=4, ignore_eos=True))
                    asked[late] = now
            elif event.token_ids and event.request_id not in first:
                first[event.request_id] = now
    assert not waiting, "the stream was over before all pictures came: more --tokens, or a smaller --every"
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return {
        "gaps": gaps,
        "ttft": [first[i] - at for i, at in asked.items()],
        "wall": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--image", default="1288x966")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--every", type=int, default=40, help="a picture arrives after so many tokens")
    parser.add_argument("--tokens", type=int, default=400, help="of the stream")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    size = parse_size(args.image)
    model = qvl.load(args.model, max_num_seqs=4, max_model_len=4096)
    random = np.random.default_rng(0)
    noise = [
        random.integers(0, 255, (size.height, size.width, 3), np.uint8) for _ in range(args.pictures + 1)
    ]
    pictures = [model.processor(conversation([picture], "What is it?")) for picture in noise]
    seen = pictures[0].media[0]
    print(f"{args.model}: {seen.seen.width}x{seen.seen.height}, {seen.num_tokens} visual tokens a picture")
    for number in range(args.repeats):
        for interleave in (True, False):
            found = one_run(model, pictures, args.every, args.tokens, interleave)
            gaps = sorted(found["gaps"])
            firsts = ", ".join(f"{seconds:.2f}" for seconds in found["ttft"])
            p50, p90, p99 = (1e3 * percentile(gaps, p) for p in (50, 90, 99))
            print(
                f"run {number + 1}, interleaving {'on ' if interleave else 'off'}: between tokens of the stream "
                f"p50 {p50:.1f} p90 {p90:.1f} p99 {p99:.1f} most {1e3 * gaps[-1]:.1f} ms (n {len(gaps)}); "
                f"pictures' first token {firsts} s; all in {found['wall']:.1f} s",
                flush=True,
            )
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, {platform.system()}"
    )


if __name__ == "__main__":
    main()
