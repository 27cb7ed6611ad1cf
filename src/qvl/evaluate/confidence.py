"""How sure a model was of an answer and of its fields, what that is worth, and who should look at the rest.

    sure = answer_confidence(tokens, text)              e to the sum of the answer's log probabilities
    calibrated = calibrate(confidences, scores)         a rising step function, from labelled items
    report = reliability(confidences, scores)
    rows = cascade(small_lines, large_lines)            small model first, large one when the small is unsure

A log probability is what the model thinks of its own words, not the chance that they are right: that is measured here.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvl.errors import QvlError
from qvl.evaluate.statistics import wilson

BINS = 10
_FIELD = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null)')

Token = tuple[str, float]  # (text, natural log of its probability)


def tokens_of(logprobs: Sequence[Any], token_bytes: Callable[[int], bytes] | None = None) -> list[Token]:
    """(text, logprob) of each token, from our engine's records or a server's objects."""
    found: list[Token] = []
    for item in logprobs:
        if isinstance(item, Mapping):
            text, value = str(item.get("token", "")), item.get("logprob")
        else:
            value = getattr(item, "logprob", None)
            raw = token_bytes(item.token_id) if token_bytes is not None and hasattr(item, "token_id") else b""
            text = raw.decode("utf-8", "replace")
        if isinstance(value, int | float):
            found.append((text, float(value)))
    return found


def _answer_tokens(tokens: Sequence[Token], text: str) -> tuple[list[Token], int]:
    """(tokens of the answer without the thoughts before it, where the first begins in it); all when not found."""
    whole = "".join(t for t, _ in tokens)
    start = whole.rfind(text.strip()) if text.strip() else -1
    if start < 0:
        return list(tokens), 0
    at = 0
    for i, (piece, _) in enumerate(tokens):
        if at + len(piece) > start:
            return list(tokens[i:]), at - start
        at += len(piece)
    return list(tokens), 0


def answer_confidence(tokens: Sequence[Token], text: str) -> float | None:
    """The probability that the model gives just this answer; None without log probabilities."""
    if not tokens:
        return None
    kept, _ = _answer_tokens(tokens, text)
    return math.exp(math.fsum(value for _, value in kept))


def field_confidence(tokens: Sequence[Token], text: str) -> dict[str, float]:
    """The probability of each scalar value in a JSON answer, given all before it; a repeated name keeps the last."""
    kept, at = _answer_tokens(tokens, text)
    text = text.strip()
    found: dict[str, float] = {}
    spans: list[tuple[int, int, float]] = []
    for piece, value in kept:
        spans.append((at, at + len(piece), value))
        at += len(piece)
    for match in _FIELD.finditer(text):
        start, end = match.span(2)
        inside = [value for a, b, value in spans if a < end and b > start]
        if inside:
            found[match[1]] = math.exp(math.fsum(inside))
    return found


@dataclass(frozen=True)
class Calibration:
    """The share of right answers by confidence: a step function that never falls. Isotonic regression."""

    edges: tuple[float, ...]  # confidence from which a step holds
    shares: tuple[float, ...]

    def __call__(self, confidence: float) -> float:
        return self.shares[max(0, bisect.bisect_right(self.edges, confidence) - 1)]


def calibrate(confidences: Sequence[float], scores: Sequence[float]) -> Calibration:
    """By pooling neighbours that fall. Raises: QvlError for fewer than two items.

    Source: Barlow et al., Statistical Inference under Order Restrictions (1972), pool adjacent violators.
    """
    if len(confidences) < 2 or len(confidences) != len(scores):
        raise QvlError(f"a calibration needs two labelled items at least, not {len(confidences)}")
    pools: list[list[float]] = []  # [first confidence, sum of scores, number]
    for confidence, score in sorted(zip(confidences, scores)):
        if pools and pools[-1][0] == confidence:
            pools[-1][1] += score
            pools[-1][2] += 1
        else:
            pools.append([confidence, score, 1.0])
        while len(pools) > 1 and pools[-2][1] * pools[-1][2] >= pools[-1][1] * pools[-2][2]:
            _, total, number = pools.pop()
            pools[-1][1] += total
            pools[-1][2] += number
    return Calibration(tuple(p[0] for p in pools), tuple(p[1] / p[2] for p in pools))


def cross_calibrated(confidences: Sequence[float], scores: Sequence[float], folds: int = 5) -> list[float]:
    """Each item's calibrated confidence from the other folds, so that it isn't judged by its own label."""
    found = [0.0] * len(confidences)
    folds = min(folds, len(confidences))
    for fold in range(folds):
        rest = [i for i in range(len(confidences)) if i % folds != fold]
        fitted = calibrate([confidences[i] for i in rest], [scores[i] for i in rest])
        for i in range(fold, len(confidences), folds):
            found[i] = fitted(confidences[i])
    return found


def reliability(
    confidences: Sequence[float], scores: Sequence[float], bins: int = BINS
) -> list[dict[str, float]]:
    """Per bin of equal width that isn't empty: low, high, num, mean confidence, mean score with its Wilson interval."""
    rows = []
    for b in range(bins):
        inside = [i for i, c in enumerate(confidences) if min(bins - 1, int(c * bins)) == b]
        if not inside:
            continue
        score = sum(scores[i] for i in inside)
        low, high = wilson(score, len(inside))
        rows.append({
            "from": b / bins, "to": (b + 1) / bins, "num": len(inside),
            "confidence": sum(confidences[i] for i in inside) / len(inside),
            "score": score / len(inside), "low": low, "high": high,
        })  # fmt: skip
    return rows


def calibration_error(confidences: Sequence[float], scores: Sequence[float], bins: int = BINS) -> float:
    """Mean gap between confidence and score over the bins, weighted by items. Source: Naeini et al. (2015), ECE."""
    rows = reliability(confidences, scores, bins)
    return sum(r["num"] * abs(r["confidence"] - r["score"]) for r in rows) / len(confidences)


def ranking(confidences: Sequence[float], scores: Sequence[float]) -> float:
    """The chance that a right answer was surer than a wrong one (area under the ROC curve); nan without both."""
    right = [c for c, s in zip(confidences, scores) if s >= 1]
    wrong = [c for c, s in zip(confidences, scores) if s < 1]
    if not right or not wrong:
        return math.nan
    ordered = sorted(wrong)
    wins = sum((bisect.bisect_left(ordered, c) + bisect.bisect_right(ordered, c)) / 2 for c in right)
    return wins / (len(right) * len(wrong))


def with_confidence(
    lines: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[float], list[float]]:
    """(lines, their confidences, their scores). Raises: QvlError when none has one."""
    kept = [r for r in lines if r.get("confidence") is not None and not r.get("error")]
    if not kept:
        raise QvlError(
            "no line holds a confidence: run with --confidence, on a backend that gives log probabilities"
        )
    return kept, [float(r["confidence"]) for r in kept], [float(r["score"]) for r in kept]


def review(confidences: Sequence[float], scores: Sequence[float], share: float) -> dict[str, float]:
    """If a person corrects the least sure `share`: scores of the rest and of all, and the part of the wrong caught."""
    order = sorted(range(len(scores)), key=lambda i: confidences[i])
    num = math.ceil(share * len(scores))
    looked, rest = order[:num], order[num:]
    wrong = sum(scores[i] < 1 for i in order)
    kept = sum(scores[i] for i in rest)
    return {
        "share": share, "num": num, "threshold": confidences[order[num]] if rest else 1.0,
        "score_of_rest": kept / len(rest) if rest else 1.0, "score_of_all": (kept + num) / len(scores),
        "wrong_caught": sum(scores[i] < 1 for i in looked) / wrong if wrong else 1.0,
    }  # fmt: skip


def cascade(
    small: Sequence[Mapping[str, Any]], large: Sequence[Mapping[str, Any]], steps: int = 10
) -> list[dict[str, Any]]:
    """The small model's answer where it is sure, else the large one's, on items that both answered.

    A row a threshold: the share sent on, the score, and cost, tokens and seconds of both models' work. The first row
    is the small model alone; the last sends all on, which costs both. Raises: QvlError without common items.
    """
    kept, sure, _ = with_confidence(small)
    others = {r["id"]: r for r in large}
    pairs = [(c, r, others[r["id"]]) for c, r in zip(sure, kept) if r["id"] in others]
    if not pairs:
        raise QvlError("the two runs have no item in common")
    pairs.sort(key=lambda p: p[0])
    rows = []
    for step in range(steps + 1):
        num = round(step / steps * len(pairs))
        sent, stay = pairs[:num], pairs[num:]
        right = sum(float(o["score"]) for _, _, o in sent) + sum(float(r["score"]) for _, r, _ in stay)
        asked = [r for _, r, _ in pairs] + [o for _, _, o in sent]
        rows.append({
            "threshold": pairs[num][0] if num < len(pairs) else None,
            "sent_on": num / len(pairs), "num": len(pairs),
            "score": right / len(pairs),
            "cost": math.fsum(r["cost"]["amount"] for r in asked if r.get("cost")),
            "tokens": sum((r.get("prompt_tokens") or 0) + (r.get("completion_tokens") or 0) for r in asked),
            "seconds": math.fsum(r.get("seconds") or 0.0 for r in asked),
        })  # fmt: skip
    return rows
