"""Accuracy by what questions are like: the traits that a task gives its items, such as how hard they are."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from graft.reporting.comparisons import seed_summary

COLUMN = "trait."  # how the columns of rows begin that hold one


def by_trait(frames: Mapping[int, pd.DataFrame]) -> dict[str, dict[str, dict[str, Any]]]:
    """Trait -> value -> `n` questions that have it, and `accuracy` on them over the seeds, whose rows `frames` are."""
    rows = list(frames.values())
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for column in (name for name in rows[0] if name.startswith(COLUMN) and all(name in frame for frame in rows)):
        for value in sorted(rows[0][column].unique()):
            own = [frame[frame[column] == value] for frame in rows]
            values = [float(frame["correct"].mean()) for frame in own]
            found.setdefault(column.removeprefix(COLUMN), {})[value] = {
                "n": len(own[0]), "accuracy": seed_summary(values, "accuracy", own)}
    return found
