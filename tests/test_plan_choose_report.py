"""Pareto front, plot and page: true to the choice, escaped, self-contained."""

import json
import re
from dataclasses import replace
from functools import cache
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.errors import PlanError
from qvl.plan.choose import Choice
from qvl.plan.choose.pareto import pareto, pareto_rows, plot
from qvl.plan.choose.relax import with_ways_out
from qvl.plan.choose.report import choice_dict, html_report, requirement_words
from qvl.units import GiB
from test_plan_choose import BOOK, FakePlanner, pick


@pytest.fixture(scope="module")
def choice() -> Choice:
    return pick(book=BOOK, where=("rent",), languages=("ko",), commercial=True, latency_s=30.0)


def variant(candidate, quality, memory, cost):
    q = replace(candidate.quality[0], value=quality)
    plan = replace(candidate.plan, total_bytes=memory)
    none = replace(candidate.loss, points=0.0)
    return replace(candidate, quality=(q,), loss=none, plan=plan, num_servers=1, cost_per_1000=cost)


def test_a_point_beaten_on_every_axis_is_not_on_the_front(choice):
    base = choice.ranked[0]
    good, bad = variant(base, 80.0, 10 * GiB, 1.0), variant(base, 70.0, 20 * GiB, 2.0)
    assert [p.front for p in pareto([good, bad])] == [True, False]


def test_a_point_better_on_one_axis_is_on_the_front(choice):
    base = choice.ranked[0]
    points = [variant(base, 80.0, 10 * GiB, 2.0), variant(base, 70.0, 20 * GiB, 1.0)]
    assert all(p.front for p in pareto(points))


def test_without_a_price_for_all_the_bill_is_no_axis(choice):
    base = choice.ranked[0]
    points = [variant(base, 80.0, 10 * GiB, None), variant(base, 70.0, 20 * GiB, 0.01)]
    assert [p.front for p in pareto(points)] == [True, False]


@cache
def any_candidate():
    return pick(book=BOOK, where=("rent",)).ranked[0]


@settings(deadline=None)  # the first example makes the candidate
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nobody_beats(values):
    base = any_candidate()
    points = pareto([variant(base, float(q), m, float(c)) for q, m, c in values])
    for p in points:
        beaten = any(
            o.quality >= p.quality
            and o.memory <= p.memory
            and o.cost <= p.cost
            and (o.quality, o.memory, o.cost) != (p.quality, p.memory, p.cost)
            for o in points
        )
        assert p.front is not beaten


def test_rows_mark_the_front_and_say_none_for_an_api():
    rows = pareto_rows(pareto(pick(book=BOOK, where=("api",)).ranked))
    assert rows
    assert {row[-1] for row in rows} == {"none"}
    assert any(row[0] == "●" for row in rows)


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_plot_is_a_picture_of_its_suffix(choice, tmp_path, suffix, magic):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"p.{suffix}"
    plot(pareto(choice.ranked), path, "documents")
    assert path.read_bytes().startswith(magic)


def test_a_plot_of_another_suffix_is_refused(choice, tmp_path):
    with pytest.raises(PlanError, match="gif"):
        plot(pareto(choice.ranked), tmp_path / "p.gif", "x")


def test_a_plot_of_nothing_is_refused(tmp_path):
    with pytest.raises(PlanError, match="nothing to plot"):
        plot((), tmp_path / "p.png", "x")


def test_a_plot_without_matplotlib_says_what_to_install(choice, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(PlanError, match=r"qvl\[plot\]"):
        plot(pareto(choice.ranked), tmp_path / "p.png", "x")


def test_a_plot_into_a_missing_folder_says_so(choice, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(PlanError, match="can't be written"):
        plot(pareto(choice.ranked), tmp_path / "no" / "p.png", "x")


class Tags(HTMLParser):
    """Counts what is opened and closed, and keeps the words."""

    def __init__(self):
        super().__init__()
        self.opened, self.closed, self.links, self.words = {}, {}, [], []

    def handle_starttag(self, tag, attrs):
        self.opened[tag] = self.opened.get(tag, 0) + 1
        self.links += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        self.closed[tag] = self.closed.get(tag, 0) + 1

    def handle_data(self, data):
        self.words.append(data)


def read(page):
    tags = Tags()
    tags.feed(page)
    return tags


def test_the_page_needs_nothing_from_elsewhere(choice):
    page = html_report(choice, "2026-11-23")
    tags = read(page)
    assert tags.links == []
    assert "script" not in tags.opened
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_pages_blocks_are_closed(choice):
    tags = read(html_report(choice, "2026-11-23"))
    for tag in ("table", "ul", "li", "h1", "h2", "svg", "div", "style", "p"):
        assert tags.opened.get(tag, 0) == tags.closed.get(tag, 0), tag


def test_the_page_holds_the_choice_its_reasons_and_what_was_ruled_out(choice):
    text = " ".join(read(html_report(choice, "2026-11-23")).words)
    assert choice.best.model.name in text
    for line in choice.best.why:
        assert line in text
    for r in choice.ruled_out:
        assert r.model.name in text
        assert r.reason in text
    assert "ko" in text
    assert "2026-11-23" in text


def test_the_page_of_a_choice_of_nothing_says_so():
    page = html_report(pick(gpu="rtx3060", latency_s=0.001), "2026-11-23")
    assert "Nothing meets every requirement" in page


def test_sources_are_listed_of_what_a_page_shows_whether_or_not_something_was_found(choice):
    def sources(choice):
        return html_report(choice, "2026-11-23").partition("<h2>Where the figures come from</h2>")[2]

    found = sources(choice)
    assert "Qwen3-VL report" in found
    assert choice.best.priced_by in unescape(found)
    assert f"{choice.best.hardware.device.title}: " in found
    nothing = pick(book=BOOK, where=("rent",), budget_per_month=10.0, languages=("ko",))
    assert not nothing.ranked
    nothing = with_ways_out(nothing, FakePlanner(), BOOK)
    listed = sources(nothing)
    for words in ("Qwen3-VL report", "a GPU hour", "licence: ", "languages: ", "context: ", "parameters: "):
        assert words in listed
    assert f"{nothing.ways_out[0].candidate.hardware.device.title}: " in listed
    assert "NVIDIA GeForce RTX 3060: " in sources(pick(gpu="rtx3060", latency_s=0.001))


def test_words_from_outside_are_escaped(choice):
    evil = "<script>alert(1)</script>"
    poisoned = replace(
        choice,
        warnings=(evil,),
        ranked=(replace(choice.ranked[0], why=(evil,)), *choice.ranked[1:]),
        ruled_out=(replace(choice.ruled_out[0], reason=evil), *choice.ruled_out[1:]),
    )
    page = html_report(poisoned, evil)
    assert evil not in page
    # a warning, the name of the page, a reason, a line of the best; the best model that was kept out, once more
    assert page.count("&lt;script&gt;") == 5


def test_the_data_is_json_and_complete(choice):
    data = json.loads(json.dumps(choice_dict(choice), allow_nan=False))
    assert [c["model"] for c in data["ranked"]] == [c.model.name for c in choice.ranked]
    assert len(data["ruled_out"]) == len(choice.ruled_out)
    best = data["ranked"][0]
    assert best["expected_quality"] == pytest.approx(choice.best.expected, abs=0.01)
    assert best["quality"][0]["sources"]
    assert best["memory"]["max_context"] == 32768
    assert best["cost"]["usd_per_month"] > 0
    assert any(p["front"] for p in data["pareto"])
    assert data["requirement"]["languages"] == ["ko"]


def test_requirements_are_told_as_a_person_would():
    req = pick(gpu="2xl40s", private=True, requests_per_month=2e6, latency_s=30.0).requirement
    words = requirement_words(req)
    assert "hardware: 2 x NVIDIA L40S" in words
    assert "2.0 M requests a month" in words
    assert any("on your premises" in w for w in words)


def test_the_page_has_a_column_of_bills_only_where_there_are_any(choice):
    free = replace(choice, ranked=tuple(replace(c, cost_per_1000=None) for c in choice.ranked))
    page = html_report(free, "2026-11-24")
    assert ">per 1,000<" not in page
    assert "a smaller bill" not in page
    priced = replace(choice, ranked=tuple(replace(c, cost_per_1000=1.25) for c in choice.ranked))
    page = html_report(priced, "2026-11-24")
    assert ">per 1,000<" in page
    assert page.count("$1.25") >= 2
    assert "a smaller bill" in page


def test_the_key_of_the_plot_lies_beside_its_points(choice):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from qvl.plan.choose.pareto import _draw

    points = pareto(choice.ranked)
    figure = Figure(layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_subplot(1, 1, 1)
    _draw(ax, points, [p.memory / 2**30 for p in points])
    canvas.draw()
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1
