"""Whether an arm's accuracy is what its attention distance explains: a curve of imposed distances, read at the arm.

Three steps, each with its verdict: does distillation change attention distance; does an imposed distance change
accuracy; is the arm's loss of accuracy, up to a margin, what the imposed curve predicts for its change of distance.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.probes.hypotheses import ByExample, Roles, all_of, judged, of_images, order, reason, untested, within
from graft.reporting import stats


def chain(roles: Roles, doses: Sequence[str], distance: ByExample, correct: ByExample,
          margin: float) -> list[dict[str, Any]]:
    """The three claims, for the conditions `doses`, which impose distances, the most local one first.

    `distance` and `correct`: condition -> seed -> (n,), of each image. `margin`: of accuracy, up to which the observed
    loss is the predicted one.
    """
    if not doses:
        return []
    local = {**roles, "local": doses[0]}
    return [order("distillation_makes_local", "attention_distance", roles, "cnn < baseline", distance, of_images),
            order("imposed_locality_harms", "accuracy", local, "local < baseline", correct, of_images),
            _explained(roles, doses, distance, correct, margin)]


def curve(doses: Sequence[str], distance: ByExample, correct: ByExample) -> list[dict[str, Any]]:
    """What was imposed and what came of it: attention distance and accuracy of each dose, over seeds."""
    def mean(values: Mapping[int, NDArray]) -> dict[str, Any]:
        return stats.seed_summary([rows.mean() for _, rows in sorted(values.items())])

    return [{"condition": name, "attention_distance": mean(distance[name]),
             "accuracy": mean(correct[name]) if name in correct else None} for name in doses if name in distance]


def _explained(roles: Roles, doses: Sequence[str], distance: ByExample, correct: ByExample,
               margin: float) -> dict[str, Any]:
    """Does the CNN arm lose what its attention distance explains?

    A seed's curve is a broken line through the imposed arms of that seed, from attention distance to an image's
    correctness. The loss that it predicts is its value at the baseline's distance minus that at the arm's, so that a
    cost which the imposing term has at every distance cancels. Differences are for new seeds and new images. Nothing
    is extrapolated: distances beyond the imposed ones leave the claim undecided. It is supported if there is a loss,
    the curve predicts one, and the two agree up to the margin.
    """
    head = ("locality_explains", "accuracy",
            f"0 < baseline - cnn = as the attention distance predicts, within {margin:g}")
    wanted = [roles.get("baseline", ""), roles.get("cnn", ""), *doses]
    if missing := [name or "cnn" for name in wanted if not distance.get(name) or not correct.get(name)]:
        return untested(*head, f"no attention distance and accuracy of {', '.join(missing)}")
    seeds = sorted(set.intersection(*({*distance[name]} & {*correct[name]} for name in wanted)))
    if len(seeds) < 2:
        return untested(*head, "fewer than two seeds that all of these arms have")
    baseline, arm = wanted[:2]
    predicted, observed = {}, {}
    for seed in seeds:
        imposed = np.array([distance[name][seed].mean() for name in doses])
        before, after = (distance[name][seed].mean() for name in (baseline, arm))
        if min(before, after) < imposed.min() or max(before, after) > imposed.max():
            return untested(*head, f"seed {seed}: the distances of {baseline}, {before:.3f}, and {arm}, {after:.3f}, "
                                   f"are not within the imposed ones, {imposed.min():.3f} to {imposed.max():.3f}")
        rows = np.stack([correct[name][seed] for name in doses]).astype(float)
        predicted[seed] = (weights(imposed, before) - weights(imposed, after)) @ rows
        observed[seed] = correct[baseline][seed].astype(float) - correct[arm][seed]
    nothing = {seed: np.zeros_like(rows) for seed, rows in predicted.items()}
    legs = [{"claim": f"{what} > 0", "more": baseline, "less": arm, **(found := of_images(values, nothing)),
             "verdict": judged(found)} for what, values in (("predicted loss", predicted), ("observed loss", observed))]
    legs.append({"claim": f"observed loss = predicted loss within {margin:g}", "more": baseline, "less": arm,
                 "margin": margin, **(found := of_images(observed, predicted)), "verdict": within(found, margin)})
    name, statistic, claim = head
    return {"name": name, "statistic": statistic, "claim": claim, "verdict": all_of(legs), "legs": legs,
            "reason": reason(legs)}


def weights(knots: NDArray, at: float) -> NDArray:
    """What linear interpolation between `knots` (K,) weighs each of them at `at`; constant beyond the ends."""
    order_of = np.argsort(knots, kind="stable")
    unit = np.eye(len(knots))[:, order_of]
    return np.array([np.interp(at, knots[order_of], row) for row in unit])
