"""Provenance: no figure without source, date and kind; no silent disagreement."""

import re
from typing import get_args

import pytest

from qvl.catalog import figures
from qvl.catalog.devices import devices
from qvl.catalog.figures import Figure, Kind, figure, sources
from qvl.catalog.models import models, others, regressions
from qvl.catalog.scores import used
from qvl.errors import CatalogError


def every_figure():
    for m in models():
        yield from ((f"{m.name} {k}", f) for k, f in m.figures().items())
    for d in devices():
        for key in ("memory", "bandwidth", "watts", "link", "gpu_product"):
            if getattr(d, key) is not None:
                yield f"{d.name} {key}", getattr(d, key)
        yield from ((f"{d.name} {rate}", f) for rate, f in d.rates.items())
    yield from ((f"{s.model} {s.benchmark}", s.figure) for s in used())


FIGURES = [(where, g) for where, f in every_figure() for g in (f, *f.others)]


def test_every_figure_has_source_date_and_kind():
    assert len(FIGURES) > 1000
    for where, f in FIGURES:
        assert isinstance(f, Figure), where
        assert f.source.title, where
        assert re.fullmatch(r"20\d\d(-\d\d){0,2}", f.date), (where, f.date)
        assert f.kind in get_args(Kind), (where, f.kind)


def test_every_disagreement_says_why_one_value_is_used():
    disagreements = [(where, f) for where, f in every_figure() if f.others]
    assert len(disagreements) > 10
    for where, f in disagreements:
        assert f.reason, where
        assert all(o.value != f.value for o in f.others), where


def test_no_source_is_dead():
    named = {f.source.key for _, f in FIGURES} | {r.source.key for r in regressions()}
    named |= {c.source.key for m in models() for c in m.checkpoints} | {
        m.licence.source.key for m in models()
    }
    named |= {o.source.key for o in others().values()}
    assert set(sources()) - named == set()


def test_recalled_figures_are_marked_unverified():
    recalled = [(w, f) for w, f in FIGURES if f.source.key == "recalled"]
    assert recalled
    for where, f in recalled:
        assert not f.verified, where


def test_a_figure_with_an_unknown_source_is_refused():
    with pytest.raises(CatalogError, match="hearsay"):
        figure({"value": 1, "source": "hearsay"}, "here")


def test_a_figure_with_an_unknown_key_is_refused():
    with pytest.raises(CatalogError, match="sauce"):
        figure({"value": 1, "source": "p1", "sauce": "x"}, "here")


def test_a_disagreement_without_a_reason_is_refused():
    with pytest.raises(CatalogError, match="no reason"):
        figure({"value": 1, "source": "p1", "others": [{"value": 2, "source": "p2"}]}, "here")


def test_a_source_of_unknown_kind_is_refused():
    with pytest.raises(CatalogError, match="rumour"):
        figures._source("x", {"title": "t", "date": "2025", "kind": "rumour"})


def test_a_figure_says_where_it_comes_from():
    f = figure({"value": 1, "source": "recalled", "note": "hm"}, "here")
    assert "unverified" in f.cite()
    assert f.date in f.cite()
    assert f.cite().endswith("; hm")


def test_the_data_names_no_path_of_a_machine():
    for path in figures.DATA.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(work|tmp|home|root)/", text), path.name
