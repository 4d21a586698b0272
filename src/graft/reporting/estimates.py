"""Accuracies with their intervals, and how figures draw them beside the untrained model."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from graft.reporting import figures, results, stats

REFERENCES = dict(zip(results.GAP, ({"color": "0.35", "linestyle": ":"}, {"color": "0.35", "linestyle": (0, (5, 2))})))


def estimate(entries: list[dict[str, Any]], summary: dict[str, Any] | None = None) -> dict[str, Any]:
    """Mean accuracy of runs, one a seed, with its 95% interval, in percent.

    Over seeds (t) with two or more of them, NaN if these are equal; else over the questions of the one (Wilson).
    `summary` is that of results.json where it has one.
    """
    found = summary or stats.seed_summary([one["metrics"]["accuracy"]["value"] for one in entries], stats.SHARE)
    ends = found["ci95"] if found["seeds"] > 1 else entries[0]["metrics"]["accuracy"]["ci95"]
    return {"seeds": found["seeds"], "n": entries[0]["n"], "accuracy": 100 * found["mean"],
            **dict(zip(("low", "high"), (math.nan if end is None else 100 * end for end in ends))),
            "interval": "seeds" if found["seeds"] > 1 else "questions"}


def estimates(content: dict[str, Any], split: str) -> dict[str, dict[str, Any]]:
    """The estimate of every condition that was scored on `split`."""
    runs = {name: [run for run in condition["runs"] if run["split"] == split]
            for name, condition in content["conditions"].items()}
    return {name: {"condition": name, "split": split,
                   **estimate(own, content["conditions"][name]["summary"][split]["accuracy"])}
            for name, own in runs.items() if own}


def reference_lines(ax: Axes, found: dict[str, dict[str, Any]], across: str) -> None:
    """The untrained model with its intervals, across the axis x or y."""
    line, span = (ax.axvline, ax.axvspan) if across == "x" else (ax.axhline, ax.axhspan)
    for name, look in REFERENCES.items():
        if name in found and not math.isnan(found[name]["low"]):
            span(found[name]["low"], found[name]["high"], color="black", alpha=0.08, linewidth=0, zorder=0)
        if name in found:
            line(found[name]["accuracy"], **look, linewidth=0.9, zorder=1, label=name)


def name_missing(found: dict[str, dict[str, Any]], where: str) -> None:
    """Say on stderr which of the references are not there."""
    for name in REFERENCES:
        if name not in found:
            print(f"{where}: missing: {name}", file=sys.stderr)


def cross(ax: Axes, across: Sequence[float], up: Sequence[float], look: dict[str, Any], seeds: int,
          label: str | None = None) -> None:
    """A point with its intervals on both axes, each (middle, low, high); hollow with one seed."""
    errors = [[[middle - low], [high - middle]] for middle, low, high in (across, up)]
    ax.errorbar(across[0], up[0], xerr=errors[0], yerr=errors[1], color=look["color"], linewidth=0.7, zorder=2)
    ax.plot(across[0], up[0], marker=look["marker"], color=look["color"], linestyle="", markersize=4.5, zorder=3,
            markerfacecolor="white" if seeds == 1 else look["color"], label=label)


def limits(middles: list[float], ends: list[float], lowest: float = 0, highest: float = 100) -> tuple[float, float]:
    """Axis limits, in percent, that hold all middles, and intervals up to half as far again as the middles spread.

    A t-interval of two seeds may be so long that nothing else could be seen; what leaves the axes has no cap. No value
    is beyond `lowest` and `highest`; their markers have room.
    """
    low, high = np.nanmin(middles), np.nanmax(middles)
    room = max((high - low) / 2, 5)
    low, high = max(np.nanmin([low, *ends]), low - room), min(np.nanmax([high, *ends]), high + room)
    low, high = max(low, lowest), min(high, highest)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def point(ax: Axes, y: float, look: dict, seeds: int, middle: float, low: float, high: float) -> None:
    """A mean with its interval; hollow with one seed."""
    ax.errorbar(middle, y, xerr=[[middle - low], [high - middle]], color=look["color"], capsize=2, zorder=2)
    ax.plot(middle, y, marker=look["marker"], color=look["color"], markersize=4.5, zorder=3,
            markerfacecolor="white" if seeds == 1 else look["color"])


def note(figure: figures.Figure, seeds: str, one_seed: str, *more: str) -> None:
    """Say at the foot what the intervals are, and how the seeds and a single one of them are drawn."""
    parts = [f"mean and 95% interval over seeds{seeds}", f"{one_seed}: 1 seed, over its questions", "no cap: cut off"]
    figures.foot(figure, "; ".join([*parts, *more]))
