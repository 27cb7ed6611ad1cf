"""What may be concluded from scores: intervals of one run, and of the difference of two on the same items.

    wilson(180, 200)                          (0.8506, 0.9346)
    mcnemar(lost=5, won=0).exact              0.0625
    paired_interval(both, lost, won, neither) Tango's interval of the difference
    needed_items(discordant=0.10, difference=0.01)

Knows nothing of models or files. Numpy draws the resamples; everything else is arithmetic. Each function is held to
scipy or statsmodels in tests/test_evaluate_statistics.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from qvl.errors import PlanError

DRAWS = 10_000  # resamples of a bootstrap or a permutation test
EXACT_UNITS = 14  # up to so many non-zero differences all 2**n sign patterns are counted
_NORMAL = NormalDist()


class Interval(NamedTuple):
    low: float
    high: float


def normal_quantile(share: float) -> float:
    return _NORMAL.inv_cdf(share)


def _two_sided_z(level: float) -> float:
    return _NORMAL.inv_cdf(0.5 + level / 2)


# Beta and t distributions, for exact intervals and small samples


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction.

    Source: Lentz's method for DLMF 8.17.22.
    """
    if x <= 0 or x >= 1:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    tiny = 1e-300
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    c, d = 1.0, 1 / _away_from_0(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_0(1 + term * d, tiny)
            c = _away_from_0(1 + term / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return front * value / a


def _away_from_0(x: float, tiny: float) -> float:
    return x if abs(x) > tiny else tiny


def _rising_root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that rises from below 0 to above 0 crosses it, by halving until the floats touch."""
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if f(middle) < 0:
            low = middle
        else:
            high = middle


def beta_quantile(share: float, a: float, b: float) -> float:
    return _rising_root(lambda x: beta_cdf(x, a, b) - share, 0.0, 1.0)


def t_cdf(t: float, df: float) -> float:
    tail = beta_cdf(df / (df + t * t), df / 2, 0.5) / 2
    return 1 - tail if t > 0 else tail


def t_quantile(share: float, df: float) -> float:
    return _rising_root(lambda t: t_cdf(t, df) - share, -1e9, 1e9)


# One run


def wilson(num_right: float, num: float, level: float = 0.95) -> Interval:
    """The Wilson score interval for a share; (0, 1) when nothing was counted.

    centre = (p + z²/2n) / (1 + z²/n), half = z / (1 + z²/n) · sqrt(p(1-p)/n + z²/4n²).
    Counts needn't be whole: a clustered sample counts as fewer items than it has.
    Source: E. B. Wilson, JASA 22 (1927).
    """
    if num == 0:
        return Interval(0.0, 1.0)
    z = _two_sided_z(level)
    share = num_right / num
    scale = 1 + z * z / num
    centre = (share + z * z / (2 * num)) / scale
    half = z / scale * math.sqrt(max(0.0, share * (1 - share) / num) + z * z / (4 * num * num))
    # at 0 and 1 the bound is exact; rounding would leave 1e-17
    return Interval(
        0.0 if share <= 0 else max(0.0, centre - half), 1.0 if share >= 1 else min(1.0, centre + half)
    )


def clopper_pearson(num_right: int, num: int, level: float = 0.95) -> Interval:
    """The exact interval for a share: never covers less than `level`, and is wider than Wilson's for it.

    Source: Clopper and Pearson, Biometrika 26 (1934), by quantiles of the beta distribution.
    """
    tail = (1 - level) / 2
    low = 0.0 if num_right == 0 else beta_quantile(tail, num_right, num - num_right + 1)
    high = 1.0 if num_right == num else beta_quantile(1 - tail, num_right + 1, num - num_right)
    return Interval(low, high)


def clustered_error(scores: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of a mean whose scores come in groups (questions about one image); None: each alone.

    sqrt(G / (G - 1) · Σ_g (Σ_{i in g} (s_i - mean))²) / n; infinite for fewer than two groups.
    Source: Miller, arXiv 2411.00640, section 2.2, with the small-sample factor that statsmodels uses.
    """
    sums, sizes = _by_cluster(scores, clusters)
    if len(sums) < 2:
        return math.inf
    n = sizes.sum()
    off = sums - sizes * (sums.sum() / n)
    return float(math.sqrt(len(sums) / (len(sums) - 1) * float(off @ off)) / n)


def _by_cluster(
    scores: Sequence[float], clusters: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    """(sum of scores, number of scores) of each group, in the order of their first item."""
    values = np.asarray(scores, dtype=np.float64)
    if clusters is None:
        return values, np.ones(len(values))
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} scores but {len(clusters)} cluster names")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(c, len(numbers)) for c in clusters], dtype=np.int64)
    return np.bincount(index, values), np.bincount(index).astype(np.float64)


class MeanScore(NamedTuple):
    mean: float
    low: float
    high: float
    method: str  # how the interval was worked out, for people
    standard_error: float
    num_clusters: int


def mean_interval(
    scores: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> MeanScore:
    """The mean score with its interval, by the method that the scores allow.

    Right or wrong, each item alone: Wilson. Right or wrong, grouped: Wilson with the number of independent items that
    would have the clustered error, p(1-p)/error²; with all right or all wrong, the number of groups. Graded: mean
    ± t · error with G - 1 degrees of freedom, kept within 0 and 1 when the scores are.
    Raises: PlanError without scores.
    """
    if not scores:
        raise PlanError("no scores: an interval needs at least one")
    n = len(scores)
    mean = math.fsum(scores) / n
    error = clustered_error(scores, clusters)
    groups = n if clusters is None else len(set(clusters))
    together = "" if groups == n else f", {groups} clusters"
    if all(s in (0, 1) for s in scores):
        alike = mean * (1 - mean) / error**2 if 0 < error < math.inf else float(groups)
        effective = float(n) if groups == n else min(float(n), alike)
        low, high = wilson(mean * effective, effective, level)
        return MeanScore(mean, low, high, f"Wilson{together}", error, groups)
    half = math.inf if groups < 2 else t_quantile(0.5 + level / 2, groups - 1) * error
    low, high = mean - half, mean + half
    if all(0 <= s <= 1 for s in scores):
        low, high = max(0.0, low), min(1.0, high)
    return MeanScore(mean, low, high, f"t, {groups - 1} degrees of freedom{together}", error, groups)


# Two runs on the same items


class McNemar(NamedTuple):
    exact: float  # two-sided
    mid_p: float


def mcnemar(lost: int, won: int) -> McNemar:
    """Whether as many answers got worse as got better: two-sided exact p and mid-p, 1 when nothing changed.

    exact = min(1, 2 · P(Binomial(lost + won, 1/2) <= min)); mid-p takes half of the probability of min itself.
    Source: McNemar, Psychometrika 12 (1947); mid-p as in Fagerland, Lydersen and Laake, BMC Med Res Methodol 13 (2013).
    """
    total, fewer = lost + won, min(lost, won)
    if total == 0:
        return McNemar(1.0, 1.0)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    exact = min(1.0, 2 * tail / 2**total)
    return McNemar(exact, min(1.0, (2 * tail - math.comb(total, fewer)) / 2**total))


def newcombe(both: int, lost: int, won: int, neither: int, level: float = 0.95) -> Interval:
    """Interval of (won - lost) / n, from the Wilson intervals of the two shares and their correlation.

    Source: Newcombe, Statistics in Medicine 17 (1998) 2635, method 10.
    """
    n = both + lost + won + neither
    if n == 0:
        return Interval(-1.0, 1.0)
    p1, p2 = (both + won) / n, (both + lost) / n  # after, before
    (l1, u1), (l2, u2) = wilson(both + won, n, level), wilson(both + lost, n, level)
    product = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    top: float = both * neither - lost * won
    if top > 0:
        top = max(top - n / 2, 0.0)
    phi = top / math.sqrt(product) if product else 0.0

    def far(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    diff = p1 - p2
    return Interval(diff - far(p1 - l1, u2 - p2), diff + far(u1 - p1, p2 - l2))


def tango(lost: int, won: int, num: int, level: float = 0.95) -> Interval:
    """Score interval of (won - lost) / num, which keeps its level in small samples too.

    The differences d where |won - lost - num·d| <= z · sqrt(num (2q + d(1 - d))), q the likeliest share of lost
    answers if d were the true difference.
    Source: Tango, Statistics in Medicine 17 (1998) 891.
    """
    if num == 0:
        return Interval(-1.0, 1.0)
    z = _two_sided_z(level)

    def score(d: float) -> float:
        """Falls as d rises."""
        a, b, c = 2 * num, -won - lost + (2 * num - won + lost) * d, -lost * d * (1 - d)
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = num * (2 * q + d * (1 - d))
        gap = won - lost - num * d
        if variance <= 1e-12 * num:  # d at its edge, or nothing changed
            return math.copysign(math.inf, gap) if abs(gap) > 1e-12 * num else 0.0
        return gap / math.sqrt(variance)

    diff = (won - lost) / num
    low = -1.0 if diff <= -1 else _rising_root(lambda d: z - score(d), -1.0, diff)
    high = 1.0 if diff >= 1 else _rising_root(lambda d: -z - score(d), diff, 1.0)
    return Interval(low, high)


def bootstrap_interval(
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """Bias-corrected, accelerated bootstrap interval of the mean paired difference; whole clusters are drawn.

    Percentiles where acceleration can't be told (all alike). (-inf, inf) for fewer than two clusters.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 14.3.
    """
    sums, sizes = _by_cluster(differences, clusters)
    groups = len(sums)
    if groups < 2:
        return Interval(-math.inf, math.inf)
    observed = float(sums.sum() / sizes.sum())
    means = _resampled_means(sums, sizes, seed, draws)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    below = (np.count_nonzero(means < observed) + np.count_nonzero(means == observed) / 2) / draws
    left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
    off = left_out.mean() - left_out
    spread = float((off**2).sum())
    if 0 < below < 1 and spread > 0:
        bias = _NORMAL.inv_cdf(float(below))
        acceleration = float((off**3).sum()) / (6 * spread**1.5)
        z = np.array([_NORMAL.inv_cdf(float(t)) for t in tails])
        moved = bias + (bias + z) / (1 - acceleration * (bias + z))
        tails = np.array([_NORMAL.cdf(float(m)) for m in moved])
    low, high = np.quantile(means, tails)
    return Interval(float(low), float(high))


def _resampled_means(sums: np.ndarray, sizes: np.ndarray, seed: int, draws: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    groups = len(sums)
    means = np.empty(draws)
    block = max(1, 4_000_000 // groups)  # 32 MB of indices at a time
    for start in range(0, draws, block):
        drawn = generator.integers(0, groups, (min(block, draws - start), groups))
        means[start : start + len(drawn)] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return means


def sign_flip(
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> float:
    """Two-sided p of graded differences: how often their sum is as far from 0 when signs are drawn at random.

    A cluster keeps its inner signs. Exact for up to 14 clusters that changed; else the observed one is counted in,
    so that p is never 0. Source: Fisher's randomisation test, The Design of Experiments (1935), section 21.
    """
    sums, _ = _by_cluster(differences, clusters)
    changed = sums[np.abs(sums) > 1e-12]
    if len(changed) == 0:
        return 1.0
    observed = abs(float(changed.sum())) * (1 - 1e-9) - 1e-12
    if len(changed) <= EXACT_UNITS:
        bits = np.arange(2 ** len(changed))[:, None] >> np.arange(len(changed)) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ changed) >= observed))
    generator = np.random.default_rng(seed)
    as_far, block = 0, max(1, 4_000_000 // len(changed))
    for start in range(0, draws, block):
        signs = generator.integers(0, 2, (min(block, draws - start), len(changed))) * 2 - 1
        as_far += int(np.count_nonzero(np.abs(signs @ changed) >= observed))
    return (as_far + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of several comparisons made at once, so that any false alarm among them stays at the level.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, worst)
    return adjusted


# Before a run: how many items


def needed_items(discordant: float, difference: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Paired items with which a true difference is found with this power, by a two-sided test at alpha.

    n = (z_{1-α/2} · sqrt(d) + z_power · sqrt(d - δ²))² / δ², d the share of items on which the two differ.
    Source: Connor, Biometrics 43 (1987); benchmarks such as 10% and 1 point: 7,847.
    Raises: PlanError when so few changed items can't make this difference.
    """
    _check_plan(discordant, difference)
    return math.ceil(_items(discordant, difference, power, alpha))


def _items(discordant: float, difference: float, power: float, alpha: float) -> float:
    d2 = difference * difference
    spread = math.sqrt(max(0.0, discordant - d2))
    z = normal_quantile(1 - alpha / 2) * math.sqrt(discordant) + normal_quantile(power) * spread
    return z * z / d2


def detectable(num: int, discordant: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest true difference that `num` paired items find with this power; None when not even d itself is."""
    if num < 1 or _items(discordant, discordant, power, alpha) > num:
        return None
    return _rising_root(lambda d: num - _items(discordant, d, power, alpha), 1e-9, discordant)


def power_of(num: int, discordant: float, difference: float, alpha: float = 0.05) -> float:
    """The chance that `num` paired items show a true difference at alpha, by the formula of `needed_items`."""
    _check_plan(discordant, difference)
    spread = math.sqrt(max(0.0, discordant - difference**2))
    reach = abs(difference) * math.sqrt(num) - normal_quantile(1 - alpha / 2) * math.sqrt(discordant)
    return float(reach >= 0) if spread == 0 else _NORMAL.cdf(reach / spread)


def _check_plan(discordant: float, difference: float) -> None:
    if not 0 < discordant <= 1:
        raise PlanError(
            f"discordant {discordant:g}: the share of items on which two runs differ, above 0, up to 1"
        )
    if not 0 < abs(difference) <= discordant:
        raise PlanError(
            f"a difference of {difference:g} can't come from {discordant:g} of the items changing: it needs to be "
            "above 0 and at most that share"
        )


def needed_unpaired(share: float, difference: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Items of each of two runs on different items, for the same question without pairing.

    n = (z_{1-α/2} · sqrt(2p̄(1-p̄)) + z_power · sqrt(p1(1-p1) + p2(1-p2)))² / δ².
    Source: Fleiss, Statistical Methods for Rates and Proportions (1981), section 3.2.
    """
    other = share - difference
    if not (0 <= other <= 1 and 0 <= share <= 1 and difference):
        raise PlanError(
            f"a share of {share:g} and one {difference:g} lower: both need to lie between 0 and 1"
        )
    mean = (share + other) / 2
    z = normal_quantile(1 - alpha / 2) * math.sqrt(2 * mean * (1 - mean))
    z += normal_quantile(power) * math.sqrt(share * (1 - share) + other * (1 - other))
    return math.ceil(z * z / difference**2)


# Agreement of two who judge the same items


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Agreement beyond chance, 1 when all agree. nan when both say one thing only.

    Source: Cohen, Educational and Psychological Measurement 20 (1960).
    """
    n = len(first)
    if n == 0 or n != len(second):
        raise ValueError(f"{n} and {len(second)} verdicts")
    agree = sum(a == b for a, b in zip(first, second)) / n
    names = set(first) | set(second)
    chance = sum(first.count(c) * second.count(c) for c in names) / (n * n)
    return math.nan if chance >= 1 else (agree - chance) / (1 - chance)
