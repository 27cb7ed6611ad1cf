"""Checkpoints: written, read back, read by transformers, refused with names, and what loading costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models_reference import Prompt, both, our_logits, peak_growth, reference
from qvl.checkpoint.hub import find_checkpoint
from qvl.errors import CapacityError, CheckpointError
from qvl.models import checkpoint
from qvl.models.base import VisionLanguageModel
from qvl.models.checkpoint import load_model, save_model
from qvl.units import format_bytes
from test_models_attention import TEXT, VISION, tiny

PROMPT = [2, ("image", (1, 6, 4)), 3]


@pytest.fixture(scope="module")
def network() -> VisionLanguageModel:
    return tiny()


@pytest.fixture
def folder(network: VisionLanguageModel, tmp_path: Path) -> Path:
    save_model(network, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def weights(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def same_weights(a: VisionLanguageModel, b: VisionLanguageModel) -> bool:
    a_weights, b_weights = weights(a), weights(b)
    return a_weights.keys() == b_weights.keys() and all(
        p.dtype == b_weights[n].dtype and torch.equal(p, b_weights[n]) for n, p in a_weights.items()
    )


def edit(folder: Path, **changes: Any) -> None:
    """Rewrites the single weight file; None deletes a tensor. Dots are written as __."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path)


# --- round trips


def test_a_saved_network_is_read_back_equal(network: VisionLanguageModel, folder: Path) -> None:
    again = load_model(folder)
    assert same_weights(again, network)
    assert again.config == replace(network.config, dtype="float32")
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_transformers_reads_what_we_save_in_shards(family: str, tmp_path: Path) -> None:
    with both(family, tmp_path / "theirs", "tied_all_heads") as (theirs, ours):
        save_model(ours, tmp_path / "ours", max_shard_bytes=50_000)
        assert (tmp_path / "ours" / "model.safetensors.index.json").exists()
        again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    expected = theirs.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_shards_are_read_like_a_single_file(network: VisionLanguageModel, tmp_path: Path) -> None:
    save_model(network, tmp_path, max_shard_bytes=20_000)
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in network.parameters())
    assert same_weights(load_model(tmp_path), network)


def test_saving_in_one_file_over_shards_leaves_no_old_file(
    network: VisionLanguageModel, tmp_path: Path
) -> None:
    save_model(network, tmp_path, max_shard_bytes=20_000)
    save_model(network, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_over_the_checkpoint_that_is_mapped_keeps_both_whole(folder: Path) -> None:
    model = load_model(folder)
    before = {n: p.clone() for n, p in weights(model).items()}
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    save_model(model, folder)
    again = weights(load_model(folder))
    assert torch.equal(again["model.norm.weight"], before["model.norm.weight"] * 2)
    for name, p in weights(model).items():
        assert torch.equal(p, again[name]), name


def test_changing_a_mapped_weight_leaves_the_file_alone(network: VisionLanguageModel, folder: Path) -> None:
    with torch.no_grad():
        load_model(folder).model.norm.weight.fill_(7)
    assert same_weights(load_model(folder), network)


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_either_name_layout_is_read(layout: str, network: VisionLanguageModel, folder: Path) -> None:
    from qvl.checkpoint.names import to_nested

    if layout == "nested":
        path = folder / "model.safetensors"
        save_file({to_nested(n): t for n, t in load_file(path).items()}, path)
    assert same_weights(load_model(folder), network)


def test_a_tied_network_stores_no_head_and_ignores_one(tmp_path: Path) -> None:
    theirs = reference("qwen2_5_vl", "tied_all_heads")
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.lm_head is None
    logits = our_logits(ours, [Prompt(PROMPT)])
    edit(tmp_path, lm_head__weight=torch.zeros(210, 40))
    assert torch.equal(our_logits(load_model(tmp_path), [Prompt(PROMPT)]), logits)


def test_inverse_frequencies_in_old_files_are_skipped(network: VisionLanguageModel, folder: Path) -> None:
    edit(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert same_weights(load_model(folder), network)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16])
def test_weights_come_in_the_dtype_asked_for(
    network: VisionLanguageModel, folder: Path, dtype: torch.dtype | str, copy: bool
) -> None:
    model = load_model(folder, dtype=dtype, copy=copy)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert model.dtype == wanted
    for name, p in weights(model).items():
        assert torch.equal(p, weights(network)[name].to(wanted)), name


def test_the_stored_dtype_is_kept_when_none_is_asked_for(
    network: VisionLanguageModel, tmp_path: Path
) -> None:
    save_model(tiny().bfloat16(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize("batch_bytes", [1, 100, 1000, 10_000])
def test_tensors_copied_in_pieces_are_whole(
    batch_bytes: int, network: VisionLanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_COPY_BATCH", batch_bytes)
    assert same_weights(load_model(folder, copy=True), network)


# --- refusals, by name


def test_every_missing_extra_and_misshaped_tensor_is_named_at_once(folder: Path) -> None:
    edit(
        folder,
        model__norm__weight=None,
        visual__merger__ln_q__weight=None,
        visual__blocks__0__attn__rope=torch.zeros(2),
        lm_head__weight=torch.zeros(50, 31),
        model__layers__1__mlp__up_proj__weight=torch.zeros(48, 32, dtype=torch.int8),
    )
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    text = str(caught.value)
    assert "2 missing: visual.merger.ln_q.weight, model.norm.weight" in text
    assert "1 extra: visual.blocks.0.attn.rope" in text
    assert "1 misshaped: lm_head.weight [50, 31], should be [50, 32]" in text
    assert "1 not stored as BF16, F16, F32, F64: model.layers.1.mlp.up_proj.weight I8" in text
    assert str(folder) in text


def test_a_long_list_of_names_is_cut_with_its_count(folder: Path) -> None:
    save_file({"model.norm.weight": torch.ones(32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\d+ missing: .* and \d+ more") as caught:
        load_model(folder)
    total, rest = map(int, re.findall(r"(\d+) (?:missing|more)", str(caught.value)))
    assert total == rest + 20 == len(weights(tiny())) - 1


def test_a_tensor_stored_under_both_layouts_is_refused(folder: Path) -> None:
    edit(folder, model__language_model__norm__weight=torch.ones(32))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is stored twice"):
        load_model(folder)


def test_a_shard_that_is_absent_is_named(network: VisionLanguageModel, tmp_path: Path) -> None:
    save_model(network, tmp_path, max_shard_bytes=20_000)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=rf"1 of \d+ weight files are missing: {lost.name}"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, 3000])
def test_a_weight_file_cut_short_is_refused_by_path(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="perhaps cut short") as caught:
        load_model(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", '{"weight_map": 3}', "[]"])
def test_a_broken_index_is_refused_by_path(folder: Path, content: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json: is not a weight index"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        (None, "holds no"),
        ("training.pt", "save the weights alone as safetensors"),
        ("model-q4.gguf", "llama.cpp"),
    ],
)
def test_a_folder_without_safetensors_is_refused_with_advice(
    folder: Path, file: str | None, advice: str
) -> None:
    (folder / "model.safetensors").unlink()
    if file:
        (folder / file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=advice):
        load_model(folder)


def test_an_unknown_dtype_lists_the_known(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="'int4' can't hold weights; known: bfloat16, float16, float32"):
        load_model(folder, dtype="int4")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "hpu"])
def test_a_device_that_is_not_here_lists_those_that_are(device: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"device {device} can't be used here .*; known: cpu"):
        load_model(folder, device=device)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")]
)
def test_weights_that_do_not_fit_say_how_much_they_need(
    error: Exception, network: VisionLanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(checkpoint, "read_tensors", full)
    needed = format_bytes(sum(p.numel() * 2 for p in network.parameters()))
    with pytest.raises(CapacityError, match=f"the weights need {needed} on cpu: take a smaller"):
        load_model(folder, dtype="bfloat16")


def test_other_runtime_errors_are_not_taken_for_full_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(checkpoint, "read_tensors", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        load_model(folder)


# --- the hub


@pytest.mark.parametrize("source", ["no-such-folder", "a/b/c", "./missing", "/nowhere/at/all"])
def test_what_is_neither_folder_nor_hub_id_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder; a hub id looks like"):
        find_checkpoint(source)


def test_a_file_is_refused_as_a_checkpoint(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        find_checkpoint(folder / "model.safetensors")


def test_offline_without_a_cache_says_so(tmp_path: Path) -> None:
    """In a process of its own: the hub library reads its environment at import."""
    code = """
import sys
from qvl.errors import CapacityError, CheckpointError
from qvl.models import checkpoint
from qvl.models.checkpoint import load_model
try:
    load_model("Qwen/Qwen2.5-VL-3B-Instruct")
except CheckpointError as e:
    print(e)
"""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "Qwen/Qwen2.5-VL-3B-Instruct: HF_HUB_OFFLINE is set" in done.stdout


def fake_hub(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[dict[str, Any]]:
    import huggingface_hub

    calls: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **kwargs: Any) -> str:
        calls.append({"repo_id": repo_id, **kwargs})
        if isinstance(result, Exception):
            raise result
        return str(result)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_hub_id_is_fetched_at_its_revision_without_pickles(
    network: VisionLanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_hub(monkeypatch, folder)
    assert same_weights(load_model("Qwen/Qwen2.5-VL-3B-Instruct", revision="abc"), network)
    assert calls[0]["repo_id"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert calls[0]["revision"] == "abc"

    def fetched(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in calls[0]["allow_patterns"])

    assert all(
        map(fetched, ["config.json", "model-00001-of-00002.safetensors", "merges.txt", "chat_template.jinja"])
    )
    assert not any(map(fetched, ["pytorch_model.bin", "modeling_qwen.py", "model.gguf"]))


def hub_errors() -> list[tuple[Exception, str]]:
    import requests
    from huggingface_hub import errors as hub

    response = requests.Response()
    response.status_code = 404
    return [
        (hub.GatedRepoError("gated", response), "accept its terms"),
        (hub.RepositoryNotFoundError("none", response), "no such model, or it is private"),
        (hub.RevisionNotFoundError("none", response), "no such revision"),
        (hub.LocalEntryNotFoundError("none"), "can't be reached"),
        (hub.HfHubHTTPError("503 busy", response=response), "can't be fetched .503 busy"),
        (OSError(28, "No space left on device"), "No space left on device.*run again to resume"),
    ]


@pytest.mark.parametrize("number", range(6))
def test_each_failure_of_the_hub_is_one_error_with_advice(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, advice = hub_errors()[number]
    fake_hub(monkeypatch, error)
    with pytest.raises(CheckpointError, match=advice) as caught:
        find_checkpoint("Qwen/Qwen2.5-VL-3B-Instruct")
    assert "Qwen/Qwen2.5-VL-3B-Instruct" in str(caught.value)


# --- what loading costs


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 MB in bf16, in two shards, most of it one embedding table and one head as in real models."""
    folder = tmp_path_factory.mktemp("large")
    text = replace(TEXT, vocab_size=40_000, hidden_size=768, intermediate_size=3072, num_hidden_layers=4)
    text = replace(
        text, num_attention_heads=12, num_key_value_heads=2, head_dim=64, mrope_section=(8, 12, 12)
    )
    model = tiny(text=text, vision=replace(VISION, out_hidden_size=768)).bfloat16()
    save_model(model, folder, max_shard_bytes=120 * 10**6)
    return folder


def load_and_touch(folder: Path, **options: Any) -> tuple[int, int]:
    """Peak growth of this process while loading and reading every weight once; bytes of the weights."""
    with peak_growth() as growth:
        model = load_model(folder, **options)
        for p in model.parameters():
            p.view(torch.int16 if p.element_size() == 2 else torch.int32).max()
    return growth[0], sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"dtype": "float32"}, {"dtype": "float16"}])
def test_peak_memory_of_loading_is_the_weights_and_a_tenth(
    large: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(p.stat().st_size for p in large.glob("*.safetensors"))
    assert size > 180 * 10**6
    monkeypatch.setattr(
        checkpoint, "_COPY_BATCH", 8 * 2**20
    )  # as small beside 200 MB as 64 MiB is beside a model
    load_model(large, **options)  # allocator and library start-up costs are not the loader's
    growth, num_bytes = load_and_touch(large, **options)
    assert growth > 0.9 * num_bytes
    assert growth < 1.1 * num_bytes


def test_mapped_weights_cost_nothing_until_they_are_used(large: Path) -> None:
    with peak_growth() as growth:
        model = load_model(large)
    assert model.dtype == torch.bfloat16
    assert growth[0] < 20 * 10**6


def test_copied_weights_outlive_their_file(large: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(large, tmp_path / "copy"))
    model = load_model(folder, copy=True)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"")  # a mapped file that shrinks would end the process
    assert model.model.embed_tokens.weight.float().std() > 0.1
