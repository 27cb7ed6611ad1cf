"""outputs.prompts: each generation is asked in its own words, or the caller is told why not."""

from __future__ import annotations

import pytest

from qvl.errors import OutputError
from qvl.outputs.mapping import CONVENTIONS
from qvl.outputs.prompts import prompt_for


@pytest.mark.parametrize("family", sorted(CONVENTIONS))
def test_boxes_can_be_asked_of_every_family_and_name_the_subject(family):
    assert "the red circle" in prompt_for("boxes", family, " the red circle ")


def test_generations_are_asked_in_their_own_words():
    asked = {prompt_for("boxes", f, "x") for f in ("qwen_vl", "qwen2_vl", "qwen2_5_vl")}
    assert len(asked) == 3
    assert prompt_for("document", "qwen2_5_vl") == "QwenVL HTML "
    assert prompt_for("document", "qwen3_vl") == "qwenvl html"
    assert prompt_for("markdown", "qwen3_vl_moe") == "qwenvl markdown"


def test_events_name_what_is_sought():
    assert "a ball falls" in prompt_for("events", "qwen2_5_vl", "a ball falls")


@pytest.mark.parametrize(
    ("task", "family", "subject", "said"),
    [
        ("boxes", "qwen3_vl", "  ", "needs a subject"),
        ("events", "qwen3_vl", "", "needs a subject"),
        ("points", "qwen2_vl", "x", "ask for boxes"),
        ("document", "qwen2_vl", "", "Qwen2.5-VL or Qwen3-VL"),
        ("markdown", "qwen2_5_vl", "", "HTML only"),
        ("events", "qwen_vl", "x", "images only"),
        ("poem", "qwen3_vl", "x", "known: boxes"),
        ("boxes", "gpt", "x", "gpt"),
    ],
)
def test_what_a_family_never_learnt_is_refused_with_the_way_out(task, family, subject, said):
    with pytest.raises(OutputError, match=said):
        prompt_for(task, family, subject)
