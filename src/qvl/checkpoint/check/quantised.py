"""The quantization_config against the tensors: who is quantised, are exceptions spelt as engines read them, do zero
points and dtypes fit?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from qvl.catalog.tensors import KNOWN, tensor_table
from qvl.checkpoint.check.finding import Finding, Subject, listed
from qvl.checkpoint.names import to_canonical
from qvl.checkpoint.quantization import Scheme, matches
from qvl.checkpoint.weight_files import StoredTensor

# last parts of names that only quantised layers have
_MARKS = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "SCB")
_BITSANDBYTES = re.compile(r"\.(absmax|quant_map|nested_absmax|quant_state\.bitsandbytes__\w+|SCB)$")
# layers that engines merge into one matrix, which can be quantised in one way only
_FUSED = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("w2", "w1")),  # the first generation's; its q, k and v are one already
)


def is_stored_quantised(module: str, found: Mapping[str, StoredTensor]) -> bool:
    return any(f"{module}.{mark}" in found for mark in _MARKS)


def stored_scheme(subject: Subject, module: str, found: Mapping[str, StoredTensor]) -> Scheme | None:
    """How a linear is stored, as far as the config can tell; None for plain ones. `found` has canonical names."""
    if subject.quantization is None or not is_stored_quantised(module, found):
        return None
    scheme = subject.quantization.scheme_of(module)
    # contradictions are findings of their own: here the file's word counts
    return scheme or next((s for m in found if (s := _scheme_at(subject, m))), None)


def _scheme_at(subject: Subject, tensor: str) -> Scheme | None:
    assert subject.quantization is not None
    return subject.quantization.scheme_of(tensor.rpartition(".")[0]) if tensor.endswith(_MARKS) else None


def findings(subject: Subject) -> Iterator[Finding]:
    found = {to_canonical(name): tensor for name, tensor in subject.tensors.items()}
    stored = sorted({n.rpartition(".")[0] for n in found if n.rpartition(".")[2] in _MARKS})
    if subject.quantization is None:
        if any(_BITSANDBYTES.search(n) for n in found):
            yield Finding(
                "error", "quantization-missing", "tensors are bitsandbytes', config.json has no quantization_config",
                "take the original weights: bitsandbytes quantises them while loading",
            )  # fmt: skip
        elif stored:
            yield Finding(
                "error",
                "quantization-missing",
                f"{len(stored)} layers are stored quantised ({listed(stored, 2)}), but config.json has no "
                "quantization_config",
                "put it back: quantisers also write it to quantize_config.json or recipe.yaml beside the weights",
            )
        return
    if not stored:
        yield Finding(
            "error",
            "quantization-leftover",
            f"config.json has a {subject.quantization.method} quantization_config, but all tensors are plain",
            "delete quantization_config from config.json; merging an adapter or training in 16 bits leaves it behind",
        )
        return
    yield from _coverage(subject, found)
    yield from _spelling(subject)
    yield from _fused(found)
    yield from _dtypes(subject, found)
    yield from _act_order(subject)
    yield from _zero_points(subject, found)


def _coverage(subject: Subject, found: Mapping[str, StoredTensor]) -> Iterator[Finding]:
    """Who is quantised, by the config and by the files."""
    quantization = subject.quantization
    assert quantization is not None
    if subject.config.family not in KNOWN:
        return
    linears = tensor_table(subject.config).linears
    plain = [
        m
        for m in linears
        if f"{m}.weight" in found and not is_stored_quantised(m, found) and quantization.scheme_of(m)
    ]
    if plain:
        tower = [m for m in plain if m.startswith("visual.")]
        fix = (
            're:.*visual.*' if quantization.method == "compressed-tensors" else "visual"
        ) if tower else listed(sorted({m.rpartition(".")[2] for m in plain}))  # fmt: skip
        yield Finding(
            "error",
            "not-ignored",
            f"{len(plain)} layers are stored plain, but quantization_config doesn't except them: {listed(plain, 2)}; "
            "an engine looks for their packed tensors",
            f'add "{fix}" to {_list_name(subject)} in quantization_config',
        )
    quantised = [m for m in linears if is_stored_quantised(m, found) and not quantization.scheme_of(m)]
    if quantised:
        yield Finding(
            "error",
            "ignored-but-quantised",
            f"{len(quantised)} layers are stored quantised, but quantization_config leaves them out: "
            f"{listed(quantised, 2)}",
            f"take their names out of {_list_name(subject)}; if the tower was quantised by mistake, quantise again "
            "without it",
        )
    misfits = [
        f"{m}: {why}"
        for m, (out, inn) in linears.items()
        if (scheme := quantization.scheme_of(m)) and m not in plain and (why := scheme.misfit(out, inn))
    ]
    if misfits:
        tower = [m for m in misfits if m.startswith("visual.")]
        yield Finding(
            "error",
            "group-misfit",
            f"{len(misfits)} layers can't be cut into groups: {listed(misfits, 2)}",
            "quantise again and leave the tower out (its inner size fits no group)"
            if tower
            else "quantise again with a group_size that divides these sizes",
        )


def _list_name(subject: Subject) -> str:
    return "ignore" if subject.config.quantization and "ignore" in subject.config.quantization else (
        "modules_to_not_convert"
    )  # fmt: skip


def _spelling(subject: Subject) -> Iterator[Finding]:
    """Engines compare the exceptions with the names in the files; ours accept either layout's."""
    quantization = subject.quantization
    assert quantization is not None
    modules = sorted({name.rpartition(".")[0] for name in subject.tensors})
    for pattern in quantization.patterns:
        if any(_literally(pattern, m, quantization.method) for m in modules):
            continue
        meant = [m for m in modules if matches(pattern, to_canonical(m + ".").removesuffix("."))]
        if meant:
            yield Finding(
                "error",
                "ignore-spelling",
                f"{_list_name(subject)} has {pattern!r}, but the files say {meant[0]}: an engine that compares them "
                f"takes these {len(meant)} modules for quantised",
                f"write {_respelt(pattern)!r}, which fits both layouts",
            )
        elif not re.fullmatch(r"[A-Z]\w*", pattern) and pattern != "lm_head":  # class names; a tied head
            yield Finding(
                "note", "ignore-unmatched", f"{_list_name(subject)} has {pattern!r}, which names no module here",
                "delete it",
            )  # fmt: skip


def _literally(pattern: str, module: str, method: str) -> bool:
    if pattern.startswith("re:"):
        return bool(re.match(pattern[3:], module))
    if method == "compressed-tensors":
        return module == pattern
    return f".{pattern.strip('.')}." in f".{module}."


def _respelt(pattern: str) -> str:
    body = pattern.removeprefix("re:").lstrip("^")
    if not pattern.startswith("re:"):
        body = re.escape(body).replace(r"\_", "_") + "$"
    bare = re.sub(r"^(\.\*)?(model(\\?\.))?(language_model(\\?\.))?", "", body)
    return f"re:.*{bare}"


def _fused(found: Mapping[str, StoredTensor]) -> Iterator[Finding]:
    layers: dict[str, set[str]] = defaultdict(set)
    for name in found:
        layer, _, _ = name.rpartition(".self_attn.") if ".self_attn." in name else name.rpartition(".mlp.")
        if layer and not layer.startswith("visual."):
            layers[layer].add(name)
    odd = []
    for layer in layers:
        for block, members in _FUSED:
            there = [m for m in members if any(n.startswith(f"{layer}.{block}.{m}.") for n in layers[layer])]
            quantised = [m for m in there if is_stored_quantised(f"{layer}.{block}.{m}", found)]
            if quantised and len(quantised) < len(there):
                odd.append(f"{layer}.{block}: {', '.join(quantised)} of {', '.join(there)}")
    if odd:
        yield Finding(
            "error",
            "fused-halves",
            f"engines merge these layers into one matrix, but only some are quantised: {listed(odd, 2)}",
            "quantise all of them or none: except the whole group in the recipe",
        )


def _dtypes(subject: Subject, found: Mapping[str, StoredTensor]) -> Iterator[Finding]:
    assert subject.quantization is not None
    if subject.quantization.method not in ("awq", "gptq"):
        return
    scales = sorted({t.dtype for n, t in found.items() if n.endswith(".scales")} - {"F16"})
    if scales or subject.config.dtype != "float16":
        where = f"scales are {scales[0]}" if scales else f"config.json says {subject.config.dtype}"
        yield Finding(
            "warning",
            "dtype-half",
            f"{where}: {subject.quantization.method} kernels of many engines (vLLM's before Marlin, and on older "
            'cards) take float16 only and stop with "bfloat16 is not supported for quantization method"',
            "serve with --dtype float16"
            + (", and save the scales as float16" if scales else ", or say float16 as torch_dtype"),
        )


def _act_order(subject: Subject) -> Iterator[Finding]:
    quantization = subject.config.quantization or {}
    if quantization.get("quant_method") == "gptq" and quantization.get("desc_act"):
        yield Finding(
            "warning",
            "act-order",
            "desc_act is true: groups are scattered over the inputs, which costs speed, and vLLM 0.32 refuses it",
            "quantise again with desc_act false or static groups; qvl reads it as it is",
        )


def _zero_points(subject: Subject, found: Mapping[str, StoredTensor]) -> Iterator[Finding]:
    """Symmetric GPTQ has one zero everywhere; which one tells the first format (less one) from the second."""
    assert subject.quantization is not None
    for name, tensor in found.items():
        if not name.endswith(".qzeros"):
            continue
        scheme = subject.quantization.scheme_of(name.removesuffix(".qzeros"))
        if scheme is None or scheme.format != "gptq" or not scheme.symmetric or scheme.bits not in (4, 8):
            continue
        words = set(tensor.first_words(256))
        middle = 1 << (scheme.bits - 1)
        expected, other = (
            _filled(middle - less, scheme.bits) for less in (scheme.zero_offset, 1 - scheme.zero_offset)
        )
        if words == {other}:
            have, say = ("gptq_v2", "gptq") if scheme.zero_offset else ("gptq", "gptq_v2")
            yield Finding(
                "error",
                "zero-points",
                f"{name} holds {other:#010x}, the zeros of {have}; config.json says {say}: every weight would be off "
                "by one step",
                f'set "checkpoint_format": "{have}" in quantization_config',
            )
        elif words != {expected}:
            yield Finding(
                "warning",
                "zero-points",
                f"{name} isn't {expected:#010x} throughout, though sym is true: engines that skip the zeros of "
                "symmetric checkpoints (Marlin) answer wrongly",
                'set "sym": false in quantization_config, or quantise again',
            )
        return  # one tensor tells


def _filled(code: int, bits: int) -> int:
    return sum(code << shift for shift in range(0, 32, bits))
