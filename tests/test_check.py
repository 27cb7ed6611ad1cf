"""qvl check: sound checkpoints pass, and each planted failure is found under its rule with a fix that says what to do.

The ten failures that users report (quantised models that won't split, won't load or answer wrongly, features that
don't match tokens, adapters that are ignored) come first.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import quantized_writers as writers
import qwen_vl_small
from hub_configs import hub_config
from qvl.catalog.config import config_dict, read_config, tensor_table
from qvl.catalog.generations.qwen_vl import QWEN_VL
from qvl.catalog.models import config_of
from qvl.checkpoint.check import Report, check
from qvl.checkpoint.check.finding import Finding
from qvl.checkpoint.check.splits import findings as split_findings
from qvl.checkpoint.check.values import findings as value_findings
from qvl.checkpoint.check.weights import tensor_findings
from qvl.checkpoint.checkpoint import Checkpoint
from qvl.checkpoint.names import to_nested, to_published
from qvl.checkpoint.pickled_files import read_pickled_file
from qvl.checkpoint.quantization import read_quantization
from qvl.checkpoint.stored import StoredWeights
from qvl.checkpoint.weight_files import StoredTensor, read_weight_file
from qvl.cli.main import main
from qvl.errors import CheckpointError

SPARED = ["lm_head", "visual"]
ITEM = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "I8": 1, "F8_E4M3": 1}


@pytest.fixture
def plain(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "plain")


def quantise(plain: Path, kind: str = "awq", **options: Any) -> Path:
    """A quantised copy with groups of 16."""
    makers: dict[str, tuple[Any, dict[str, Any]]] = {
        "awq": (lambda w: writers.awq(w, 16), writers.awq_config(16)),
        "gptq": (lambda w: writers.gptq(w, 4, 16), writers.gptq_config(4, 16)),
        "gptq8": (lambda w: writers.gptq(w, 8, 16), writers.gptq_config(8, 16)),
        "packed": (
            lambda w: writers.packed(w, 4, 16),
            writers.compressed_config("pack-quantized", writers.int_weights(4, 16)),
        ),
        "w8a8": (
            writers.int8,
            writers.compressed_config("int-quantized", writers.int_weights(8, None), writers.INT8_TOKENS),
        ),
        "fp8": (lambda w: writers.fp8(w, (8, 16)), writers.fp8_config((8, 16), modules_to_not_convert=SPARED)),
    }  # fmt: skip
    make, config = makers[kind]
    folder = plain.parent / kind
    writers.write(plain, folder, make, config | options.pop("config", {}), **options)
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def write_headers(
    folder: Path,
    config: dict[str, Any],
    dtype: str = "BF16",
    rename: Callable[[str], str] | None = None,
) -> Path:
    """A checkpoint of any size whose tensors are one hole in a sparse file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    read = read_config(folder)
    table, quantization = tensor_table(read), read_quantization(read.quantization)
    entries: dict[str, tuple[str, tuple[int, ...]]] = {n: (dtype, shape) for n, shape in table.shapes.items()}
    for name, (out, inn) in table.linears.items():
        scheme = quantization.scheme_of(name) if quantization else None
        if scheme is not None:
            del entries[f"{name}.weight"]
            parts = scheme.parts(out, inn).items()
            entries |= {f"{name}.{part}": (spec.dtypes[0], spec.shape) for part, spec in parts}
    header: dict[str, Any] = {}
    end = 0
    for name, (kind, shape) in entries.items():
        start, end = end, end + ITEM[kind] * int(torch.Size(shape).numel())
        stored = rename(name) if rename else to_nested(name) if read.family.startswith("qwen3") else name
        header[stored] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + end)
    return folder


def only(report: Report, rule: str) -> Finding:
    found = [f for f in report.findings if f.rule == rule]
    assert len(found) == 1, [f"{f.level} {f.rule}: {f.what}" for f in report.findings]
    return found[0]


def rules(report: Report, *levels: str) -> set[str]:
    return {f.rule for f in report.findings if not levels or f.level in levels}


# --- sound checkpoints


def test_a_sound_checkpoint_has_neither_errors_nor_warnings(plain: Path) -> None:
    report = check(plain)
    assert rules(report, "error", "warning") == set()
    assert not report.failed
    assert report.summary == "qwen2_5_vl, 57 tensors in 1 file, float32"


@pytest.mark.parametrize("kind", ["awq", "gptq", "gptq8", "packed", "w8a8", "fp8"])
def test_a_sound_quantised_checkpoint_has_no_errors(kind: str, plain: Path) -> None:
    report = check(quantise(plain, kind))
    assert rules(report, "error", "warning") <= {"split"}, report.findings


def test_the_embedded_model_is_sound() -> None:
    import qvl

    assert not rules(check(Path(qvl.__file__).parent / "mini"), "error", "warning")


@pytest.mark.parametrize(
    "name", ["Qwen3-VL-8B-Instruct", "Qwen3-VL-30B-A3B-Instruct", "Qwen2-VL-7B-Instruct"]
)
def test_headers_of_published_shapes_pass_under_their_published_names(name: str, tmp_path: Path) -> None:
    report = check(write_headers(tmp_path / "big", config_dict(config_of(name))))
    assert rules(report, "error") <= {"tokenizer"}
    assert "layout-new" not in rules(report)
    assert "layout-old" not in rules(report)


def test_keys_of_config_json_that_are_not_known_are_noted(plain: Path) -> None:
    edit_json(plain / "config.json", lambda c: c.update(unsloth_version="2025.11.1"))
    found = only(check(plain), "config-unread")
    assert found.level == "note"
    assert "unsloth_version" in found.what


def test_generation_settings_that_are_not_honoured_are_noted(plain: Path) -> None:
    settings = plain / "generation_config.json"
    if not settings.is_file():
        settings.write_text("{}")
    edit_json(settings, lambda c: c.update(dola_layers="high", num_beams=4))
    found = only(check(plain), "generation-unread")
    assert found.level == "note"
    assert "dola_layers='high', num_beams=4" in found.what


def test_the_processor_file_of_transformers_5_is_examined(plain: Path) -> None:
    part = json.loads((plain / "preprocessor_config.json").read_text())
    (plain / "preprocessor_config.json").unlink()
    assert only(check(plain), "processor-missing").level == "warning"
    joint = {"image_processor": part | {"trainers_key": 1}}
    (plain / "processor_config.json").write_text(json.dumps(joint))
    report = check(plain)
    assert rules(report, "error", "warning") == set()
    assert "trainers_key" in only(report, "processor-unread").what
    edit_json(plain / "processor_config.json", lambda c: c["image_processor"].update(patch_size=16))
    assert only(check(plain), "processor-patch").level == "error"


# --- the ten reported failures


def big_awq(tmp_path: Path, **changes: Any) -> Path:
    config = hub_config("Qwen2.5-VL-72B") | {"quantization_config": writers.awq_config(**changes)}
    return write_headers(tmp_path / "72b", config | {"torch_dtype": "float16"}, "F16")


@pytest.mark.parametrize("size", [2, 4, 8])
def test_1_a_72b_in_groups_of_128_can_not_be_split_and_the_padded_size_is_given(
    size: int, tmp_path: Path
) -> None:
    found = only(check(big_awq(tmp_path), size), "split")
    assert found.level == "error"
    assert f"down_proj's 29568 are 231 groups of 128, which {size} doesn't divide" in found.what
    assert "pad intermediate_size to 29696 before quantising" in found.fix


def test_1_the_same_in_groups_of_64_can_be_split_in_two(tmp_path: Path) -> None:
    assert "split" not in rules(check(big_awq(tmp_path, group_size=64), 2))


@pytest.mark.parametrize(("size", "legal"), [(2, True), (4, False), (8, False)])
def test_2_narrow_fp8_experts_can_not_be_split_in_four(size: int, legal: bool, tmp_path: Path) -> None:
    config = config_dict(config_of("Qwen3-VL-30B-A3B-Instruct"))
    ignored = ["lm_head", "visual", "mlp.gate"]
    config["quantization_config"] = writers.fp8_config(modules_to_not_convert=ignored)
    report = check(write_headers(tmp_path / "moe", config), size)
    if legal:
        assert "split" not in rules(report)
        return
    found = only(report, "split")
    assert "768 are 6 blocks of 128" in found.what
    assert "deal experts whole (--enable-expert-parallel)" in found.fix


@pytest.mark.parametrize(
    ("model", "group_size", "fixes"),
    [
        (
            "Qwen3.5-35B-A3B",
            128,
            ["or pad moe_intermediate_size to 1024", "pad shared_expert_intermediate_size to 1024"],
        ),
        (
            "Qwen2.5-VL-3B-Instruct",
            1024,
            ["quantise again without o_proj, or in smaller groups", "pad intermediate_size to 16384"],
        ),
    ],
)
def test_1_each_kind_of_layer_that_does_not_split_has_a_fix_of_its_own(
    model: str, group_size: int, fixes: list[str], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.config = config_of(model)
    checkpoint.quantization = read_quantization(writers.awq_config(group_size))
    (found,) = split_findings(checkpoint, 8)
    assert all(fix in found.fix for fix in fixes), found.fix


@pytest.mark.parametrize("kind", ["awq", "gptq", "packed", "fp8"])
def test_3_names_of_the_new_layout_are_told_with_the_verb_that_renames(kind: str, plain: Path) -> None:
    found = only(check(quantise(plain, kind, rename=to_nested)), "layout-new")
    assert found.level == "warning"
    assert "from 4.52 on" in found.what
    assert "visual." in found.what
    assert found.fix == "qvl convert SOURCE TARGET --layout old"


def test_4_an_ignore_expression_in_the_other_spelling_is_an_error_with_one_that_fits_both(
    plain: Path,
) -> None:
    folder = quantise(plain, "packed", rename=to_nested, config={"ignore": ["lm_head", "re:visual.*"]})
    found = only(check(folder), "ignore-spelling")
    assert found.level == "error"
    assert "'re:visual.*', but the files say model.visual.blocks.0.attn.proj" in found.what
    assert "'re:.*visual.*'" in found.fix
    edit_json(
        folder / "config.json", lambda c: c["quantization_config"].update(ignore=["lm_head", "re:.*visual.*"])
    )
    assert "ignore-spelling" not in rules(check(folder))


def test_4_whole_module_names_in_the_other_spelling_too(plain: Path) -> None:
    names = ["lm_head", *(f"model.visual.blocks.{i}.attn.qkv" for i in range(2))]
    folder = quantise(plain, "packed", config={"ignore": [*names, "re:.*visual.*"]})
    found = [f for f in check(folder).findings if f.rule == "ignore-spelling"]
    assert len(found) == 2
    assert r"'re:.*visual\\.blocks\\.0\\.attn\\.qkv$'" in found[0].fix


def test_5_a_plain_tower_that_is_not_excepted_is_an_error(plain: Path) -> None:
    found = only(check(quantise(plain, "packed", config={"ignore": ["lm_head"]})), "not-ignored")
    assert found.level == "error"
    assert "layers are stored plain" in found.what
    assert 'add "re:.*visual.*" to ignore' in found.fix


def test_5_a_tower_in_groups_that_do_not_fit_is_an_error(tmp_path: Path) -> None:
    quantization = writers.compressed_config(
        "pack-quantized", writers.int_weights(4, 128), ignore=["lm_head"]
    )
    config = hub_config("Qwen2.5-VL-3B") | {"quantization_config": quantization}
    found = only(check(write_headers(tmp_path / "3b", config)), "group-misfit")
    assert "3420 inputs are no whole groups of 128" in found.what
    assert "leave the tower out" in found.fix


@pytest.mark.parametrize(("kind", "word"), [("gptq", "0x77777777"), ("gptq8", "0x7f7f7f7f")])
def test_6_zero_points_of_the_other_format_are_an_error(kind: str, word: str, plain: Path) -> None:
    folder = quantise(plain, kind, config={"checkpoint_format": "gptq_v2"})
    found = only(check(folder), "zero-points")
    assert found.level == "error"
    assert f"holds {word}, the zeros of gptq; config.json says gptq_v2" in found.what
    assert found.fix == 'set "checkpoint_format": "gptq" in quantization_config'


def test_6_zero_points_that_differ_in_a_symmetric_checkpoint_are_told(plain: Path) -> None:
    folder = plain.parent / "asymmetric"
    writers.write(
        plain, folder, lambda w: writers.gptq(w, 4, 16, symmetric=False), writers.gptq_config(4, 16)
    )
    found = only(check(folder), "zero-points")
    assert (found.level, found.fix[:12]) == ("warning", 'set "sym": f')


def test_6_missing_zero_points_are_named(plain: Path) -> None:
    folder = quantise(plain, "awq")
    edit_tensors(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.qzeros"))
    found = only(check(folder), "tensors-missing")
    assert "1 tensors are missing: model.layers.1.mlp.up_proj.qzeros" in found.what
    assert found.fix.startswith("fetch the checkpoint again")


def test_act_order_is_told(plain: Path) -> None:
    assert "act-order" not in rules(check(quantise(plain, "gptq")))
    shutil.rmtree(plain.parent / "gptq")
    found = only(check(quantise(plain, "gptq", config={"desc_act": True})), "act-order")
    assert (found.level, "vLLM 0.32 refuses it" in found.what) == ("warning", True)


@pytest.mark.parametrize("kind", ["awq", "gptq"])
def test_7_bfloat16_under_float16_kernels_is_told(kind: str, plain: Path) -> None:
    folder = quantise(plain, kind)
    edit_json(folder / "config.json", lambda c: c.update(torch_dtype="bfloat16"))
    found = only(check(folder), "dtype-half")
    assert "config.json says bfloat16" in found.what
    assert "--dtype float16" in found.fix
    edit_json(folder / "config.json", lambda c: c.update(torch_dtype="float16"))
    edit_tensors(folder, lambda t: t.update({n: x.bfloat16() for n, x in t.items() if n.endswith(".scales")}))
    found = only(check(folder), "dtype-half")
    assert ("scales are BF16" in found.what, "save the scales as float16" in found.fix) == (True, True)


def test_8_half_of_a_merged_matrix_quantised_is_an_error(plain: Path) -> None:
    folder = plain.parent / "halves"
    writers.write(
        plain, folder, lambda w: writers.awq(w, 16),
        writers.awq_config(16, modules_to_not_convert=["visual", "k_proj"]),
        covers=lambda m: bool(writers.DECODER_LINEAR.match(m)) and not m.endswith("k_proj"),
    )  # fmt: skip
    found = only(check(folder), "fused-halves")
    assert "model.layers.0.self_attn: q_proj, v_proj of q_proj, k_proj, v_proj" in found.what
    assert found.level == "error"
    assert found.fix.startswith("quantise all of them or none")


def test_8_a_leftover_quantization_config_is_an_error(plain: Path) -> None:
    edit_json(plain / "config.json", lambda c: c.update(quantization_config=writers.gptq_config()))
    report = check(plain)
    assert "delete quantization_config" in only(report, "quantization-leftover").fix
    assert rules(report, "error") == {"quantization-leftover"}


def test_8_quantised_tensors_without_a_config_are_an_error(plain: Path) -> None:
    folder = quantise(plain, "awq")
    edit_json(folder / "config.json", lambda c: c.pop("quantization_config"))
    found = only(check(folder), "quantization-missing")
    assert "14 layers are stored quantised" in found.what
    assert "quantize_config.json" in found.fix


def test_9_an_image_token_that_is_another_in_the_tokenizer_is_an_error_with_the_right_id(plain: Path) -> None:
    right = json.loads((plain / "config.json").read_text())["image_token_id"]
    edit_json(plain / "config.json", lambda c: c.update(image_token_id=right + 1))
    found = only(check(plain), "special-id")
    assert "image features and image tokens won't match" in found.what
    assert found.fix == f"set image_token_id to {right}"


def test_9_a_tokenizer_that_cuts_prompts_is_an_error(plain: Path) -> None:
    cut = {"direction": "Right", "max_length": 2048, "strategy": "LongestFirst", "stride": 0}
    edit_json(plain / "tokenizer.json", lambda t: t.update(truncation=cut))
    found = only(check(plain), "truncation")
    assert "at 2048 tokens" in found.what
    assert found.fix == 'set "truncation" to null in tokenizer.json'


def test_9_a_text_only_template_is_an_error(plain: Path) -> None:
    (plain / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% endfor %}<|im_start|>assistant\n"
    )
    found = [f for f in check(plain).findings if f.rule == "template-media"]
    assert ["0 <|image_pad|> for one image" in found[0].what, "0 <|video_pad|>" in found[1].what] == [
        True,
        True,
    ]
    assert all("copy the template from the original model" in f.fix for f in found)


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [("patch_size", 16, "set patch_size to 14"), ("merge_size", 1, "set merge_size to 2")],
)
def test_9_a_processor_for_another_tower_is_an_error(key: str, value: int, fix: str, plain: Path) -> None:
    edit_json(plain / "preprocessor_config.json", lambda c: c.update({key: value}))
    found = only(check(plain), "processor-patch")
    assert f"{key} is {value}, the tower's is" in found.what
    assert fix in found.fix


def adapter(folder: Path, *modules: str, **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "qkv"]} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {f"base_model.model.{m}.lora_{ab}.weight": torch.zeros(2, 2) for m in modules for ab in "AB"}
    save_file(tensors, folder / "adapter_model.safetensors")


def test_10_an_adapter_on_the_tower_is_told_to_be_merged(tmp_path: Path) -> None:
    text = "model.language_model.layers.0.self_attn.q_proj"
    adapter(tmp_path / "a", text, *(f"model.visual.blocks.{i}.attn.qkv" for i in range(3)))
    report = check(tmp_path / "a")
    found = only(report, "adapter-visual")
    assert (
        "changes 3 modules of the vision tower (visual.blocks.0.attn.qkv, visual.blocks.1.attn.qkv and 1 more)"
        in (found.what)
    )
    assert "merge_and_unload" in found.fix
    assert not report.failed


def test_10_an_adapter_on_the_text_alone_is_sound_beside_a_model_too(plain: Path) -> None:
    adapter(plain, "model.layers.0.self_attn.q_proj")
    assert rules(check(plain), "error", "warning") == set()


def plant(number: int, plain: Path, tmp_path: Path) -> tuple[Path, str, str]:
    """(a folder with the failure of this number, its rule, words of its fix)."""
    if number == 1:
        return big_awq(tmp_path), "split", "pad intermediate_size to 29696 before quantising"
    if number == 2:
        config = config_dict(config_of("Qwen3-VL-30B-A3B-Instruct"))
        config["quantization_config"] = writers.fp8_config(
            modules_to_not_convert=["lm_head", "visual", "mlp.gate"]
        )
        return (
            write_headers(tmp_path / "moe", config),
            "split",
            "deal experts whole (--enable-expert-parallel)",
        )
    if number == 3:
        renamed = quantise(plain, rename=to_nested)
        return renamed, "layout-new", "qvl convert SOURCE TARGET --layout old"
    if number == 4:
        config = {"ignore": ["lm_head", "re:visual.*"]}
        spelt = quantise(plain, "packed", rename=to_nested, config=config)
        return spelt, "ignore-spelling", "write 're:.*visual.*', which fits both layouts"
    if number == 5:
        unspared = quantise(plain, "packed", config={"ignore": ["lm_head"]})
        return unspared, "not-ignored", 'add "re:.*visual.*" to ignore in quantization_config'
    if number == 6:
        other = quantise(plain, "gptq", config={"checkpoint_format": "gptq_v2"})
        return other, "zero-points", 'set "checkpoint_format": "gptq" in quantization_config'
    if number == 7:
        folder = quantise(plain)
        edit_json(folder / "config.json", lambda c: c.update(torch_dtype="bfloat16"))
        return folder, "dtype-half", "serve with --dtype float16"
    if number == 8:
        edit_json(plain / "config.json", lambda c: c.update(quantization_config=writers.gptq_config()))
        return plain, "quantization-leftover", "delete quantization_config from config.json"
    if number == 9:
        right = json.loads((plain / "config.json").read_text())["image_token_id"]
        edit_json(plain / "config.json", lambda c: c.update(image_token_id=right + 1))
        return plain, "special-id", f"set image_token_id to {right}"
    adapter(tmp_path / "a", *(f"model.visual.blocks.{i}.attn.qkv" for i in range(3)))
    return tmp_path / "a", "adapter-visual", "merge it into its base model (peft's merge_and_unload"


@pytest.mark.parametrize("number", range(1, 11))
def test_the_verb_prints_the_fix_of_each_of_the_ten(
    number: int, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rule, fix = plant(number, plain, tmp_path)
    main(["check", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    fixes = [below for line, below in pairwise(lines) if line.split()[1] == f"{rule}:"]
    assert any(f.startswith("         fix: ") and fix in f for f in fixes), lines


# --- what else is found


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), "tensors-missing", "model.norm.weight"),
        (lambda t: t.update(x=torch.ones(1)), "tensors-extra", "1 tensors belong to no module: x"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(31)}),
            "shapes",
            "model.norm.weight [31], should be [32]",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            "dtypes",
            "model.norm.weight I8",
        ),
        (lambda t: t.pop("lm_head.weight"), "head-missing", "tie_word_embeddings is false"),
        (
            lambda t: t.update({"model.visual.merger.ln_q.bias": torch.ones(1)}),
            "layout-mixed",
            "1 new ones",
        ),
        (
            lambda t: t.update({f"base_model.model.{n}": t.pop(n) for n in list(t)}),
            "wrapped-names",
            'begin with "base_model.model."',
        ),
    ],
)
def test_tensors_that_do_not_belong_are_errors(
    change: Callable[[dict[str, torch.Tensor]], Any], rule: str, words: str, plain: Path
) -> None:
    edit_tensors(plain, change)
    report = check(plain)
    assert words in only(report, rule).what
    assert only(report, rule).level == "error"


def test_a_stored_head_of_a_tied_model_is_a_note(plain: Path) -> None:
    edit_json(plain / "config.json", lambda c: c.update(tie_word_embeddings=True))
    report = check(plain)
    assert only(report, "head-tied").level == "note"
    assert not report.failed


def test_a_wrong_group_size_shows_as_shapes(plain: Path) -> None:
    folder = quantise(plain, "awq")
    edit_json(folder / "config.json", lambda c: c["quantization_config"].update(group_size=32))
    found = only(check(folder), "shapes")
    assert "qzeros [2, 4], should be [1, 4]" in found.what
    assert "group_size" in found.fix


def test_layers_that_the_config_leaves_out_but_the_file_quantises_are_an_error(plain: Path) -> None:
    folder = quantise(plain, "awq", config={"modules_to_not_convert": ["visual", "layers.1"]})
    found = only(check(folder), "ignored-but-quantised")
    assert "7 layers are stored quantised" in found.what


def test_bitsandbytes_is_refused_with_the_reason(plain: Path) -> None:
    edit_json(plain / "config.json", lambda c: c.update(quantization_config={"quant_method": "bitsandbytes"}))
    assert "no layout of them is published" in only(check(plain), "quantization-unreadable").what


def test_shards_missing_damaged_and_stale_are_errors(plain: Path) -> None:
    tensors = load_file(plain / "model.safetensors")
    (plain / "model.safetensors").unlink()
    halves = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
    files = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2)]
    for half, file in zip(halves, files):
        save_file(half, plain / file)
    weight_map = {n: f for half, f in zip(halves, files) for n in half}
    index = plain / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert not check(plain).failed

    index.write_text(json.dumps({"weight_map": weight_map | {"x": "model-00003-of-00003.safetensors"}}))
    assert "model-00003-of-00003.safetensors" in only(check(plain), "shard-missing").what
    index.write_text(
        json.dumps({"weight_map": {n: f for n, f in weight_map.items() if n != "lm_head.weight"}})
    )
    assert "1 tensors are in a file but not in the index: lm_head.weight" in only(check(plain), "index").what
    index.write_text(json.dumps({"weight_map": weight_map}))
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, plain / "other.safetensors")
    found = only(check(plain), "passed-over")
    assert (found.level, "other.safetensors" in found.what) == ("note", True)
    (plain / "other.safetensors").unlink()
    whole = (plain / files[0]).read_bytes()
    (plain / files[0]).write_bytes(whole[:-8])
    assert f"ends at byte {len(whole)}, the file at {len(whole) - 8}".replace("ends", "tensors end") in (
        only(check(plain), "file-damaged").what
    )


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("tokenizer.json", "{}", "tokenizer"),
        ("chat_template.jinja", "{% for", "template"),
        ("chat_template.jinja", "{{ raise_exception('no') }}", "template"),
        ("preprocessor_config.json", "{", "processor"),
        ("preprocessor_config.json", '{"min_pixels": 9, "max_pixels": 8}', "limits"),
        ("generation_config.json", "[", "generation"),
        ("generation_config.json", '{"eos_token_id": 999999}', "generation"),
        ("config.json", "{}", "config"),
        ("model.safetensors", "", "file-damaged"),
    ],
)
def test_files_that_can_not_be_are_errors_and_never_a_traceback(
    file: str, content: str, rule: str, plain: Path
) -> None:
    (plain / file).write_text(content)
    assert only(check(plain), rule).level == "error"


@pytest.mark.parametrize(
    ("file", "rule"),
    [
        ("chat_template.jinja", "template-missing"),
        ("preprocessor_config.json", "processor-missing"),
        ("generation_config.json", "generation-missing"),
        ("tokenizer.json", "tokenizer"),
        ("model.safetensors", "no-weights"),
    ],
)
def test_absent_files_are_told(file: str, rule: str, plain: Path) -> None:
    (plain / file).unlink()
    assert only(check(plain), rule).fix


def test_more_tokens_than_rows_are_an_error(plain: Path) -> None:
    edit_json(
        plain / "tokenizer.json",
        lambda t: t["added_tokens"].append(t["added_tokens"][0] | {"id": 400, "content": "<|new|>"}),
    )
    found = only(check(plain), "vocab")
    assert "401 tokens, the embedding table 320 rows" in found.what


def test_two_spellings_of_a_limit_that_differ_are_told(plain: Path) -> None:
    edit_json(
        plain / "preprocessor_config.json",
        lambda c: c.update(size={"shortest_edge": 3136, "longest_edge": 1003520}),
    )
    assert "max_pixels is 12845056, size.longest_edge 1003520" in only(check(plain), "limits-differ").what


def test_answers_that_end_at_different_tokens_are_told(plain: Path) -> None:
    edit_json(plain / "generation_config.json", lambda c: c.update(eos_token_id=[5]))
    assert only(check(plain), "generation-eos").level == "warning"


def test_heads_that_a_size_can_not_share_are_a_note_unless_that_size_is_asked_for(plain: Path) -> None:
    note = only(check(plain), "split")
    assert (note.level, note.what) == ("note", "8 GPUs can't share it: 4 attention heads do not divide by 8")
    assert note.fix == "cut over 1, 2, 4 GPUs"
    assert check(plain, 8).failed
    assert not check(plain, 4).failed


# --- headers


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        [],
    ],
)
def test_a_header_that_contradicts_itself_is_refused(entry: Any, tmp_path: Path) -> None:
    text = json.dumps({"x": entry}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match="perhaps cut short"):
        read_weight_file(tmp_path / "m.safetensors")


def test_headers_are_read_as_safetensors_reads_them(tiny_checkpoint: Path) -> None:
    from safetensors import safe_open

    path = tiny_checkpoint / "model.safetensors"
    ours = read_weight_file(path).tensors
    with safe_open(path, framework="pt") as theirs:
        assert ours.keys() == set(theirs.keys())
        for name, tensor in ours.items():
            part = theirs.get_slice(name)
            assert (tensor.dtype, tensor.shape) == (part.get_dtype(), tuple(part.get_shape()))
    whole = load_file(path)["lm_head.weight"].view(torch.int32).flatten()[:9].tolist()
    assert ours["lm_head.weight"].first_words(9) == [w & 0xFFFFFFFF for w in whole]


# --- the verb


def test_the_verb_prints_findings_with_fixes_and_exits_1(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_tensors(plain, lambda t: t.pop("model.norm.weight"))
    assert main(["check", str(plain)]) == 1
    out = capsys.readouterr().out
    assert "error    tensors-missing: 1 tensors are missing: model.norm.weight" in out
    assert "\n         fix: fetch the checkpoint again" in out
    assert out.rstrip().endswith("1 error, 1 note")


def test_the_verb_exits_0_on_a_sound_checkpoint_and_writes_json(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(plain), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["failed"], found["findings"][0]["rule"]) == (False, "split")
    assert main(["check", str(plain), "--tensor-parallel-size", "8", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failed"] is True


@pytest.mark.parametrize("arguments", [["nowhere"], ["."], ["nowhere", "--tensor-parallel-size", "0"]])
def test_the_verb_exits_2_when_there_is_nothing_to_check(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_checking_imports_no_torch(plain: Path) -> None:
    folder = quantise(plain, "gptq")
    program = (
        "import sys; from pathlib import Path; from qvl.checkpoint.check import check; "
        f"check(Path({str(folder)!r})); sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


# --- the first generation, published in torch's own files with names of its own


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_a_sound_first_generation_checkpoint_passes_in_both_forms(form: str, tmp_path: Path) -> None:
    qwen_vl_small.write_checkpoint(tmp_path / "a", form=form)
    report = check(tmp_path / "a")
    assert rules(report) == {"split"}, report.findings
    assert f"{len(qwen_vl_small.shapes(qwen_vl_small.tiny_config()))} tensors in" in report.summary


def test_a_torch_file_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    shared = torch.arange(24, dtype=torch.int32).view(4, 6)
    tensors = {
        "whole": shared, "rows": shared[1:3], "half": torch.ones(3, dtype=torch.bfloat16), "one": torch.tensor(1.5),
        "trained": torch.nn.Parameter(torch.zeros(2, 2)),
    }  # fmt: skip
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path)
    ours = read_pickled_file(path)
    assert {n: (t.dtype, t.shape) for n, t in ours.items()} == {
        "whole": ("I32", (4, 6)), "rows": ("I32", (2, 6)), "half": ("BF16", (3,)), "one": ("F32", ()),
        "trained": ("F32", (2, 2)),
    }  # fmt: skip
    assert ours["whole"].first_words(24) == list(range(24))
    assert ours["rows"].first_words(99) == list(range(6, 18))


class Strange:
    def __reduce__(self) -> Any:
        return print, ("run!",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"x": Strange()}, r"__builtin__\.print, which weights never need"),
        ({"x": 1}, "int among its tensors"),
        ([torch.ones(1)], "a list, not a dict"),
    ],
)
def test_a_torch_file_of_something_else_is_refused_and_nothing_of_it_is_run(
    content: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=reason):
        read_pickled_file(path)
    assert capsys.readouterr().out == ""


def test_a_torch_file_that_is_cut_short_is_refused_an_old_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="perhaps cut short"):
        read_pickled_file(path)
    torch.save({"x": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    assert read_pickled_file(path)["x"].shape == (100,)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="can't be read as pickled weights"):
        read_pickled_file(path)


def test_a_missing_shard_and_tensor_of_the_first_generation_are_told_by_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    weights = qwen_vl_small.random_weights(qwen_vl_small.tiny_config())
    del weights["transformer.h.1.mlp.w1.weight"], weights["transformer.visual.proj"]
    qwen_vl_small.write_checkpoint(folder, weights=weights)
    found = only(check(folder), "tensors-missing")
    assert "2 tensors are missing: " in found.what
    assert {"transformer.h.1.mlp.w1.weight", "transformer.visual.proj"} <= set(
        found.what.replace(",", "").split()
    )
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin, which isn't there" in only(check(folder), "shard-missing").what


def chat_int4(folder: Path, **changes: Any) -> Path:
    """Headers of Qwen-VL-Chat-Int4: five matrices a layer in codes, under the published names."""
    quantization = writers.gptq_config(4, 128, modules_to_not_convert=["transformer.visual", "lm_head"])
    config = {
        **qwen_vl_small.PUBLISHED,
        "torch_dtype": "float16",
        "quantization_config": quantization | changes,
    }
    write_headers(folder, config, "F16", lambda name: to_published(name, QWEN_VL))
    return folder


def test_splits_of_the_first_generation_are_told_by_its_own_names(tmp_path: Path) -> None:
    report = check(chat_int4(tmp_path / "int4"), 4)
    found = only(report, "split")
    assert "mlp.c_proj's 11008 are 86 groups of 128, which 4 doesn't divide" in found.what
    assert (
        "pad intermediate_size to 22528 before quantising" in found.fix
    )  # which counts w1 and w2: 2 x 11264
    assert "_proj's" not in found.what.replace("c_proj's", "")


def test_half_of_the_first_generation_s_merged_matrix_quantised_is_an_error(tmp_path: Path) -> None:
    folder = chat_int4(tmp_path / "int4", modules_to_not_convert=["transformer.visual", "lm_head", "w1"])
    found = only(check(folder), "fused-halves")
    assert "transformer.h.0.mlp: w2 of w2, w1" in found.what


def test_missing_tensors_of_a_nested_file_are_told_by_its_names(plain: Path) -> None:
    folder = quantise(plain, rename=to_nested)
    edit_tensors(folder, lambda t: t.pop("model.language_model.layers.1.mlp.up_proj.qzeros"))
    assert "1 tensors are missing: model.language_model.layers.1.mlp.up_proj.qzeros" in (
        only(check(folder), "tensors-missing").what
    )


def test_a_first_generation_file_is_compared_by_its_own_names(tmp_path: Path) -> None:
    config = config_of("Qwen-VL-Chat")
    names = [
        n.replace("model.", "transformer.", 1).replace("visual.", "transformer.visual.", 1)
        for n in tensor_table(config).shapes
    ]
    assert "transformer.h.0.attn.c_attn.weight" in names
    stored = StoredWeights(tmp_path)
    for name, (ours, shape) in zip(names, tensor_table(config).shapes.items()):
        stored.tensors[ours] = StoredTensor(tmp_path, name, "BF16", shape, 0, 0)

    def compared() -> list[Finding]:
        checkpoint = Checkpoint(tmp_path)
        checkpoint.config, checkpoint.stored = config, stored
        return list(tensor_findings(checkpoint))

    assert compared() == []
    del stored.tensors["model.h.3.mlp.w1.weight"]
    assert "model.h.3.mlp.w1.weight" in compared()[0].what


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_found_in_a_sample(plain, dtype, value):
    def spoil(tensors):
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)
        tensors["model.embed_tokens.weight"][7:200] = value

    edit_tensors(plain, spoil)
    finding = only(check(plain), "not-finite")
    assert finding.level == "error"
    assert "model.embed_tokens.weight" in finding.what


def test_a_matrix_of_zeros_is_found_and_a_bias_of_zeros_is_nothing(plain):
    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"].zero_()
        tensors["model.layers.0.self_attn.q_proj.bias"].zero_()

    edit_tensors(plain, spoil)
    finding = only(check(plain), "all-zero")
    assert finding.level == "warning"
    assert finding.what.endswith(": model.layers.1.mlp.up_proj.weight")
    assert not check(plain).failed


def test_the_sample_reaches_the_end_of_a_large_tensor(tmp_path):
    values = torch.ones(100_001, dtype=torch.float16)
    values[-1] = torch.inf
    save_file({"a.weight": values}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert [f.rule for f in value_findings(checkpoint)] == ["not-finite"]
