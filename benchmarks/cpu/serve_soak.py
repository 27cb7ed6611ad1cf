"""Many requests of every kind against a server, and an account at the end: one end each, nothing lost.

    python benchmarks/cpu/serve_soak.py --model runs/tiny --requests 2000 --concurrency 16

Kinds: whole and streamed answers with and without pictures, clients that leave before or during their answer, media
that can't be read, bodies over the limit, fields that don't exist, schemas. The server runs in this process, so its
blocks and memory are looked at directly. Exit 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import io
import json
import platform
import random
import resource
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

import qvl
from qvl.serve.server import Server, bind
from qvl.serve.service import Service
from qvl.serve.settings import ServeOptions

KINDS = (
    *("whole", "picture", "stream", "stream picture", "leave stream", "leave waiting", "bad media"),
    *("oversize", "refused field", "schema", "too long", "several"),
)
MAX_BODY = 1 << 18


@dataclass
class Account:
    """What became of each request: exactly one entry for each."""

    ends: list[tuple[str, str]] = field(default_factory=list)  # (kind, end)
    faults: list[str] = field(default_factory=list)

    def table(self) -> str:
        counts = collections.Counter(self.ends)
        return "\n".join(f"{kind:16} {end:28} {n:6}" for (kind, end), n in sorted(counts.items()))


def picture(rng: random.Random) -> dict[str, Any]:
    pixels = np.random.default_rng(rng.randrange(50)).integers(0, 255, (84, 112, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def body_of(kind: str, rng: random.Random) -> dict[str, Any]:
    items: list[dict[str, Any]] = [{"type": "text", "text": f"Question {rng.randrange(40)}?"}]
    body: dict[str, Any] = {"model": "soak", "max_tokens": rng.randint(1, 24), "ignore_eos": True}
    if "picture" in kind or kind.startswith("leave"):
        items.insert(0, picture(rng))
    if "stream" in kind:
        body["stream"] = True
    if kind.startswith("leave"):
        body["max_tokens"] = 2000
    if kind == "bad media":
        items.insert(0, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})
    if kind == "oversize":
        items[0]["text"] = "x" * (MAX_BODY + 1)
    if kind == "too long":
        body["max_tokens"] = 10**6
    if kind == "several":
        body |= {"n": rng.randint(2, 4), "temperature": 1.0}
    if kind == "refused field":
        body["use_beam_search"] = True
    if kind == "schema":
        schema = {"type": "integer", "minimum": 0, "maximum": 99}
        body |= {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}
        body |= {"max_tokens": 20, "ignore_eos": False}
    return body | {"messages": [{"role": "user", "content": items}]}


EXPECTED = {"bad media": 400, "oversize": 413, "refused field": 400, "too long": 400}


async def one(client: httpx.AsyncClient, kind: str, rng: random.Random, account: Account) -> None:
    """One request to its end. Every way out of here writes exactly one entry."""
    body = body_of(kind, rng)
    try:
        if kind == "leave waiting":
            try:
                await asyncio.wait_for(client.post("/v1/chat/completions", json=body), rng.random() * 0.3)
                account.ends.append((kind, "answered"))
            except TimeoutError:
                account.ends.append((kind, "left"))
            return
        if "stream" not in kind:
            answer = await client.post("/v1/chat/completions", json=body)
            account.ends.append((kind, str(answer.status_code)))
            check(account, kind, answer, body)
            return
        async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            if stream.status_code != 200:
                account.ends.append((kind, str(stream.status_code)))
                return
            leave_after = rng.randint(0, 6) if kind == "leave stream" else None
            reasons, done, seen = 0, False, 0
            async for line in stream.aiter_lines():
                if not line:
                    continue
                if line == "data: [DONE]":
                    done = True
                    continue
                event = json.loads(line.removeprefix("data: "))
                reasons += sum(choice["finish_reason"] is not None for choice in event["choices"])
                seen += 1
                if leave_after is not None and seen > leave_after:
                    account.ends.append((kind, "left"))
                    return
            if (reasons, done) != (1, True):
                account.faults.append(f"{kind}: {reasons} finish reasons, [DONE] {done}")
            account.ends.append((kind, "200"))
    except httpx.WriteError:  # the server closed while an oversize body was still on its way
        account.ends.append((kind, "413" if kind == "oversize" else "write error"))
    except httpx.HTTPError as e:
        account.ends.append((kind, type(e).__name__))
        account.faults.append(f"{kind}: {type(e).__name__} {e}")


def check(account: Account, kind: str, answer: httpx.Response, body: dict[str, Any]) -> None:
    if answer.status_code == 429:
        if "retry-after" not in answer.headers:
            account.faults.append("429 without Retry-After")
    elif answer.status_code != EXPECTED.get(kind, 200):
        account.faults.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
    elif answer.status_code == 200:
        choices = answer.json()["choices"]
        if len(choices) != body.get("n", 1) or any(
            c["finish_reason"] not in ("stop", "length") for c in choices
        ):
            account.faults.append(f"{kind}: {answer.text[:200]}")


async def soak(url: str, requests: int, concurrency: int, seed: int, every: Any = None) -> Account:
    """every: called after each tenth of the requests."""
    rng, account = random.Random(seed), Account()
    kinds = [rng.choice(KINDS) for _ in range(requests)]
    waiting = iter(enumerate(kinds))
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def worker() -> None:
            for number, kind in waiting:
                await one(client, kind, random.Random(f"{seed}/{number}"), account)
                if every is not None and number % max(1, requests // 10) == 0:
                    every(number)

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return account


def rss_mib() -> float:
    """Memory of this process now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def touch(store: Any) -> None:
    """Makes the system give all of the KV's memory now: it comes page by page otherwise, and looks like a leak."""
    for held in (*store._keys.values(), *store._values.values()):
        held.zero_()


def losses(service: Service, account: Account, requests: int, seconds: float = 20) -> list[str]:
    """What isn't as it should be once everybody is gone."""
    engine = service.model.engine
    until = time.monotonic() + seconds
    while time.monotonic() < until and (engine.has_work or service.in_flight):
        time.sleep(0.02)
    time.sleep(0.05)
    found = list(account.faults)
    if len(account.ends) != requests:
        found.append(f"{len(account.ends)} ends for {requests} requests")
    for name, left in (
        ("blocks held", engine.num_used_blocks),
        ("answers running", engine.num_running),
        ("answers waiting", engine.num_waiting),
        ("answers in flight", service.in_flight),
        ("bytes of patches held", service.held_bytes),
    ):
        if left:
            found.append(f"{left} {name} at the end")
    stats = engine.stats
    if sum(stats.num_finished.values()) != engine._num_submitted:
        found.append(f"{engine._num_submitted} submitted, ended {stats.num_finished}")
    engine.check()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = qvl.load(args.model, max_num_seqs=8, max_model_len=4096)
    touch(model.engine._runner.store)
    service = Service(model, ServeOptions(model_name="soak", max_queue=64, max_body_bytes=MAX_BODY))
    server, bound = Server(service), bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    began, memory = time.perf_counter(), []
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    account = asyncio.run(
        soak(url, args.requests, args.concurrency, args.seed, lambda n: memory.append((n, rss_mib())))
    )
    seconds = time.perf_counter() - began
    found = losses(service, account, args.requests)
    server.should_exit = True
    thread.join()
    print(account.table())
    print("memory (MiB) after requests: " + ", ".join(f"{n}: {mib:.0f}" for n, mib in memory))
    print(f"{args.requests} requests at {args.concurrency} in {seconds:.1f} s; model {Path(args.model).name}")
    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}")
    print("\n".join(found) or "each request had one end, no block is lost")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
