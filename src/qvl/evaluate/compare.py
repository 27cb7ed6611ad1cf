"""Two or more runs on the same items: is the difference real, which answers changed, and how many items would tell.

    found = compare(read_result("runs/bf16"), read_result("runs/int4"), max_drop=0.01)
    print(found.difference, found.low, found.high, found.p)

Items are matched by their id. What only one side has, or what has another truth there, is counted and left out of the
comparison, never dropped silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qvl.errors import QvlError
from qvl.evaluate import statistics
from qvl.evaluate.journal import differences
from qvl.evaluate.runner import Result

SETTINGS = ("data", "prompt", "scorer", "model", "settings")


@dataclass(frozen=True)
class Change:
    """One item whose score differs."""

    id: str
    before: Mapping[str, Any]  # lines of samples.jsonl
    after: Mapping[str, Any]

    @property
    def difference(self) -> float:
        return float(self.after["score"]) - float(self.before["score"])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """B against A, on the items that both have. Shares and differences are parts of 1, B minus A."""

    first: str
    second: str
    num: int
    num_clusters: int
    only_first: int
    only_second: int
    other_truth: int  # items whose truth differs between the runs
    score_first: float
    score_second: float
    difference: float
    low: float
    high: float
    interval_method: str
    p: float
    p_method: str
    mid_p: float | None  # of McNemar's test; None for graded scores
    exact: float | None
    bootstrap: statistics.Interval
    lost: tuple[Change, ...]  # worse in B, the worst first
    won: tuple[Change, ...]
    num_errors: tuple[int, int]
    changed_settings: tuple[str, ...]
    adjusted_p: float | None = None  # by Holm, when several are compared with A
    max_drop: float | None = None
    drop_bound: float | None = None  # low end of the one-sided 95% interval
    detect: float | None = None
    needed: int | None = None  # items for `detect`, with the discordance seen here

    @property
    def num_changed(self) -> int:
        return len(self.lost) + len(self.won)

    @property
    def discordant(self) -> float:
        return self.num_changed / self.num

    @property
    def no_worse(self) -> bool | None:
        """Whether a drop of `max_drop` is excluded; None when none was asked for."""
        if self.max_drop is None or self.drop_bound is None:
            return None
        return self.drop_bound > -self.max_drop

    def to_dict(self) -> dict[str, Any]:
        """Plain values, numbers unrounded; changed items by their ids."""
        found = {k: v for k, v in vars(self).items() if k not in ("lost", "won")}
        return found | {
            "bootstrap": list(self.bootstrap),
            "num_lost": len(self.lost), "num_won": len(self.won), "discordant": self.discordant,
            "lost": [c.id for c in self.lost], "won": [c.id for c in self.won], "no_worse": self.no_worse,
        }  # fmt: skip


def compare(
    first: Result,
    second: Result,
    *,
    max_drop: float | None = None,
    detect: float | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """The second run against the first.

    Right or wrong, each item alone: McNemar's exact test, Tango's interval. Graded, or several items from one image:
    sign flips and the bootstrap, both of whole clusters. max_drop: the margin of a claim that B is no worse. detect:
    a difference for which the needed items are worked out; left out, the one seen.
    Raises: QvlError for other scorers, or no item in common.
    """
    names = _name(first), _name(second)
    if first.about.get("scorer") != second.about.get("scorer"):
        changed = "; ".join(
            differences(first.about.get("scorer") or {}, second.about.get("scorer") or {}, "scorer.")
        )
        raise QvlError(
            f"{names[0]} and {names[1]} were scored by other rules ({changed}): --rescore one of them"
        )
    a, b = ({r["id"]: r for r in result.lines} for result in (first, second))
    common = [i for i in a if i in b]
    paired = [i for i in common if a[i].get("truth") == b[i].get("truth")]
    if not paired:
        raise QvlError(f"{names[0]} and {names[1]} have no item in common: {len(a)} and {len(b)} items")
    gaps = [float(b[i]["score"]) - float(a[i]["score"]) for i in paired]
    clusters = [str(a[i].get("cluster") or i) for i in paired]
    alone = len(set(clusters)) == len(paired)
    binary = all(line["score"] in (0, 1) for i in paired for line in (a[i], b[i]))
    changes = [Change(i, a[i], b[i]) for i, gap in zip(paired, gaps) if abs(gap) > 1e-12]
    lost = tuple(sorted((c for c in changes if c.difference < 0), key=lambda c: c.difference))
    won = tuple(sorted((c for c in changes if c.difference > 0), key=lambda c: -c.difference))
    whose = None if alone else clusters
    boot = statistics.bootstrap_interval(gaps, whose, level=level, seed=seed)
    tested = statistics.mcnemar(len(lost), len(won)) if binary else None
    if tested is not None and alone:
        interval, method = statistics.tango(len(lost), len(won), len(paired), level), "Tango"
        p, p_method = tested.exact, "McNemar, exact"
    else:
        together = "" if alone else ", whole clusters"
        interval, method = boot, f"bootstrap{together}"
        p, p_method = statistics.sign_flip(gaps, whose, seed=seed), f"sign flips{together}"
    bound = None
    if max_drop is not None:
        if tested is not None and alone:
            bound = statistics.tango(len(lost), len(won), len(paired), 0.9).low
        else:
            bound = statistics.bootstrap_interval(gaps, whose, level=0.9, seed=seed).low
    difference = math.fsum(gaps) / len(gaps)
    discordant = len(changes) / len(paired)
    wanted = detect if detect is not None else abs(difference)
    needed = statistics.needed_items(discordant, wanted) if 0 < wanted <= discordant else None
    before, now = ({k: result.about.get(k) for k in SETTINGS} for result in (first, second))
    return Comparison(
        first=names[0],
        second=names[1],
        num=len(paired),
        num_clusters=len(set(clusters)),
        only_first=len(a) - len(common),
        only_second=len(b) - len(common),
        other_truth=len(common) - len(paired),
        score_first=math.fsum(float(a[i]["score"]) for i in paired) / len(paired),
        score_second=math.fsum(float(b[i]["score"]) for i in paired) / len(paired),
        difference=difference,
        low=interval.low,
        high=interval.high,
        interval_method=method,
        p=p,
        p_method=p_method,
        mid_p=None if tested is None else tested.mid_p,
        exact=None if tested is None else tested.exact,
        bootstrap=boot,
        lost=lost,
        won=won,
        num_errors=(
            sum(bool(a[i].get("error")) for i in paired),
            sum(bool(b[i].get("error")) for i in paired),
        ),
        changed_settings=tuple(differences(before, now)),
        max_drop=max_drop,
        drop_bound=bound,
        detect=wanted or None,
        needed=needed,
    )


def compare_all(runs: Sequence[Result], **options: Any) -> list[Comparison]:
    """Each run against the first, p values adjusted by Holm when there are several. Raises: QvlError."""
    if len(runs) < 2:
        raise QvlError("two runs at least are compared")
    found = [compare(runs[0], other, **options) for other in runs[1:]]
    if len(found) == 1:
        return found
    return [replace(c, adjusted_p=p) for c, p in zip(found, statistics.holm([c.p for c in found]))]


def _name(result: Result) -> str:
    return str(result.folder) if result.folder is not None else str(result.about.get("model", {}).get("name"))
