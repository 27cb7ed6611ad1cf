"""Devices as dated data: GPUs, Apple machines and CPUs with memory, bandwidth, rates and watts.

Rates are dense (no sparsity); for GeForce cards they are the rates with 32-bit accumulation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from qvl.catalog.figures import Figure, Source, figure, read_json
from qvl.errors import CatalogError, PlanError, nearest
from qvl.units import GB, GiB

Rate = Literal["bf16", "fp16", "fp8", "int8", "fp4"]
_Kind = Literal["gpu", "apple", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator or machine. Figures without a source are absent, never guessed."""

    name: str
    title: str
    aliases: tuple[str, ...]
    kind: _Kind
    memory: Figure  # GiB
    bandwidth: Figure  # GB/s
    rates: Mapping[str, Figure]  # dense tensor T(FL)OPS by number format
    watts: Figure | None
    link: Figure | None  # GB/s one way between two of these in one machine
    compute_capability: str = ""  # NVIDIA only, "8.9"
    gpu_product: Figure | None = None  # the label nvidia.com/gpu.product of a Kubernetes node that has it
    system_share: float = 0.0  # of the memory, kept for the operating system (unified memory)

    @property
    def memory_bytes(self) -> int:
        """All of it; what the system keeps is not taken off."""
        return int(self.memory.value * GiB)

    @property
    def usable_bytes(self) -> int:
        return int(self.memory_bytes * (1 - self.system_share))

    @property
    def bandwidth_bytes_per_s(self) -> float:
        return float(self.bandwidth.value * GB)

    def flops(self, rate: Rate) -> float | None:
        """Dense operations a second in `rate`, or None where the device lacks the format or no source says."""
        found = self.rates.get(rate)
        return None if found is None else float(found.value) * 1e12

    @property
    def has_bf16(self) -> bool:
        return "bf16" in self.rates

    @property
    def has_fp8(self) -> bool:
        return "fp8" in self.rates

    @property
    def has_flash_attention(self) -> bool:
        """FlashAttention 2 needs Ampere (8.0) or later; AMD's MI300X has its own port."""
        if self.compute_capability:
            return float(self.compute_capability) >= 8.0
        return self.kind == "gpu"


@dataclass(frozen=True)
class Hardware:
    """`count` equal devices in one machine."""

    device: Device
    count: int = 1

    @property
    def name(self) -> str:
        return self.device.name if self.count == 1 else f"{self.count}x{self.device.name}"

    @property
    def memory_bytes(self) -> int:
        return self.device.memory_bytes * self.count


@cache
def devices() -> tuple[Device, ...]:
    return tuple(_device(raw) for raw in read_json("devices.json"))


_DEVICE_KEYS = set(
    """name title aliases kind memory_gib gb_per_s tops watts link_gb_per_s compute_capability gpu_product
    system_share""".split()
)


def _device(raw: Mapping[str, Any]) -> Device:
    where = f"device {raw['name']}"
    if unknown := set(raw) - _DEVICE_KEYS:
        raise CatalogError(f"{where}: unknown keys {sorted(unknown)}")
    if unknown := set(raw["tops"]) - set(get_args(Rate)):
        raise CatalogError(f"{where}: unknown rates {sorted(unknown)}; known: {', '.join(get_args(Rate))}")

    def optional(key: str) -> Figure | None:
        return figure(raw[key], f"{where} {key}") if key in raw else None

    return Device(
        name=raw["name"],
        title=raw["title"],
        aliases=tuple(raw.get("aliases", ())),
        kind=raw["kind"],
        memory=figure(raw["memory_gib"], f"{where} memory_gib"),
        bandwidth=figure(raw["gb_per_s"], f"{where} gb_per_s"),
        rates={rate: figure(f, f"{where} {rate}") for rate, f in raw["tops"].items()},
        watts=optional("watts"),
        link=optional("link_gb_per_s"),
        compute_capability=raw.get("compute_capability", ""),
        gpu_product=optional("gpu_product"),
        system_share=raw.get("system_share", 0.0),
    )


def _plain(name: str) -> str:
    """`NVIDIA RTX 4090`, `rtx-4090`, `RTX4090` → `rtx4090`."""
    text = re.sub(r"[\s_\-]+", "", name.lower())
    for noise in ("nvidia", "geforce", "amd", "intel", "apple", "tesla"):
        text = text.removeprefix(noise)
    return text


@cache
def _index() -> Mapping[str, Device]:
    return {_plain(n): d for d in devices() for n in (d.name, d.title, *d.aliases)}


def find_device(name: str) -> Device:
    """By name, title or alias; case, spaces and dashes don't matter.

    Raises: CatalogError with the nearest names.
    """
    found = _index().get(_plain(name))
    if found is None:
        raise CatalogError(f"no device {name!r}; {nearest(name, [d.name for d in devices()])}")
    return found


def parse_hardware(text: str) -> Hardware:
    """`rtx4090`, `2xl40s`, `8 x h100`; `m4-max@64GB` for a device that shares the machine's memory; `mine.json`.

    Raises: PlanError for a count below 1 or a memory that can't be, CatalogError for an unknown device.
    """
    match = re.fullmatch(r"\s*(-?\d+)\s*[x×*]\s*(.+)", text, flags=re.IGNORECASE)
    if not match:
        return Hardware(_described(text))
    count = int(match[1])
    if not 1 <= count <= 1024:
        raise PlanError(f"{text!r}: {count} devices; the count must be between 1 and 1024")
    return Hardware(_described(match[2]), count)


def _described(text: str) -> Device:
    name, _, size = text.strip().partition("@")
    device = device_of_file(Path(name)) if name.lower().endswith(".json") else find_device(name)
    return with_memory(device, size) if size else device


def with_memory(device: Device, size: str) -> Device:
    """The device in a machine with so much memory, under the name `m4-max@64gb`, which parse_hardware reads.

    Raises: PlanError where the device has memory of its own, or for what is no size such as 64GB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?\s*", size.lower())
    if match is None or not 1 <= float(match[1]) <= 4096:
        raise PlanError(f"memory {size!r}: give a size from 1GB to 4096GB, such as 64GB")
    if device.kind == "gpu" and not device.system_share:
        raise PlanError(
            f"{device.title} has {device.memory.value:g} GiB of its own; a memory size is for devices that share the "
            "machine's (Macs, Jetsons, GB10, Strix Halo) and for CPUs"
        )
    said = Source("user", "the memory that you gave", "", "measured")
    figure = Figure(float(match[1]), said, "", "measured", True)
    return replace(device, name=f"{device.name}@{match[1]}gb", memory=figure)


def device_of_file(path: Path) -> Device:
    """A device by the user's own figures: the keys of a row of devices.json, with plain numbers for figures.

    Raises: CatalogError for a file that can't be read, and for unknown, missing or impossible values.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise CatalogError(f"{path}: no device can be read ({e})") from e
    needed = {"kind", "memory_gib", "gb_per_s", "tops"}
    if not isinstance(raw, dict) or not needed <= set(raw) <= _DEVICE_KEYS:
        keys = ", ".join(sorted(_DEVICE_KEYS - {"aliases", "gpu_product"}))
        raise CatalogError(
            f"{path}: a device has the keys {', '.join(sorted(needed))}, and may have others of {keys}"
        )
    if raw["kind"] not in get_args(_Kind) or not isinstance(raw["tops"], dict):
        raise CatalogError(f"{path}: kind is one of {', '.join(get_args(_Kind))}, tops an object of rates")
    if unknown := set(raw["tops"]) - set(get_args(Rate)):
        raise CatalogError(f"{path}: unknown rates {sorted(unknown)}; known: {', '.join(get_args(Rate))}")

    def own(key: str, value: Any) -> Figure:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e7:
            raise CatalogError(f"{path}: {key} {value!r} is no number above 0")
        return Figure(value, Source("user", path.name, "", "measured"), "", "measured", True)

    share = raw.get("system_share", 0.0)
    if not isinstance(share, int | float) or not 0 <= share < 1:
        raise CatalogError(f"{path}: system_share {share!r}: it must be from 0 to below 1")
    return Device(
        name=str(path),
        title=str(raw.get("title") or raw.get("name") or path.stem),
        aliases=(),
        kind=raw["kind"],
        memory=own("memory_gib", raw["memory_gib"]),
        bandwidth=own("gb_per_s", raw["gb_per_s"]),
        rates={rate: own(rate, value) for rate, value in raw["tops"].items()},
        watts=own("watts", raw["watts"]) if "watts" in raw else None,
        link=own("link_gb_per_s", raw["link_gb_per_s"]) if "link_gb_per_s" in raw else None,
        compute_capability=str(raw.get("compute_capability", "")),
        system_share=float(share),
    )
