"""Records how other libraries write and read small quantised layers: tests/data/quantised_golden.safetensors.

Run in an environment that has torch, safetensors, compressed-tensors and transformers 5, with the sources of
AutoAWQ, AutoGPTQ and GPTQModel beside it (the first two are retired and install badly, the third wants much):

    python benchmarks/quantised_golden.py AUTOAWQ_SOURCE AUTOGPTQ_QLINEAR GPTQMODEL_SOURCE \\
        tests/data/quantised_golden.safetensors

With "-" for a source its cases stay as the file has them; with "-" for the first two those of compressed-tensors and
transformers stay too.

Every case holds the tensors that the library wrote, as CASE/part, and what the same library reads back from them, as
CASE/read, in fp32. tests/test_models_quantized_golden.py compares our readers with that.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import types
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

OUT, IN, GROUP = 32, 64, 32
Case = dict[str, torch.Tensor]


def weight(seed: int, out: int = OUT, inn: int = IN) -> torch.Tensor:
    return torch.randn(out, inn, generator=torch.Generator().manual_seed(seed))


def asymmetric(w: torch.Tensor, bits: int, group: int, fewest: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros (O, G); zeros from 1 on, since GPTQ's first format can't store zero."""
    grouped = w.view(w.shape[0], -1, group)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scales = ((high - low) / (2**bits - 1)).half().float()
    return scales, (-low / scales).round().clamp(fewest, 2**bits - 1)


def autoawq(source: Path) -> Case:
    """awq/modules/linear/gemm.py, without running awq/__init__.py, which wants an old transformers."""
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear", "awq.modules.triton"):
        package = types.ModuleType(name)
        package.__path__ = [str(source.joinpath(*name.split(".")))]  # type: ignore[attr-defined]
        sys.modules[name] = package
    utils = types.ModuleType("awq.utils.utils")  # the real one imports accelerate
    utils.get_best_device = lambda: "cpu"  # type: ignore[attr-defined]
    sys.modules["awq.utils.utils"] = utils
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    linear = torch.nn.Linear(IN, OUT)
    linear.weight.data = weight(0)
    scales, zeros = asymmetric(linear.weight.data, 4, GROUP)
    # the range is the zero's, not the weight's: what lies outside would spill into its neighbours when packed
    low, high = (
        (-zeros * scales).repeat_interleave(GROUP, 1),
        ((15 - zeros) * scales).repeat_interleave(GROUP, 1),
    )
    linear.weight.data = linear.weight.data.clamp(low, high)
    q = WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    read = dequantize_gemm(q.qweight, q.qzeros, q.scales.float(), 4, GROUP)
    return {"qweight": q.qweight, "qzeros": q.qzeros, "scales": q.scales, "bias": q.bias, "read": read.T}


def autogptq(source: Path, bits: int, act_order: bool) -> Case:
    spec = importlib.util.spec_from_file_location("qlinear_cuda", source)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    linear = torch.nn.Linear(IN, OUT, bias=False)
    linear.weight.data = weight(bits)
    g_idx, scales, zeros = grouped_for_gptq(linear, bits, act_order)
    q = module.QuantLinear(bits, GROUP, IN, OUT, bias=False, weight_dtype=torch.float32)
    q.pack(linear, scales, zeros, g_idx)
    q.scales = q.scales.float()
    with torch.no_grad():
        read = q(torch.eye(IN)).T
    return {
        "qweight": q.qweight,
        "qzeros": q.qzeros,
        "scales": q.scales.half(),
        "g_idx": q.g_idx,
        "read": read,
    }


def gptqmodel(source: Path, bits: int, act_order: bool = False) -> Case:
    """The second format, in which GPTQModel keeps layers: gptqmodel/nn_modules/qlinear/__init__.py, plain Python."""

    class Names(type):  # enumerations, of which the file uses the members alone
        def __getattr__(cls, name: str) -> str:
            if name.startswith("__"):
                raise AttributeError(name)
            return name

    names = Names("Names", (), {})
    stand_ins: dict[str, dict[str, object]] = {
        "adapter": {},
        "adapter.adapter": {"LORA_MERGED_WEIGHT_PATHS": [], "Adapter": object},
        "models": {},
        "models._const": {"DEVICE": names, "PLATFORM": names},
        "nn_modules": {},
        "quantization": {"FORMAT": names, "METHOD": names},
        "utils": {},
        "utils.backend": {"BACKEND": names},
        "utils.logger": {"setup_logger": lambda: logging.getLogger("gptqmodel")},
        "utils.safe": {"THREADPOOLCTL": None},
    }
    for name, content in {"": {}, **stand_ins}.items():
        package = types.ModuleType(f"gptqmodel.{name}".rstrip("."))
        package.__path__ = [str(source.joinpath("gptqmodel", *name.split(".")))]
        vars(package).update(content)
        sys.modules[package.__name__] = package
    os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"  # a compiled twin of the same
    library = importlib.import_module("gptqmodel.nn_modules.qlinear")
    everything = {name: [] for name in dir(library.PackableQuantLinear) if name.startswith("SUPPORTS")}
    everything |= {
        "SUPPORTS_BITS": [2, 3, 4, 8],
        "SUPPORTS_GROUP_SIZE": [GROUP],
        "SUPPORTS_DESC_ACT": [act_order],
        "SUPPORTS_SYM": [False],
        "SUPPORTS_PACK_DTYPES": [torch.int32],
        "SUPPORTS_PLATFORM": ["ALL"],
        "SUPPORTS_DEVICES": ["ALL"],
        "SUPPORTS_IN_FEATURES_DIVISIBLE_BY": [1],
        "SUPPORTS_OUT_FEATURES_DIVISIBLE_BY": [1],
    }
    linear = torch.nn.Linear(IN, OUT, bias=False)
    linear.weight.data = weight(20 + bits)
    g_idx, scales, zeros = grouped_for_gptq(linear, bits, act_order, fewest=0)
    assert (zeros == 0).any() or bits > 3, "the format's point is that it holds a zero of 0"
    q = type("Linear", (library.PackableQuantLinear,), everything)(
        bits=bits, group_size=GROUP, desc_act=act_order, sym=False, in_features=IN, out_features=OUT, bias=False,
        pack_dtype=torch.int32, backend=None, adapter=None, register_buffers=True, enable_wf_unsqueeze=True,
    )  # fmt: skip
    q.dequant_dtype = torch.int16 if bits == 8 else torch.int8  # as its TorchLinear
    q.pack_block(linear, scales, zeros, g_idx)
    stored = {"qweight": q.qweight, "qzeros": q.qzeros, "scales": q.scales, "g_idx": q.g_idx}
    q.scales = q.scales.float()
    return {**stored, "read": q.dequantize_weight().T}


def grouped_for_gptq(
    linear: torch.nn.Linear, bits: int, act_order: bool, fewest: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(g_idx, scales, zeros); what lies outside their range is cut off the weight."""
    g_idx = (torch.arange(IN) // GROUP).int()
    if act_order:
        g_idx = g_idx[torch.randperm(IN, generator=torch.Generator().manual_seed(9))]
    grouped = torch.stack([linear.weight.data[:, g_idx == g] for g in range(IN // GROUP)], 1)
    if fewest == 0:
        grouped[::4] = grouped[::4].abs()  # rows without a negative weight have a zero of 0
        linear.weight.data[::4] = linear.weight.data[::4].abs()
    scales, zeros = asymmetric(grouped.flatten(1), bits, GROUP, fewest)
    low, high = (-zeros * scales)[:, g_idx.long()], ((2**bits - 1 - zeros) * scales)[:, g_idx.long()]
    linear.weight.data = linear.weight.data.clamp(low, high)
    return g_idx, scales, zeros


def compressed(layout: str, weights: dict, scale_of, seed: int) -> Case:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    state = {"weight": weight(seed), **scale_of(weight(seed))}
    compressor = BaseCompressor.get_value_from_registry(layout)
    written = compressor.compress(state, scheme)
    read = compressor.decompress(dict(written), scheme)["weight"]
    return {**written, "read": read.float()}


def signed_group(w: torch.Tensor) -> Case:
    return {"weight_scale": w.view(OUT, -1, GROUP).abs().amax(-1) / 7}


def asymmetric_group(w: torch.Tensor) -> Case:
    scales, zeros = asymmetric(w, 4, GROUP)
    return {"weight_scale": scales, "weight_zero_point": (zeros - 8).to(torch.int8)}


def regrouped(w: torch.Tensor) -> Case:
    g_idx = (torch.arange(IN) // GROUP)[torch.randperm(IN, generator=torch.Generator().manual_seed(3))].int()
    return {"weight_scale": torch.full((OUT, IN // GROUP), 0.5) + torch.arange(2) / 8, "weight_g_idx": g_idx}


def channel(top: float):
    return lambda w: {"weight_scale": w.abs().amax(1, keepdim=True) / top}


def transformers_fp8() -> Case:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    w = weight(7)
    scales = w.view(2, 16, 2, 32).abs().amax((1, 3)) / 448
    stored = (w / scales.repeat_interleave(16, 0).repeat_interleave(32, 1)).to(torch.float8_e4m3fn)
    read = Fp8Dequantize(None)._dequantize_one(stored, scales, torch.float32)
    return {"weight": stored, "weight_scale_inv": scales, "read": read}


def main(awq_source: str, gptq_source: str, gptqmodel_source: str, out: str) -> None:
    cases, versions = recorded(Path(out))
    if awq_source != "-":
        cases["awq"] = autoawq(Path(awq_source))
    if gptq_source != "-":
        cases |= {f"gptq-{bits}": autogptq(Path(gptq_source), bits, False) for bits in (2, 3, 4, 8)}
        cases["gptq-4-act-order"] = autogptq(Path(gptq_source), 4, True)
    if gptqmodel_source != "-":
        cases |= {f"gptq-v2-{bits}": gptqmodel(Path(gptqmodel_source), bits) for bits in (2, 3, 4, 8)}
        cases["gptq-v2-4-act-order"] = gptqmodel(Path(gptqmodel_source), 4, True)
        versions["gptqmodel"] = version_of(Path(gptqmodel_source))
    if (awq_source, gptq_source) != ("-", "-"):
        cases |= installed()
        for name in ("compressed-tensors", "transformers", "torch"):
            versions[name] = importlib.metadata.version(name)
    tensors = {
        f"{case}/{part}": t.detach().contiguous()
        for case, parts in cases.items()
        for part, t in parts.items()
    }
    save_file(tensors, out, metadata=versions)
    print(f"{len(cases)} cases, {Path(out).stat().st_size} bytes; {versions}")


def recorded(path: Path) -> tuple[dict[str, Case], dict[str, str]]:
    cases: dict[str, Case] = {}
    if not path.exists():
        return cases, {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            case, _, part = name.partition("/")
            cases.setdefault(case, {})[part] = file.get_tensor(name)
        return cases, dict(file.metadata())


def version_of(source: Path) -> str:
    """From the PKG-INFO of a source distribution."""
    lines = (source / "PKG-INFO").read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("Version: ") for line in lines if line.startswith("Version: "))


def installed() -> dict[str, Case]:
    """The cases of the libraries that are installed."""
    int4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    int8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    return {
        "packed": compressed("pack-quantized", {**int4, "symmetric": True}, signed_group, 11),
        "packed-asymmetric": compressed("pack-quantized", {**int4, "symmetric": False}, asymmetric_group, 12),
        "packed-act-order": compressed(
            "pack-quantized", {**int4, "symmetric": True, "actorder": "group"}, regrouped, 13
        ),
        "packed-8-channel": compressed("pack-quantized", int8, channel(127), 14),
        "int-quantized": compressed("int-quantized", int8, channel(127), 15),
        "float-quantized": compressed(
            "float-quantized",
            {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
            channel(448),
            16,
        ),
        "fp8": transformers_fp8(),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
