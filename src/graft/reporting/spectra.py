"""Attention distance by head and by layer, beside uniform attention and untrained students, as figures draw it."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from graft.errors import UserError
from graft.reporting import figures

INIT = "(random init)"
GREY = {"color": "0.45", "linestyle": (0, (4, 1.5)), "marker": ""}


def over_seeds(values: list[list[float]]) -> pd.DataFrame:
    """Mean, lowest and highest over seeds at each place of equally long lists; also the number of seeds."""
    values = np.array(values, float)
    return pd.DataFrame({"mean": values.mean(0), "min": values.min(0), "max": values.max(0), "seeds": len(values)})


def spectrum(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Sorted head distances by rank, in patches; each seed's heads are sorted by themselves."""
    found = over_seeds([sorted(x for layer in run["per_layer_stats"].values() for x in layer["mean_distance"])
                        for run in runs])
    return found.assign(rank=range(1, len(found) + 1))


def groups(content: dict[str, Any], chosen: list[str], where: str) -> dict[str, list[dict[str, Any]]]:
    """The runs of each condition, then of the untrained reference. Raises UserError if their grids differ."""
    found = {name: content["conditions"][name]["runs"] for name in chosen}
    found[INIT] = content["references"]["random_init"]["runs"]
    grid = found[INIT][0]["grid"]
    for name, runs in found.items():
        for run in runs:
            if run["grid"] != grid:
                raise UserError(f"{where}: {name}: expected the {grid[0]}x{grid[1]} patches of the reference, got "
                                f"{run['grid'][0]}x{run['grid'][1]}; distances in patches cannot be compared")
    return found


def lines(ax: Axes, table: pd.DataFrame, x: str, uniform: float) -> None:
    """Mean over seeds against column `x`, a band for their range; the untrained reference in grey."""
    for i, (name, own) in enumerate(table.groupby("condition", sort=False)):
        look = GREY if name == INIT else figures.look(i)
        every = max(1, len(own) // 6)
        label = name + (" (1 seed)" if own["seeds"].iloc[0] == 1 else "")
        ax.plot(own[x], own["mean"], **look, markevery=(i % every, every), label=label)
        ax.fill_between(own[x], own["min"], own["max"], color=look["color"], alpha=0.15, linewidth=0)
    ax.axhline(uniform, color="black", linewidth=0.8, linestyle=":", label=f"if uniform ({uniform:.3f})")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel("attention distance, patches")


def column() -> tuple[figures.Figure, Axes]:
    """A figure one column wide."""
    figure, (ax,) = figures.axes(figures.COLUMN, 2.1)
    return figure, ax


def legend(figure: figures.Figure) -> None:
    """Above the axes, with what is drawn."""
    figures.legend(figure, *figure.axes[0].get_legend_handles_labels(), title="mean and range of seeds")


def draw_spectrum(ax: Axes, table: pd.DataFrame, uniform: float, collapsed: float) -> None:
    """One line a condition; the threshold of collapse where a head is below it."""
    lines(ax, table, "rank", uniform)
    if table["min"].min() < collapsed:
        ax.axhline(collapsed, color="black", linewidth=0.6, label=f"collapsed (< {collapsed:.2f})")
    ax.set_xlabel("head, sorted by distance")
