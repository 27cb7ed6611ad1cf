"""The one rule of imports, read from the source: own room or rooms to the left, torch only behind the bar."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "qvl"
# Rooms in one inner list stand side by side and may not see each other's right neighbours.
ORDER = [
    "moved", "errors", "units", "records", "geometry", "catalog", "inputs", "plan", "outputs", "synth", "checkpoint",
    "models", "engine", "quantize", "tune", "backends", "tasks", "evaluate", "doctor", "audit", "serve", "cli",
]  # fmt: skip
NO_TORCH = set(ORDER[: ORDER.index("models")]) | {"tasks", "evaluate", "doctor", "audit", "serve", "cli"}
TORCH_OK_FILES = {"backends/native.py"}
HEAVY = {"torch", "safetensors", "transformers", "triton"}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imports(path: Path):
    """(line, dotted module) for every import in the file, function-local ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT.parent).parent.parts
            if node.level:
                base = ".".join(package[: len(package) - node.level + 1])
                module = f"{base}.{node.module}" if node.module else base
            else:
                module = node.module or ""
            if module == "qvl":  # from qvl import inputs
                for alias in node.names:
                    yield node.lineno, f"qvl.{alias.name}"
            else:
                yield node.lineno, module


FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem in ORDER)


def violations(path: Path):
    room = room_of(path)
    for line, module in imports(path):
        parts = module.split(".")
        if (
            parts[0] == "qvl"
            and len(parts) > 1
            and parts[1] in ORDER
            and ORDER.index(parts[1]) > ORDER.index(room)
        ):
            yield f"{path.relative_to(ROOT)}:{line} {room} imports {module} to its right"
        relative = str(path.relative_to(ROOT))
        if parts[0] in HEAVY and (
            room in NO_TORCH or (room == "backends" and relative not in TORCH_OK_FILES)
        ):
            yield f"{relative}:{line} {room} imports {parts[0]}, which lives behind the bar"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_left(path):
    assert room_of(path) in ORDER, f"{path}: the room is not in docs/design.md"
    assert list(violations(path)) == []


def test_the_rule_can_fail(tmp_path, monkeypatch):
    bad = tmp_path / "qvl" / "inputs" / "x.py"
    bad.parent.mkdir(parents=True)
    bad.write_text("def f():\n    import torch\n    from qvl.engine import step\n")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path / "qvl")
    found = list(violations(bad))
    assert len(found) == 2
    assert "torch" in found[0] + found[1]


def rooms():
    """benchmarks/rooms.py, which counts what these tests limit."""
    path = ROOT.parent.parent / "benchmarks" / "rooms.py"
    spec = importlib.util.spec_from_file_location("rooms", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_files_import_each_other_in_a_circle():
    assert rooms().circles(rooms().parsed(ROOT.parent)) == []


def test_a_circle_hidden_in_a_function_is_found():
    trees = {
        "plan/a.py": ast.parse("def f():\n    from qvl.plan import b\n"),
        "plan/b.py": ast.parse("from qvl.plan.a import f\n"),
        "plan/c.py": ast.parse("import qvl.plan.b\n"),
    }
    assert rooms().circles(trees) == [["plan/a.py", "plan/b.py"]]


def test_few_imports_hide_in_functions():
    """Each is for start-up time or an optional dependency."""
    measured = rooms()
    counts = {path: measured.local_imports(tree) for path, tree in measured.parsed(ROOT.parent).items()}
    assert sum(counts.values()) < 120, {path: number for path, number in counts.items() if number > 2}
