"""How often the intervals of `graft.reporting.stats` hold the truth, by simulation: the tables in their docstrings.

    PYTHONPATH=src:tests python tests/simulated_coverage.py     a few minutes; the same numbers every time

Studies are probit: an example's difficulty (and a condition's own 0.25 of it), one seed's effect, and noise of 0.25 by
seed and example. The true difference of two conditions is zero.
"""

import itertools

import numpy as np
from scipy import stats as scipy_stats

from graft.reporting import components, stats

EFFECTS = {"0  ": 0.0, "1.3": 0.077, "2.6": 0.155}  # points of accuracy at 0.90: probit
LEVEL = 1.35


def study(rng, seeds, n, seed_sd, conditions=2):
    """Conditions of equal true accuracy (about 0.9): correctness (S, N) each, probit with all effects."""
    difficulty = rng.normal(size=n)
    return [LEVEL + difficulty + 0.25 * rng.normal(size=n) + seed_sd * rng.normal(size=(seeds, 1))
            + 0.25 * rng.normal(size=(seeds, n)) > 0 for _ in range(conditions)]


def one_condition(rng, seeds, n, seed_sd):
    """Correctness (S, N) of one condition, and the mean accuracy of all its seeds on these examples."""
    of_examples = LEVEL + rng.normal(size=n) + 0.25 * rng.normal(size=n)
    correct = of_examples + seed_sd * rng.normal(size=(seeds, 1)) + 0.25 * rng.normal(size=(seeds, n)) > 0
    return correct, float(scipy_stats.norm.cdf(of_examples / np.hypot(seed_sd, 0.25)).mean())


def summary_of(correct):
    """`seed_summary` of the accuracies of `correct` (S, N), as results.json has it."""
    return stats.seed_summary(correct.mean(1), stats.SHARE, components.least_variance(correct.astype(float), True))


def covers(interval, truth=0.0):
    return interval[0] <= truth <= interval[1]


def equal_seeds(per_seed):
    """Whether all seeds have one value."""
    return np.ptp(per_seed) < 1e-12


def differences(seeds, seed_sd, n=300, repeats=4000, draws=1):
    """Of `paired_difference`: coverage and mean half-width of both intervals; coverage in the studies whose seeds are
    equal, as it is and with V_seed = 0, and their number."""
    rng, rows = np.random.default_rng(seeds), []
    for _ in range(repeats):
        a, b = study(rng, seeds, n, seed_sd)
        found = stats.paired_difference(a, b, draws=draws)
        both = found["ci95"], found["ci95_bootstrap"]
        rows.append([*(x for ends in both for x in (covers(ends), np.ptp(ends) / 2)),
                     seeds > 1 and equal_seeds(a.mean(1) - b.mean(1)),
                     abs(found["difference"]) <= scipy_stats.norm.isf(0.025) * found["se_example"]])
    rows = np.array(rows, float)
    equal = rows[rows[:, 4] == 1]
    covered = equal[:, [0, 5]].mean(0) if len(equal) else np.full(2, np.nan)
    return rows[:, :4].mean(0), covered, len(equal)


def summaries(seeds, seed_sd, n=300, repeats=20_000):
    """Of `seed_summary`: coverage and mean half-width; coverage and number of equal seeds."""
    rng, rows = np.random.default_rng(seeds), []
    for _ in range(repeats):
        correct, truth = one_condition(rng, seeds, n, seed_sd)
        ends = summary_of(correct)["ci95"]
        rows.append([covers(ends, truth), np.ptp(ends) / 2, equal_seeds(correct.mean(1))])
    rows = np.array(rows, float)
    equal = rows[:, 2] == 1
    return rows[:, :2].mean(0), (rows[equal, 0].mean() if equal.any() else np.nan), int(equal.sum())


def gap_study(rng, seeds, n=200, share=0.6, seed_sd=0.0, low=0.3, high=0.6):
    """A condition that closes `share` of the gap between `low` and `high`, on items of shared difficulty (probit)."""
    difficulty = rng.normal(size=n)
    answer = lambda p: np.sqrt(2) * scipy_stats.norm.ppf(p) + difficulty + rng.normal(size=n) > 0  # noqa: E731
    levels = low + share * (high - low) + seed_sd * rng.normal(size=seeds)
    return np.stack([answer(level) for level in levels]), answer(low), answer(high)


def gaps(seeds, repeats=2000):
    """Of `gap_closed`: coverage of the true share and mean half-width of both intervals."""
    rng, rows = np.random.default_rng(seeds), []
    for _ in range(repeats):
        found = stats.gap_closed(*gap_study(rng, seeds, n=300, seed_sd=0.03), draws=500)
        both = found["ci95"], found["ci95_bootstrap"]
        if None not in both[0]:
            rows.append([x for ends in both for x in (covers(ends, 0.6), np.ptp(ends) / 2)])
    return np.mean(rows, axis=0)


if __name__ == "__main__":
    print("paired_difference: ci95, half-width in points; ci95_bootstrap, half-width")
    for (name, effect), seeds in itertools.product(EFFECTS.items(), (1, 2, 3, 5, 10)):
        (ci, half, boot, boot_half), *_ = differences(seeds, effect, draws=500)
        print(f"{name} {seeds:2d} seeds  {ci:.3f} {100 * half:4.1f}   {boot:.3f} {100 * boot_half:4.1f}", flush=True)
    print("of those whose seeds have equal differences")
    for (name, effect), n, seeds in itertools.product(EFFECTS.items(), (50, 300), (2, 3)):
        _, (equal, without), count = differences(seeds, effect, n, 10_000)
        print(f"{name} {seeds} seeds {n} examples  {equal:.3f} of {count}, with V_seed = 0 {without:.3f}", flush=True)
    print("seed_summary: coverage, half-width in points; of equal seeds")
    for (name, effect), seeds in itertools.product(EFFECTS.items(), (2, 3, 5)):
        (ci, half), equal, count = summaries(seeds, effect)
        print(f"{name} {seeds} seeds  {ci:.3f} {100 * half:4.1f}   {equal:.3f} of {count}", flush=True)
    print("gap_closed: ci95, half-width; ci95_bootstrap, half-width")
    for seeds in (1, 2, 3, 5):
        print(f"{seeds} seeds  {'  '.join(f'{x:.3f}' for x in gaps(seeds))}", flush=True)
