"""A LoRA adapter: does it touch the vision tower, which engines leave out when they serve adapters?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from qvl.checkpoint.check.finding import Finding
from qvl.checkpoint.stored import listed
from qvl.checkpoint.weight_files import read_weight_file
from qvl.errors import CheckpointError
from qvl.records import read_json

_VISUAL = re.compile(r"(^|\.)visual\.")


def findings(folder: Path) -> Iterator[Finding]:
    path = folder / "adapter_config.json"
    try:
        raw = read_json(path)
        targets, saved = raw.get("target_modules") or [], raw.get("modules_to_save") or []
    except (OSError, ValueError, AttributeError) as e:
        yield Finding("error", "adapter", f"{path}: not a JSON object ({e})", "save the adapter again")
        return
    weights = folder / "adapter_model.safetensors"
    names: list[str] = []
    if weights.is_file():
        try:
            names = list(read_weight_file(weights).tensors)
        except CheckpointError as e:
            yield Finding("error", "adapter", str(e), "save the adapter again")
            return
    elif (folder / "adapter_model.bin").is_file():
        yield Finding(
            "note", "adapter", "adapter_model.bin is pickled and isn't looked into", "save it as safetensors"
        )
    else:
        yield Finding("error", "adapter", "there is no adapter_model.safetensors", "save the adapter again")
    visual = sorted(
        {m[0] for n in names if (m := re.search(r"visual\..*?(?=\.lora_|\.weight$|\.base_layer)", n))}
    )
    merge = "merge it into its base model (peft's merge_and_unload, then save_pretrained) and serve that"
    if visual:
        yield Finding(
            "warning",
            "adapter-visual",
            f"the adapter changes {len(visual)} modules of the vision tower ({listed(visual, 2)}); vLLM and SGLang "
            "apply adapters to the language model alone, so what the tower learnt is silently left out",
            merge,
        )
    elif not names and _targets_tower(targets):
        yield Finding(
            "warning", "adapter-visual", f"target_modules {targets!r} covers the vision tower", merge
        )
    if saved:
        yield Finding(
            "warning",
            "adapter-saved",
            f"modules_to_save holds whole copies of {', '.join(map(str, saved))}, which engines refuse in an adapter",
            merge,
        )


def _targets_tower(targets: object) -> bool:
    if isinstance(targets, str):  # an expression over whole names
        return targets == "all-linear" or bool(_VISUAL.search(targets))
    return isinstance(targets, list) and any(
        t in ("qkv", "attn.qkv", "fc1", "fc2", "linear_fc1") for t in targets
    )
