"""The statistics of qvl eval, held to scipy and statsmodels on random tables."""

import gc
import math
import random

import numpy as np
import pytest

from qvl.errors import PlanError
from qvl.evaluate import statistics as ours

stats = pytest.importorskip("scipy.stats")
optimize = pytest.importorskip("scipy.optimize")
sm = pytest.importorskip("statsmodels.api")
TABLES = 1000
CLOSE = 1e-9


def tables(seed, largest=200):
    """(both, lost, won, neither), small, one-sided and empty cells among them."""
    draw = random.Random(seed)
    for _ in range(TABLES):
        top = draw.choice((1, 3, 10, 40, largest))
        table = [draw.randint(0, top) for _ in range(4)]
        if sum(table):
            yield tuple(table)


def test_mcnemar_equals_statsmodels_on_random_tables():
    from statsmodels.stats.contingency_tables import mcnemar

    for both, lost, won, neither in tables(0):
        found = ours.mcnemar(lost, won)
        if lost + won == 0:
            assert found == (1, 1)
            continue
        theirs = mcnemar([[both, lost], [won, neither]], exact=True).pvalue
        assert found.exact == pytest.approx(theirs, abs=CLOSE)
        fewer, total = min(lost, won), lost + won
        mid = 2 * stats.binom.cdf(fewer, total, 0.5) - stats.binom.pmf(fewer, total, 0.5)
        assert found.mid_p == pytest.approx(min(1, mid), abs=CLOSE)


def test_wilson_and_clopper_pearson_equal_statsmodels():
    from statsmodels.stats.proportion import proportion_confint

    draw = random.Random(1)
    for _ in range(TABLES):
        num = draw.choice((1, 5, 30, 900, 5349))
        right, level = draw.randint(0, num), draw.choice((0.9, 0.95, 0.99))
        for method, found in (
            ("wilson", ours.wilson(right, num, level)),
            ("beta", ours.clopper_pearson(right, num, level)),
        ):
            theirs = proportion_confint(right, num, 1 - level, method)
            assert found == pytest.approx(theirs, abs=CLOSE), (method, right, num)


def test_beta_and_t_quantiles_equal_scipy():
    draw = random.Random(2)
    for _ in range(TABLES):
        share, a, b = draw.uniform(0.001, 0.999), draw.uniform(0.5, 500), draw.uniform(0.5, 500)
        assert ours.beta_quantile(share, a, b) == pytest.approx(stats.beta.ppf(share, a, b), abs=CLOSE)
        df = draw.randint(1, 3000)
        assert ours.t_quantile(share, df) == pytest.approx(stats.t.ppf(share, df), rel=1e-8, abs=CLOSE)


def test_clustered_error_equals_statsmodels():
    draw = np.random.default_rng(3)
    for _ in range(TABLES):
        n = int(draw.integers(4, 60))
        scores, clusters = draw.random(n), draw.integers(0, max(2, n // 3), n)
        if len(set(clusters.tolist())) < 2:
            continue
        fit = sm.OLS(scores, np.ones(n))
        theirs = fit.fit(cov_type="cluster", cov_kwds={"groups": clusters}).bse[0]
        assert ours.clustered_error(scores, clusters.tolist()) == pytest.approx(theirs, abs=CLOSE)
        assert ours.clustered_error(scores) == pytest.approx(stats.sem(scores), abs=CLOSE)


def newcombe_by_statsmodels(both, lost, won, neither):
    from statsmodels.stats.proportion import proportion_confint

    n = both + lost + won + neither
    after, before = both + won, both + lost
    l1, u1 = proportion_confint(after, n, 0.05, "wilson")
    l2, u2 = proportion_confint(before, n, 0.05, "wilson")
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    top = both * neither - lost * won
    if top > n / 2:
        top -= n / 2
    elif top > 0:
        top = 0
    phi = top / math.sqrt(margins) if margins else 0
    p1, p2 = after / n, before / n
    low = math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    high = math.sqrt((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2)
    return p1 - p2 - low, p1 - p2 + high


def test_newcombe_is_method_10_on_statsmodels_wilson_bounds():
    for table in tables(4):
        assert ours.newcombe(*table) == pytest.approx(newcombe_by_statsmodels(*table), abs=1e-7)


def likeliest_lost(lost, won, rest, d):
    """The share of lost answers that makes the counts likeliest when won - lost is d: found by search."""

    def minus(q):
        parts = ((lost, q), (won, q + d), (rest, 1 - 2 * q - d))
        return -sum(count * math.log(max(share, 1e-300)) for count, share in parts if count)

    low, high = max(0.0, -d), (1 - d) / 2
    return optimize.minimize_scalar(minus, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x


def test_tango_bounds_are_where_the_score_statistic_reaches_z():
    z = stats.norm.ppf(0.975)
    for both, lost, won, neither in list(tables(5, largest=60))[:300]:
        n = both + lost + won + neither
        for d in ours.tango(lost, won, n):
            if abs(d) > 1 - 1e-6:
                continue
            q = likeliest_lost(lost, won, both + neither, d)
            spread = math.sqrt(max(n * (2 * q + d * (1 - d)), 1e-30))
            assert abs(won - lost - n * d) / spread == pytest.approx(z, rel=2e-4), (lost, won, n, d)


def test_tango_on_the_published_example():
    # Tango 1998 and Newcombe 1998, table of 50 pairs with 12 and 2 that differ
    assert ours.tango(2, 12, 50) == pytest.approx((0.0611, 0.3447), abs=1e-4)
    assert ours.newcombe(36, 2, 12, 0) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_tango_is_symmetric_and_holds_its_level():
    for _, lost, won, n in tables(6, largest=40):
        num = lost + won + n
        if num:
            low, high = ours.tango(lost, won, num)
            assert ours.tango(won, lost, num) == pytest.approx((-high, -low), abs=CLOSE)
            assert low <= (won - lost) / num <= high
    draw, covered = np.random.default_rng(7), 0
    for _ in range(2000):
        lost, won, _ = draw.multinomial(100, (0.08, 0.02, 0.9))
        low, high = ours.tango(int(lost), int(won), 100)
        covered += low <= -0.06 <= high
    assert 0.93 <= covered / 2000 <= 0.98


def test_bootstrap_equals_scipy_up_to_its_own_noise():
    draw = np.random.default_rng(8)
    for n in (20, 100, 400):
        differences = draw.choice((-1.0, -0.3, 0, 0, 0, 0.2, 1), n)
        theirs = stats.bootstrap((differences,), np.mean, n_resamples=40_000, rng=np.random.default_rng(1))
        found = ours.bootstrap_interval(differences.tolist(), draws=40_000, seed=3)
        noise = stats.sem(differences) * 0.06
        assert found == pytest.approx(tuple(theirs.confidence_interval), abs=noise)
    assert ours.bootstrap_interval([0.1, -0.2, 0.3]) == ours.bootstrap_interval([0.1, -0.2, 0.3])
    assert ours.bootstrap_interval([0.5]) == (-math.inf, math.inf)


def test_bootstrap_of_clusters_is_wider_when_they_agree_inside():
    draw = np.random.default_rng(9)
    clusters = [i // 5 for i in range(200)]
    shared = draw.normal(0, 1, 40)
    differences = [float(shared[c]) for c in clusters]
    alone = ours.bootstrap_interval(differences)
    whole = ours.bootstrap_interval(differences, clusters)
    assert (whole.high - whole.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(5), rel=0.1)
    assert whole.high - whole.low == pytest.approx(
        2 * 1.96 * ours.clustered_error(differences, clusters), rel=0.1
    )


def test_sign_flip_equals_scipys_permutation_test():
    draw = np.random.default_rng(10)
    for _ in range(60):
        n = int(draw.integers(2, 11))
        differences = np.round(draw.normal(0.3, 1, n), 2)
        zero = np.zeros(n)
        theirs = stats.permutation_test(
            (differences, zero),
            lambda a, b, axis: (a - b).mean(axis),
            permutation_type="samples",
            n_resamples=np.inf,
        )
        assert ours.sign_flip(differences.tolist()) == pytest.approx(theirs.pvalue, abs=CLOSE)
    many = draw.normal(0.15, 1, 200).tolist()
    assert ours.sign_flip(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)
    assert ours.sign_flip([0.0, 0.0]) == 1


def test_sign_flip_of_right_and_wrong_is_mcnemar():
    for lost, won in ((5, 0), (6, 1), (3, 3), (9, 2)):
        assert ours.sign_flip([-1.0] * lost + [1.0] * won) == pytest.approx(ours.mcnemar(lost, won).exact)


def test_holm_equals_statsmodels(monkeypatch):
    from statsmodels.stats.multitest import multipletests

    # it collects garbage after each call, which takes half a second in a process that has run other tests
    monkeypatch.setattr(gc, "collect", lambda: 0)
    draw = random.Random(11)
    for _ in range(TABLES):
        p = [draw.random() ** 3 for _ in range(draw.randint(1, 8))]
        assert ours.holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=CLOSE)


def test_kappa_equals_statsmodels():
    from statsmodels.stats.inter_rater import cohens_kappa

    for both, lost, won, neither in tables(12, largest=40):
        first = [1] * both + [1] * lost + [0] * won + [0] * neither
        second = [1] * both + [0] * lost + [1] * won + [0] * neither
        if len(set(first) | set(second)) < 2:
            assert math.isnan(ours.cohen_kappa(first, second))
            continue
        theirs = cohens_kappa(np.array([[both, lost], [won, neither]]), return_results=False)
        assert ours.cohen_kappa(first, second) == pytest.approx(theirs, abs=CLOSE)


NEEDED = {  # discordant: items for a drop of 1, 2, 3, 5 points at 80% power
    0.03: (2353, 587), 0.05: (3923, 979, 434), 0.10: (7847, 1960, 870, 312), 0.15: (11771, 2941, 1306, 469),
    0.20: (15696, 3923, 1742, 626),
}  # fmt: skip


def test_needed_items_are_those_of_the_table():
    for discordant, row in NEEDED.items():
        for difference, wanted in zip((0.01, 0.02, 0.03, 0.05), row):
            # the table was made with 1.96 and 0.84 rounded
            assert ours.needed_items(discordant, difference) == pytest.approx(wanted, rel=2e-3, abs=1)
    for share, row in ((0.7, (33272, 8391, 3760)), (0.95, (8155, 2210, 1057))):
        for difference, wanted in zip((0.01, 0.02, 0.03), row):
            assert ours.needed_unpaired(share, difference) == pytest.approx(wanted, rel=3e-3)


def test_power_detectable_and_needed_items_are_inverse():
    for discordant in (0.03, 0.1, 0.3):
        for num in (300, 900, 5000):
            difference = ours.detectable(num, discordant)
            if difference is not None:
                assert ours.power_of(num, discordant, difference) == pytest.approx(0.8)
                assert ours.needed_items(discordant, difference) == pytest.approx(num, abs=1)
    assert ours.detectable(20, 0.05) is None
    assert ours.detectable(900, 0.10) == pytest.approx(0.030, abs=6e-4)


def test_the_power_formula_is_what_happens():
    draw, found = np.random.default_rng(13), 0
    for _ in range(2000):
        lost, won, _ = draw.multinomial(870, (0.065, 0.035, 0.9))
        found += ours.mcnemar(int(lost), int(won)).mid_p < 0.05
    assert found / 2000 == pytest.approx(0.8, abs=0.035)


@pytest.mark.parametrize(("discordant", "difference"), [(0, 0.01), (0.01, 0.02), (0.1, 0), (1.2, 0.1)])
def test_an_impossible_plan_is_refused(discordant, difference):
    with pytest.raises(PlanError):
        ours.needed_items(discordant, difference)


def test_five_losses_of_a_hundred_are_no_proof():
    """The paired t-test that a popular harness uses calls it significant; the exact test doesn't."""
    before, after = [1.0] * 100, [0.0] * 5 + [1.0] * 95
    assert stats.ttest_rel(before, after).pvalue == pytest.approx(0.025, abs=5e-4)
    assert ours.mcnemar(lost=5, won=0).exact == 0.0625


def test_the_interval_of_a_mean_follows_the_kind_of_score():
    right = [1] * 90 + [0] * 10
    found = ours.mean_interval(right)
    assert (found.low, found.high) == pytest.approx(ours.wilson(90, 100))
    assert found.method == "Wilson"
    graded = [0.2, 0.5, 0.9, 1.0]
    found = ours.mean_interval(graded)
    low, high = stats.t.interval(0.95, 3, np.mean(graded), stats.sem(graded))
    assert (found.low, found.high) == pytest.approx((max(0, low), min(1, high)), abs=CLOSE)
    pairs = [i // 2 for i in range(100)]  # both questions of an image are right or both wrong
    found = ours.mean_interval(right, pairs)
    assert (found.low, found.high) == pytest.approx(ours.wilson(45, 50), abs=2e-3)
    assert found.method == "Wilson, 50 clusters"
    assert ours.mean_interval([1] * 10, [0, 1] * 5)[1:3] == ours.wilson(2, 2)
    with pytest.raises(PlanError, match="no scores"):
        ours.mean_interval([])
