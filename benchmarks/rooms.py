"""The figures of the rooms: sizes, lookups, circles, imports and parameters, counted from the source and from two runs.

usage: python benchmarks/rooms.py [--src FOLDER] [--json] [--mypy]

--src: another checkout's `src` (`git worktree add ../old 5a3d073`, then `--src ../old/src`), to compare with.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FAMILIES = ("qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
# What later issues add: rooms of their own, and all of evaluate but the five files that it had at 5a3d073. Everything
# else is counted, checkpoint and tasks too, which hold what was cut out of other rooms.
NEW = ("quantize/", "tune/", "audit/", "evaluate/")
COUNTED = tuple(
    f"evaluate/{name}.py" for name in ("__init__", "load_plot", "load_requests", "load_test", "score_synth")
)

_PROBE_LOAD = """
import json, os, sys, collections
seen = collections.Counter()
sys.addaudithook(lambda event, args: seen.update([os.path.basename(str(args[0]))]) if event == "open" else None)
import qvl
qvl.load("mini")
print(json.dumps({name: seen[name] for name in ("config.json", "model.safetensors", "preprocessor_config.json")}))
"""
_PROBE_FIT = """
import sys
calls = 0
def count(frame, event, arg):
    global calls
    code = frame.f_code
    if event == "call" and code.co_filename.endswith("catalog/models.py") and code.co_name in ("resolve", "find_model"):
        calls += 1
from qvl.cli.main import main
sys.setprofile(count)
sys.argv = ["qvl", "fit", "qwen2.5-vl-7b", "--gpu", "rtx4090", "--json"]
try:
    main()
except SystemExit:
    pass
sys.setprofile(None)
print(calls, file=sys.stderr)
"""


def parsed(src: Path) -> dict[str, ast.Module]:
    """Relative path → syntax tree, of every file."""
    return {
        str(path.relative_to(src / "qvl")): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((src / "qvl").rglob("*.py"))
    }


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """self and cls count; *args and **kwargs don't."""
    arguments = function.args
    return len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)


def local_imports(tree: ast.Module) -> int:
    found: set[int] = set()
    for _, function in functions(tree):
        found |= {id(n) for n in ast.walk(function) if isinstance(n, (ast.Import, ast.ImportFrom))}
    return len(found)


def family_conditions(tree: ast.Module) -> int:
    """Comparisons with a family's name."""
    return sum(
        isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Constant) and part.value in FAMILIES for part in ast.walk(node))
        for node in ast.walk(tree)
    )


def family_tables(tree: ast.Module) -> int:
    """Dicts keyed by a family's name."""
    return sum(
        isinstance(node, ast.Dict)
        and any(isinstance(key, ast.Constant) and key.value in FAMILIES for key in node.keys)
        for node in ast.walk(tree)
    )


def circles(trees: dict[str, ast.Module]) -> list[list[str]]:
    """Groups of files that import each other, local imports and those for types alone included (Tarjan)."""
    names = {module_of(path): path for path in trees}
    edges = {path: sorted(_imported(path, tree, names) - {path}) for path, tree in trees.items()}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(path: str) -> None:
        index[path] = low[path] = len(index)
        stack.append(path)
        for other in edges[path]:
            if other not in index:
                visit(other)
                low[path] = min(low[path], low[other])
            elif other in stack:
                low[path] = min(low[path], index[other])
        if low[path] == index[path]:
            group = []
            while True:
                group.append(stack.pop())
                if group[-1] == path:
                    break
            if len(group) > 1:
                found.append(sorted(group))

    for path in trees:
        if path not in index:
            visit(path)
    return sorted(found)


def module_of(path: str) -> str:
    return "qvl." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported(path: str, tree: ast.Module, names: dict[str, str]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {names[a.name] for a in node.names if a.name in names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # a module of a package, or a name in a module
                module = f"{node.module}.{alias.name}"
                found |= {names[m] for m in ([module] if module in names else [node.module]) if m in names}
    return found


def figures(src: Path) -> dict[str, object]:
    trees = parsed(src)
    texts = {p: (src / "qvl" / p).read_text(encoding="utf-8") for p in trees}
    literal = re.compile("[\"'](" + "|".join(FAMILIES) + ")[\"']")
    counts = sorted(
        (
            (num_parameters(f), f"{path} {name}")
            for path, tree in trees.items()
            for name, f in functions(tree)
        ),
        reverse=True,
    )
    environment = {**os.environ, "PYTHONPATH": str(src), "OMP_NUM_THREADS": "1"}

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)

    def lines(path: str) -> int:
        return texts[path].count("\n")

    return {
        "lines": sum(lines(p) for p in texts if not p.startswith(NEW) or p in COUNTED),
        "files": len(texts),
        "files that name a family": sum(bool(literal.search(text)) for text in texts.values()),
        "conditions on a family": sum(map(family_conditions, trees.values())),
        "tables by family": sum(map(family_tables, trees.values())),
        "circles of files": [len(group) for group in circles(trees)],
        "function-local imports": sum(map(local_imports, trees.values())),
        "function-local imports in cli": sum(
            local_imports(t) for p, t in trees.items() if p.startswith("cli/")
        ),
        "most parameters": [f"{number} {where}" for number, where in counts[:4]],
        "functions of over 12 parameters": sum(number > 12 for number, _ in counts),
        "cli files of over 400 lines": [p for p in texts if p.startswith("cli/") and lines(p) > 400],
        "lists called PRECISIONS": sum(
            len(re.findall(r"^\w*PRECISIONS\b.*= ", text, flags=re.MULTILINE)) for text in texts.values()
        ),
        "files opened by load('mini')": json.loads(run(_PROBE_LOAD).stdout or "{}"),
        "names resolved by one fit": int((run(_PROBE_FIT).stderr.split() or ["-1"])[-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--src", type=Path, default=Path(__file__).parent.parent / "src")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument(
        "--mypy", action="store_true", help="Count the errors of mypy --strict too (a minute)."
    )
    options = parser.parse_args()
    found = figures(options.src.resolve())
    if options.mypy:
        checked = subprocess.run(
            ["mypy", "--strict", "--ignore-missing-imports", str(options.src / "qvl")],
            capture_output=True,
            text=True,
        )
        found["errors of mypy --strict"] = checked.stdout.strip().splitlines()[-1]
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:36}{value}")


if __name__ == "__main__":
    main()
