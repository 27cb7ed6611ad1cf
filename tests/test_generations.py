"""A generation is one record: an invented one runs everywhere, and an unknown one is refused in one place."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import qvl
from conftest import TOKEN_ID, VOCAB_SIZE
from invented_generation import NOVA
from qvl.catalog import generations
from qvl.catalog.config import config_dict, read_config, tensor_table
from qvl.catalog.devices import parse_hardware
from qvl.checkpoint.check import check
from qvl.errors import ConfigError, GenerationError, OutputError
from qvl.geometry import Size
from qvl.models import build
from qvl.models.base import initialize
from qvl.models.checkpoint import save_model
from qvl.outputs.boxes import parse_boxes, write_boxes
from qvl.outputs.mapping import picture_map
from qvl.plan.fit import fit
from qvl.plan.parameters import parameter_counts
from qvl.plan.request import FitRequest
from qvl.plan.workload import Image as PlannedImage
from qvl.plan.workload import Video, Workload, media_of
from qvl.tasks.open import open_backend
from qvl.tasks.prompts import task_prompt
from serve_live import asking, live, picture

CONFIG = {
    "model_type": "nova",
    "words": dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=VOCAB_SIZE, max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1e4,
        mrope_section=[2, 1, 1],
    ),
    "eyes": dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, patch_size=10,
    ),
    "marks": [
        TOKEN_ID["<|image_pad|>"], TOKEN_ID["<|video_pad|>"], TOKEN_ID["<|vision_start|>"],
        TOKEN_ID["<|vision_end|>"], [TOKEN_ID["<|im_end|>"]],
    ],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def nova():
    generations.register(NOVA)
    yield NOVA
    del generations.GENERATIONS[NOVA.name]


@pytest.fixture(scope="module")
def folder(nova, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of it: the tokenizer of the tiny one, and neither template nor preprocessor."""
    folder = tmp_path_factory.mktemp("hub") / "Nova-VL-tiny"
    model = build(read_config(CONFIG))
    initialize(model, std=0.3, generator=torch.Generator().manual_seed(1))
    save_model(model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tiny_checkpoint / name, folder / name)
    return folder


def test_its_config_comes_back_as_it_was_written():
    config = read_config(CONFIG)
    assert (config.generation, config.family) == (NOVA, "nova_vl")
    assert read_config(config_dict(config)) == config


def test_its_files_have_its_names_and_pass_the_check(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"net.eyes.units.1.wide.weight", "net.words.layers.0.mlp.up_proj.weight"} <= names
    assert not [f for f in check(folder).findings if f.level == "error"]


def test_the_plan_counts_its_own_tensors_and_tokens():
    config = read_config(CONFIG)
    counts = parameter_counts(config)
    assert counts.total == sum(p.numel() for p in build(config).parameters())
    assert counts.merger == 64 * 32 + 32
    work = Workload(images=(PlannedImage(width=200, height=100),), prompt_tokens=10)
    assert media_of(config, work).visual_tokens == 10 * 5  # 20 pixels a token: in no real generation
    assert media_of(config, Workload(images=(PlannedImage(2000, 2000),))).visual_tokens == 49
    assert media_of(config, Workload(videos=(Video(2.0),))).visual_tokens == 12
    found = fit(FitRequest(config=config, workload=work, hardware=parse_hardware("rtx4090")))
    assert found.fits
    assert found.setup.media.visual_tokens == 50


@pytest.mark.parametrize("weights", [None, "int8"])
def test_it_answers(folder, weights):
    model = qvl.load(folder, **({"weights": weights} if weights else {}))
    assert model.family == "nova_vl"
    answer = model.ask([picture_of(200, 100)], "What is it?", max_new_tokens=6)
    assert answer.completion_tokens > 0
    assert answer.visual_tokens == 50
    assert model.backend.processor.template.where == "the template of Nova-VL"
    limits = model.limits
    assert (limits.patch_size, limits.max_pixels) == (10, 20_000)


def test_its_boxes_are_asked_for_and_read_its_own_way(folder):
    assert task_prompt("boxes", NOVA, "Find the dog.").question == "Find the dog. Say where, in parts of 512."
    assert task_prompt("document", NOVA, "").question == "<write/>"
    where = picture_map(Size(100, 200), NOVA)
    (box,) = parse_boxes('[{"bbox_2d": [0, 0, 256, 512], "label": "dog"}]', NOVA, where).items
    assert tuple(box.rect) == (0, 0, 100, 100)
    assert '"bbox_2d": [0, 0, 256, 512]' in write_boxes([("dog", box.rect)], "nova_vl", where)
    found = qvl.load(folder).boxes(picture_of(200, 100), "Find the dog.", max_new_tokens=4)
    assert found.answer.completion_tokens > 0


def test_a_served_one_is_recognised_by_what_it_lists(folder):
    with live(qvl.load(folder), model_name="mine") as server:
        reply = server.post(model="mine", messages=asking("What?", picture()), max_tokens=4)
        assert reply.status_code == 200
        assert server.get("/v1/models").json()["data"][0]["family"] == "nova_vl"
        with open_backend("mine", endpoint=server.url) as client:
            assert client.generation is NOVA
            answer = client.ask([picture_of(200, 100)], "What?", max_new_tokens=4)
            assert answer.visual_tokens == 50
        parsed = server.post(
            model="mine", messages=asking("Where?", picture()), max_tokens=4, qvl_parse="boxes"
        )
        assert parsed.status_code == 200
    assert generations.of_served_name("someone/Nova-VL-7B-Chat") is NOVA


def picture_of(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "green")


# ------------------------------------------------------------------------------------------ unknown ones

UNKNOWN = r"'qwen9_vl' is not known; (known:|did you mean|\d+ are known).*needs a newer qvl"


@pytest.fixture(scope="module")
def unknown(folder, tmp_path_factory) -> Path:
    """The invented checkpoint, its config renamed."""
    renamed = tmp_path_factory.mktemp("unknown") / "model"
    shutil.copytree(folder, renamed)
    raw = json.loads((renamed / "config.json").read_text())
    (renamed / "config.json").write_text(json.dumps({**raw, "model_type": "qwen9_vl"}))
    return renamed


def _doors() -> dict[str, Callable[[Path], Any]]:
    from qvl.checkpoint.checkpoint import open_checkpoint
    from qvl.inputs.processor import Processor
    from qvl.models.checkpoint import load_model

    return {
        "read_config": read_config,
        "open_checkpoint": lambda folder: open_checkpoint(folder).config,
        "Processor": Processor.from_pretrained,
        "load_model": load_model,
        "load": qvl.load,
        "quantised": lambda folder: qvl.load(folder, weights="int4"),
    }


@pytest.mark.parametrize(
    "door", ["read_config", "open_checkpoint", "Processor", "load_model", "load", "quantised"]
)
def test_a_checkpoint_of_an_unknown_model_type_is_refused_at_every_door(unknown, door):
    with pytest.raises(GenerationError, match="model_type " + UNKNOWN):
        _doors()[door](unknown)


@pytest.mark.parametrize(
    "words", [["fit", "--config", "{}"], ["check", "{}"], ["ask", "--model", "{}", "What?"]], ids=" ".join
)
def test_every_verb_refuses_it_with_the_same_words(unknown, words, capsys):
    from qvl.cli.main import main

    assert main([word.format(unknown) for word in words]) != 0
    said = capsys.readouterr()
    assert re.search("model_type " + UNKNOWN, " ".join((said.out + said.err).split()))


def _asked_by_name() -> dict[str, Callable[[str], Any]]:
    from qvl.backends.endpoint import model_studio_limits
    from qvl.backends.fake import FakeModel
    from qvl.backends.media import image_size
    from qvl.outputs.actions import parse_actions, screen_convention
    from qvl.outputs.documents import parse_document
    from qvl.outputs.mapping import seen_size
    from qvl.tasks.prompts import tool_system_prompt

    size = Size(100, 200)
    where = picture_map(size, NOVA)
    return {
        "parse_boxes": lambda name: parse_boxes("", name, where),
        "write_boxes": lambda name: write_boxes([], name, where),
        "parse_document": lambda name: parse_document("", name, where),
        "parse_actions": lambda name: parse_actions("", name, where),
        "screen_convention": lambda name: screen_convention(name, "mobile_use"),
        "seen_size": lambda name: seen_size(size, name),
        "picture_map": lambda name: picture_map(size, name),
        "task_prompt": lambda name: task_prompt("boxes", name, "Find it."),
        "tool_system_prompt": lambda name: tool_system_prompt(name, "computer_use", size),
        "image_size": lambda name: image_size(size, name, None),
        "model_studio_limits": lambda name: model_studio_limits("x", name, False),
        "FakeModel": lambda name: FakeModel(family=name),
        "open_backend": lambda name: open_backend("x", endpoint="http://127.0.0.1:9", family=name),
        "by_name": generations.by_name,
    }


@pytest.mark.parametrize("function", [
    "parse_boxes", "write_boxes", "parse_document", "parse_actions", "screen_convention", "seen_size", "picture_map",
    "task_prompt", "tool_system_prompt", "image_size", "model_studio_limits", "FakeModel", "open_backend", "by_name",
])  # fmt: skip
def test_whoever_takes_a_name_refuses_an_unknown_one_with_the_same_words(function):
    with pytest.raises(GenerationError, match="generation " + UNKNOWN):
        _asked_by_name()[function]("qwen9_vl")


def test_a_refusal_is_an_output_error_and_a_config_error_as_before():
    assert issubclass(GenerationError, OutputError)
    assert issubclass(GenerationError, ConfigError)


def test_a_name_or_model_type_can_be_registered_once():
    for taken in (replace(NOVA, name="other"), replace(NOVA, model_types=("qwen2_vl",))):
        with pytest.raises(GenerationError, match="already"):
            generations.register(taken)


def test_every_record_has_a_network_and_a_table():
    for generation in generations.GENERATIONS.values():
        module, name = generation.network.split(":")
        assert re.fullmatch(r"[\w.]+", module)
        assert name.isidentifier()
    config = read_config(CONFIG)
    assert set(tensor_table(config).shapes) == {name for name, _ in build(config).named_parameters()}


def test_generations_are_named_in_few_files():
    """Their own five files, and room for a few more; 28 named them before there were records."""
    source = Path(qvl.__file__).parent
    real = [name for name in generations.names() if name != NOVA.name]
    literal = re.compile("[\"'](" + "|".join(real) + ")[\"']")
    named = [str(p.relative_to(source)) for p in source.rglob("*.py") if literal.search(p.read_text("utf-8"))]
    assert len(named) <= 12, named
