"""The original study's claims as named hypotheses, each with a verdict and the numbers behind it.

A claim of order, a < b < c, is one leg for each "<", and holds only if both do. A leg's interval is for new seeds;
with one seed, or seeds that show no spread, there is none that speaks of a method, and the verdict is `undecided`.
"""

import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_ind

from graft.reporting import components, results, stats

BY_SIGN = sys.float_info.min  # a claimed difference of some size above 0
UNDECIDED = "undecided"

Roles = Mapping[str, str]  # role -> condition
ByExample = Mapping[str, Mapping[int, NDArray]]  # condition -> seed -> (n,)


def of_images(a: Mapping[int, NDArray], b: Mapping[int, NDArray]) -> dict[str, Any]:
    """Difference a - b of values {seed: (n,)} on the same n examples, for new seeds and new examples."""
    *sides, paired = stats.matched(a, b)
    full = stats.paired_difference(*(np.stack([*side.values()]) for side in sides), paired_seeds=paired, draws=1000)
    return {key: full[key] for key in ("difference", "ci95", "p", "detectable", "seeds", "paired_seeds", "scope")}


def of_seeds(a: Mapping[int, float], b: Mapping[int, float]) -> dict[str, Any]:
    """Difference a - b of one value a seed, for new seeds: paired t-interval of the seeds that both have, else Welch's.

    Where the paired differences, or the values of one side, are equal, their spread over seeds is not known to be
    small, but unknown: there is no interval, as with one seed, and `scope` is `checkpoints`.
    """
    a, b, paired = stats.matched(a, b)
    found = {"difference": float(np.mean(list(a.values())) - np.mean(list(b.values()))), "ci95": [None, None],
             "seeds": [len(a), len(b)], "paired_seeds": paired, "scope": "seeds"}
    first, second = np.array([*a.values()]), np.array([*b.values()])
    sides = [first - second] if paired else [first, second]
    both = np.concatenate([first, second])  # rounding is to be judged by the values, not by their difference
    if min(len(a), len(b)) < 2 or any(components.no_spread(np.ptp(side)**2, both) for side in sides):
        return found | {"scope": "checkpoints"}
    if paired:
        return found | {"ci95": stats.seed_summary(sides[0])["ci95"]}
    low, high = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return found | {"ci95": [float(low), float(high)]}


def order(name: str, statistic: str, roles: Roles, claim: str, values: Mapping[str, Mapping[int, Any]],
          compare: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Whether `values`, {condition: {seed: value}}, have the order of a claim such as "cnn < baseline < ssl"."""
    sign = "<" if "<" in claim else ">"
    sequence = claim.split(f" {sign} ")
    missing = [role for role in sequence if not values.get(roles.get(role, ""))]
    if missing:
        return untested(name, statistic, claim, f"no {statistic} for the role {', '.join(missing)}")
    legs = []
    for left, right in itertools.pairwise(sequence):
        less, more = (left, right) if sign == "<" else (right, left)
        difference = compare(values[roles[more]], values[roles[less]])
        legs.append({"claim": f"{left} {sign} {right}", "more": roles[more], "less": roles[less], **difference,
                     "verdict": judged(difference)})
    return {"name": name, "statistic": statistic, "claim": claim, "verdict": all_of(legs), "legs": legs,
            "reason": reason(legs)}


def _of_seeds(difference: dict[str, Any]) -> bool:
    """Whether an interval speaks of new seeds."""
    return difference["scope"].startswith("seeds")


def judged(difference: dict[str, Any]) -> str:
    """The verdict on a difference that is claimed to be above zero."""
    return stats.verdict(BY_SIGN, difference["ci95"]) if _of_seeds(difference) else UNDECIDED


def told_from_zero(difference: dict[str, Any]) -> bool:
    """Whether there is a difference, in either direction, for new seeds."""
    return _of_seeds(difference) and stats.beyond_zero(difference["ci95"])


def all_of(legs: list[dict[str, Any]]) -> str:
    """The verdict on a claim of several legs: supported if all of them are, contradicted if one is."""
    verdicts = {leg["verdict"] for leg in legs}
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if verdicts == {"supported"} else UNDECIDED


def reason(legs: list[dict[str, Any]]) -> str:
    """The numbers behind a verdict, or why they decide nothing."""
    if any(min(leg["seeds"]) < 2 for leg in legs):
        return "one seed says nothing about new seeds"
    if not all(map(_of_seeds, legs)):
        return "seeds without spread say nothing about new seeds"
    return "; ".join(f"{leg['claim']}: " + (f"{leg['more']} - {leg['less']} = " if "more" in leg else "") +
                     f"{leg['difference']:+.4g}, 95% interval [{leg['ci95'][0]:+.4g}, {leg['ci95'][1]:+.4g}]"
                     for leg in legs)


def untested(name: str, statistic: str, claim: str, why: str) -> dict[str, Any]:
    """A claim that nothing was measured for."""
    return {"name": name, "statistic": statistic, "claim": claim, "verdict": UNDECIDED, "legs": [], "reason": why}


def equal(name: str, statistic: str, roles: Roles, pair: tuple[str, str], values: ByExample,
          margin: float) -> dict[str, Any]:
    """Whether two roles agree up to `margin`: supported if the interval lies within ±margin, contradicted if outside.

    The 95% interval inside the margin is the two one-sided tests of Schuirmann 1987 at 2.5%.
    """
    first, second = pair
    claim = f"{first} = {second} within {points(margin)}"
    missing = [role for role in pair if not values.get(roles.get(role, ""))]
    if missing:
        return untested(name, statistic, claim, f"no {statistic} for the role {', '.join(missing)}")
    leg = same(f"{first} = {second}", values[roles[first]], values[roles[second]], margin)
    legs = [leg | {"more": roles[first], "less": roles[second]}]
    return {"name": name, "statistic": statistic, "claim": claim, "verdict": all_of(legs), "legs": legs,
            "reason": reason(legs)}


def same(what: str, a: Mapping[int, NDArray], b: Mapping[int, NDArray], margin: float) -> dict[str, Any]:
    """The leg that two sides, {seed: (n,)}, agree up to `margin`."""
    difference = of_images(a, b)
    return {"claim": f"{what} within {points(margin)}", "margin": margin, **difference,
            "verdict": within(difference, margin)}


def points(margin: float) -> str:
    """A margin of accuracy in words."""
    return f"{100 * margin:g} point{'s' * (margin != 0.01)}"


def within(difference: dict[str, Any], margin: float) -> str:
    """The verdict on a difference that is claimed to be none, up to ±margin."""
    if not _of_seeds(difference):
        return UNDECIDED
    low, high = difference["ci95"]
    if -margin <= low and high <= margin:
        return "supported"
    return "contradicted" if low > margin or high < -margin else UNDECIDED


def correctness(path: Path, split: str) -> ByExample:
    """{condition: {seed: correct (n,)}} of a results.json and the rows beside it."""
    conditions = results.read_results(path)["conditions"]
    return {name: {run["seed"]: results.example_rows(path.parent / run["examples"])["correct"].to_numpy()
                   for run in condition["runs"] if run["split"] == split} for name, condition in conditions.items()}


def of_the_original(roles: Roles, distance: ByExample, trace: Mapping[str, Mapping[int, float]], correct: ByExample,
                    margin: float) -> list[dict[str, Any]]:
    """The original's three claims: local attention, sharper minima, and structure doing as well as logits.

    A leg's `difference` is that of `more` minus `less`, the conditions in those places of the claim.
    """
    return [
        order("locality_curse", "attention_distance", roles, "cnn < baseline < ssl", distance, of_images),
        order("sharper_minima", "hessian_trace", roles, "cnn > baseline > ssl", trace, of_seeds),
        equal("structure_equals_logits", "accuracy", roles, ("ssl", "cnn"), correct, margin)]
