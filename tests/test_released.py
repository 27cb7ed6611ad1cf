"""Folders of checkpoints that were really released: what their small files proved, held against today's code.

tests/data/released.json keeps facts, not files: digests of tensor names and prompts, byte totals, config values, with
the source of each. benchmarks/released.py makes them from the files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from inputs_small import tokenizer_json
from qvl.catalog.config import read_config
from qvl.checkpoint.compare import expected_tensors
from qvl.checkpoint.names import to_canonical, to_nested, to_published
from qvl.errors import ConfigError
from qvl.inputs.chat import ChatTemplate, read_messages
from qvl.inputs.tokenizer import Tokenizer

ROOT = Path(__file__).parent
FACTS = json.loads((ROOT / "data/released.json").read_text())
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4}
DOCS = (ROOT.parent / "docs/released.md").read_text()


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def prompts() -> list[list[dict[str, Any]]]:
    import importlib.util

    spec = importlib.util.spec_from_file_location("released", ROOT.parent / "benchmarks/released.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[list[dict[str, Any]]] = module.PROMPTS
    return found


@pytest.mark.parametrize("fact", FACTS, ids=[fact["name"] for fact in FACTS])
def test_a_released_folder_fits_or_is_refused_by_name(fact: dict[str, Any]) -> None:
    assert fact["name"] in DOCS
    if "refused" in fact:
        with pytest.raises(ConfigError, match=fact["config"]["model_type"]):
            read_config(fact["config"])
        return
    config = read_config(fact["config"])
    expected = expected_tensors(config, None)
    spell = to_nested if fact["tensors"]["nested"] else lambda name: to_published(name, config.generation)
    names = sorted(spell(name) for name in expected.shapes)
    left_out = {spell(name) for name in fact["missing"]}
    if not fact["extra"]:
        assert digest([name for name in names if name not in left_out]) == fact["tensors"]["digest"]
    assert len(names) - len(left_out) + len(fact["extra"]) == fact["tensors"]["count"]
    assert {to_canonical(name) for name in names} == expected.shapes.keys()
    if fact["tensors"]["bytes"] and not fact["extra"]:
        kept = [shape for name, shape in expected.shapes.items() if name not in fact["missing"]]
        weights = sum(int(_product(shape)) for shape in kept)
        stored = 4 if fact["name"] == "AIN-7B" else SIZES[config.dtype]
        assert weights * stored == fact["tensors"]["bytes"]


def _product(shape: tuple[int, ...]) -> int:
    out = 1
    for side in shape:
        out *= side
    return out


@pytest.mark.parametrize(
    "fact", [f for f in FACTS if "prompts" in f], ids=[f["name"] for f in FACTS if "prompts" in f]
)
def test_prompts_of_a_released_template_are_those_of_our_own(fact: dict[str, Any]) -> None:
    """All 16 were equal token for token to transformers' with the folder's own template and vocabulary."""
    found = fact["prompts"]
    assert found["compared"] == found["equal"] == found["as_own"] == 16
    template = ChatTemplate.default(read_config(fact["config"]).generation)
    tokenizer = Tokenizer.from_json(json.loads(tokenizer_json()))
    rendered = []
    for messages in prompts():
        parts = template.render(read_messages(messages)[0], tokenizer)
        rendered.append("".join(text for text, _ in parts))
    assert digest(rendered) == found["rendered"]
