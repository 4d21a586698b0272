"""Statistics against other routes to the same number, and the coverage of the comparison by simulation."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import zconfint, ztest

from graft.reporting import stats


def study(rng, seeds, n, seed_sd):
    """Two conditions of equal true accuracy (about 0.9): correctness (S, N) each, probit with all effects."""
    difficulty = rng.normal(size=n)
    return [1.35 + difficulty + 0.25 * rng.normal(size=n) + seed_sd * rng.normal(size=(seeds, 1))
            + 0.25 * rng.normal(size=(seeds, n)) > 0 for _ in range(2)]


def covers_zero(interval):
    return interval[0] <= 0 <= interval[1]


def test_wilson_is_the_score_interval():
    low, high = stats.wilson(342, 360)
    for end in (low, high):  # the ends solve |p - end| = z sqrt(end (1 - end) / n)
        z = abs(342 / 360 - end) / np.sqrt(end * (1 - end) / 360)
        assert z == pytest.approx(1.959964, abs=1e-5)
    assert stats.wilson(0, 10)[0] == pytest.approx(0, abs=1e-12) and stats.wilson(0, 10)[1] > 0.2


def test_seed_summary():
    values = [0.91, 0.93, 0.95]
    found = stats.seed_summary(values)
    assert found["ci95"] == pytest.approx(scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95))
    assert found["mean"] == pytest.approx(0.93) and found["seeds"] == 3
    assert stats.seed_summary([0.9]) == {"mean": 0.9, "ci95": [None, None], "seeds": 1}


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_interval_covers_and_its_p_agrees_where_seeds_differ(seeds):
    rng, covered, repeats = np.random.default_rng(seeds), [], 250
    for _ in range(repeats):
        found = stats.paired_difference(*study(rng, seeds, 200, 0.15), draws=1)
        covered.append(covers_zero(found["ci95"]))
        assert (found["p"] >= 0.05) == covered[-1]
    assert np.mean(covered) > 0.95 - 2.5 * np.sqrt(0.95 * 0.05 / repeats)


def test_interval_is_not_wide_with_many_seeds():
    rng = np.random.default_rng(0)
    found = [stats.paired_difference(*study(rng, 10, 200, 0.05), draws=1) for _ in range(250)]
    assert 0.92 < np.mean([covers_zero(one["ci95"]) for one in found]) < 0.995
    needed = 1.96 * np.std([one["difference"] for one in found])
    assert np.mean([one["ci95"][1] - one["difference"] for one in found]) < 1.3 * needed


def test_plain_bootstrap_and_one_seed_cover_too_rarely():
    """The reason for `ci95` and for the note on one seed."""
    rng, repeats = np.random.default_rng(1), 200
    two = [stats.paired_difference(*study(rng, 2, 200, 0.15), draws=300) for _ in range(repeats)]
    one = [stats.paired_difference(*study(rng, 1, 200, 0.15), draws=1) for _ in range(repeats)]
    assert np.mean([covers_zero(found["ci95_bootstrap"]) for found in two]) < 0.92
    assert np.mean([covers_zero(found["ci95"]) for found in one]) < 0.85
    assert two[0]["scope"] == "seeds and examples" and one[0]["scope"] == "examples"


def test_variances_are_those_of_the_crossed_model():
    """seed, example and residual variances 0.04, 0.25, 1: Var = 0.04/S + 0.25/N + 1/(S N)."""
    rng, seeds, n, found = np.random.default_rng(0), 4, 50, []
    for _ in range(600):
        x = 0.2 * rng.normal(size=(seeds, 1)) + 0.5 * rng.normal(size=n) + rng.normal(size=(seeds, n))
        found.append(stats._variances(x, np.zeros_like(x), True))
    seed_var, example_var = np.mean(found, axis=0)
    assert seed_var == pytest.approx(0.04 / seeds + 1 / (seeds * n), rel=0.1)
    assert example_var == pytest.approx(0.25 / n, rel=0.1)


@pytest.mark.parametrize("paired", [True, False])
def test_bootstrap_is_resampling_of_examples_and_seeds(paired):
    """Against the plain loop that gathers by index."""
    rng = np.random.default_rng(0)
    a, b = study(rng, 3, 80, 0.3)
    b = b if paired else b[:2]
    differences = []
    for _ in range(8000):
        examples, s = rng.integers(0, 80, 80), rng.integers(0, 3, 3)
        t = s if paired else rng.integers(0, 2, 2)
        differences.append(a[s][:, examples].mean() - b[t][:, examples].mean())
    found = stats.paired_difference(a, b, paired_seeds=paired, draws=20_000)
    assert found["ci95_bootstrap"] == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.006)
    assert found["ci95_bootstrap"] == stats.paired_difference(a, b, paired_seeds=paired, draws=20_000)["ci95_bootstrap"]


def test_one_seed_of_real_values_is_the_paired_z_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 1, (1, 5000)), rng.normal(0, 1, (1, 5000))
    found = stats.paired_difference(a, b, draws=100)
    assert found["p"] == pytest.approx(ztest(a[0] - b[0])[1], rel=1e-6)
    assert found["ci95"] == pytest.approx(zconfint(a[0] - b[0]))
    assert "discordant" not in found


def test_seed_effects_alone_are_the_paired_t_test():
    """Without any effect of examples the interval is that of the t-test on the seeds' differences."""
    per_seed = np.array([[0.02], [0.05], [0.01], [0.03]])
    found = stats.paired_difference(np.repeat(per_seed, 50, 1), np.zeros((4, 50)), draws=100)
    expected = scipy_stats.ttest_1samp(per_seed[:, 0], 0)
    assert found["p"] == pytest.approx(expected.pvalue, abs=1e-9)
    assert found["ci95"] == pytest.approx(expected.confidence_interval(0.95))


def test_seeds_that_differ_by_number_are_independent():
    rng = np.random.default_rng(0)
    a, b = study(rng, 4, 300, 0.2)
    found = stats.paired_difference(a, b[:2], paired_seeds=False, draws=100)
    assert found["difference"] == pytest.approx(a.mean() - b[:2].mean()) and found["seeds"] == [4, 2]
    assert found["se_seed"] ** 2 == pytest.approx(a.mean(1).var(ddof=1) / 4 + b[:2].mean(1).var(ddof=1) / 2)
    assert not found["paired_seeds"] and "mcnemar_p" not in found
    with pytest.raises(ValueError, match="cannot be paired"):
        stats.paired_difference(a, b[:2])


def test_equal_predictions_leave_some_doubt():
    a = np.ones((1, 100), bool)
    found = stats.paired_difference(a, a, draws=10)
    assert found["difference"] == 0 and found["p"] == 1 and found["ci95"][0] < 0 < found["ci95"][1]


def test_mcnemar_is_the_sign_test_of_the_discordant_pairs():
    a = np.array([[1] * 12 + [0] * 3 + [1] * 5], bool)
    b = np.array([[0] * 12 + [1] * 3 + [1] * 5], bool)
    assert stats.mcnemar_exact(a, b) == pytest.approx([scipy_stats.binomtest(3, 15).pvalue])
    assert stats.mcnemar_exact(a, a) == [1.0]
    found = stats.paired_difference(a, b, draws=10)
    assert found["discordant"] == pytest.approx([12 / 20, 3 / 20])
    assert found["cohens_h"] == pytest.approx(2 * np.arcsin(np.sqrt(17 / 20)) - 2 * np.arcsin(np.sqrt(8 / 20)))


def test_holm():
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([]) == []


@pytest.mark.parametrize("seeds", [1, 3])
def test_detectable_is_found_in_80_percent(seeds):
    """Simulated differences of that size, with the stated variances."""
    n, rate, seed_sd, rng = 1000, 0.1, 0.01, np.random.default_rng(0)
    true = stats.detectable(n, rate, seeds, seed_sd)
    seed_sd = seed_sd if seeds > 1 else 0.0
    per_seed = true + np.sqrt(rate / n) * rng.normal(size=(20_000, 1)) + seed_sd * rng.normal(size=(20_000, seeds))
    seed_var = per_seed.var(1, ddof=1) / seeds if seeds > 1 else np.zeros(20_000)
    t = scipy_stats.t.ppf(0.975, seeds - 1) if seeds > 1 else 0
    half = np.sqrt(t**2 * seed_var + 1.96**2 * rate / n)
    assert np.mean(abs(per_seed.mean(1)) > half) == pytest.approx(0.8, abs=0.01)


def test_detectable_shrinks_with_more_of_everything():
    base = stats.detectable(1000, 0.1, 3, 0.01)
    assert stats.detectable(4000, 0.1, 3, 0.01) < base and stats.detectable(1000, 0.1, 6, 0.01) < base
    assert stats.detectable(1000, 0.05, 3, 0.01) < base < stats.detectable(1000, 0.1, 3, 0.01, power=0.9)


@pytest.mark.parametrize(("claim", "ci95", "expected"), [
    (0.03, (0.01, 0.05), "supported"), (0.03, (0.04, 0.05), "supported"), (0.03, (-0.01, 0.05), "undecided"),
    (0.03, (-0.01, 0.02), "contradicted"), (0.03, (0.01, 0.02), "contradicted"), (-0.03, (-0.05, -0.01), "supported"),
    (-0.03, (0.01, 0.05), "contradicted"), (0.0, (-0.01, 0.01), "undecided"), (0.0, (0.01, 0.02), "contradicted"),
    (0.03, (None, None), "undecided")])
def test_verdict(claim, ci95, expected):
    assert stats.verdict(claim, ci95) == expected


def gap_study(rng, seeds, n=200, share=0.6, seed_sd=0.0, low=0.3, high=0.6):
    """A condition that closes `share` of the gap between `low` and `high`, on items of shared difficulty (probit)."""
    difficulty = rng.normal(size=n)
    answer = lambda p: np.sqrt(2) * scipy_stats.norm.ppf(p) + difficulty + rng.normal(size=n) > 0  # noqa: E731
    levels = low + share * (high - low) + seed_sd * rng.normal(size=seeds)
    return np.stack([answer(level) for level in levels]), answer(low), answer(high)


def test_gap_closed_counts():
    a = np.array([[1, 1, 1, 0] * 50, [1, 1, 0, 0] * 50], bool)
    low, high = np.array([1, 0, 0, 0] * 50, bool), np.array([1, 1, 1, 0] * 50, bool)
    found = stats.gap_closed(a, low, high)
    assert found["value"] == pytest.approx((0.625 - 0.25) / 0.5) and found["gap"] == 0.5
    assert found["gap_ci95"] == stats.paired_difference(high, low)["ci95"] and found["seeds"] == 2
    assert found["scope"] == "seeds and examples" and stats.gap_closed(a[:1], low, high)["scope"] == "examples"
    assert stats.gap_closed(high, low, high)["ci95"][0] <= 1 <= stats.gap_closed(high, low, high)["ci95"][1]


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_gap_interval_holds_the_shares_that_a_paired_comparison_would_not_refuse(seeds):
    """Fieller's interval against its definition, by the interval of `paired_difference` at each share."""
    a, low, high = gap_study(np.random.default_rng(seeds), seeds, seed_sd=0.02)
    low, high = low.astype(float), high.astype(float)  # real values: without the guard for counts
    found = stats.gap_closed(a.astype(float), low, high, draws=10)

    def allowed(share):
        target = np.tile(low + share * (high - low), (seeds, 1))
        return covers_zero(stats.paired_difference(a.astype(float), target, draws=1)["ci95"])
    bottom, top = found["ci95"]
    assert bottom < found["value"] < top
    for share in np.linspace(bottom + 1e-6, top - 1e-6, 9):
        assert allowed(share)
    assert not allowed(bottom - 1e-6) and not allowed(top + 1e-6)


@pytest.mark.parametrize("seeds", [2, 5])
def test_gap_interval_covers(seeds):
    rng, repeats = np.random.default_rng(seeds), 250
    found = [stats.gap_closed(*gap_study(rng, seeds, seed_sd=0.03), draws=1)["ci95"] for _ in range(repeats)]
    found = [interval for interval in found if interval[0] is not None]
    assert len(found) > 0.95 * repeats
    covered = np.mean([low <= 0.6 <= high for low, high in found])
    assert covered > 0.95 - 2.5 * np.sqrt(0.95 * 0.05 / repeats)


def test_gap_bootstrap_is_near_where_only_examples_vary():
    found = stats.gap_closed(*gap_study(np.random.default_rng(3), 1, n=1000))
    np.testing.assert_allclose(found["ci95"], found["ci95_bootstrap"], atol=0.04)


def test_a_condition_that_never_moved_is_not_sure_to_close_nothing():
    low, high = np.arange(500) % 10 == 0, np.arange(500) % 10 < 9
    for seeds in (1, 3):
        same = np.tile(low, (seeds, 1))
        bottom, top = stats.gap_closed(same, low, high)["ci95"]
        # at a share of 0 the gap's uncertainty has no part: one example of 500, of a gap of 0.8
        assert bottom == pytest.approx(-1.96 / 500 / 0.8, rel=0.02) and top == pytest.approx(-bottom, rel=0.02)
        assert stats.gap_closed(same.astype(float), low.astype(float), high.astype(float))["ci95"] == [0, 0]


def test_no_gap_no_share():
    a, low, high = gap_study(np.random.default_rng(0), 2)
    assert stats.gap_closed(a, low, low)["value"] is None
    small = low.copy()
    small[np.flatnonzero(~low)[:2]] = True
    assert stats.gap_closed(a, high, low)["ci95"] == [None, None], "a gap below zero"
    found = stats.gap_closed(a, low, small)
    assert found["value"] is not None and found["ci95"] == found["ci95_bootstrap"] == [None, None]
    with pytest.raises(ValueError, match="do not make a gap"):
        stats.gap_closed(a, low[:-1], low)


def test_a_share_lies_in_its_wilson_interval():
    for n in range(1, 60):
        for count in range(n + 1):
            low, high = stats.wilson(count, n)
            assert 0 <= low <= count / n <= high <= 1, (count, n)
