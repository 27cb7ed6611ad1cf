"""Whatever loading a folder refuses, `qvl check` reports: planted faults, each loaded and checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import quantized_writers as writers
import qvl
import qwen3_5_tiny
import qwen_vl_small
from qvl.checkpoint.check import check
from qvl.errors import CheckpointError, QvlError

SPARED = ["lm_head", "visual"]
PACKED_INT4 = writers.compressed_config("pack-quantized", writers.int_weights(4, 16))
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "awq": (lambda w: writers.awq(w, 16), writers.awq_config(16)),
    "gptq": (lambda w: writers.gptq(w, 4, 16, act_order=True), writers.gptq_config(4, 16, desc_act=True)),
    "packed": (lambda w: writers.packed(w, 4, 16), PACKED_INT4),
    "fp8": (lambda w: writers.fp8(w, (8, 16)), writers.fp8_config((8, 16), modules_to_not_convert=SPARED)),
}
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def sound(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A loadable folder of each kind."""
    root = tmp_path_factory.mktemp("sound")
    folders = {"plain": tiny_checkpoint}
    for kind, (make, config) in KINDS.items():
        writers.write(tiny_checkpoint, root / kind, make, config)
        folders[kind] = root / kind
    folders["shards"] = shutil.copytree(tiny_checkpoint, root / "shards")
    tensors = load_file(root / "shards" / "model.safetensors")
    (root / "shards" / "model.safetensors").unlink()
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {}
    for i, file in enumerate(files):
        part = dict(list(tensors.items())[i::2])
        save_file(part, root / "shards" / file)
        weight_map |= dict.fromkeys(part, file)
    (root / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    qwen_vl_small.write_checkpoint(root / "first")
    qwen_vl_small.write_tokenizer(root / "first")
    folders["first"] = root / "first"
    for name in ("moe", "experts"):
        folder = qwen3_5_tiny.write_folder(root / name, "moe", tiny_checkpoint)
        if name == "experts":
            fused = {n: t.numpy() for n, t in load_file(weights_of(folder)).items()}
            single = qwen3_5_tiny.one_by_one(fused)
            save_file({n: torch.tensor(t) for n, t in single.items()}, weights_of(folder))
        folders[name] = folder
    return folders


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Change:
    def apply(folder: Path) -> None:
        path = weights_of(folder)
        found = load_file(path)
        change(found)
        save_file(found, path)

    return apply


def put(name: str, tensor: Tensor) -> Change:
    return tensors(lambda found: found.update({name: tensor}))


def drop(part: str) -> Change:
    """The first tensor with this in its name."""
    return tensors(lambda found: found.pop(next(name for name in found if part in name)))


def wrapped(found: dict[str, Tensor]) -> None:
    for name in list(found):
        found[f"module.{name}"] = found.pop(name)


def settings(file: str = "config.json", **changes: Any) -> Change:
    def apply(folder: Path) -> None:
        path = folder / file
        found = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))

    return apply


def quantisation(**changes: Any) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        found = json.loads(path.read_text())
        found["quantization_config"] |= changes
        path.write_text(json.dumps(found))

    return apply


def tower(**changes: Any) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        found = json.loads(path.read_text())
        found["visual"] |= changes
        path.write_text(json.dumps(found))

    return apply


def absent(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def content(file: str, text: str) -> Change:
    return lambda folder: (folder / file).write_text(text)


def cut(pattern: str, keep: int | None = None) -> Change:
    def apply(folder: Path) -> None:
        path = sorted(folder.glob(pattern))[-1]
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) - 8 if keep is None else keep])

    return apply


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """The header alone; the tensors' bytes stay."""

    def apply(folder: Path) -> None:
        path = weights_of(folder)
        whole = path.read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        found = json.loads(whole[8:end])
        change(found)
        text = json.dumps(found).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[end:])

    return apply


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]})
    )
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2)}, folder / "adapter_model.safetensors")


def optimizer(folder: Path) -> None:
    save_file({"state.0.exp_avg": torch.zeros(2)}, folder / "optimizer.safetensors")


def renamed_with_optimizer(folder: Path) -> None:
    weights_of(folder).rename(folder / "weights.safetensors")
    optimizer(folder)


def stale_index_beside(folder: Path) -> None:
    stale = {"weight_map": {NORM: "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stale))


def lfs_pointer(name: str) -> Change:
    def apply(folder: Path) -> None:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4967215360\n"
        (folder / name).write_text(text)

    return apply


def mlx(folder: Path) -> None:
    path = weights_of(folder)
    save_file(load_file(path), path, metadata={"format": "mlx"})


def only_an_adapter(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    adapter(folder)


def stale_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    found = json.loads(path.read_text())
    found["weight_map"]["gone.weight"] = "model-00009-of-00009.safetensors"
    path.write_text(json.dumps(found))


def another_shard(folder: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(320, 32)}, folder / "old.safetensors")


def bin_beside_an_index(folder: Path) -> None:
    """An index without its files, and weights of the other form."""
    all_tensors: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        all_tensors |= load_file(path)
        path.unlink()
    torch.save(all_tensors, folder / "pytorch_model.bin")


def as_bin(save: Callable[[dict[str, Tensor], Path], Any]) -> Change:
    def apply(folder: Path) -> None:
        path = weights_of(folder)
        found = load_file(path)
        path.unlink()
        save(found, folder / "pytorch_model.bin")

    return apply


UP = "model.layers.1.mlp.up_proj"
EXPERTS = "model.language_model.layers.1.mlp.experts"
NORM = "model.norm.weight"
VIDEO = "video_preprocessor_config.json"
IDS = [f"{kind}_token_id" for kind in ("image", "video", "vision_start", "vision_end")]
# (name, the folder it is planted in, the change, whether loading refuses it)
FAULTS: list[tuple[str, str, Change, bool]] = [
    # tensors
    ("missing tensor", "plain", drop(NORM), True),
    ("missing bias", "plain", drop("model.layers.0.self_attn.q_proj.bias"), True),
    ("missing head", "plain", drop("lm_head.weight"), True),
    ("extra tensor", "plain", put("x", torch.ones(1)), True),
    ("extra bias", "plain", put(f"{UP}.bias", torch.zeros(64)), True),
    ("multi-token prediction", "plain", put("mtp.fc.weight", torch.ones(1)), False),
    ("nested multi-token prediction", "plain", put("model.mtp.fc.weight", torch.ones(1)), True),
    ("old frequencies", "plain", put("visual.rotary_pos_emb.inv_freq", torch.ones(1)), False),
    ("wrong shape", "plain", put(NORM, torch.ones(31)), True),
    ("wrong dtype", "plain", put(NORM, torch.ones(32, dtype=torch.int8)), True),
    ("fp8 without its scales", "fp8", drop(f"{UP}.weight_scale_inv"), True),
    ("head of a tied model", "plain", settings(tie_word_embeddings=True), False),
    ("wrapped names", "plain", tensors(wrapped), True),
    ("both layouts", "plain", put("model.language_model.norm.weight", torch.ones(32)), True),
    ("no tensors at all", "plain", tensors(dict.clear), True),
    ("fused and single experts", "moe", put(f"{EXPERTS}.0.down_proj.weight", torch.ones(1)), True),
    ("an expert's matrix missing", "experts", drop(".experts.1.up_proj"), True),
    ("an expert's matrix misshaped", "experts", put(f"{EXPERTS}.1.up_proj.weight", torch.ones(3, 3)), True),
    ("a fused tensor missing", "moe", drop(".experts.gate_up_proj"), True),
    # files
    ("file cut short", "plain", cut("*.safetensors"), True),
    ("header cut short", "plain", cut("*.safetensors", 100), True),
    ("empty file", "plain", cut("*.safetensors", 0), True),
    ("no weights", "plain", absent("model.safetensors"), True),
    ("shard cut short", "shards", cut("*.safetensors"), True),
    ("shard missing", "shards", absent("model-00002-of-00002.safetensors"), True),
    ("index names a file that isn't there", "shards", stale_index, True),
    ("index is no index", "shards", content("model.safetensors.index.json", "[]"), True),
    ("index without its files, pickles beside", "shards", bin_beside_an_index, True),
    ("file that the index doesn't name", "shards", another_shard, False),
    ("another file beside a whole one", "plain", another_shard, False),
    ("adapter beside the model", "plain", adapter, False),
    ("an optimizer's state beside the model", "plain", optimizer, False),
    ("an optimizer's state beside a model of another name", "plain", renamed_with_optimizer, False),
    ("a stale index beside a whole file", "plain", stale_index_beside, False),
    ("a Git LFS pointer", "plain", lfs_pointer("model.safetensors"), True),
    ("shards that are Git LFS pointers", "shards", lfs_pointer("model-00002-of-00002.safetensors"), True),
    ("a tokenizer that is a Git LFS pointer", "plain", lfs_pointer("tokenizer.json"), True),
    ("weights of MLX", "plain", mlx, True),
    ("quantised by MLX", "plain", settings(quantization={"group_size": 64, "bits": 4}), True),
    ("adapter alone", "plain", only_an_adapter, True),
    ("header with a hole", "plain", header(lambda h: h.pop(NORM)), True),
    ("header with numbers as metadata", "plain", header(lambda h: h.update(__metadata__={"format": 1})), True),
    ("header with an unknown dtype", "plain", header(lambda h: h[NORM].update(dtype="F7")), True),
    ("header with another dtype of the same size", "plain", header(lambda h: h[NORM].update(dtype="I32")), True),
    ("torch's own file", "plain", as_bin(torch.save), False),
    ("torch's old file", "plain", as_bin(partial(torch.save, _use_new_zipfile_serialization=False)), False),
    ("a training state", "plain", as_bin(lambda t, path: torch.save({"step": 3, **t}, path)), True),
    ("a whole module", "plain", as_bin(lambda t, path: torch.save(torch.nn.Linear(2, 2), path)), True),
    ("a pickle cut short", "first", cut("*.bin"), True),
    ("a pickle missing", "first", absent("pytorch_model-00001-of-00002.bin"), True),
    # quantisation
    ("leftover quantization_config", "plain", settings(quantization_config=writers.awq_config(16)), True),
    ("quantised without a config", "awq", settings(quantization_config=...), True),
    ("unknown method", "awq", quantisation(quant_method="hqq"), True),
    ("bitsandbytes", "plain", settings(quantization_config={"quant_method": "bitsandbytes"}), True),
    ("other bits", "gptq", quantisation(bits=8), True),
    ("other group size", "awq", quantisation(group_size=32), True),
    ("group size that fits no layer", "awq", quantisation(group_size=48), True),
    ("plain layers not excepted", "packed", quantisation(ignore=["lm_head"]), True),
    ("quantised layers excepted", "awq", quantisation(modules_to_not_convert=["visual", "layers.1"]), True),
    ("missing zeros", "awq", drop(f"{UP}.qzeros"), True),
    ("a bias that AWQ doesn't write", "awq", put(f"{UP}.bias", torch.zeros(64)), True),
    ("scales in another dtype", "awq", put(f"{UP}.scales", torch.zeros(2, 64).double()), True),
    ("a group too large", "gptq", tensors(lambda t: t[f"{UP}.g_idx"].__setitem__(0, 1 - t[f"{UP}.g_idx"][0])), True),
    ("a negative group", "gptq", tensors(lambda t: t[f"{UP}.g_idx"].__setitem__(0, -1)), True),
    ("groups that the config calls sorted", "gptq", quantisation(desc_act=False), False),
    ("another packed shape", "packed", put(f"{UP}.weight_shape", torch.tensor([64, 64])), True),
    ("a packed shape of no words", "packed", put(f"{UP}.weight_shape", torch.tensor([9, 32])), True),
    # config.json
    ("no config", "plain", absent("config.json"), True),
    ("config is no JSON", "plain", content("config.json", "{"), True),
    ("a config key known to change the computation", "plain", settings(attn_logit_softcapping=30.0), True),
    ("unknown family", "plain", settings(model_type="qwen9_vl"), True),
    ("another width", "plain", settings(hidden_size=64), True),
    ("more layers", "plain", settings(num_hidden_layers=3), True),
    ("queries that are no square", "first", tower(n_queries=15), True),
    ("patches larger than the image", "first", tower(image_size=8), True),
    ("an adapter of half a head", "first", tower(output_dim=192), True),
    ("a dtype that no network has", "plain", settings(torch_dtype="float64"), True),
    ("end token of letters", "plain", settings(eos_token_id="end"), True),
    *((f"{key} of a word", "plain", settings(**{key: 5}), True) for key in IDS),
    # tokenizer, processor, template, generation
    ("no tokenizer", "plain", absent("tokenizer.json"), True),
    ("tokenizer is no JSON", "plain", content("tokenizer.json", "{"), True),
    ("tokenizer of nothing", "plain", content("tokenizer.json", "{}"), True),
    ("tokenizer with an odd decoder", "plain", settings("tokenizer.json", decoder={"type": "WordPiece"}), True),
    ("tokenizer without special tokens", "plain", settings("tokenizer.json", added_tokens=[]), True),
    ("no vocabulary of the first generation", "first", absent("qwen.tiktoken"), True),
    ("broken vocabulary of the first generation", "first", content("qwen.tiktoken", "!!! x"), True),
    ("no template", "plain", absent("chat_template.jinja"), False),
    ("template of another language", "plain", content("chat_template.jinja", "{% for"), True),
    ("tokenizer settings are no JSON", "plain", content("tokenizer_config.json", "{"), False),
    ("no processor", "plain", absent("preprocessor_config.json"), False),
    ("processor is no JSON", "plain", content("preprocessor_config.json", "{"), True),
    ("a processor key that changes pixels", "plain", settings("preprocessor_config.json", do_center_crop=True), True),
    ("a processor that crops", "plain", settings("preprocessor_config.json", do_center_crop=True), True),
    ("a processor that doesn't rescale", "plain", settings("preprocessor_config.json", do_rescale=False), True),
    ("a processor for another tower", "plain", settings("preprocessor_config.json", patch_size=16), True),
    ("limits that no image meets", "plain", settings("preprocessor_config.json", min_pixels=9, max_pixels=8), True),
    ("mean of two colours", "plain", settings("preprocessor_config.json", image_mean=[0.5, 0.5]), True),
    ("video processor with another mean", "plain", content(VIDEO, '{"image_mean": [0, 0, 0]}'), True),
    ("no generation settings", "plain", absent("generation_config.json"), False),
    ("generation settings are no JSON", "plain", content("generation_config.json", "{"), True),
    ("generation settings in a list", "plain", content("generation_config.json", "[]"), True),
    ("a temperature below zero", "plain", settings("generation_config.json", do_sample=True, temperature=-1), True),
    ("top_p in letters", "plain", settings("generation_config.json", top_p="high"), True),
    ("an end token of letters", "plain", settings("generation_config.json", eos_token_id="end"), True),
    ("an unknown generation key", "plain", settings("generation_config.json", dola_layers="high"), False),
    ("an unknown chat format", "first", content("generation_config.json", '{"chat_format": "poem"}'), True),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", *KINDS, "shards", "first", "moe", "experts"])
def test_a_folder_without_a_fault_loads_and_passes(kind: str, sound: dict[str, Path]) -> None:
    qvl.load(sound[kind])
    assert [f for f in check(sound[kind]).findings if f.level == "error"] == []


@pytest.mark.parametrize(("kind", "plant", "refused"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_what_loading_refuses_check_reports(
    kind: str, plant: Change, refused: bool, sound: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(sound[kind], tmp_path / "faulty")
    plant(folder)
    try:
        qvl.load(folder)
        loads = True
    except QvlError:
        loads = False
    assert loads is not refused
    try:
        report = check(folder)
    except CheckpointError:  # neither a checkpoint nor an adapter
        return
    if refused:
        assert report.failed or report.summary == "an adapter without its base model", report


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (
            lfs_pointer("model.safetensors"),
            "model.safetensors: is a Git LFS pointer and not the file itself; run `git lfs",
        ),
        (lfs_pointer("tokenizer.json"), "tokenizer.json: is a Git LFS pointer"),
        (lfs_pointer("config.json"), "config.json: is a Git LFS pointer"),
        (mlx, "in the layout of MLX"),
        (settings(quantization={"group_size": 64, "bits": 4}), "quantised by MLX"),
    ],
)
def test_files_that_only_look_damaged_are_named(
    plant: Change, words: str, sound: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(sound["plain"], tmp_path / "faulty")
    plant(folder)
    with pytest.raises(QvlError) as raised:
        qvl.load(folder)
    assert words in str(raised.value)
    assert any(words in f.what for f in check(folder).findings)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (optimizer, "not read: optimizer.safetensors"),
        (stale_index_beside, "not read: model.safetensors.index.json, as model.safetensors is whole"),
        (another_shard, "not read: old.safetensors"),
    ],
)
def test_what_lies_beside_a_model_is_passed_over_and_named(
    plant: Change, words: str, sound: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(sound["plain"], tmp_path / "more")
    plant(folder)
    answer = qvl.load(folder).ask([], "hi", max_new_tokens=2).text
    assert answer == qvl.load(sound["plain"]).ask([], "hi", max_new_tokens=2).text
    assert sum(words in r.getMessage() for r in caplog.records) == 1
    assert any(words in f.what and f.level == "note" for f in check(folder).findings)
