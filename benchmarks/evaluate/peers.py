"""Other people's scorers, taken out of their files: only the functions that are wanted, without their imports.

    folder = Path("/somewhere")          the official repositories at the commits of PINS, one folder each
    right = take(folder / "VLMEvalKit/vlmeval/dataset/utils/vqa_eval.py", "relaxed_correctness")

Importing the packages would bring torch and more with it, and one of them turns off TLS checks for the process.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import copy
import io
import json
import math
import os
import random
import re
import statistics
import typing
from pathlib import Path
from typing import Any

import numpy as np

PINS = {
    "MathVista": ("lupantech/MathVista", "53d525874bdde205128e6b160b7357a88277d479"),
    "MMMU": ("MMMU-Benchmark/MMMU", "bb0b95a945998d91dfef37e969e07d49d1139438"),
    "MultimodalOCR": ("Yuliang-Liu/MultimodalOCR", "794c36d6423cf1d5764081128bcaeb46b240def6"),
    "CoAT": ("IMNearth/CoAT", "9ab1a9f0e76581c50c84f8ebc6ada1a2084a0c71"),
    "AgentCPM-GUI": ("OpenBMB/AgentCPM-GUI", "acbaf509b8afb3f58b782486f4e8c0e33d8a486b"),
    "lmms-eval": ("EvolvingLMMs-Lab/lmms-eval", "75571cfe0fa36ca5ec2e6aa2bb268f9d38295af3"),
    "VLMEvalKit": ("open-compass/VLMEvalKit", "e8e78f05f3080fe28154f2130321f17951c3be94"),
    "Qwen-VL": ("QwenLM/Qwen-VL", "aa00ed04091eea5fcdd32985e7915f1c53e7d599"),
    "ScreenSpot-Pro-GUI-Grounding": (
        "likaixin2000/ScreenSpot-Pro-GUI-Grounding", "bd8bbbb470fbc4fda2a4fa9ec90bd2572507794e",
    ),
    "SeeClick": ("njucckevin/SeeClick", "0ef37ac4d7aaf37ba7b990e3e3c3ca77e1fb8f93"),
    "LVBench": ("THUDM/LVBench", "f998d95541cd5f0953c52449b185c6467b9b099d"),
    "Video-MME": ("BradyFU/Video-MME", "4e7566d36f63121fc72f040654d6f38f83f30125"),
    "KRETA": ("tabtoyou/KRETA", "c273302ade2c330f7afb7794cbbdd1ab0a3e0106"),
}  # fmt: skip

STANDARD = {
    "np": np, "re": re, "math": math, "json": json, "os": os, "random": random, "copy": copy, "cp": copy, "ast": ast,
    "statistics": statistics, "defaultdict": collections.defaultdict, "string": __import__("string"),
    "product": __import__("itertools").product, **{n: getattr(typing, n) for n in typing.__all__},
}  # fmt: skip


class NeedsPackage(Exception):
    """A scorer that needs a package that isn't installed."""


def package(name: str) -> Any:
    try:
        return __import__(name, fromlist=["x"])
    except ImportError as e:
        raise NeedsPackage(name) from e


def take(file: Path, *names: str, **more: Any) -> Any:
    """The named functions, classes and constants of a file, in one namespace; one of them alone when one is named.

    What they call of the same file comes with them. `more` stands in for what the file imports.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    named = {n: node for node in tree.body for n in _names(node)}
    wanted, todo = [], list(names)
    while todo:
        name = todo.pop()
        node = named.get(name)
        if node is None or node in wanted or name in more:
            continue
        wanted.append(node)
        todo += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    missing = [n for n in names if n not in named]
    if missing:
        raise KeyError(f"{file} has no {', '.join(missing)}")
    for node in wanted:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.decorator_list = []
    space: dict[str, Any] = {**STANDARD, **more}
    body = sorted(wanted, key=lambda n: n.lineno)
    exec(compile(ast.Module(body=body, type_ignores=[]), str(file), "exec"), space)
    return space[names[0]] if len(names) == 1 else space


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [t.id for t in node.targets if isinstance(t, ast.Name)]
    return []


def loop_over(file: Path, mark: str) -> Any:
    """The `for` loop of a script's main block that mentions `mark`, as function of its variables."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.For) and mark in ast.unparse(n)]
    code = compile(ast.Module(body=[found[0]], type_ignores=[]), str(file), "exec")

    def run(**variables: Any) -> None:
        exec(code, {**STANDARD, **variables})

    return run


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()):
        yield
