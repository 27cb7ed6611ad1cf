"""A checkpoint folder examined without loading it: what is wrong, with the numbers, and what to do about it.

    report = check(Path("folder"))
    report.findings, report.failed

Reads headers, JSON and a few KiB of each tensor; imports no torch. Each file here is one side of a checkpoint and has
a function that yields `Finding`s of a `Checkpoint`. "error": it won't load, or won't answer as trained. "warning": some
engines or settings fail with it. "note": worth knowing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qvl.checkpoint.check import adapter, prompt, quantised, splits, values, weights
from qvl.checkpoint.check.finding import Finding, Level
from qvl.checkpoint.checkpoint import Checkpoint
from qvl.checkpoint.names import is_nested, to_nested, to_published
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


def check(source: Path | Checkpoint, tensor_parallel_size: int | None = None) -> Report:
    """`tensor_parallel_size`: a cut over GPUs that must be legal; without one, illegal cuts are reported only.

    Raises: CheckpointError when `source` is no checkpoint or adapter folder.
    """
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
    folder = checkpoint.folder
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
        assert checkpoint.config
    except ConfigError as e:
        fix = "take the config.json of the original model, or correct what is named"
        return Report(folder, "unreadable config.json", (Finding("error", "config", str(e), fix),))
    found = list(_examine(checkpoint, tensor_parallel_size))
    if has_adapter:
        found += adapter.findings(folder)
    return Report(folder, _summary(checkpoint), _sorted(found))


def _examine(checkpoint: Checkpoint, tensor_parallel_size: int | None) -> Iterator[Finding]:
    readable = True
    try:
        checkpoint.quantization  # noqa: B018 (read here so that its error is told)
    except ConfigError as e:
        readable = False
        yield Finding(
            "error", "quantization-unreadable", str(e), "take a version of the model that can be read"
        )
    yield from weights.file_findings(checkpoint.stored)
    if readable and (checkpoint.stored.tensors or not checkpoint.stored.faults):
        for finding in (*quantised.findings(checkpoint), *weights.tensor_findings(checkpoint)):
            yield _in_own_names(finding, checkpoint)
    yield from values.findings(checkpoint)
    if readable:
        yield from splits.findings(checkpoint, tensor_parallel_size)
    yield from prompt.findings(checkpoint)
    if unread := checkpoint.config.unread:
        yield Finding(
            "note",
            "config-unread",
            f"config.json: not read: {', '.join(unread)}; qvl doesn't know them, and computes as without them",
            "nothing, if a trainer wrote them for itself; otherwise a newer qvl",
        )


# rules that compare two layouts of names, or speak of files
_BOTH_LAYOUTS = ("layout-", "ignore-", "wrapped-names")
_NAME = re.compile(r"(?<![\w.])(?:model|visual)\.[\w.]*\w")


def _in_own_names(finding: Finding, checkpoint: Checkpoint) -> Finding:
    """Tensors and modules as the folder's files name them, so that they can be looked for there."""
    if finding.rule.startswith(_BOTH_LAYOUTS):
        return finding
    names = [tensor.name for tensor in checkpoint.stored.tensors.values()]
    if any(name.startswith(("model.visual.", "model.language_model.")) for name in names):
        return replace(finding, what=_NAME.sub(lambda m: to_nested(m[0]), finding.what))
    generation = checkpoint.config.generation
    if is_nested(generation):
        return finding
    return replace(finding, what=_NAME.sub(lambda m: to_published(m[0], generation), finding.what))


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(findings, key=lambda f: order[f.level]))


def _summary(checkpoint: Checkpoint) -> str:
    tensors = checkpoint.stored.tensors
    files = len({tensor.file for tensor in tensors.values()})
    quantization = checkpoint.config.quantization or {}
    stored = quantization.get("quant_method") or checkpoint.config.dtype
    return f"{checkpoint.config.family}, {len(tensors)} tensors in {files} file{'' if files == 1 else 's'}, {stored}"
