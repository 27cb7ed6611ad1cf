"""The models: names, shapes against published totals, licences, abilities."""

from dataclasses import replace

import pytest

from qvl.catalog import config_of, find_model
from qvl.catalog.engines import parse_version
from qvl.catalog.models import ABILITIES, PRECISIONS, first_version, licences, models, regressions, resolve
from qvl.errors import CatalogError
from qvl.plan.parameters import parameter_counts

SHAPED = [m for m in models() if m.shape]


@pytest.mark.parametrize("model", SHAPED, ids=lambda m: m.name)
def test_parameters_computed_from_the_shape_equal_the_published_count(model):
    counts = parameter_counts(config_of(model))
    computed = {
        "total": counts.total,
        "active": counts.active,
        "visual": counts.vision,
        "vision": counts.tower,
        "merger": counts.merger,
        "deepstack": counts.deepstack,
        "language_model": counts.language,
        "lm_head": counts.head,
    }
    stored = model.parameters.value
    assert {k: computed[k] for k in stored} == stored


def test_a_changed_shape_would_be_noticed():
    from dataclasses import replace

    config = config_of("qwen2.5-vl-7b")
    wider = replace(config, text=replace(config.text, intermediate_size=18945))
    assert parameter_counts(wider).total != find_model("qwen2.5-vl-7b").num_parameters


@pytest.mark.parametrize(
    "name",
    [
        "Qwen-VL", "Qwen-VL-Chat", "Qwen2-VL-2B", "Qwen2-VL-7B", "Qwen2-VL-72B", "Qwen2.5-VL-3B",
        "Qwen2.5-VL-7B", "Qwen2.5-VL-32B", "Qwen2.5-VL-72B", "Qwen3-VL-2B", "Qwen3-VL-4B", "Qwen3-VL-8B",
        "Qwen3-VL-32B", "Qwen3-VL-30B-A3B", "Qwen3-VL-235B-A22B", "Qwen3-VL-8B-Thinking", "Qwen3.5-0.8B",
        "Qwen3.5-2B", "Qwen3.5-4B", "Qwen3.5-9B", "Qwen3.5-27B", "Qwen3.5-35B-A3B", "Qwen3.5-122B-A10B",
        "Qwen3.5-397B-A17B", "Qwen-VL-Plus", "Qwen-VL-Max", "qwen3-vl-plus", "qwen3-vl-flash",
    ],
)  # fmt: skip
def test_every_model_of_the_family_is_here(name):
    assert find_model(name).name.lower().startswith(name.lower())


@pytest.mark.parametrize(
    ("name", "model", "precision"),
    [
        ("qwen2.5-vl-7b", "Qwen2.5-VL-7B-Instruct", None),
        ("QWEN2.5-VL-7B-INSTRUCT", "Qwen2.5-VL-7B-Instruct", None),
        ("Qwen/Qwen2.5-VL-7B-Instruct-AWQ", "Qwen2.5-VL-7B-Instruct", "awq"),
        ("qwen2.5-vl-7b-awq", "Qwen2.5-VL-7B-Instruct", "awq"),
        ("Qwen/Qwen2-VL-72B-Instruct-GPTQ-Int4", "Qwen2-VL-72B-Instruct", "gptq-int4"),
        ("Qwen/Qwen3-VL-4B-Instruct-FP8", "Qwen3-VL-4B-Instruct", "fp8"),
        ("qwen3-vl-30b", "Qwen3-VL-30B-A3B-Instruct", None),
        ("qwen3-vl 8b", "Qwen3-VL-8B-Instruct", None),
        ("qwen2.5_vl_7b", "Qwen2.5-VL-7B-Instruct", None),
        ("qwen_vl_chat", "Qwen-VL-Chat", None),
    ],
)
def test_names_people_use_find_the_model_and_the_precision(name, model, precision):
    found, checkpoint = resolve(name)
    assert found.name == model
    assert (checkpoint and checkpoint.precision) == precision


def test_an_unknown_model_is_answered_with_the_nearest_names():
    with pytest.raises(CatalogError, match=r"qwen2.5-vl-8b.*qwen2.5-vl-7b"):
        find_model("qwen2.5-vl-8b")


@pytest.mark.parametrize(
    ("part", "first"), [("3b", "qwen2.5-vl-3b"), ("72B", "qwen2-vl-72b"), ("235b", "235b")]
)
def test_a_part_of_a_name_is_answered_with_the_names_that_hold_it(part, first):
    with pytest.raises(CatalogError) as e:
        find_model(part)
    offered = str(e.value).partition("did you mean ")[2].rstrip("?").split(", ")
    assert first in offered[0]
    assert all(part.lower() in name for name in offered)


@pytest.mark.parametrize(
    ("asked", "engine", "first"),
    [
        ("qwen2_5_vl", "vllm", "0.7.2"),
        ("qwen3_5", "transformers", "5.2"),
        ("qwen3_vl", "llama.cpp", ""),  # any recent
        ("qwen3_vl", "nobody", ""),
        ("some_other", "vllm", ""),
    ],
)
def test_the_first_version_of_a_family_is_a_number_or_nothing(asked, engine, first):
    assert first_version(asked, engine) == first


@pytest.mark.parametrize("model", SHAPED, ids=lambda m: m.name)
def test_a_model_needs_no_earlier_version_than_its_family(model):
    for engine in model.engines:
        own, family = first_version(model, engine), first_version(model.family, engine)
        assert bool(own) == bool(family)
        if own:
            assert parse_version(own) >= parse_version(family)


def test_a_hosted_model_has_no_shape_and_says_why():
    with pytest.raises(CatalogError, match="hosted"):
        config_of("qwen-vl-max")


def test_a_size_whose_config_was_not_seen_has_no_shape_and_says_what_to_do():
    with pytest.raises(CatalogError, match=r"not seen.*--config"):
        config_of(replace(find_model("qwen3.5-122b-a10b"), shape=""))


def test_no_name_leads_to_two_models():
    seen = {}
    for m in models():
        for name in (m.name, *m.aliases):
            key = name.lower()
            assert seen.setdefault(key, m.name) == m.name, key
            assert find_model(name).name == m.name


def test_3b_of_qwen2_5_is_not_for_commercial_use_and_the_guide_disagrees():
    model = find_model("qwen2.5-vl-3b")
    assert model.licence.commercial == "no"
    assert [o.value for o in model.licence_figure.others] == ["apache-2.0"]
    assert model.licence_figure.reason


def test_the_sibling_sizes_of_3b_may_be_used_commercially():
    for name in ("qwen2.5-vl-7b", "qwen3-vl-4b", "qwen2-vl-2b"):
        assert find_model(name).licence.commercial == "yes"


def test_72b_is_free_up_to_a_number_of_users():
    assert find_model("qwen2.5-vl-72b").licence.commercial == "with limits"
    assert "100 million" in find_model("qwen2.5-vl-72b").licence.permits


def test_every_licence_is_some_models():
    assert {m.licence.key for m in models()} == set(licences())


@pytest.mark.parametrize("model", models(), ids=lambda m: m.name)
def test_abilities_and_checkpoints_speak_known_words(model):
    assert set(model.abilities) == set(ABILITIES)
    assert {model.ability(a) for a in ABILITIES} <= {"yes", "weak", "no", "unknown"}
    assert {c.precision for c in model.checkpoints} <= set(PRECISIONS)
    if not model.hosted:
        assert model.checkpoints[0].precision == "bf16"
        assert "vllm" in model.engines


def test_html_is_weak_in_3b_only():
    weak = [m.name for m in models() if m.ability("html") == "weak"]
    assert weak == ["Qwen2.5-VL-3B-Instruct"]


def test_the_bad_vllm_versions_for_qwen2_5_are_listed():
    bad = [r for r in regressions() if r.engine == "vllm" and "qwen2_5_vl" in r.families]
    assert any("0.8.0" in r.versions and "0.8.2" in r.escape for r in bad)


def test_hybrid_shapes_keep_a_cache_on_every_fourth_layer_only():
    text = config_of("qwen3.5-27b").text
    assert text.full_attention_layers[:3] == (3, 7, 11)
    assert len(text.full_attention_layers) == 16


def test_window_and_deepstack_belong_to_their_generations():
    assert config_of("qwen2.5-vl-7b").vision.window_size == 112
    assert config_of("qwen2-vl-7b").vision.window_size == 0
    assert config_of("qwen3-vl-8b").vision.deepstack_visual_indexes == (8, 16, 24)
    assert config_of("qwen3.5-9b").vision.deepstack_visual_indexes == ()
