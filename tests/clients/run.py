"""Runs every client's script against `qvl serve` of the embedded model, each in its own environment; prints a table.

python tests/clients/run.py --environments .clients [NAME ...]
An environment that isn't there is made: needs the network, pip and npm, and some 3 GB. `make clients` runs this.
"""

from __future__ import annotations

import argparse
import datetime
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
# name → script, what is installed for it, and whose version is told
CLIENTS: dict[str, tuple[str, list[str], str]] = {
    "openai_npm": ("openai_npm.mjs", ["openai", "zod"], "openai"),
    "ai_sdk": ("ai_sdk.mjs", ["ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod"], "ai"),
    "litellm": ("litellm_client.py", ["litellm"], "litellm"),
    "langchain": ("langchain_client.py", ["langchain-openai"], "langchain-openai"),
    "llama_index": (
        "llama_index_client.py",
        ["llama-index-llms-openai-like"],
        "llama-index-llms-openai-like",
    ),
    "pydantic_ai": ("pydantic_ai_client.py", ["pydantic-ai-slim[openai]"], "pydantic-ai-slim"),
    "instructor": ("instructor_client.py", ["instructor"], "instructor"),
    "inspect_ai": ("inspect_ai_client.py", ["inspect_ai", "openai"], "inspect_ai"),
    "guidellm": ("guidellm_client.py", ["guidellm"], "guidellm"),
    "lmms_eval": ("lmms_eval_client.py", ["torch==2.13.0", "lmms-eval", "filelock<3.20"], "lmms-eval"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, default=Path(".clients"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CLIENTS)} (default: all)")
    chosen = parser.parse_args()
    port = _free_port()
    command = [sys.executable, "-m", "qvl.cli.main", "serve", "--model", "mini", "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    rows, failed = [], False
    try:
        _wait(f"http://127.0.0.1:{port}/health")
        for name in chosen.names or CLIENTS:
            script, packages, told = CLIENTS[name]
            node = script.endswith(".mjs")
            home = (chosen.environments / ("node" if node else name)).absolute()
            _install(home, packages, node)
            done = subprocess.run(
                ["node" if node else str(home / "bin/python"), str(HERE / script)],
                env=_environment(home, port),
                capture_output=True,
                text=True,
            )
            passed = [
                line.removeprefix("passed: ")
                for line in done.stdout.splitlines()
                if line.startswith("passed: ")
            ]
            if done.returncode:
                failed = True
                print(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}", file=sys.stderr)
            verdict = "passes" if done.returncode == 0 else "FAILS"
            rows.append(f"| {told} | {_version(home, told, node)} | {verdict} | {'; '.join(passed)} |")
    finally:
        server.terminate()
        server.wait()
    print(
        f"Run on {datetime.date.today():%-d %B %Y}.\n\n| client | version | | what was done |\n|---|---|---|---|"
    )
    print("\n".join(rows))
    return int(failed)


def _environment(home: Path, port: int) -> dict[str, str]:
    own = {
        "QVL_URL": f"http://127.0.0.1:{port}/v1",
        "QVL_MODEL": "mini",
        "QVL_IMAGE": str(HERE.parents[1] / "examples/receipt.png"),
        "NODE_HOME": str(home),
        "PYTHONPATH": "",
    }
    return os.environ | own


def _install(home: Path, packages: list[str], node: bool) -> None:
    if node:
        if not all((home / "node_modules" / package).exists() for package in packages):
            home.mkdir(parents=True, exist_ok=True)
            subprocess.run(["npm", "install", "--silent", *packages], cwd=home, check=True)
    elif not home.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(home / "bin/python"), "-m", "pip", "install", "--quiet", *packages], check=True)


def _version(home: Path, package: str, node: bool) -> str:
    if node:
        command = ["node", "-p", f"require('{home}/node_modules/{package}/package.json').version"]
    else:
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        command = [str(home / "bin/python"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server didn't come up")


if __name__ == "__main__":
    sys.exit(main())
