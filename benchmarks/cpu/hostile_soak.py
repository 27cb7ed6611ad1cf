"""Polite and hostile clients against `qvl serve` at once: how long the polite wait, and what the server keeps.

    python benchmarks/cpu/hostile_soak.py --seconds 60

The server runs in a process of its own, whose memory and descriptors are read from /proc. Exit 1 when a polite client
got anything but an answer, when memory grew by more than 200 MiB after the warm-up, or when SIGTERM didn't end it.
"""

from __future__ import annotations

import argparse
import base64
import collections
import io
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

URL = "http://127.0.0.1:{}"


def page(side: int) -> dict[str, Any]:
    """One bit a pixel: small as a file, large when unpacked."""
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}, "max_pixels": 50176}


def chat(content: Any, **beside: Any) -> tuple[str, dict[str, Any]]:
    body = {"model": "mini", "messages": [{"role": "user", "content": content}], "max_tokens": 8} | beside
    return "/v1/chat/completions", body


def schema(inner: dict[str, Any]) -> dict[str, Any]:
    whole = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": whole}}


def deep() -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        inner = {"type": "object", "properties": {"a": inner}}
    return inner


HOSTILE: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "endless schema": lambda: chat(
        "x", response_format=schema({"type": "integer", "multipleOf": 99_999_999})
    ),
    "deep schema": lambda: chat("x", response_format=schema(deep())),
    "20 MB of text": lambda: ("/tokenize", {"prompt": "word " * 4_000_000}),
    "0.9 MB of text": lambda: ("/tokenize", {"prompt": "word " * 180_000}),
    "tool of 4 MB": lambda: chat(
        "x", tools=[{"type": "function", "function": {"name": "f", "description": "a" * 4_000_000}}]
    ),
    "300,000 messages": lambda: (
        "/v1/chat/completions",
        {"model": "mini", "messages": [{"role": "user", "content": ""}] * 300_000},
    ),
    "100,000 parts": lambda: chat([{"type": "x"}] * 100_000),
    "4 huge pages": lambda: chat([page(9000)] * 4),
}


def hostile(port: int, until: float, seed: int, ends: collections.Counter[tuple[str, str]]) -> None:
    rng = random.Random(seed)
    while time.monotonic() < until:
        kind = rng.choice([*HOSTILE, "idle connections"])
        if kind == "idle connections":
            held = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
            time.sleep(0.5)
            for one in held:
                one.close()
            ends[kind, "left"] += 1
            continue
        path, body = HOSTILE[kind]()
        patience = 0.5 if rng.random() < 0.3 else 60
        try:
            with httpx.Client(timeout=patience) as client:
                ends[kind, str(client.post(URL.format(port) + path, json=body).status_code)] += 1
        except httpx.HTTPError as e:
            ends[kind, type(e).__name__ if patience == 60 else "left"] += 1


def polite(port: int, until: float, waits: dict[str, list[float]], faults: list[str]) -> None:
    image = [page(112), {"type": "text", "text": "What?"}]
    with httpx.Client(timeout=120) as client:
        while time.monotonic() < until:
            for kind, content in (("text", "What?"), ("image", image)):
                path, body = chat(content)
                began = time.monotonic()
                answer = client.post(URL.format(port) + path, json=body)
                while answer.status_code in (429, 503) and "retry-after" in answer.headers:
                    time.sleep(0.5)  # what was waited counts
                    answer = client.post(URL.format(port) + path, json=body)
                waits[kind].append(time.monotonic() - began)
                if answer.status_code != 200:
                    faults.append(f"{kind}: {answer.status_code} {answer.text[:200]}")


def held(pid: int) -> tuple[float, int]:
    """(MiB resident, open descriptors)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))


def wait_ready(port: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            httpx.get(URL.format(port) + "/ready", timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit("the server didn't start")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--hostile", type=int, default=4)
    parser.add_argument("--polite", type=int, default=2)
    options = parser.parse_args()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    words = ["serve", "--port", str(port), "--grace", "2", "--no-access-log"]
    server = subprocess.Popen([sys.executable, "-m", "qvl.cli.main", *words])
    waits: dict[str, list[float]] = {"text": [], "image": []}
    faults: list[str] = []
    ends: collections.Counter[tuple[str, str]] = collections.Counter()
    try:
        wait_ready(port)
        warm_s = options.seconds / 3
        began = time.monotonic()
        until = began + options.seconds
        threads = [
            threading.Thread(target=hostile, args=(port, until, i, ends)) for i in range(options.hostile)
        ]
        threads += [
            threading.Thread(target=polite, args=(port, until, waits, faults)) for _ in range(options.polite)
        ]
        for thread in threads:
            thread.start()
        start = held(server.pid)
        warm, most = start, 0.0
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            now = held(server.pid)
            most = max(most, now[0])
            if time.monotonic() - began < warm_s:
                warm = now if now[0] > warm[0] else warm
        time.sleep(1)
        end = held(server.pid)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        ended_s = time.monotonic() - began
    finally:
        server.kill()
        server.wait()
    print(f"python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs, {options}")
    for (kind, status), count in sorted(ends.items()):
        print(f"hostile  {kind:18} {status:16} {count:5}")
    for kind, times in waits.items():
        times.sort()
        p50, p99 = (times[min(len(times) - 1, int(len(times) * q))] for q in (0.5, 0.99))
        print(f"polite   {kind:6} n {len(times)}, p50 {p50:.2f} s, p99 {p99:.2f} s, most {times[-1]:.2f} s")
    print(f"memory   start {start[0]:.0f}, warm {warm[0]:.0f}, most {most:.0f}, end {end[0]:.0f} MiB")
    print(f"files    start {start[1]}, end {end[1]}")
    print(f"SIGTERM  ended after {ended_s:.1f} s, {server.returncode}")
    if end[0] - warm[0] > 200:
        faults.append("memory grew by more than 200 MiB after the warm-up")
    print(json.dumps(faults[:5]) if faults else "nothing lost")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
