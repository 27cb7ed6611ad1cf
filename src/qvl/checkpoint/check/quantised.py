"""The quantization_config against the tensors: who is quantised, are exceptions spelt as engines read them, do zero
points and dtypes fit?"""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from math import ceil

from qvl.catalog.config import tensor_table
from qvl.checkpoint.check.finding import Finding
from qvl.checkpoint.checkpoint import Checkpoint
from qvl.checkpoint.compare import PLAIN_DTYPES
from qvl.checkpoint.names import to_canonical
from qvl.checkpoint.quantization import Quantization, Scheme, matches
from qvl.checkpoint.stored import listed
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


def contradicting(checkpoint: Checkpoint) -> dict[str, bool]:
    """Linear layers that are quantised in the files or in the config but not in both → whether in the files."""
    quantization, found = checkpoint.quantization, checkpoint.stored.tensors
    if quantization is None:
        return {}
    odd = {}
    for module in tensor_table(checkpoint.config).linears:
        planned, plain = quantization.scheme_of(module), found.get(f"{module}.weight")
        if is_stored_quantised(module, found):
            if planned is None:
                odd[module] = True
        elif planned is not None and plain is not None and plain.dtype in PLAIN_DTYPES:
            odd[module] = False
    return odd


def findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    found, quantization = checkpoint.stored.tensors, checkpoint.quantization
    stored = sorted({n.rpartition(".")[0] for n in found if n.rpartition(".")[2] in _MARKS})
    if quantization is None:
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
            f"config.json has a {quantization.method} quantization_config, but all tensors are plain",
            "delete quantization_config from config.json; merging an adapter or training in 16 bits leaves it behind",
        )
        return
    yield from _coverage(checkpoint)
    yield from _spelling(checkpoint, quantization)
    yield from _fused(found)
    yield from _dtypes(checkpoint, quantization)
    yield from _act_order(checkpoint)
    yield from _zero_points(quantization, found)
    yield from _group_order(checkpoint)
    yield from _packed_shapes(checkpoint)


def _coverage(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Which layers are quantised, by the config and by the files."""
    odd = contradicting(checkpoint)
    names = _list_name(checkpoint)
    if plain := [module for module, in_files in odd.items() if not in_files]:
        tower = [m for m in plain if m.startswith("visual.")]
        assert checkpoint.quantization is not None
        fix = (
            're:.*visual.*' if checkpoint.quantization.method == "compressed-tensors" else "visual"
        ) if tower else listed(sorted({m.rpartition(".")[2] for m in plain}), 4)  # fmt: skip
        yield Finding(
            "error",
            "not-ignored",
            f"{len(plain)} layers are stored plain, but quantization_config doesn't except them: {listed(plain, 2)}; "
            "an engine looks for their packed tensors",
            f'add "{fix}" to {names} in quantization_config',
        )
    if quantised := [module for module, in_files in odd.items() if in_files]:
        yield Finding(
            "error",
            "ignored-but-quantised",
            f"{len(quantised)} layers are stored quantised, but quantization_config leaves them out: "
            f"{listed(quantised, 2)}",
            f"take their names out of {names}; if the tower was quantised by mistake, quantise again without it",
        )
    if misfits := [why for why in checkpoint.expected.misfits if why.partition(":")[0] not in odd]:
        tower = [m for m in misfits if m.startswith("visual.")]
        yield Finding(
            "error",
            "group-misfit",
            f"{len(misfits)} layers can't be cut into groups: {listed(misfits, 2)}",
            "quantise again and leave the tower out (its inner size fits no group)"
            if tower
            else "quantise again with a group_size that divides these sizes",
        )


def _list_name(checkpoint: Checkpoint) -> str:
    return "ignore" if "ignore" in (checkpoint.config.quantization or {}) else (
        "modules_to_not_convert"
    )  # fmt: skip


def _spelling(checkpoint: Checkpoint, quantization: Quantization) -> Iterator[Finding]:
    """Engines compare the exceptions with the names in the files; ours accept either layout's."""
    modules = sorted({tensor.name.rpartition(".")[0] for tensor in checkpoint.stored.tensors.values()})
    excepted = _list_name(checkpoint)
    for pattern in quantization.patterns:
        if any(_literally(pattern, m, quantization.method) for m in modules):
            continue
        meant = [m for m in modules if matches(pattern, to_canonical(m + ".").removesuffix("."))]
        if meant:
            yield Finding(
                "error",
                "ignore-spelling",
                f"{excepted} has {pattern!r}, but the files say {meant[0]}: an engine that compares them "
                f"takes these {len(meant)} modules for quantised",
                f"write {_respelt(pattern)!r}, which fits both layouts",
            )
        elif not re.fullmatch(r"[A-Z]\w*", pattern) and pattern != "lm_head":  # class names; a tied head
            yield Finding(
                "note", "ignore-unmatched", f"{excepted} has {pattern!r}, which names no module here",
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


def _dtypes(checkpoint: Checkpoint, quantization: Quantization) -> Iterator[Finding]:
    if quantization.method not in ("awq", "gptq"):
        return
    found, dtype = checkpoint.stored.tensors, checkpoint.config.dtype
    scales = sorted({t.dtype for n, t in found.items() if n.endswith(".scales")} - {"F16"})
    if scales or dtype != "float16":
        where = f"scales are {scales[0]}" if scales else f"config.json says {dtype}"
        yield Finding(
            "warning",
            "dtype-half",
            f"{where}: {quantization.method} kernels of many engines (vLLM's before Marlin, and on older "
            'cards) take float16 only and stop with "bfloat16 is not supported for quantization method"',
            "serve with --dtype float16"
            + (", and save the scales as float16" if scales else ", or say float16 as torch_dtype"),
        )


def _act_order(checkpoint: Checkpoint) -> Iterator[Finding]:
    quantization = checkpoint.config.quantization or {}
    if quantization.get("quant_method") == "gptq" and quantization.get("desc_act"):
        yield Finding(
            "warning",
            "act-order",
            "desc_act is true: groups are scattered over the inputs, which costs speed, and vLLM 0.32 refuses it",
            "quantise again with desc_act false or static groups; qvl reads it as it is",
        )


def _zero_points(quantization: Quantization, found: Mapping[str, StoredTensor]) -> Iterator[Finding]:
    """Symmetric GPTQ has one zero everywhere; which one tells the first format (less one) from the second."""
    for name, tensor in found.items():
        if not name.endswith(".qzeros"):
            continue
        scheme = quantization.scheme_of(name.removesuffix(".qzeros"))
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


def _group_order(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Which group each input belongs to, where the file says it: every group must have its full size."""
    found = checkpoint.stored.tensors
    for name, scheme, inputs in _linears(checkpoint):
        last = {"gptq": "g_idx", "pack-quantized": "weight_g_idx"}.get(scheme.format, "")
        tensor = found.get(f"{name}.{last}")
        if tensor is None or tensor.dtype != "I32" or tensor.shape != (inputs,):
            continue
        size = scheme.group_size or inputs
        if Counter(array("i", tensor.first_bytes(4 * inputs))) != Counter(i // size for i in range(inputs)):
            yield Finding(
                "error",
                "group-order",
                f"{name}.{last} doesn't give {size} inputs to each group",
                "fetch the checkpoint again, or correct group_size in quantization_config",
            )
            return  # one tensor tells


def _packed_shapes(checkpoint: Checkpoint) -> Iterator[Finding]:
    """The shape that compressed-tensors stores beside packed weights."""
    found = checkpoint.stored.tensors
    for name, scheme, inputs in _linears(checkpoint):
        tensor, packed = found.get(f"{name}.weight_shape"), found.get(f"{name}.weight_packed")
        if scheme.format != "pack-quantized" or tensor is None or packed is None or tensor.shape != (2,):
            continue
        kind = {"I64": "q", "I32": "i"}.get(tensor.dtype)
        said = tuple(array(kind, tensor.first_bytes(16))) if kind else ()
        if said != (packed.shape[0], inputs) or packed.shape[1] != ceil(inputs * scheme.bits / 32):
            yield Finding(
                "error",
                "packed-shape",
                f"{name}.weight_shape says {' x '.join(map(str, said))}, config.json {packed.shape[0]} x {inputs}",
                "fetch the checkpoint again, or take the config.json that was saved with it",
            )
            return


def _linears(checkpoint: Checkpoint) -> Iterator[tuple[str, Scheme, int]]:
    """(name, how it is stored, inputs) of each quantised linear, experts one by one."""
    table = tensor_table(checkpoint.config).linears
    for name, layer in checkpoint.expected.layers.items():
        if name in table:
            yield name, layer.scheme, table[name][1]
            continue
        for part, spec in layer.parts.items():
            module, _, last = part.rpartition(".")
            if last == "weight_packed":
                yield f"{name}.{module}", layer.scheme, spec.shape[1] * 32 // layer.scheme.bits
            elif last == "g_idx":
                yield f"{name}.{module}", layer.scheme, spec.shape[0]
