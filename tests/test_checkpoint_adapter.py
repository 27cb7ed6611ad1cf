"""LoRA adapters on their base: the weights that PEFT's merge gives, its names and files, and what is refused.

PEFT isn't installed here: the formulas are its own (lora/layer.py, lora/dora.py), and its merge_and_unload of 0.21.2
gave the same weights to the last bit for each of these kinds on this very checkpoint.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import qvl
from qvl.checkpoint.adapter import read_adapter
from qvl.checkpoint.check import check
from qvl.checkpoint.checkpoint import open_adapted
from qvl.cli.main import main
from qvl.errors import CheckpointError
from qvl.models.checkpoint import load_model
from test_check import quantise

Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.1.mlp.up_proj"
QKV = "visual.blocks.1.attn.qkv"
SHAPES = {Q: (32, 32), UP: (64, 32), QKV: (48, 16)}


def peft_name(module: str) -> str:
    """As PEFT writes it over transformers from 4.52 on."""
    nested = module.replace("model.layers", "model.language_model.layers").replace("visual.", "model.visual.")
    return f"base_model.model.{nested}"


@pytest.fixture
def base(tiny_checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(tiny_checkpoint, dtype="float32").named_parameters())


def write_adapter(
    folder: Path, base: dict[str, torch.Tensor], name: Any = peft_name, more: Any = None, **config: Any
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    parts, tensors = {}, dict(more or {})
    for module in SHAPES:
        out, inn = base[f"{module}.weight"].shape
        rank = 3 if "rank_pattern" in config and module == UP else 4
        down, up = torch.randn(rank, inn, generator=generator), torch.randn(out, rank, generator=generator)
        parts[module] = down, up
        tensors |= {f"{name(module)}.lora_A.weight": down, f"{name(module)}.lora_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    return parts


@pytest.mark.parametrize("layout", ["nested", "flat"])
def test_what_an_adapter_adds_is_merged(
    layout: str, tiny_checkpoint: Path, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    name = peft_name if layout == "nested" else (lambda module: f"base_model.model.{module}")
    parts = write_adapter(tmp_path / "a", base, name)
    merged = dict(load_model(tiny_checkpoint, dtype="float32", adapter=tmp_path / "a").named_parameters())
    assert merged.keys() == base.keys()
    for key, weight in merged.items():
        module = key.removesuffix(".weight")
        expected = base[key]
        if module in parts:
            down, up = parts[module]
            expected = expected + (up @ down) * 2.0
        assert torch.equal(weight, expected), key


def test_scales_ranks_and_patterns_are_those_of_each_module(
    tiny_checkpoint: Path, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    patterns = {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"layers.0.self_attn.q_proj": 40}}
    parts = write_adapter(tmp_path / "a", base, use_rslora=True, **patterns)
    merged = dict(load_model(tiny_checkpoint, dtype="float32", adapter=tmp_path / "a").named_parameters())
    for module, scale in ((Q, 40 / 2), (UP, 8 / 3**0.5), (QKV, 8 / 2)):
        down, up = parts[module]
        assert torch.equal(merged[f"{module}.weight"], base[f"{module}.weight"] + (up @ down) * scale)


def test_dora_and_whole_copies_are_read(
    tiny_checkpoint: Path, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    magnitude, head = torch.rand(32) + 0.5, torch.randn(base["lm_head.weight"].shape)
    more = {
        f"{peft_name(Q)}.lora_magnitude_vector": magnitude,
        "base_model.model.lm_head.weight": head,
    }
    parts = write_adapter(tmp_path / "a", base, more=more, use_dora=True, modules_to_save=["lm_head"])
    merged = dict(load_model(tiny_checkpoint, dtype="float32", adapter=tmp_path / "a").named_parameters())
    down, up = parts[Q]
    whole = base[f"{Q}.weight"] + (up @ down) * 2
    assert torch.allclose(merged[f"{Q}.weight"], whole * (magnitude / whole.norm(dim=1))[:, None], atol=1e-6)
    assert torch.equal(merged["lm_head.weight"], head)


def test_a_table_with_its_copy_is_read(
    tiny_checkpoint: Path, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    key = "model.embed_tokens.weight"
    down, up, copy = torch.randn(4, 320), torch.randn(32, 4), torch.randn(320, 32)
    table = "base_model.model.model.language_model.embed_tokens"
    more = {
        f"{table}.lora_embedding_A": down,
        f"{table}.lora_embedding_B": up,
        f"{table}.base_layer.weight": copy,
    }
    write_adapter(tmp_path / "a", base, more=more)
    merged = dict(load_model(tiny_checkpoint, dtype="float32", adapter=tmp_path / "a").named_parameters())
    assert torch.allclose(merged[key], copy + (up @ down).T * 2, atol=1e-5)


def test_an_adapter_folder_alone_stands_for_its_base_with_it(
    tiny_checkpoint: Path, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    write_adapter(tmp_path / "a", base, base_model_name_or_path=str(tiny_checkpoint))
    given = qvl.load(tiny_checkpoint, adapter=tmp_path / "a").ask([], "hi", max_new_tokens=4).text
    assert qvl.load(tmp_path / "a").ask([], "hi", max_new_tokens=4).text == given
    assert open_adapted(tmp_path / "a").adapter is not None
    assert open_adapted(tiny_checkpoint).adapter is None


def test_small_weights_are_made_of_the_merged_ones(
    tiny_checkpoint: Path, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    write_adapter(tmp_path / "a", base)
    merged = load_model(tiny_checkpoint, dtype="bfloat16", adapter=tmp_path / "a")
    small = load_model(tiny_checkpoint, dtype="bfloat16", weights="int8", adapter=tmp_path / "a")
    coded = small.get_submodule(Q)
    wide = merged.get_submodule(Q).weight.float()
    assert (coded.dequantize().float() - wide).abs().max() <= wide.abs().amax() / 100  # type: ignore[operator]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'; only LORA"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters .* is not supported; merge it"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"r": 16}, "for rank 16"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(
    config: dict[str, Any], reason: str, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    write_adapter(tmp_path / "a", base, **config)
    with pytest.raises(CheckpointError, match=reason):
        read_adapter(tmp_path / "a")


def test_an_adapter_of_another_model_is_refused_with_its_names(
    tiny_checkpoint: Path, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    odd = {
        "base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.ones(4, 32),
        "base_model.model.model.layers.7.mlp.up_proj.lora_B.weight": torch.ones(64, 4),
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 99),
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": torch.ones(64, 4),
    }
    write_adapter(tmp_path / "a", base, more=odd)
    with pytest.raises(
        CheckpointError,
        match=r"layers\.7\.mlp\.up_proj\.weight isn't in it, .*is \[64, 32\], its change \[64, 99\]",
    ):
        load_model(tiny_checkpoint, adapter=tmp_path / "a")


def test_an_adapter_on_a_quantised_base_is_refused(
    tiny_checkpoint: Path, base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = quantise(shutil.copytree(tiny_checkpoint, tmp_path / "plain"), "awq")
    write_adapter(tmp_path / "a", base)
    with pytest.raises(CheckpointError, match=r"holds quantised .*take the plain base"):
        load_model(folder, adapter=tmp_path / "a")


def test_an_adapter_without_its_base_says_what_to_do(base: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", base, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"is an adapter, and its base isn't at hand .*--adapter"):
        load_model(tmp_path / "a")
    write_adapter(tmp_path / "b", base)
    with pytest.raises(CheckpointError, match="names no base model"):
        load_model(tmp_path / "b")
    assert check(tmp_path / "a").summary == "an adapter without its base model"


def test_the_command_line_takes_an_adapter(
    tiny_checkpoint: Path, base: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(tmp_path / "a", base)
    model = ["--model", str(tiny_checkpoint), "--adapter", str(tmp_path / "a")]
    assert main(["ask", "hi", *model, "--max-new-tokens", "3"]) == 0
    assert main(["ask", "hi", "--endpoint", "http://127.0.0.1:9", "--adapter", "x"]) == 2
    assert "a server has loaded its weights already" in capsys.readouterr().err
