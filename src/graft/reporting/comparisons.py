"""The comparisons that results.json holds: differences between conditions, and shares of the untrained model's gap."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from graft.reporting import components, stats

# The metrics compared where rows have them: column of the rows, and resamplings (real values have no repeated patterns
# to draw at once, so they cost more).
COMPARED = {"accuracy": ("correct", 10_000), "accuracy_flexible": ("correct_flexible", 10_000), "nll": ("nll", 2_000),
            "accuracy_cls": ("accuracy_cls", 2_000)}
UNTRAINED = "base_"  # what the conditions of the untrained model begin with
GAP = (f"{UNTRAINED}0shot", f"{UNTRAINED}kshot")  # without worked examples, and with the teacher's

Rows = dict[tuple[str, str], dict[int, pd.DataFrame]]  # by (condition, split) and seed


def differences(rows: Rows, pairs: Sequence[tuple[str, str]],
                primary: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """`stats.paired_difference` of each pair (a, b) with `p_holm`, on every split and metric that both have.

    Seeds are those that both sides have (`stats.matched`). One split and metric is one family of Holm's; of `primary`
    pairs two, these and the others.
    """
    found = []
    for split, metric in itertools.product(dict.fromkeys(split for _, split in rows), COMPARED):
        column, draws = COMPARED[metric]
        compared = [{"a": a, "b": b, "split": split, "metric": metric, **_compare(rows, a, b, split, column, draws)}
                    for a, b in pairs if _has(rows, a, split, column) and _has(rows, b, split, column)]
        for main in (True, False):
            family = [one for one in compared if ((one["a"], one["b"]) in primary) is main]
            for one, p_holm in zip(family, stats.holm([one["p"] for one in family]), strict=True):
                one["p_holm"] = p_holm
        found += compared
    return found


def gaps_closed(rows: Rows) -> list[dict[str, Any]]:
    """`stats.gap_closed` of every condition on every split and metric that it and both of `GAP` have."""
    found = []
    for (name, split), (metric, (column, draws)) in itertools.product(rows, COMPARED.items()):
        if name not in GAP and all(_has(rows, one, split, column) for one in (name, *GAP)):
            values = [np.stack([*_by_seed(rows, one, split, column).values()]) for one in (name, *GAP)]
            found.append({"a": name, "split": split, "metric": metric, **stats.gap_closed(*values, draws=draws)})
    return found


def seed_summary(values: Sequence[float], metric: str, frames: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """`stats.seed_summary` of a metric's values, one a seed, within its range; `frames` are the rows behind them.

    Every metric of a run is a mean over its rows, of shares or of what cannot be negative.
    """
    rows = np.stack([_of_rows(frame, metric) for frame in frames])
    counts = rows.dtype == bool
    return stats.seed_summary(values, stats.SHARE if counts else stats.POSITIVE,
                              components.least_variance(rows.astype(float), counts))


def _of_rows(frame: pd.DataFrame, metric: str) -> np.ndarray:
    if metric.startswith("top"):
        return (frame["label_rank"] < int(metric[3:])).to_numpy()
    return frame[COMPARED[metric][0] if metric in COMPARED else metric].to_numpy()


def _has(rows: Rows, name: str, split: str, column: str) -> bool:
    return (name, split) in rows and all(column in frame for frame in rows[name, split].values())


def _by_seed(rows: Rows, name: str, split: str, column: str) -> dict[int, np.ndarray]:
    return {seed: frame[column].to_numpy() for seed, frame in sorted(rows[name, split].items())}


def _compare(rows: Rows, a: str, b: str, split: str, column: str, draws: int) -> dict[str, Any]:
    first, other = (_by_seed(rows, name, split, column) for name in (a, b))
    untrained = {}
    # The untrained model has no seed that could have been another: its one run stands against every seed of the other.
    # As a side of one seed it would make this a comparison of one seed, and the other's spread would be lost.
    if b.startswith(UNTRAINED) and len(other) == 1:
        other, untrained = dict.fromkeys(first, *other.values()), {"seeds": [len(first), 1]}
    elif a.startswith(UNTRAINED) and len(first) == 1:
        first, untrained = dict.fromkeys(other, *first.values()), {"seeds": [1, len(other)]}
    first, other, paired = stats.matched(first, other)
    values = [np.stack([*side.values()]) for side in (first, other)]
    return {**stats.paired_difference(*values, paired_seeds=paired, draws=draws), **untrained}
