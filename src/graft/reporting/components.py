"""The variance components of a comparison, seeds and examples, and what follows: widths, levels, resampling."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

ROUNDING = 1e-9  # spreads below this share of the values are none


def variances(a: NDArray, b: NDArray, paired_seeds: bool) -> tuple[float, float]:
    """Variance of mean(a) - mean(b) as (what the seeds show, what the examples add).

    `a` (S_a, N) and `b` (S_b, N) with N > 1. The first is 0 where seeds show nothing: one of them, or real values that
    are the same in all. Counts (bool) get one more discordant example, so that no interval has width zero.
    """
    counts = a.dtype == bool and b.dtype == bool
    n = a.shape[1]
    guard = 1 / n**2 if counts else 0.0
    a_values, b_values = a.astype(float), b.astype(float)
    per_example = a_values.mean(0) - b_values.mean(0)
    example_var = per_example.var(ddof=1) / n
    if min(len(a), len(b)) < 2:
        return 0.0, float(example_var + guard)
    # The residual (seed x example) is in both the spread over seeds and that over examples: count it once.
    sides = [a_values - b_values] if paired_seeds else [a_values, b_values]
    seed_var = [seed_variance(side, counts) for side in sides]
    example_var = max(example_var - sum(residual(side) for side in sides), 0.0) + guard
    return (sum(seed_var) if all(seed_var) else 0.0), float(example_var)


def residual(x: NDArray) -> float:
    """What the interaction of seeds and examples contributes to the variance of the mean of x (S, N)."""
    seeds, n = x.shape
    if min(seeds, n) < 2:
        return 0.0
    rest = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    return float((rest**2).sum() / ((seeds - 1) * (n - 1)) / (seeds * n))


def least_variance(x: NDArray, counts: bool) -> float:
    """Variance that the mean of x (S, N) has over seeds even if all seeds have the same mean.

    Seeds that err on other examples differ, and that their means agree is chance: this part, the residual's, is known
    from all S x N values. Counts get one more example on which one seed differs.
    """
    return residual(x) + (1 / x.size**2 if counts else 0.0)


def seed_variance(x: NDArray, counts: bool) -> float:
    """Variance of the mean of x (S, N) over seeds, not below `least_variance`; 0 if nothing differs between seeds."""
    found = max(x.mean(1).var(ddof=1) / len(x), least_variance(x, counts))
    return 0.0 if no_spread(found, x) else float(found)


def no_spread(variance: float, values: NDArray) -> bool:
    """Whether a variance of `values` is that of rounding."""
    return bool(variance <= (ROUNDING * np.abs(values).max())**2)


def half_width(seed_var: float | NDArray, example_var: float, seeds: int, alpha: float = 0.05) -> Any:
    """Half the length of the interval, each component with its own quantile."""
    t = stats.t.isf(alpha / 2, seeds - 1) if seeds > 1 else 0.0
    return np.sqrt(t**2 * seed_var + stats.norm.isf(alpha / 2) ** 2 * example_var)


def p_value(difference: float, seed_var: float, example_var: float, seeds: int) -> float:
    """The level at which the interval just touches zero."""
    if difference == 0:
        return 1.0
    smallest = 1e-12  # reported for anything below
    beyond = lambda alpha: half_width(seed_var, example_var, seeds, alpha) - abs(difference)  # noqa: E731
    return smallest if beyond(smallest) <= 0 else float(optimize.brentq(beyond, smallest, 1.0))


def detectable(seed_var: float, example_var: float, seeds: int, power: float, alpha: float = 0.05) -> float:
    """The smallest true difference for which the interval of level 1 - alpha excludes zero with this power, given the
    variances."""
    if seed_var + example_var == 0:
        return 0.0
    # The width is itself random through the estimated seed variance, V_seed * chi²/df: average over it.
    levels = (np.arange(500) + 0.5) / 500
    drawn = seed_var * (stats.chi2.ppf(levels, seeds - 1) / (seeds - 1) if seeds > 1 else np.zeros(1))
    half, sd = half_width(drawn, example_var, seeds, alpha), math.sqrt(seed_var + example_var)
    found = lambda d: np.mean(stats.norm.sf((half - d) / sd) + stats.norm.cdf((-half - d) / sd))  # noqa: E731
    return float(optimize.brentq(lambda d: found(d) - power, 0.0, half.max() + 10 * sd))


def bootstrap(a: NDArray, b: NDArray, paired_seeds: bool, draws: int, seed: int) -> list[float]:
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
    return np.quantile(np.concatenate(differences), [0.025, 0.975]).tolist()


def bootstrap_share(a: NDArray, low: NDArray, high: NDArray, draws: int, seed: int) -> list[float | None]:
    """Percentile interval of a share of a gap under resampled examples and seeds."""
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
