"""Files and tensors: are all shards there and whole, do names, shapes and dtypes belong to config.json?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from qvl.catalog.tensors import KNOWN, TensorTable, tensor_table
from qvl.checkpoint import pickled_files
from qvl.checkpoint.check.finding import Finding, Subject, listed
from qvl.checkpoint.check.quantised import stored_scheme
from qvl.checkpoint.names import LAYOUTS, to_canonical
from qvl.checkpoint.quantization import Part
from qvl.checkpoint.weight_files import INDEX, StoredTensor, read_index, read_weight_file
from qvl.errors import CheckpointError

_PLAIN = ("F32", "F16", "BF16", "F64")
_WRAPPERS = {
    "base_model.model.": "an adapter's training wrapper: merge the adapter (peft's merge_and_unload) and save again",
    "module.": "a data-parallel wrapper: save model.module's state, or strip the prefix",
    "_orig_mod.": "a compiled module: save the module inside (model._orig_mod), or strip the prefix",
    "thinker.": "an Omni model's inner network: save the thinker alone",
}
_IGNORABLE = re.compile(r"(^|\.)rotary_(pos_)?emb\.inv_freq$|^(model\.)?mtp\.")
_SINGLE_EXPERT = re.compile(r"^(.*\.experts)\.\d+\.(gate_proj|up_proj|down_proj)\.(\w+)$")


def file_findings(subject: Subject) -> Iterator[Finding]:
    """Fills subject.tensors with what can be read."""
    folder, again = subject.folder, "fetch the checkpoint again; a hub download resumes"
    # an adapter beside the model is examined by itself
    paths = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter_"))
    index_name = INDEX
    # as loading does: torch's own files, in which the first generation was published, where there are no others
    if not paths and (pickled := sorted(folder.glob(pickled_files.FILES))):
        paths, index_name = pickled, pickled_files.INDEX
    if not paths:
        other = next((p.name for end in ("*.bin", "*.pt", "*.gguf") for p in folder.glob(end)), None)
        fix = f"{other} is of another kind: save the model as safetensors" if other else again
        yield Finding(
            "error", "no-weights", f"no *.safetensors and no {pickled_files.FILES} in the folder", fix
        )
    for path in paths:
        try:
            if path.suffix == ".bin":
                tensors = pickled_files.read_pickled_file(path)
            else:
                tensors = read_weight_file(path).tensors
        except CheckpointError as e:
            yield Finding("error", "file-damaged", str(e), again)
            continue
        twice = sorted(tensors.keys() & subject.tensors.keys())
        if twice:
            yield Finding(
                "error",
                "stored-twice",
                f"{path.name} repeats {len(twice)} tensors of other files: {listed(twice)}",
                "two checkpoints lie in one folder: delete the files that the index doesn't name",
            )
        subject.tensors |= tensors
    try:
        index = read_index(folder, index_name)
    except CheckpointError as e:
        yield Finding("error", "index", str(e), again)
        return
    if index is None:
        return
    if absent := sorted(set(index.values()) - {p.name for p in paths}):
        yield Finding("error", "shard-missing", f"the index names {listed(absent)}, which isn't there", again)
    readable = {t.file.name for t in subject.tensors.values()}
    astray = [n for n, f in index.items() if f in readable and n not in subject.tensors]
    unnamed = [n for n in subject.tensors if n not in index]
    for names, what in ((astray, "in the index but in no file"), (unnamed, "in a file but not in the index")):
        if names:
            yield Finding(
                "error", "index", f"{len(names)} tensors are {what}: {listed(names)}",
                "save the checkpoint again, or delete the files that don't belong to it",
            )  # fmt: skip


def tensor_findings(subject: Subject) -> Iterator[Finding]:
    wrapper = next((w for w in _WRAPPERS if any(name.startswith(w) for name in subject.tensors)), None)
    if wrapper:
        yield Finding("error", "wrapped-names", f'tensor names begin with "{wrapper}"', _WRAPPERS[wrapper])
        return
    yield from _layout(subject)
    if subject.config.family not in KNOWN or subject.config.family not in LAYOUTS:
        yield Finding(
            "note", "names-unchecked", f"names of {subject.config.family} aren't checked", "load it instead"
        )
        return
    found = {to_canonical(name): tensor for name, tensor in subject.tensors.items()}
    yield from _compare(subject, tensor_table(subject.config), found)


def layout_of(name: str) -> str | None:
    """ "old", "new", or None for a name that is the same in both."""
    if name.startswith(("model.visual.", "model.language_model.")):
        return "new"
    return "old" if name.startswith(("visual.", "model.")) else None


def _layout(subject: Subject) -> Iterator[Finding]:
    names = {layout: [n for n in subject.tensors if layout_of(n) == layout] for layout in ("old", "new")}
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
    if names["new"] and LAYOUTS.get(subject.config.family) == "flat":
        yield Finding(
            "warning",
            "layout-new",
            f"names are those that transformers writes from 4.52 on ({shown['new']}); published "
            f"{subject.config.family} files have {to_canonical(shown['new'])}, and engines from before then fail "
            "with a KeyError or leave the tower unloaded",
            "qvl convert SOURCE TARGET --layout old",
        )
    if names["old"] and LAYOUTS.get(subject.config.family) == "nested":
        yield Finding(
            "warning",
            "layout-old",
            f"names are of the old layout ({shown['old']}), which no published {subject.config.family} file has",
            "qvl convert SOURCE TARGET --layout new",
        )


def _compare(subject: Subject, table: TensorTable, found: dict[str, StoredTensor]) -> Iterator[Finding]:
    shapes = dict(table.shapes)
    parts: dict[str, Part] = {}
    for name, (out, inn) in table.linears.items():
        scheme = stored_scheme(subject, name, found)
        if scheme is None:
            continue
        del shapes[f"{name}.weight"]
        parts |= {f"{name}.{part}": spec for part, spec in scheme.parts(out, inn).items()}
        parts.setdefault(f"{name}.bias", Part((out,), _PLAIN, required=False))
    for name in [n for n in shapes if f"{n}_scale_inv" in found]:
        scheme = subject.quantization.scheme_of(name) if subject.quantization else None
        if scheme is not None:
            parts |= scheme.fused_parts(name, shapes.pop(name))
    experts = _single_experts(found)
    shapes = {name: shape for name, shape in shapes.items() if name not in experts}
    tied = subject.config.text.tie_word_embeddings
    missing = [n for n in shapes if n not in found] + [
        n for n, part in parts.items() if part.required and n not in found
    ]
    if not tied and "lm_head.weight" in missing:
        missing.remove("lm_head.weight")
        yield Finding(
            "error",
            "head-missing",
            "tie_word_embeddings is false, but there is no lm_head.weight",
            "set tie_word_embeddings to true where the original has it (2B to 4B sizes); otherwise save the model with "
            "its head",
        )
    extra = [
        n
        for n in found
        if n not in shapes and n not in parts and not _IGNORABLE.search(n) and not _SINGLE_EXPERT.match(n)
    ]
    if tied and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        yield Finding(
            "note",
            "head-tied",
            "lm_head.weight is stored, though tie_word_embeddings is true: it is ignored",
            "if training changed the head alone, set tie_word_embeddings to false",
        )
    if missing:
        yield Finding(
            "error", "tensors-missing", f"{len(missing)} tensors are missing: {listed(missing)}",
            "fetch the checkpoint again, or take the config.json that was saved with it",
        )  # fmt: skip
    if extra:
        yield Finding(
            "error", "tensors-extra", f"{len(extra)} tensors belong to no module: {listed(extra)}",
            "take the config.json that was saved with these files, or delete what another tool added",
        )  # fmt: skip
    wanted = shapes | {n: part.shape for n, part in parts.items()}
    wrong = [
        f"{n} {list(found[n].shape)}, should be {list(shape)}"
        for n, shape in wanted.items()
        if n in found and found[n].shape != shape
    ]
    if wrong:
        yield Finding(
            "error", "shapes", f"{len(wrong)} tensors have other shapes than config.json says: {listed(wrong, 3)}",
            "take the config.json that was saved with these files (sizes, group_size and bits included)",
        )  # fmt: skip
    odd = [f"{n} {found[n].dtype}" for n in shapes if n in found and found[n].dtype not in _PLAIN]
    odd += [
        f"{n} {found[n].dtype}, should be {' or '.join(p.dtypes)}"
        for n, p in parts.items()
        if n in found and found[n].dtype not in p.dtypes
    ]
    if odd:
        yield Finding(
            "error", "dtypes", f"{len(odd)} tensors are stored in a dtype that can't be: {listed(odd)}",
            "save plain tensors in bfloat16 or float16, quantised ones as their library writes them",
        )  # fmt: skip
    kinds = sorted({found[n].dtype for n in shapes if n in found and found[n].dtype in _PLAIN})
    said = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(subject.config.dtype)
    if subject.quantization is None and said and said not in kinds and kinds:
        yield Finding(
            "note", "dtype-said", f"config.json says {subject.config.dtype}, the files hold {' and '.join(kinds)}",
            "nothing, if meant: engines cast while they load",
        )  # fmt: skip


def _single_experts(found: dict[str, StoredTensor]) -> set[str]:
    """Fused tensors that are stored expert by expert instead."""
    fused = set()
    for name in found:
        if match := _SINGLE_EXPERT.match(name):
            fused.add(f"{match[1]}.{'down_proj' if match[2] == 'down_proj' else 'gate_up_proj'}")
    return fused
