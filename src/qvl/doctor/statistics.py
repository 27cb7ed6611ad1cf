"""Paired comparisons of a few dozen scores, exact where that is cheap. Plain Python: the numbers are small."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

EXACT_UP_TO = 12  # 4,096 sign patterns
DRAWS = 4000


def sign_flip(differences: Sequence[float]) -> float:
    """One-sided p: how often the mean would be as large if each difference had either sign with equal chance.

    Zeros tell nothing and are left out. Exact up to 12 differences, else from 4,000 draws of a fixed seed, the
    observed one counted in, so never 0.
    """
    told = [d for d in differences if d]
    if not told:
        return 1.0
    observed = sum(told) - 1e-12
    sizes = [abs(d) for d in told]
    if len(told) <= EXACT_UP_TO:
        as_large = 0
        for pattern in range(2 ** len(sizes)):
            total = sum(size if pattern >> i & 1 else -size for i, size in enumerate(sizes))
            as_large += total >= observed
        return as_large / float(2 ** len(sizes))
    draw = random.Random(0)
    as_large = sum(sum(draw.choice((-s, s)) for s in sizes) >= observed for _ in range(DRAWS))
    return (as_large + 1) / (DRAWS + 1)


def mcnemar(lost: int, won: int) -> float:
    """One-sided exact p that as many or more of the discordant pairs were lost by chance: a binomial tail at 1/2.

    Source: McNemar, Psychometrika 12 (1947), in its exact form.
    """
    total = lost + won
    return sum(math.comb(total, k) for k in range(lost, total + 1)) / float(2**total)


def mean_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean paired difference: 2,000 resamples of a fixed seed.

    (0, 0) for no differences. Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    if not differences:
        return 0.0, 0.0
    draw = random.Random(0)
    count = len(differences)
    means = sorted(sum(draw.choices(differences, k=count)) / count for _ in range(2000))
    tail = (1 - level) / 2
    return means[int(tail * 2000)], means[min(1999, int((1 - tail) * 2000))]
