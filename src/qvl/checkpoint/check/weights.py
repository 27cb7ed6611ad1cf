"""Files and tensors: are all shards there and whole, do names, shapes and dtypes belong to config.json?

What loading refuses is found by the same functions: `StoredWeights.faults` and `Comparison`.
"""

from __future__ import annotations

from collections.abc import Iterator

from qvl.catalog.generations import Generation
from qvl.checkpoint.check.finding import Finding
from qvl.checkpoint.check.quantised import contradicting
from qvl.checkpoint.checkpoint import Checkpoint
from qvl.checkpoint.compare import PLAIN_DTYPES, Mismatch
from qvl.checkpoint.names import is_nested, to_canonical
from qvl.checkpoint.stored import StoredWeights, listed
from qvl.errors import ConfigError

_WRAPPERS = {
    "base_model.model.": "an adapter's training wrapper: merge the adapter (peft's merge_and_unload) and save again",
    "module.": "a data-parallel wrapper: save model.module's state, or strip the prefix",
    "_orig_mod.": "a compiled module: save the module inside (model._orig_mod), or strip the prefix",
    "thinker.": "an Omni model's inner network: save the thinker alone",
}


def file_findings(stored: StoredWeights) -> Iterator[Finding]:
    for fault in stored.faults:
        yield Finding("error", fault.rule, str(fault.error), fault.fix)
    if stored.passed_over:
        yield Finding(
            "note",
            "passed-over",
            f"next to the model and not read: {stored.passed_over}",
            "nothing, if a trainer left them; otherwise two checkpoints lie in one folder: delete one",
        )
    if stored.index is None:
        return
    names = {tensor.name for tensor in stored.tensors.values()}
    unnamed = [name for name in names if name not in stored.index]
    readable = {tensor.file.name for tensor in stored.tensors.values()}
    astray = [name for name, file in stored.index.items() if file in readable and name not in names]
    for odd, what in ((astray, "in the index but in no file"), (unnamed, "in a file but not in the index")):
        if odd:
            yield Finding(
                "error", "index", f"{len(odd)} tensors are {what}: {listed(sorted(odd), 4)}",
                "save the checkpoint again, or delete the files that don't belong to it",
            )  # fmt: skip


def tensor_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    names = [tensor.name for tensor in checkpoint.stored.tensors.values()]
    wrapper = next((w for w in _WRAPPERS if any(name.startswith(w) for name in names)), None)
    if wrapper:
        yield Finding("error", "wrapped-names", f'tensor names begin with "{wrapper}"', _WRAPPERS[wrapper])
        return
    yield from _layout(checkpoint.config.generation, names)
    try:
        yield from _mismatches(checkpoint)
    except ConfigError as e:
        yield Finding("error", "config", str(e), "take a model of a known family")


def layout_of(name: str) -> str | None:
    """ "old", "new", or None for a name that is the same in both."""
    if name.startswith(("model.visual.", "model.language_model.")):
        return "new"
    return "old" if name.startswith(("visual.", "model.")) else None


def _layout(generation: Generation, stored: list[str]) -> Iterator[Finding]:
    names = {layout: [n for n in stored if layout_of(n) == layout] for layout in ("old", "new")}
    if names["old"] and names["new"]:
        yield Finding(
            "error",
            "layout-mixed",
            f"{len(names['old'])} tensors have old names ({names['old'][0]}), {len(names['new'])} new ones "
            f"({names['new'][0]})",
            "delete the files of the other checkpoint; if all belong together: qvl convert SOURCE TARGET --layout old",
        )
        return
    # the tower's name shows the difference best
    shown = {
        layout: next((n for n in names[layout] if "visual." in n), names[layout][0])
        for layout in names
        if names[layout]
    }
    if names["new"] and not generation.published:
        yield Finding(
            "warning",
            "layout-new",
            f"names are those that transformers writes from 4.52 on ({shown['new']}); published "
            f"{generation} files have {to_canonical(shown['new'])}, and engines from before then fail "
            "with a KeyError or leave the tower unloaded",
            "qvl convert SOURCE TARGET --layout old",
        )
    if names["old"] and is_nested(generation):
        yield Finding(
            "warning",
            "layout-old",
            f"names are of the old layout ({shown['old']}), which no published {generation} file has",
            "qvl convert SOURCE TARGET --layout new",
        )


def _mismatches(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Layers that are quantised in one place and plain in the other are findings of their own (quantised.py)."""
    comparison, tensors = checkpoint.comparison, checkpoint.stored.tensors
    known = contradicting(checkpoint)

    def told(found: list[Mismatch]) -> list[str]:
        return [str(m) for m in found if m.name.rpartition(".")[0] not in known]

    missing = [n for n in comparison.missing if n.rpartition(".")[0] not in known]
    extra = [n for n in comparison.extra if n.rpartition(".")[0] not in known]
    if "lm_head.weight" in missing:
        missing.remove("lm_head.weight")
        yield Finding(
            "error",
            "head-missing",
            "tie_word_embeddings is false, but there is no lm_head.weight",
            "set tie_word_embeddings to true where the original has it (2B to 4B sizes); otherwise save the model with "
            "its head",
        )
    if "lm_head.weight" in comparison.skipped:
        yield Finding(
            "note",
            "head-tied",
            "lm_head.weight is stored, though tie_word_embeddings is true: it is ignored",
            "if training changed the head alone, set tie_word_embeddings to false",
        )
    if missing:
        yield Finding(
            "error", "tensors-missing", f"{len(missing)} tensors are missing: {listed(missing, 4)}",
            "fetch the checkpoint again, or take the config.json that was saved with it",
        )  # fmt: skip
    if extra:
        yield Finding(
            "error", "tensors-extra", f"{len(extra)} tensors belong to no module: {listed(extra, 4)}",
            "take the config.json that was saved with these files, or delete what another tool added",
        )  # fmt: skip
    if wrong := told(comparison.misshaped):
        yield Finding(
            "error", "shapes", f"{len(wrong)} tensors have other shapes than config.json says: {listed(wrong, 3)}",
            "take the config.json that was saved with these files (sizes, group_size and bits included)",
        )  # fmt: skip
    if odd := told(comparison.odd + comparison.misstored):
        yield Finding(
            "error", "dtypes", f"{len(odd)} tensors are stored in a dtype that can't be: {listed(odd, 4)}",
            "save plain tensors in bfloat16 or float16, quantised ones as their library writes them",
        )  # fmt: skip
    said = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(checkpoint.config.dtype)
    if said is None:
        yield Finding(
            "error", "dtype", f"config.json says {checkpoint.config.dtype}, which no network computes in",
            "set torch_dtype to bfloat16, float16 or float32",
        )  # fmt: skip
    plain = {tensors[name].dtype for name in comparison.expected.shapes if name in tensors}
    kinds = sorted(plain.intersection(PLAIN_DTYPES))
    if checkpoint.quantization is None and said and said not in kinds and kinds:
        yield Finding(
            "note", "dtype-said", f"config.json says {checkpoint.config.dtype}, the files hold {' and '.join(kinds)}",
            "nothing, if meant: engines cast while they load",
        )  # fmt: skip
