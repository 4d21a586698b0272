"""Intervals and tests for accuracies over examples and seeds; scipy and statsmodels underneath.

A comparison has two sources of chance: which examples were in the test set and which seeds were trained.
Both belong in an interval that is to speak of the method and not of one pair of checkpoints.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize

from graft.reporting import components

LEVEL = 0.05  # of a p that is adjusted for the comparisons beside it
SHARE, POSITIVE, REAL = (0.0, 1.0), (0.0, math.inf), (-math.inf, math.inf)  # where a quantity can lie


def wilson(n_correct: int, n: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion: chance of the examples, for one checkpoint."""
    low, high = proportion_confint(n_correct, n, alpha=0.05, method="wilson")
    share = n_correct / n  # at 0 and 1 rounding would leave it outside its own interval
    return min(float(low), share), max(float(high), share)


def seed_summary(values: ArrayLike, within: tuple[float, float] = REAL, least: float = 0.0) -> dict[str, Any]:
    """Mean over seeds with the 95% t-interval, for new seeds on these same examples.

    Its ends are None where nothing is known of another seed: with one seed, and where all values are equal, unless
    `least` says how much the mean varies at least (`components.least_variance`, from the rows behind the values).
    What leaves `within`, the range of what is described, is cut off, which costs no coverage; `cut` then names the
    ends, "low" or "high". Coverage of the true mean over seeds in 20,000 simulated studies of 300 examples, accuracy
    0.90, one seed's effect of standard deviation 0, 1.3 or 2.6 points, and mean half-width (points), with `least`; then
    coverage in those of them whose seeds were equal (tests/simulated_coverage.py):

        seeds        2            3            5         equal: 2      3
        0       1.000  9.0   1.000  2.5    .997  1.2       1.000  1.000
        1.3     1.000 11.1    .994  3.7    .966  1.9       1.000  1.000
        2.6     1.000 15.3    .968  6.1    .949  3.2        .999   .808

    (the last of 26 studies). Without `least` the equal ones would have had intervals of no width.
    """
    values = np.asarray(values, float)
    mean, seeds = float(values.mean()), len(values)
    variance = max(float(values.var(ddof=1)) / seeds, least) if seeds > 1 else 0.0
    if components.no_spread(variance, values):
        return {"mean": mean, "ci95": [None, None], "seeds": seeds}
    half = float(components.half_width(variance, 0.0, seeds))
    return {"mean": mean, "seeds": seeds, **_interval(mean, half, within)}


def _interval(middle: float, half: float, within: tuple[float, float]) -> dict[str, Any]:
    """`ci95`, and `cut` if an end of it had to be moved to that of the range."""
    ends = {"low": max(middle - half, within[0]), "high": min(middle + half, within[1])}
    cut = [name for name, end in ends.items() if end in within]
    return {"ci95": list(ends.values()), **({"cut": cut} if cut else {})}


def matched(a: Mapping[int, Any], b: Mapping[int, Any]) -> tuple[dict[int, Any], dict[int, Any], bool]:
    """Two sides by seed as a comparison takes them, in the order of seeds, and whether they are paired.

    Of the seeds that both have where these are two or more, or all that there are: a seed's chance is then on both
    sides alike, which is worth more than further seeds of one side. Else of all seeds, as independent ones.
    """
    shared = sorted({*a} & {*b})
    if len(shared) > 1 or {*a} == {*b}:
        return {seed: a[seed] for seed in shared}, {seed: b[seed] for seed in shared}, True
    return dict(sorted(a.items())), dict(sorted(b.items())), False


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
    V_seed is the sum of both sides and S the smaller number. With one seed, or real values that are the same for all
    seeds, V_seed is unknown, and the interval speaks of these checkpoints alone (`scope` is then `examples`). Of
    counts it ends at ±1 (`cut` names the ends that were moved there), and with one example is all of that.

    Seeds of equal accuracy are no proof that seeds do not matter: accuracies are multiples of 1/N and meet by chance.
    So V_seed is never below what the examples show it to be at least (`components.least_variance`): the residual's
    part, from the examples on which single seeds differ, and one such example more.

    `ci95_bootstrap`, the percentile interval of resampling examples (the same for both conditions) and
    seeds with replacement, is reported beside it and not used: with few seeds it is too short. Coverage of
    the true difference and mean half-width (points) in 4,000 simulated studies (tests/simulated_coverage.py) of 300
    examples, accuracy 0.90, 7% discordant, one seed's effect of standard deviation 0, 1.3 or 2.6 points in each
    condition:

        seeds                              1            2            3            5           10
        0    ci95                  .962  3.0   1.000 13.4    .999  3.9    .986  2.4    .974  1.9
             ci95_bootstrap        .965  2.9    .985  2.9    .984  2.7    .978  2.3    .972  2.0
        1.3  ci95                  .811  3.0   1.000 18.4    .995  5.5    .978  3.2    .967  2.3
             ci95_bootstrap        .819  2.9    .929  3.3    .952  3.1    .957  2.7    .961  2.3
        2.6  ci95                  .569  3.1   1.000 29.4    .984  8.9    .968  4.9    .963  3.2
             ci95_bootstrap        .577  3.0    .818  4.2    .882  4.1    .918  3.6    .943  2.9

    So two seeds decide little, and one seed's interval must not be read as speaking of the method. In those of
    10,000 studies of 50 examples whose two seeds had equal differences, and whose V_seed would have been 0 (13 to 19
    in 100), all were covered; with V_seed = 0 it would be .94, .91 and .88 of them, and of 300 examples .83, .70 and
    .49.

    `detectable` is the smallest true difference that this interval would exclude zero for in 80% of
    repetitions, taking the estimated variances as true; `cohens_h` and `discordant` (the share of examples
    that only a, only b got right) are given for bool, McNemar's exact p of each seed for bool paired seeds.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    if a.shape[1] != b.shape[1] or (paired_seeds and len(a) != len(b)):
        raise ValueError(f"shapes {a.shape} and {b.shape} cannot be paired")
    counts = a.dtype == bool and b.dtype == bool
    result: dict[str, Any] = {"difference": float(a.mean() - b.mean()), "seeds": [len(a), len(b)],
                              "paired_seeds": paired_seeds}
    if a.shape[1] > 1:
        result |= _estimate(a, b, result["difference"], paired_seeds, (-1.0, 1.0) if counts else REAL)
        result["ci95_bootstrap"] = components.bootstrap(a, b, paired_seeds, draws, seed)
    else:  # one example shows nothing of others
        result |= {"ci95": [-1.0, 1.0] if counts else [None, None], "p": 1.0, "detectable": None, "se_seed": None,
                   "se_example": None, "scope": "examples", "ci95_bootstrap": [None, None]}
    if counts:
        rows = zip(a, b) if paired_seeds else ((x, y) for x in a for y in b)
        result["discordant"] = np.mean([[(x & ~y).mean(), (y & ~x).mean()] for x, y in rows], axis=0).tolist()
        result["cohens_h"] = float(proportion_effectsize(a.mean(), b.mean()))
        if paired_seeds:
            result["mcnemar_p"] = mcnemar_exact(a, b)
    return result


def _estimate(a: NDArray, b: NDArray, difference: float, paired_seeds: bool,
              within: tuple[float, float]) -> dict[str, Any]:
    """The part of `paired_difference` that needs two examples."""
    seed_var, example_var = components.variances(a, b, paired_seeds)
    seeds = min(len(a), len(b))
    half = float(components.half_width(seed_var, example_var, seeds))
    return {**_interval(difference, half, within), "p": components.p_value(difference, seed_var, example_var, seeds),
            "detectable": components.detectable(seed_var, example_var, seeds, 0.8),
            "se_seed": math.sqrt(seed_var) if seed_var else None, "se_example": math.sqrt(example_var),
            "scope": "seeds and examples" if seed_var else "examples"}


def gap_closed(a: ArrayLike, low: ArrayLike, high: ArrayLike, *, draws: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """The share of a gap that a condition closes, (mean a - mean low) / (mean high - mean low), with a 95% interval.

    `a` (S, N): one row a seed; `low`, `high` (N,) or (1, N): the two ends of the gap, each measured once on the same
    N examples in the same order. 0: no better than `low`; 1: as good as `high`; it may lie outside.

    `ci95` is Fieller's (1954, JRSS B 16): all shares g for which the interval that `paired_difference` would give
    for a - low - g (high - low), its seed and example components each with its own quantile, contains zero. The
    gap's own uncertainty is in it, so it need not be symmetric. Of counts both example components are those of one
    more discordant example, against intervals of width zero. `ci95_bootstrap`, the percentile interval of
    resampling examples (together in all three) and seeds, is reported beside it. With one seed, or real values that
    are the same for all, the intervals speak of these checkpoints alone (`scope` is then `examples`). Coverage of the
    true share and mean half-width in 2,000 simulated studies of 300 examples, a gap of 30 points of which 60% are
    closed, one seed's effect of standard deviation 3 points:

        seeds                    1           2           3           5
        ci95                .822  .20  1.000 1.11   .996  .34   .974  .20
        ci95_bootstrap      .820  .20   .923  .21   .962  .20   .965  .18

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
              "gap_ci95": gap["ci95"], "seeds": seeds}
    counts = a.dtype == low.dtype == bool
    above, whole = a.astype(float) - low, high.astype(float)[0] - low[0]
    seed_var = components.seed_variance(above, counts) if min(a.shape) > 1 else 0.0
    result["scope"] = "seeds and examples" if seed_var else "examples"
    if gap["ci95"][0] is None or gap["ci95"][0] <= 0:
        return result
    both = np.cov(above.mean(0), whole) / n
    whole_var = gap["se_example"]**2  # with paired_difference's guard against a width of zero
    # What the seeds show is not counted again, and no share may get a negative variance.
    above_var = max(both[0, 0] - components.residual(above), both[0, 1]**2 / whole_var)
    if counts:
        above_var += 1 / n**2  # as paired_difference: a condition that equals `low` everywhere is not sure to
    t, z = stats.t.isf(0.025, max(seeds - 1, 1)), stats.norm.isf(0.025)
    # |mean(above) - g mean(whole)|^2 <= t^2 V_seed + z^2 V_example(g), a quadratic in g
    square = whole.mean()**2 - z**2 * whole_var
    linear = above.mean() * whole.mean() - z**2 * both[0, 1]
    constant = above.mean()**2 - t**2 * seed_var - z**2 * above_var
    half = math.sqrt(max(linear**2 - square * constant, 0.0))
    result["ci95"] = [float((linear - half) / square), float((linear + half) / square)]
    result["ci95_bootstrap"] = components.bootstrap_share(a, low, high, draws, seed)
    return result


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> list[float]:
    """Exact McNemar p of each seed: `a`, `b` (S, N) bool, the same examples in the same order."""
    tables = ([[(x & y).sum(), (x & ~y).sum()], [(~x & y).sum(), (~x & ~y).sum()]] for x, y in zip(a, b, strict=True))
    return [float(mcnemar(table, exact=True).pvalue) for table in tables]


def holm(ps: ArrayLike) -> list[float]:
    """Holm's adjusted p-values of one family, in the order given."""
    return multipletests(ps, method="holm")[1].tolist() if len(ps) else []


def beyond_zero(ci95: Sequence[float | None]) -> bool:
    """Whether an interval, where there is one, excludes zero."""
    low, high = ci95
    return low is not None and not low <= 0 <= high


def decided(ci95: Sequence[float | None], p_adjusted: float) -> bool:
    """Whether a difference is told from zero by its interval, and by its p, adjusted for the comparisons beside it."""
    return beyond_zero(ci95) and p_adjusted < LEVEL


def detectable(n: int, discordant_rate: float, seeds: int, between_seed_sd: float, power: float = 0.8,
               comparisons: int = 1) -> float:
    """The smallest true difference that `paired_difference` finds (p < 0.05) with this power, for planning.

    `discordant_rate`: share of the n examples on which two checkpoints differ (all of it taken as a
    property of the examples, which is the careful side); `between_seed_sd`: standard deviation over seeds
    of the per-seed difference, ignored with one seed. Of several `comparisons` Holm holds the smallest p to the level
    0.05 / comparisons, which is taken here; the next ones are held to less.
    """
    seed_var = between_seed_sd**2 / seeds if seeds > 1 else 0.0
    return components.detectable(seed_var, discordant_rate / n, seeds, power, LEVEL / comparisons)


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
