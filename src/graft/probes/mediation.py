"""Whether an arm's accuracy is what its attention distance explains: a curve of imposed distances, read at the arm.

Three steps, each with its verdicts: does distillation change attention distance; does an imposed distance change
accuracy; is the arm's change of accuracy, up to a margin, what the imposed curve predicts for its change of distance.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.probes.hypotheses import (
    UNDECIDED,
    ByExample,
    Roles,
    all_of,
    equal,
    of_images,
    order,
    points,
    reason,
    same,
    told_from_zero,
    untested,
)
from graft.reporting import stats

BEYOND = 0.05  # of the range of imposed distances: so far beyond its ends a distance still counts as within


def chain(roles: Roles, doses: Sequence[str], distance: ByExample, correct: ByExample,
          margin: float) -> list[dict[str, Any]]:
    """The claims of the three steps, for the conditions `doses`, which impose distances, the most local one first.

    `distance` and `correct`: condition -> seed -> (n,), of each image. `margin`: of accuracy, up to which two are the
    same. The second step asks twice: is what is made local worse than the baseline, and is it, under the same term,
    any different from what is made to look wide?
    """
    if not doses:
        return []
    ends = {**roles, "local": doses[0], "wide": doses[-1]}
    return [_moved(roles, doses, distance),
            order("imposed_locality_harms", "accuracy", ends, "local < baseline", correct, of_images),
            equal("local_equals_wide", "accuracy", ends, ("local", "wide"), correct, margin),
            _explained(roles, doses, distance, correct, margin)]


def _moved(roles: Roles, doses: Sequence[str], distance: ByExample) -> dict[str, Any]:
    """Whether distillation makes attention local; by how much of what was imposed, for any shift can be told from 0."""
    claim = order("distillation_makes_local", "attention_distance", roles, "cnn < baseline", distance, of_images)
    imposed = [np.mean([rows.mean() for rows in distance[name].values()]) for name in doses if distance.get(name)]
    if claim["legs"] and np.ptp(imposed or [0.0]) > 0:
        share = claim["legs"][0]["difference"] / np.ptp(imposed)
        claim["reason"] += f"; {share:.0%} of the range that was imposed"
    return claim


def curve(doses: Sequence[str], distance: ByExample, correct: ByExample) -> list[dict[str, Any]]:
    """What was imposed and what came of it: attention distance and accuracy of each dose, over seeds."""
    def mean(values: Mapping[int, NDArray]) -> dict[str, Any]:
        return stats.seed_summary([rows.mean() for _, rows in sorted(values.items())])

    return [{"condition": name, "attention_distance": mean(distance[name]),
             "accuracy": mean(correct[name]) if name in correct else None} for name in doses if name in distance]


def _explained(roles: Roles, doses: Sequence[str], distance: ByExample, correct: ByExample,
               margin: float) -> dict[str, Any]:
    """Is the CNN arm's change of accuracy what its attention distance predicts?

    A seed's curve is a broken line through the imposed arms of that seed, from attention distance to an image's
    correctness. It predicts its value at the arm's distance minus that at the baseline's. Differences are for new seeds
    and new images. Supported if the curve passes through the baseline, which was not made to have its distance (else
    something besides distance sets accuracy, the imposing term itself, say), if observed and predicted change are both
    told from none, and if they agree. Nothing is extrapolated: a distance beyond the imposed ones by more than `BEYOND`
    of their range leaves the claim undecided, a smaller one is read at the end of the line.
    """
    head = ("locality_explains", "accuracy",
            f"cnn - baseline = as the attention distance predicts, within {points(margin)}")
    wanted = [roles.get("baseline", ""), roles.get("cnn", ""), *doses]
    if missing := [name or "cnn" for name in wanted if not distance.get(name) or not correct.get(name)]:
        return untested(*head, f"no attention distance and accuracy of {', '.join(missing)}")
    seeds = sorted(set.intersection(*({*distance[name]} & {*correct[name]} for name in wanted)))
    if len(seeds) < 2:
        return untested(*head, "fewer than two seeds that all of these arms have")
    baseline, arm = wanted[:2]
    there, here, predicted, observed = {}, {}, {}, {}
    for seed in seeds:
        imposed = np.array([distance[name][seed].mean() for name in doses])
        before, after = (distance[name][seed].mean() for name in (baseline, arm))
        slack = BEYOND * np.ptp(imposed)
        if min(before, after) < imposed.min() - slack or max(before, after) > imposed.max() + slack:
            return untested(*head, f"seed {seed}: the distances of {baseline}, {before:.3f}, and {arm}, {after:.3f}, "
                                   f"are not within the imposed ones, {imposed.min():.3f} to {imposed.max():.3f}")
        rows = np.stack([correct[name][seed] for name in doses]).astype(float)
        there[seed], here[seed] = weights(imposed, before) @ rows, correct[baseline][seed].astype(float)
        predicted[seed] = weights(imposed, after) @ rows - there[seed]
        observed[seed] = correct[arm][seed] - here[seed]
    legs = [same(f"curve at {baseline}'s distance = {baseline}", there, here, margin),
            _some("predicted change is not 0", predicted), _some("observed change is not 0", observed),
            same("observed change = predicted change", observed, predicted, margin)]
    name, statistic, claim = head
    return {"name": name, "statistic": statistic, "claim": claim, "verdict": all_of(legs), "legs": legs,
            "reason": reason(legs)}


def _some(what: str, values: Mapping[int, NDArray]) -> dict[str, Any]:
    """That a change has a direction, whichever; nothing contradicts it."""
    found = of_images(values, {seed: np.zeros_like(rows) for seed, rows in values.items()})
    return {"claim": what, **found, "verdict": "supported" if told_from_zero(found) else UNDECIDED}


def weights(knots: NDArray, at: float) -> NDArray:
    """What linear interpolation between `knots` (K,) weighs each of them at `at`; constant beyond the ends."""
    order_of = np.argsort(knots, kind="stable")
    unit = np.eye(len(knots))[:, order_of]
    return np.array([np.interp(at, knots[order_of], row) for row in unit])
