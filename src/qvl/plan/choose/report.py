"""A choice as JSON, and as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qvl.plan.choose.candidate import Candidate
from qvl.plan.choose.deployments import workload_of
from qvl.plan.choose.pareto import pareto, scatter
from qvl.plan.choose.quality import Quality, combined_quality
from qvl.plan.choose.ranking import Choice
from qvl.plan.choose.requirement import Requirement
from qvl.plan.resolve import parse_engine
from qvl.plan.templates import render
from qvl.records import pick
from qvl.units import format_bytes, format_count, format_seconds


def requirement_dict(req: Requirement) -> dict[str, Any]:
    return pick(
        req,
        "where", "private", "commercial", "needs=all_needs", "languages", "quality=aim", "min_quality", "latency_s",
        "requests_per_month", "budget_usd_per_month=budget_per_month", "context", "precisions", "assumed",
        tasks=[t.name for t in req.tasks],
        gpu=req.hardware.name if req.hardware else None,
        engine=req.engine or None,
    )  # fmt: skip


def candidate_dict(req: Requirement, c: Candidate) -> dict[str, Any]:
    known = c.loss.count or not c.precision or c.precision == "bf16"
    return pick(
        c,
        "model=model.name", "where", "why", "also",
        hub_id=c.checkpoint.hub_id if c.checkpoint else None,
        precision=c.precision or None,
        engine=c.engine or None,
        gpu=c.hardware.name if c.hardware else None,
        num_servers=c.num_servers if c.hardware else None,
        expected_quality=None if c.expected is None else round(c.expected, 2),
        quality=[_quality_dict(q) for q in c.quality],
        quantisation=pick(
            c.loss,
            "measured_on=on", "own_measurement=own", "sources",
            points_lost=round(c.loss.points, 2) if known else None,
        ),
        **_plan_dicts(c),
        cost=pick(
            c,
            "usd_per_month=cost_per_month", "usd_per_1000_requests=cost_per_1000",
            priced_by=c.priced_by or None,
        ),
        licence=pick(c.model.licence, "title", "commercial"),
        launch=launch_command(req, c) or None,
    )  # fmt: skip


def _quality_dict(q: Quality) -> dict[str, Any]:
    return pick(
        q,
        "task", "sources",
        value=round(q.value, 2),
        error=round(q.error, 2),
        published={str(b): v for b, v in q.scores},
        expected_without_score={str(b): round(v, 1) for b, v in q.filled},
        elsewhere={str(b): list(v) for b, v in q.elsewhere},
    )  # fmt: skip


def _plan_dicts(c: Candidate) -> dict[str, Any]:
    """Memory, and speed where it is known; an API has neither."""
    if c.plan is None or c.hardware is None:
        return {"memory": None, "speed": None}
    limits = c.as_asked if c.detailed else None
    memory = pick(
        c.plan,
        "total_bytes", "per_gpu_bytes=busiest_bytes",
        usable_bytes_per_gpu=c.hardware.device.usable_bytes,
        max_context=limits.max_context if limits else None,
        max_concurrency=limits.max_concurrency if limits else None,
    )  # fmt: skip
    words = "a bound: no real server is faster"
    speed = c.plan.speed and pick(
        c.plan,
        "first_token_s=speed.ttft_s", "answer_s", "requests_per_s", "limited_by=speed.limit",
        concurrency=c.concurrency, **{"is": words},
    )  # fmt: skip
    return {"memory": memory, "speed": speed}


def choice_dict(choice: Choice) -> dict[str, Any]:
    req = choice.requirement
    return {
        "requirement": requirement_dict(req),
        "ranked": [candidate_dict(req, c) for c in choice.ranked],
        "unranked": [candidate_dict(req, c) for c in choice.unranked],
        "ruled_out": [
            pick(
                r,
                "model=model.name", "requirement", "reason",
                expected_quality=None if r.expected is None else round(r.expected, 2),
            )
            for r in choice.ruled_out
        ],
        "decisive": choice.decisive(),
        "ways_out": [pick(w, "change", "gives_up", **candidate_dict(req, w.candidate)) for w in choice.ways_out],
        "pareto": [
            pick(
                p,
                "model=candidate.model.name", "place=candidate.place", "usd_per_1000_requests=cost",
                "memory_bytes=memory", "front",
                quality=round(p.quality, 2),
            )
            for p in pareto(choice.ranked)
        ],
        "warnings": list(choice.warnings),
    }  # fmt: skip


def launch_command(req: Requirement, c: Candidate) -> str:
    """The whole command, with the work it was chosen for; empty for an API, and for engines that don't serve."""
    if c.hardware is None or not parse_engine(c.engine)[0].flags:
        return ""
    work = workload_of(req, c.model)
    words = ["qvl launch", c.model.name.lower(), "--engine", c.engine, "--precision", c.precision]
    words += ["--gpu", c.hardware.name]
    if c.hardware.count > 1 and parse_engine(c.engine)[0].tensor_parallel:
        # launch alone might start several copies; this is the cut whose times were ranked
        words += ["--tensor-parallel-size", str(c.hardware.count)]
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


def html_report(choice: Choice, made_on: str) -> str:
    """One HTML page without scripts, fonts or anything else from elsewhere; all words are escaped."""
    best, points = choice.best, pareto(choice.ranked)
    owned = [p for p in points if p.memory]
    all_priced = bool(points) and all(p.cost for p in points)
    return render(
        Path(__file__).parent / "templates" / "report.jinja",
        autoescape=True,
        choice=choice,
        made_on=made_on,
        title=f"{best.model.name} on {best.place}" if best else "Nothing meets every requirement",
        requirements=requirement_words(choice.requirement),
        command=launch_command(choice.requirement, best) if best else "",
        shown=choice.ranked[:SHOWN],
        rest=choice.ranked[SHOWN:],
        by_memory=scatter(owned, [p.memory / 2**30 for p in owned], "{:g} GiB"),
        by_bill=scatter(points, [p.cost or 1.0 for p in points], "${:g}"),
        all_priced=all_priced,
        sources=_sources(choice),
        format_bytes=format_bytes,
        format_seconds=format_seconds,
    )


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
    if req.context is not None:
        words.append(f"a context of {req.context:,} tokens")
    if req.latency_s is not None:
        words.append(f"an answer within {format_seconds(req.latency_s)}")
    if req.requests_per_month is not None:
        words.append(f"{format_count(req.requests_per_month)} requests a month")
    if req.budget_per_month is not None:
        words.append(f"at most ${req.budget_per_month:,.0f} a month")
    return words
