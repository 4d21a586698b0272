"""Intervals and tests for accuracies over examples and seeds; scipy and statsmodels underneath.

A comparison has two sources of chance: which examples were in the test set and which seeds were trained.
Both belong in an interval that is to speak of the method and not of one pair of checkpoints.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize


def wilson(n_correct: int, n: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion: chance of the examples, for one checkpoint."""
    low, high = proportion_confint(n_correct, n, alpha=0.05, method="wilson")
    share = n_correct / n  # at 0 and 1 rounding would leave it outside its own interval
    return min(float(low), share), max(float(high), share)


def seed_summary(values: ArrayLike) -> dict[str, Any]:
    """Mean over seeds with the 95% t-interval; its ends are None with one seed.

    It speaks of new seeds on these same examples. It is not cut off at 0 or 1.
    """
    values = np.asarray(values, float)
    mean, seeds = float(values.mean()), len(values)
    if seeds < 2:
        return {"mean": mean, "ci95": [None, None], "seeds": seeds}
    half = float(stats.t.ppf(0.975, seeds - 1) * stats.sem(values))
    return {"mean": mean, "ci95": [mean - half, mean + half], "seeds": seeds}


def paired_difference(a: ArrayLike, b: ArrayLike, *, paired_seeds: bool = True, draws: int = 10_000,
                      seed: int = 0) -> dict[str, Any]:
    """Mean of `a` minus mean of `b` with a 95% interval and p-value for new seeds and new examples.

    `a` (S_a, N) and `b` (S_b, N): one row a seed, the same N examples in the same order; bool for
    correctness, float for log-probabilities. With `paired_seeds` row s of both had the same seed.

    `ci95` is D ± sqrt(t² V_seed + z² V_example): V_seed the variance of the mean over seeds, with the
    t quantile of its S - 1 degrees of freedom; V_example what the choice of examples adds to it, from the
    two-way analysis of variance (seeds x examples) of the per-example differences. Weighting each
    component by its own quantile (Banerjee 1960, Sankhya 22) never covers less than stated for independent normal
    components. `p` is the two-sided level at which this interval touches zero. With unpaired seeds
    V_seed is the sum of both sides and S the smaller number. With one seed V_seed is unknown, and the
    interval speaks of these checkpoints alone (`scope` is then `examples`).

    `ci95_bootstrap`, the percentile interval of resampling examples (the same for both conditions) and
    seeds with replacement, is reported beside it and not used: with few seeds it is too short. Coverage of
    the true difference and mean half-width (points) in 4,000 simulated studies of 300 examples, accuracy
    0.90, 7% discordant, one seed's effect of standard deviation 0, 1.3 or 2.6 points in each condition:

        seeds                              1            2            3            5           10
        0    ci95                  .962  3.0    .986  9.4    .982  3.3    .972  2.3    .969  1.9
             ci95_bootstrap        .957  2.9    .985  2.9    .984  2.6    .976  2.4    .973  2.0
        1.3  ci95                  .817  3.0    .975 15.7    .979  5.1    .976  3.1    .968  2.3
             ci95_bootstrap        .807  2.9    .929  3.3    .954  3.1    .965  2.7    .960  2.3
        2.6  ci95                  .582  3.1    .969 27.3    .969  8.6    .968  4.8    .964  3.1
             ci95_bootstrap        .571  3.0    .824  4.2    .885  4.0    .922  3.6    .942  2.9

    So two seeds decide little, and one seed's interval must not be read as speaking of the method.

    `detectable` is the smallest true difference that this interval would exclude zero for in 80% of
    repetitions, taking the estimated variances as true; `cohens_h` and `discordant` (the share of examples
    that only a, only b got right) are given for bool, McNemar's exact p of each seed for bool paired seeds.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    if a.shape[1] != b.shape[1] or (paired_seeds and len(a) != len(b)):
        raise ValueError(f"shapes {a.shape} and {b.shape} cannot be paired")
    counts = a.dtype == bool and b.dtype == bool
    seeds = min(len(a), len(b))
    difference = float(a.mean() - b.mean())
    seed_var, example_var = _variances(a.astype(float), b.astype(float), paired_seeds)
    if counts:
        example_var += 1 / a.shape[1] ** 2  # one more discordant example: no interval of width zero
    half = float(_half_width(seed_var, example_var, seeds))
    low, high = _bootstrap(a, b, paired_seeds, draws, seed)
    result = {
        "difference": difference, "ci95": [difference - half, difference + half],
        "p": _p_value(difference, seed_var, example_var, seeds),
        "detectable": _detectable(seed_var, example_var, seeds, 0.8),
        "ci95_bootstrap": [low, high], "se_seed": math.sqrt(seed_var) if seeds > 1 else None,
        "se_example": math.sqrt(example_var), "seeds": [len(a), len(b)], "paired_seeds": paired_seeds,
        "scope": "seeds and examples" if seeds > 1 else "examples"}
    if counts:
        rows = zip(a, b) if paired_seeds else ((x, y) for x in a for y in b)
        result["discordant"] = np.mean([[(x & ~y).mean(), (y & ~x).mean()] for x, y in rows], axis=0).tolist()
        result["cohens_h"] = float(proportion_effectsize(a.mean(), b.mean()))
        if paired_seeds:
            result["mcnemar_p"] = mcnemar_exact(a, b)
    return result


def _variances(a: NDArray, b: NDArray, paired_seeds: bool) -> tuple[float, float]:
    """Variance of mean(a) - mean(b) as (what the seeds show, what the examples add)."""
    per_example = a.mean(0) - b.mean(0)
    example_var = per_example.var(ddof=1) / len(per_example)
    if min(len(a), len(b)) < 2:
        return 0.0, float(example_var)
    # The residual (seed x example) is in both the spread over seeds and that over examples: count it once.
    sides = [_seed_and_residual(a - b)] if paired_seeds else [_seed_and_residual(a), _seed_and_residual(b)]
    seed_var = sum(side[0] for side in sides)
    return float(seed_var), float(max(example_var - sum(side[1] for side in sides), 0.0))


def _seed_and_residual(x: NDArray) -> tuple[float, float]:
    """Variance of the mean of x (S, N) over seeds, and the share of it that is the residual's."""
    seeds, n = x.shape
    residual = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    return x.mean(1).var(ddof=1) / seeds, (residual**2).sum() / ((seeds - 1) * (n - 1)) / (seeds * n)


def _half_width(seed_var: float | NDArray, example_var: float, seeds: int, alpha: float = 0.05) -> Any:
    t = stats.t.isf(alpha / 2, seeds - 1) if seeds > 1 else 0.0
    return np.sqrt(t**2 * seed_var + stats.norm.isf(alpha / 2) ** 2 * example_var)


def _p_value(difference: float, seed_var: float, example_var: float, seeds: int) -> float:
    """The level at which the interval of `paired_difference` just touches zero."""
    if difference == 0:
        return 1.0
    smallest = 1e-12  # reported for anything below
    beyond = lambda alpha: _half_width(seed_var, example_var, seeds, alpha) - abs(difference)  # noqa: E731
    return smallest if beyond(smallest) <= 0 else float(optimize.brentq(beyond, smallest, 1.0))


def _bootstrap(a: NDArray, b: NDArray, paired_seeds: bool, draws: int, seed: int) -> tuple[float, float]:
    """Percentile interval of mean(a) - mean(b) under resampled examples and seeds."""
    rng = np.random.default_rng(seed)
    n = a.shape[1]
    # Examples with the same outcomes are interchangeable: draw how often each pattern occurs.
    patterns, count = np.unique(np.concatenate([a, b]), axis=1, return_counts=True)
    differences = []
    for some in np.array_split(np.arange(draws), math.ceil(draws * len(count) / 10**7)):
        means = rng.multinomial(n, count / n, size=len(some)) @ patterns.T.astype(float) / n
        weights = [rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=len(some)) / len(x) for x in (a, b)]
        weights_b = weights[0] if paired_seeds else weights[1]
        differences.append((means[:, :len(a)] * weights[0]).sum(1) - (means[:, len(a):] * weights_b).sum(1))
    low, high = np.quantile(np.concatenate(differences), [0.025, 0.975])
    return float(low), float(high)


def gap_closed(a: ArrayLike, low: ArrayLike, high: ArrayLike, *, draws: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """The share of a gap that a condition closes, (mean a - mean low) / (mean high - mean low), with a 95% interval.

    `a` (S, N): one row a seed; `low`, `high` (N,) or (1, N): the two ends of the gap, each measured once on the same
    N examples in the same order. 0: no better than `low`; 1: as good as `high`; it may lie outside.

    `ci95` is Fieller's (1954, JRSS B 16): all shares g for which the interval that `paired_difference` would give
    for a - low - g (high - low), its seed and example components each with its own quantile, contains zero. The
    gap's own uncertainty is in it, so it need not be symmetric. Of counts both example components are those of one
    more discordant example, against intervals of width zero. `ci95_bootstrap`, the percentile interval of
    resampling examples (together in all three) and seeds, is reported beside it. With one seed the intervals speak
    of these checkpoints alone (`scope` is then `examples`). Coverage of the true share and mean half-width in 2,000
    simulated studies of 300 examples, a gap of 30 points of which 60% are closed, one seed's effect of standard
    deviation 3 points:

        seeds                    1           2           3           5
        ci95                .829  .20   .979  .97   .969  .32   .964  .20
        ci95_bootstrap      .830  .20   .939  .22   .954  .20   .964  .18

    Unless the gap's own interval lies above zero a share of it means nothing, and of a gap below zero the share is the
    larger the more is lost: both intervals are None, and so is `value` if the gap is zero.
    """
    a, (low, high) = np.atleast_2d(a), (np.atleast_2d(end) for end in (low, high))
    if not len(low) == len(high) == 1 or not a.shape[1] == low.shape[1] == high.shape[1]:
        raise ValueError(f"shapes {a.shape}, {low.shape} and {high.shape} do not make a gap")
    n, seeds = a.shape[1], len(a)
    gap = paired_difference(high, low, draws=1)
    value = float((a.mean() - low.mean()) / gap["difference"]) if gap["difference"] else None
    result = {"value": value, "ci95": [None, None], "ci95_bootstrap": [None, None], "gap": gap["difference"],
              "gap_ci95": gap["ci95"], "seeds": seeds, "scope": "seeds and examples" if seeds > 1 else "examples"}
    if gap["ci95"][0] <= 0:
        return result
    above, whole = a.astype(float) - low, high.astype(float)[0] - low[0]
    seed_var, residual = _seed_and_residual(above) if seeds > 1 else (0.0, 0.0)
    both = np.cov(above.mean(0), whole) / n
    whole_var = gap["se_example"]**2  # with paired_difference's guard against a width of zero
    # What the seeds show is not counted again, and no share may get a negative variance.
    above_var = max(both[0, 0] - residual, both[0, 1]**2 / whole_var)
    if a.dtype == low.dtype == bool:
        above_var += 1 / n**2  # as paired_difference: a condition that equals `low` everywhere is not sure to
    t, z = stats.t.isf(0.025, max(seeds - 1, 1)), stats.norm.isf(0.025)
    # |mean(above) - g mean(whole)|^2 <= t^2 V_seed + z^2 V_example(g), a quadratic in g
    square = whole.mean()**2 - z**2 * whole_var
    linear = above.mean() * whole.mean() - z**2 * both[0, 1]
    constant = above.mean()**2 - t**2 * seed_var - z**2 * above_var
    half = math.sqrt(max(linear**2 - square * constant, 0.0))
    result["ci95"] = [float((linear - half) / square), float((linear + half) / square)]
    result["ci95_bootstrap"] = _bootstrap_share(a, low, high, draws, seed)
    return result


def _bootstrap_share(a: NDArray, low: NDArray, high: NDArray, draws: int, seed: int) -> list[float]:
    """Percentile interval of the share under resampled examples and seeds."""
    rng = np.random.default_rng(seed)
    n, seeds = a.shape[1], len(a)
    patterns, count = np.unique(np.concatenate([a, low, high]), axis=1, return_counts=True)
    means = rng.multinomial(n, count / n, size=draws) @ patterns.T.astype(float) / n
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    bottom, top = means[:, -2], means[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):  # a resampled gap may be zero
        shares = ((means[:, :seeds] * weights).sum(1) - bottom) / (top - bottom)
    ends = np.nanquantile(shares, [0.025, 0.975])
    return ends.tolist() if np.isfinite(ends).all() else [None, None]


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> list[float]:
    """Exact McNemar p of each seed: `a`, `b` (S, N) bool, the same examples in the same order."""
    tables = ([[(x & y).sum(), (x & ~y).sum()], [(~x & y).sum(), (~x & ~y).sum()]] for x, y in zip(a, b, strict=True))
    return [float(mcnemar(table, exact=True).pvalue) for table in tables]


def holm(ps: ArrayLike) -> list[float]:
    """Holm's adjusted p-values of one family, in the order given."""
    return multipletests(ps, method="holm")[1].tolist() if len(ps) else []


def detectable(n: int, discordant_rate: float, seeds: int, between_seed_sd: float, power: float = 0.8) -> float:
    """The smallest true difference that `paired_difference` finds (p < 0.05) with this power, for planning.

    `discordant_rate`: share of the n examples on which two checkpoints differ (all of it taken as a
    property of the examples, which is the careful side); `between_seed_sd`: standard deviation over seeds
    of the per-seed difference, ignored with one seed.
    """
    seed_var = between_seed_sd**2 / seeds if seeds > 1 else 0.0
    return _detectable(seed_var, discordant_rate / n, seeds, power)


def _detectable(seed_var: float, example_var: float, seeds: int, power: float) -> float:
    if seed_var + example_var == 0:
        return 0.0
    # The width is itself random through the estimated seed variance, V_seed * chi²/df: average over it.
    levels = (np.arange(500) + 0.5) / 500
    drawn = seed_var * (stats.chi2.ppf(levels, seeds - 1) / (seeds - 1) if seeds > 1 else np.zeros(1))
    half, sd = _half_width(drawn, example_var, seeds), math.sqrt(seed_var + example_var)
    found = lambda d: np.mean(stats.norm.sf((half - d) / sd) + stats.norm.cdf((-half - d) / sd))  # noqa: E731
    return float(optimize.brentq(lambda d: found(d) - power, 0.0, half.max() + 10 * sd))


def verdict(claim_difference: float, ci95: tuple[float | None, float | None]) -> str:
    """What an interval says of a claimed difference (`claim_difference`, its sign the direction).

    `supported`: zero is excluded on the claim's side and the claimed size is reached or inside;
    `contradicted`: the whole interval falls short of the claim; else `undecided`. A claim of no difference
    can be contradicted by an interval without zero and is never supported by one with it.
    """
    low, high = ci95
    if low is None or high is None:
        return "undecided"
    if claim_difference == 0:
        return "undecided" if low <= 0 <= high else "contradicted"
    if claim_difference < 0:
        low, high, claim_difference = -high, -low, -claim_difference
    if high < claim_difference:
        return "contradicted"
    return "supported" if low > 0 else "undecided"
