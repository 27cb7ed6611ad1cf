"""What a run's lines add up to: the score with its interval, failures, and the same for each part of the items."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qvl.evaluate.statistics import mean_interval

SIZES = ((0.5e6, "under 0.5 MP"), (2e6, "0.5 to 2 MP"), (math.inf, "over 2 MP"))


def score_part(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """num, score, low, high, method, standard_error, num_clusters; errors count as 0."""
    found = mean_interval([float(r["score"]) for r in lines], [r.get("cluster") or r["id"] for r in lines])
    return {
        "num": len(lines), "score": found.mean, "low": found.low, "high": found.high, "method": found.method,
        "standard_error": found.standard_error, "num_clusters": found.num_clusters,
    }  # fmt: skip


def summarize(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The result of a run as plain values; without a score when it has no lines."""
    lines = list(lines)
    if not lines:
        return {"num": 0}
    costs = [r["cost"] for r in lines if r.get("cost")]
    answers = [len(r.get("answer") or "") for r in lines if not r.get("error")]
    return score_part(lines) | {
        "num_errors": sum(bool(r.get("error")) for r in lines),
        "num_parse_failures": sum(not r.get("error") and r.get("parsed") is None for r in lines),
        "num_cut": sum(r.get("finish_reason") == "length" for r in lines),
        "mean_answer_characters": sum(answers) / len(answers) if answers else 0.0,
        **{k: sum(r.get(k) or 0 for r in lines) for k in ("prompt_tokens", "visual_tokens", "completion_tokens")},
        "seconds": math.fsum(r.get("seconds") or 0.0 for r in lines),
        "cost": {"amount": math.fsum(c["amount"] for c in costs), "currency": costs[0]["currency"]} if costs else None,
        "strata": strata(lines),
    }  # fmt: skip


def strata(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By each kind of stratum (and by image size), parts of the items; a kind with a single part is left out."""
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for r in lines:
        for kind, value in {**(r.get("stratum") or {}), **_size_of(r)}.items():
            groups.setdefault(kind, {}).setdefault(str(value), []).append(r)
    return {
        kind: {value: score_part(part) for value, part in sorted(parts.items())}
        for kind, parts in groups.items()
        if len(parts) > 1
    }


def _size_of(line: Mapping[str, Any]) -> dict[str, str]:
    areas = [m["original"][0] * m["original"][1] for m in line.get("media") or () if m.get("original")]
    return {"size": next(name for limit, name in SIZES if max(areas) < limit)} if areas else {}
