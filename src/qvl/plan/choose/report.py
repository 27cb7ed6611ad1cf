"""A choice as data for programs, and as one self-contained page that can be handed to a manager."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from qvl.plan.choose.candidate import Candidate
from qvl.plan.choose.deployments import workload_of
from qvl.plan.choose.pareto import Point, pareto
from qvl.plan.choose.quality import combined_quality
from qvl.plan.choose.ranking import Choice, RuledOut
from qvl.plan.choose.requirement import Requirement
from qvl.plan.resolve import parse_engine
from qvl.units import format_bytes, format_count, format_seconds


def requirement_dict(req: Requirement) -> dict[str, Any]:
    return {
        "tasks": [t.name for t in req.tasks],
        "gpu": req.hardware.name if req.hardware else None,
        "where": list(req.where),
        "private": req.private,
        "commercial": req.commercial,
        "needs": list(req.all_needs),
        "languages": list(req.languages),
        "quality": req.aim,
        "min_quality": req.min_quality,
        "latency_s": req.latency_s,
        "requests_per_month": req.requests_per_month,
        "budget_usd_per_month": req.budget_per_month,
        "engine": req.engine or None,
        "precisions": list(req.precisions),
        "assumed": list(req.assumed),
    }


def candidate_dict(req: Requirement, c: Candidate) -> dict[str, Any]:
    plan = c.plan
    return {
        "model": c.model.name,
        "hub_id": c.checkpoint.hub_id if c.checkpoint else None,
        "where": c.where,
        "precision": c.precision or None,
        "engine": c.engine or None,
        "gpu": c.hardware.name if c.hardware else None,
        "num_servers": c.num_servers if c.hardware else None,
        "expected_quality": None if c.expected is None else round(c.expected, 2),
        "quality": [
            {
                "task": q.task,
                "value": round(q.value, 2),
                "error": round(q.error, 2),
                "published": {str(b): v for b, v in q.scores},
                "expected_without_score": {str(b): round(v, 1) for b, v in q.filled},
                "elsewhere": {str(b): list(v) for b, v in q.elsewhere},
                "sources": list(q.sources),
            }
            for q in c.quality
        ],
        "quantisation": {
            "points_lost": round(c.loss.points, 2)
            if c.loss.count or not c.precision or c.precision == "bf16"
            else None,
            "measured_on": list(c.loss.on),
            "own_measurement": c.loss.own,
            "sources": list(c.loss.sources),
        },
        "memory": None
        if plan is None or c.as_asked is None or c.hardware is None
        else {
            "total_bytes": plan.total_bytes,
            "per_gpu_bytes": plan.busiest_bytes,
            "usable_bytes_per_gpu": c.hardware.device.usable_bytes,
            "max_context": c.as_asked.max_context if c.detailed else None,
            "max_concurrency": c.as_asked.max_concurrency if c.detailed else None,
        },
        "speed": None
        if plan is None or plan.speed is None
        else {
            "concurrency": c.concurrency,
            "first_token_s": plan.speed.ttft_s,
            "answer_s": plan.answer_s,
            "requests_per_s": plan.requests_per_s,
            "limited_by": plan.speed.limit,
            "is": "a bound: no real server is faster",
        },
        "cost": {
            "usd_per_month": c.cost_per_month,
            "usd_per_1000_requests": c.cost_per_1000,
            "priced_by": c.priced_by or None,
        },
        "licence": {"title": c.model.licence.title, "commercial": c.model.licence.commercial},
        "launch": launch_command(req, c) or None,
        "why": list(c.why),
        "also": list(c.also),
    }


def choice_dict(choice: Choice) -> dict[str, Any]:
    req = choice.requirement
    return {
        "requirement": requirement_dict(req),
        "ranked": [candidate_dict(req, c) for c in choice.ranked],
        "unranked": [candidate_dict(req, c) for c in choice.unranked],
        "ruled_out": [
            {
                "model": r.model.name,
                "requirement": r.requirement,
                "reason": r.reason,
                "expected_quality": None if r.expected is None else round(r.expected, 2),
            }
            for r in choice.ruled_out
        ],
        "decisive": choice.decisive(),
        "ways_out": [
            {"change": w.change, "gives_up": list(w.gives_up), **candidate_dict(req, w.candidate)}
            for w in choice.ways_out
        ],
        "pareto": [
            {
                "model": p.candidate.model.name,
                "place": p.candidate.place,
                "quality": round(p.quality, 2),
                "usd_per_1000_requests": p.cost,
                "memory_bytes": p.memory,
                "front": p.front,
            }
            for p in pareto(choice.ranked)
        ],
        "warnings": list(choice.warnings),
    }


def launch_command(req: Requirement, c: Candidate) -> str:
    """The whole command, with the work it was chosen for; empty for an API, and for engines that don't serve."""
    if c.hardware is None or not parse_engine(c.engine)[0].flags:
        return ""
    work = workload_of(req, c.model)
    words = ["qvl launch", c.model.name.lower(), "--engine", c.engine, "--precision", c.precision]
    words += ["--gpu", c.hardware.name]
    for i in work.images:
        words += ["--image", f"{i.width}x{i.height}" + f"x{i.count}" * (i.count > 1)]
    for v in work.videos:
        words += ["--video", f"{v.seconds:g}s@{v.fps:g}fps"]
    numbers = {
        "--prompt-tokens": work.prompt_tokens,
        "--answer-tokens": work.answer_tokens,
        "--concurrency": c.concurrency if c.concurrency > 1 else work.concurrency,
        "--min-pixels": work.min_pixels,
        "--max-pixels": work.max_pixels,
    }
    for flag, number in numbers.items():
        words += [] if number is None else [flag, str(number)]
    return " ".join(words)


# The page

SHOWN = 8  # rows of the ranking; the rest are named
_STYLE = """
:root{color-scheme:light dark;--line:#d0d7de;--soft:#57606a;--mark:#1f6feb;--card:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--line:#3d444d;--soft:#9198a1;--mark:#4493f8;--card:#161b22}}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}
.soft{color:var(--soft)}.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:1rem 1.2rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.4rem .7rem .4rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600}td.n,th.n{text-align:right;white-space:nowrap}ul{margin:.4rem 0;padding-left:1.2rem}
pre{white-space:pre-wrap}svg{max-width:100%;height:auto}
details{margin:.3rem 0}summary{cursor:pointer}@media print{body{margin:0}}
"""


def html_report(choice: Choice, made_on: str) -> str:
    """One HTML page without scripts, fonts or anything else from elsewhere; all words are escaped."""
    best = choice.best
    title = f"{best.model.name} on {best.place}" if best else "Nothing meets every requirement"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        f"<p class=soft>Choice of a vision-language model, {escape(made_on)}</p>",
        "<h2>What was asked for</h2>",
        _list(requirement_words(choice.requirement)),
    ]
    if best:
        parts += ["<h2>The choice, and why</h2><div class=card>", _list(best.why), "</div>"]
        if command := launch_command(choice.requirement, best):
            parts.append(f"<p>Its start is planned by</p><pre>{escape(command)}</pre>")
    if choice.decisive():
        parts.append(f"<p>{escape(choice.decisive())}</p>")
    if choice.ways_out:
        parts.append(_list(w.describe() for w in choice.ways_out))
    if len(choice.ranked) > 1:
        parts += ["<h2>What else would do</h2>", _ranking(choice.ranked[:SHOWN])]
        if len(choice.ranked) > SHOWN:
            names = ", ".join(c.model.name for c in choice.ranked[SHOWN:])
            parts.append(f"<p class=soft>And, in this order: {escape(names)}.</p>")
        parts += _figures(pareto(choice.ranked))
    if choice.unranked:
        parts += ["<h2>Would do, but no score is published for the task</h2>"]
        parts.append(_list(f"{c.model.name}: {c.place}" for c in choice.unranked))
    parts += ["<h2>What was ruled out, and by what</h2>", _ruled_out(choice.ruled_out)]
    if choice.warnings:
        parts += ["<h2>To keep in mind</h2>", _list(choice.warnings)]
    parts += [
        "<h2>Where the figures come from</h2>",
        _list(_sources(choice)),
        "<p class=soft>Quality is the mean of the published scores on the task's benchmarks; where a model has "
        "none on one of them, what its other scores let expect. Times are bounds from arithmetic and bandwidth: "
        "no real server is faster. Test on your own images before you decide.</p>",
    ]
    return "\n".join(parts) + "\n"


def _sources(choice: Choice) -> list[str]:
    """Of scores, quantisation losses, prices, devices, and what was read of the models, ruled out or not; each once."""
    req, out = choice.requirement, choice.ruled_out
    shown = (*choice.ranked, *choice.unranked, *(w.candidate for w in choice.ways_out))
    qualities = [c.quality for c in shown] + [combined_quality(req.tasks, r.model.name) or () for r in out]
    scores = {s for quality in qualities for q in quality for s in q.sources}
    losses = {s for c in shown for s in c.loss.sources if c.precision != "bf16"}
    prices = {c.priced_by for c in shown if c.priced_by}
    devices = {h.device.title: h.device for h in (req.hardware, *(c.hardware for c in shown)) if h}
    figures = [(d.title, f) for d in devices.values() for f in (d.memory, d.bandwidth, *d.rates.values())]
    hardware = {f"{title}: {figure.source.cite()}" for title, figure in figures}
    read = ("licence", "context", "parameters", *["languages"] * bool(req.languages))
    read += tuple(f"ability {need}" for need in req.all_needs)
    looked_at = [c.model.figures() for c in shown] + [r.model.figures() for r in out]
    facts = {f"{key}: {found[key].source.cite()}" for found in looked_at for key in read if key in found}
    return list(dict.fromkeys(s for part in (scores, losses, prices, hardware, facts) for s in sorted(part)))


def requirement_words(req: Requirement) -> list[str]:
    """The requirements as a person would say them."""
    words = [f"tasks: {', '.join(t.name for t in req.tasks)}"]
    if req.hardware:
        words.append(f"hardware: {req.hardware.count} x {req.hardware.device.title}")
    words += ["the images stay on your premises"] * req.private
    words += ["commercial use"] * req.commercial
    if req.all_needs:
        words.append(f"abilities: {', '.join(req.all_needs)}")
    if req.languages:
        words.append(f"languages: {', '.join(req.languages)}")
    words.append(f"quality: {req.aim}" + (f", at least {req.min_quality:g}" if req.min_quality else ""))
    if req.latency_s is not None:
        words.append(f"an answer within {format_seconds(req.latency_s)}")
    if req.requests_per_month is not None:
        words.append(f"{format_count(req.requests_per_month)} requests a month")
    if req.budget_per_month is not None:
        words.append(f"at most ${req.budget_per_month:,.0f} a month")
    return words


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(i)}</li>" for i in items) + "</ul>"


def _ranking(ranked: Sequence[Candidate]) -> str:
    rows = []
    priced = any(c.cost_per_1000 for c in ranked)  # not on the user's own hardware
    for i, c in enumerate(ranked, 1):
        plan = c.plan
        cells = [
            (str(i), "n"),
            (c.model.name, ""),
            (c.place, ""),
            (f"{c.expected:.1f}" if c.expected is not None else "-", "n"),
            (format_bytes(c.memory_bytes) if plan else "none", "n"),
            (format_seconds(plan.answer_s) if plan and plan.answer_s else "-", "n"),
            *[(f"${c.cost_per_1000:,.2f}" if c.cost_per_1000 else "-", "n")] * priced,
            (c.model.licence.title, ""),
        ]
        rows.append("<tr>" + "".join(f'<td class="{k}">{escape(text)}' for text, k in cells))
    heads = [("", ""), ("model", ""), ("runs on", ""), ("quality", "n"), ("memory", "n"), ("answer", "n"),
             *[("per 1,000", "n")] * priced, ("licence", "")]  # fmt: skip
    return "<table><tr>" + "".join(f'<th class="{k}">{h}' for h, k in heads) + "".join(rows) + "</table>"


def _ruled_out(found: Sequence[RuledOut]) -> str:
    rows = "".join(
        f"<tr><td>{escape(r.model.name)}<td>{escape(r.requirement)}<td>{escape(r.reason)}"
        f"<td class=n>{'-' if r.expected is None else f'{r.expected:.1f}'}"
        for r in found
    )
    if not rows:
        return "<p>Nothing.</p>"
    return f"<table><tr><th>model<th>by<th>because<th class=n>quality{rows}</table>"


def _figures(points: Sequence[Point]) -> list[str]:
    """Quality against memory, and against the bill where all have one, which is where an API can be seen too."""
    owned = [p for p in points if p.memory]
    found = ["<h2>Quality against memory</h2>", _figure(owned, [p.memory / 2**30 for p in owned], "{:g} GiB")]
    if points and all(p.cost for p in points):
        found.append("<h2>Quality against the bill of 1,000 requests</h2>")
        found.append(_figure(points, [p.cost or 1.0 for p in points], "${:g}"))
    less = "less memory and a smaller bill" if all(p.cost is not None for p in points) else "less memory"
    return [*found, f"<p class=soft>Filled: no other has more quality for {less} at once.</p>"]


def _figure(placed: Sequence[Point], values: Sequence[float], tick: str) -> str:
    """A scatter as inline SVG: `values` on a log scale to the right, quality upwards, the front filled."""
    from math import ceil, floor, log2

    if len(placed) < 2:
        return "<p class=soft>Too few to draw.</p>"
    width, height, left, bottom, right, top = 760, 380, 46, 40, 200, 16
    xs = [log2(v) for v in values]
    x0, x1 = min(xs) - 0.3, max(xs) + 0.3
    y0, y1 = min(p.quality for p in placed) - 1.5, max(p.quality for p in placed) + 1.5

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x0) / (x1 - x0) * (width - left - right),
            height - bottom - (y - y0) / (y1 - y0) * (height - bottom - top),
        )

    marks = []
    for power in range(ceil(x0), floor(x1) + 1):
        x, _ = at(power, y0)
        marks.append(f'<line x1="{x:.0f}" y1="{top}" x2="{x:.0f}" y2="{height - bottom}" stroke="#8883"/>')
        marks.append(
            f'<text x="{x:.0f}" y="{height - 22}" text-anchor="middle">{tick.format(2.0**power)}</text>'
        )
    step = 5 if y1 - y0 > 12 else 2
    for value in range(int(y0) + 1, int(y1) + 1):
        if value % step == 0:
            _, y = at(x0, value)
            marks.append(f'<line x1="{left}" y1="{y:.0f}" x2="{width - right}" y2="{y:.0f}" stroke="#8883"/>')
            marks.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{value}</text>')
    # numbers with a key at the right: names would lie over each other where models crowd
    front = [p for p in placed if p.front]
    for p, exponent in zip(placed, xs, strict=True):
        x, y = at(exponent, p.quality)
        name = escape(p.label)
        fill = "var(--mark)" if p.front else "#8888"
        tip = f"{name}: {escape(p.candidate.place)}"
        marks.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5" fill="{fill}"><title>{tip}</title></circle>')
        if p.front:
            number = front.index(p) + 1
            marks.append(f'<text x="{x - 3:.0f}" y="{y - 9:.0f}">{number}</text>')
            key = top + 15 * number
            marks.append(f'<text x="{width - right + 14}" y="{key}">{number}  {name}</text>')
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="quality over {tick.format(1)}" '
        f'font-size="11" fill="currentColor">{"".join(marks)}</svg>'
    )
