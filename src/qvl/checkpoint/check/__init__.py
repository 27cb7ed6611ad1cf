"""A checkpoint folder examined without loading it: what is wrong, with the numbers, and what to do about it.

    report = check(Path("folder"))
    report.findings, report.failed

Reads headers, JSON and a few words of tensors; imports no torch. Each file here is one side of a checkpoint and has
a function that yields `Finding`s of a `Subject`. "error": it won't load, or won't answer as trained. "warning": some
engines or settings fail with it. "note": worth knowing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvl.catalog.config import read_config
from qvl.checkpoint.check import adapter, prompt, quantised, splits, weights
from qvl.checkpoint.check.finding import Finding, Level, Subject
from qvl.checkpoint.names import to_first, to_nested
from qvl.checkpoint.quantization import read_quantization
from qvl.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Report:
    folder: Path
    summary: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        return any(f.level == "error" for f in self.findings)

    def count(self, level: Level) -> int:
        return sum(f.level == level for f in self.findings)


def check(folder: Path, tensor_parallel_size: int | None = None) -> Report:
    """`tensor_parallel_size`: a cut over GPUs that must be legal; without one, illegal cuts are reported only.

    Raises: CheckpointError when `folder` is no checkpoint or adapter folder.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; give the one that holds config.json and the weights"
        )
    if tensor_parallel_size is not None and tensor_parallel_size < 1:
        raise CheckpointError(f"--tensor-parallel-size {tensor_parallel_size}: must be at least 1")
    has_adapter = (folder / "adapter_config.json").is_file()
    if not (folder / "config.json").is_file():
        if not has_adapter:
            raise CheckpointError(f"{folder}: holds neither config.json nor adapter_config.json")
        return Report(folder, "an adapter without its base model", _sorted(adapter.findings(folder)))
    try:
        config = read_config(folder)
    except ConfigError as e:
        fix = "take the config.json of the original model, or correct what is named"
        return Report(folder, "unreadable config.json", (Finding("error", "config", str(e), fix),))
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    subject = Subject(folder, config, raw, tensor_parallel_size=tensor_parallel_size)
    found = list(_examine(subject))
    if has_adapter:
        found += adapter.findings(folder)
    return Report(folder, _summary(subject), _sorted(found))


def _examine(subject: Subject) -> Iterator[Finding]:
    readable = True
    try:
        subject.quantization = read_quantization(subject.config.quantization)
    except ConfigError as e:
        readable = False
        yield Finding(
            "error", "quantization-unreadable", str(e), "take a version of the model that can be read"
        )
    yield from weights.file_findings(subject)
    if readable and subject.tensors:
        for finding in (*quantised.findings(subject), *weights.tensor_findings(subject)):
            yield _in_own_names(finding, subject)
    if readable:
        yield from splits.findings(subject)
    yield from prompt.findings(subject)


# rules that compare two layouts of names, or speak of files
_BOTH_LAYOUTS = ("layout-", "ignore-", "wrapped-names")
_NAME = re.compile(r"(?<![\w.])(?:model|visual)\.[\w.]*\w")


def _in_own_names(finding: Finding, subject: Subject) -> Finding:
    """Tensors and modules as the folder's files name them, so that they can be looked for there."""
    if finding.rule.startswith(_BOTH_LAYOUTS):
        return finding
    if any(name.startswith(("model.visual.", "model.language_model.")) for name in subject.tensors):
        write = to_nested
    elif subject.config.family == "qwen_vl":
        write = to_first
    else:
        return finding
    return replace(finding, what=_NAME.sub(lambda m: write(m[0]), finding.what))


def _sorted(findings: Any) -> tuple[Finding, ...]:
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(findings, key=lambda f: order[f.level]))


def _summary(subject: Subject) -> str:
    files = len({t.file for t in subject.tensors.values()})
    stored = f"{len(subject.tensors)} tensors in {files} file{'' if files == 1 else 's'}"
    q = subject.quantization
    return f"{subject.config.family}, {stored}, {q.method if q else subject.config.dtype}"
