"""Files of a checkpoint written to hurt: each ends in a QvlError that names the file, soon and in little memory."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from qvl.catalog.config import read_config
from qvl.checkpoint.check import check
from qvl.checkpoint.checkpoint import Checkpoint
from qvl.checkpoint.quantization import check_pattern
from qvl.checkpoint.stored import read_stored
from qvl.checkpoint.weight_files import read_index, read_weight_file
from qvl.errors import CheckpointError, ConfigError, QvlError
from qvl.inputs.chat import ChatTemplate, read_messages
from qvl.inputs.tokenizer import Tokenizer

NAN, INF = float("nan"), float("inf")
DEEP = "[" * 500 + "]" * 500
DEEPER = "[" * 200_000 + "]" * 200_000


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("rope_theta", v) for v in (0, NAN, INF, -INF, 10**400)],
        *[("rms_norm_eps", v) for v in (NAN, INF, 1e300)],
        *[("num_hidden_layers", v) for v in (10**9, NAN, 10**400, 3000)],
        *[("hidden_size", v) for v in (NAN, INF, 10**18)],
        ("vocab_size", 10**30),
    ],
)
def test_a_number_that_no_model_has_is_named_with_its_file(folder, key, value):
    edit(folder / "config.json", **{key: value})
    with pytest.raises(ConfigError, match=rf"config\.json.*{key}"):
        read_config(folder)
    assert check(folder).failed


def test_a_tower_of_a_billion_blocks_is_refused(folder):
    path = folder / "config.json"
    vision = json.loads(path.read_text())["vision_config"]
    edit(path, vision_config=vision | {"depth": 10**9})
    with pytest.raises(ConfigError, match="depth"):
        read_config(folder)


FILES = [
    f"{name}.json"
    for name in "config tokenizer tokenizer_config preprocessor_config generation_config".split()
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [DEEP, DEEPER, "NaN", '{"a":' + DEEP + "}", "[1]", "\xff", "", "null", "9" * 5000]
)
def test_a_file_that_is_no_object_or_nested_without_end_is_an_error(folder, name, content):
    (folder / name).write_bytes(content.encode("latin-1"))
    report = check(folder)  # raises nothing
    # what only adds to a template is passed over with a warning
    assert report.failed or content == "null" or name == "tokenizer_config.json"


def test_a_settings_file_of_gigabytes_is_not_read(folder):
    with (folder / "config.json").open("ab") as f:
        f.truncate(1 << 34)  # takes no disk
    with pytest.raises(ConfigError, match=r"config\.json.*larger than"):
        read_config(folder)


@pytest.mark.parametrize(
    "token",
    [
        {"content": "", "id": 300}, {"content": None, "id": 300}, {"content": 5, "id": 300}, {"content": "a"},
        {"content": "a", "id": -1}, {"content": "a", "id": 1e9}, {"content": "a", "id": 10**20}, "a", None, [],
    ],
)  # fmt: skip
def test_an_added_token_that_cannot_be_is_named(folder, token):
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["added_tokens"].append(token)
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=r"tokenizer\.json: added token"):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "decoder", [[], "x", {"decoders": 5}, {"decoders": ["x"]}, {"decoders": [None]}, {"type": []}]
)
@pytest.mark.parametrize("merges", [None, [[1, 2]], [5], "ab", {"a": 1}])
def test_a_tokenizer_of_odd_parts_is_an_error(folder, decoder, merges):
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["decoder"] = decoder
    raw["model"]["merges"] = merges
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_pixels": 10**18}, {"min_pixels": -1}, {"max_pixels": NAN}, {"max_pixels": "many"}, {"max_pixels": []},
        {"size": {"longest_edge": 10**18, "shortest_edge": 1}}, {"image_mean": [NAN, 0, 0]}, {"image_std": [0, 1, 1]},
        {"image_mean": 5}, {"image_mean": ["a", "b", "c"]}, {"rescale_factor": "x"}, {"rescale_factor": NAN},
        {"image_std": [INF, 1, 1]},
    ],
)  # fmt: skip
def test_settings_of_images_that_cannot_be_are_named(folder, settings):
    edit(folder / "preprocessor_config.json", **settings)
    (key,) = settings
    with pytest.raises(ConfigError, match=rf"preprocessor_config\.json.*{key}"):
        assert Checkpoint(folder).processor


# templates


GROW = "{%% set n = namespace(x='aa') %%}{%% for i in range(60) %%}%s{%% endfor %%}"
LOOPS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(9999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "product": "{{ 'a' * 10**11 }}",
    "product of lists": "{{ ([0] * 10**11)|length }}",
    "doubling": GROW % "{% set n.x = n.x + n.x %}",
    "joining": GROW % "{% set n.x = n.x ~ n.x %}",
    "replacing": GROW % "{% set n.x = n.x|replace('a', n.x) %}",
    "replacing by method": GROW % "{% set n.x = n.x.replace('a', n.x) %}",
    "padding": "{{ 'a'|center(10**11) }}",
    "padding by method": "{{ 'a'.ljust(10**11) }}",
    "tabs": "{{ ('\t' * 1000).expandtabs(10**9) }}",
    "format": "{{ '%99999999999d' % 1 }}",
    "format by filter": "{{ '%99999999999d'|format(1) }}",
    "format by method": "{{ '{:99999999999}'.format(1) }}",
    "blocks": GROW % "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}",
    "powers": "{{ (9 ** 64) ** 64 ** 64 }}",
    "batches": "{{ [1]|batch(10**11, 'x')|list }}",
    "sorting": "{% for i in range(99999) %}{{ range(99999)|list|sort|length }}{% endfor %}",
    "indent": "{{ ('a\n' * 100000)|indent(10**7) }}",
}  # fmt: skip


@pytest.mark.parametrize("source", LOOPS.values(), ids=LOOPS)
def test_a_template_that_never_ends_or_fills_memory_is_stopped(source, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("qvl.inputs.sandbox.MOST_STEPS", 20_000)
    monkeypatch.setattr("qvl.inputs.sandbox.MOST_CHARS", 1_000_000)
    monkeypatch.setattr("qvl.inputs.sandbox.MOST_SECONDS", 2)
    messages, _ = read_messages([{"role": "user", "content": "hi"}])
    began = time.process_time()
    with pytest.raises(QvlError):
        ChatTemplate(source).render(messages, Tokenizer.from_pretrained(tiny_checkpoint))
    assert time.process_time() - began < 10


def test_bounds_leave_what_templates_do_as_it_is(tiny_checkpoint):
    source = (
        "{%- macro twice(t) -%}{{ t ~ t }}{%- endmacro -%}{% set n = namespace(x='') %}{% for m in messages -%}"
        "{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last }}{% set n.x = n.x + m.role[0] %}{% if loop.first %}"
        "{% continue %}{% endif %}{{ twice(m.content|upper|replace('B', 'C')) }}{{ '%s-%03d' % ('a', 7) }}"
        "{{ 'x'|center(5) }}{{ m.content.split('b')|join('+') ~ 3 ~ none }}{% endfor %}{{ n.x * 2 }}{{ 2 ** 10 }}"
    )
    messages, _ = read_messages([{"role": "user", "content": "a"}, {"role": "user", "content": "abc"}])
    parts = ChatTemplate(source).render(messages, Tokenizer.from_pretrained(tiny_checkpoint))
    assert "".join(text for text, _ in parts) == "1/22/2 lastACCACCa-007  x  a+c3Noneuuuu1024"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in b %}" * 30 + "{% endfor %}" * 30, "{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% if x %}" * 3000,
        "x" * 2_000_000,
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_compiled_is_an_error(source):
    with pytest.raises(ConfigError):
        ChatTemplate(source)


# weights


TENSOR = b'{"a":{"dtype":"F32","shape":[0,%s],"data_offsets":[0,0]}}'


def header(folder: Path, text: bytes) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        DEEPER.encode(), b'{"a":' + DEEP.encode() + b"}", TENSOR % (b"9" * 4000), TENSOR % b",".join([b"1"] * 99),
        TENSOR % b"NaN", b'{"a":{"dtype":["F32"],"shape":[0],"data_offsets":[0,0]}}',
        b'{"__metadata__":5}', b"[]", b"{}}",
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_is_an_error(tmp_path, text):
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_weight_file(header(tmp_path, text))


@pytest.mark.parametrize(
    "content", [DEEPER, '{"weight_map": 5}', '{"weight_map": {"a": {"b": ' + DEEP + "}}}", "\xff"]
)
def test_an_index_that_cannot_be_is_an_error(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read_index(tmp_path)
    assert read_stored(tmp_path).faults


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(.*a)*b", "(?:x*)*y", ".*.*.*.*.*.*.*z", "((a|b)+c)+d", "(a{1,9}){1,9}x", "a" * 5000, "("],
)
def test_a_regular_expression_without_end_is_refused(pattern):
    with pytest.raises(ConfigError, match=r"regular expression|repeats"):
        check_pattern(f"re:{pattern}")


@pytest.mark.parametrize(
    "pattern",
    [
        r".*lm_head", r"visual.*", r".*\.layers\.(0|1|2)\..*", r"model\.layers\.[0-9]+\.mlp\..*_proj$",
        r"(?!.*mlp).*q_proj",
    ],
)  # fmt: skip
def test_patterns_that_quantisers_write_are_taken(pattern):
    check_pattern(f"re:{pattern}")
