"""Forensics in four panels: Hessian trace, locality spectrum, dispersion of the class token, collapsed heads (where no
head of any run has collapsed, how far the most local one is from it).

    python scripts/gen_forensics_fig.py --forensics experiments/demo/forensics.json --out assets

Without --allow_missing every panel must have its numbers (the trace: --hessian of analyze_locality.py).
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from graft.errors import UserError, exit_cleanly
from graft.reporting import figures, results, stats
from graft.reporting.spectra import GREY, INIT, draw_spectrum, groups, spectrum

Runs = dict[str, list[dict[str, Any]]]
PANELS: dict[str, Callable[[dict[str, Any]], dict[str, float | None]]] = {
    "hessian_trace": lambda run: {"value": run["hessian"]["trace"]["value"],
                                  "error": run["hessian"]["trace"]["standard_error"]} if "hessian" in run else {},
    "cls_dispersion": lambda run: {"value": run["avg_cls_dispersion"]},
    "collapsed_heads": lambda run: {"value": 100 * run["collapsed_heads_ratio_relative"]},
    "smallest_distance": lambda run: {"value": min(x for layer in run["per_layer_stats"].values()
                                                   for x in layer["mean_distance"])}}
RANGES = {"hessian_trace": stats.REAL, "cls_dispersion": stats.POSITIVE, "collapsed_heads": (0.0, 100.0),
          "smallest_distance": stats.POSITIVE}


def by_seed(found: Runs, panel: str) -> pd.DataFrame:
    """One row a run that has the panel's `value`; `error` is the standard error of its estimate, if it is one."""
    rows = [{"panel": panel, "condition": name, "seed": run["seed"], **PANELS[panel](run)}
            for name, runs in found.items() for run in runs]
    return pd.DataFrame(rows, columns=["panel", "condition", "seed", "value", "error"]).dropna(subset="value")


def means(seeds: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95% t-interval over the seeds of each condition; its ends are NaN where the seeds show no spread."""
    rows = []
    for (panel, name), own in seeds.groupby(["panel", "condition"], sort=False):
        found = stats.seed_summary(own["value"], RANGES[panel])
        rows.append({"panel": panel, "condition": name, "mean": found["mean"], "low": found["ci95"][0],
                     "high": found["ci95"][1], "seeds": found["seeds"]})
    return pd.DataFrame(rows).astype({"low": float, "high": float} if rows else {})


def strip(ax: Axes, names: list[str], seeds: pd.DataFrame, label: str) -> None:
    """A row a condition: mean with its interval, below it each seed with twice the standard error of its estimate."""
    middle = means(seeds).set_index("condition") if len(seeds) else pd.DataFrame()
    for y, name in enumerate(names):
        if name not in middle.index:
            ax.text(0.5, y, "not measured", transform=ax.get_yaxis_transform(), ha="center", va="center",
                    color="0.4", fontsize=7)
            continue
        look = GREY | {"marker": "o"} if name == INIT else figures.look(y)
        row, own = middle.loc[name], seeds[seeds["condition"] == name]
        if not np.isnan(row["low"]):
            ax.errorbar(row["mean"], y, xerr=[[row["mean"] - row["low"]], [row["high"] - row["mean"]]],
                        color=look["color"], capsize=2)
        ax.plot(row["mean"], y, marker=look["marker"], color=look["color"], markersize=5)
        ax.errorbar(own["value"], y + figures.below(len(own)), xerr=2 * own["error"].fillna(0), fmt=".",
                    color="0.3", markersize=2.5, elinewidth=0.6)
    if not len(seeds):
        ax.set_xticks([])
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label)


def cls_label(found: Runs, uniform: float | None, limit: float) -> str:
    """Axis label of the class token's dispersion; it warns if a run's token sees itself alone in too many heads."""
    beside = "" if uniform is None else f" (uniform {uniform:.4g})"
    worst = max((run["cls_collapse_ratio"] or 0 for runs in found.values() for run in runs), default=0)
    warning = f"\n(sees itself alone in up to {worst:.0%} of heads)" if worst > limit else ""
    return "class token's dispersion, patches²" + beside + warning


def draw(content: dict[str, Any], found: Runs, seeds: pd.DataFrame, spectra: pd.DataFrame) -> figures.Figure:
    """Two by two; the legend of the spectrum serves all panels."""
    names = list(found)
    uniform, limits = content["references"]["uniform"], content["thresholds"]
    height = 0.6 + 2 * max(1.8, 0.28 * len(names) + 0.5)
    figure, (a, b, c, d) = figures.axes(figures.PAGE, height, 2, 2)
    images = content["data"]["n"]
    of = {panel: seeds[seeds["panel"] == panel] for panel in PANELS}
    strip(a, [name for name in names if name != INIT], of["hessian_trace"],
          "Hessian trace" + (f" ({images['hessian']} images)" if "hessian" in images else ""))
    draw_spectrum(b, spectra, uniform["mean_distance"], limits["relative"])
    b.yaxis.label.set_size(7)
    strip(c, names, of["cls_dispersion"], cls_label(found, uniform["cls_dispersion"], limits["cls_collapse_warning"]))
    if uniform["cls_dispersion"] is not None:
        c.axvline(uniform["cls_dispersion"], color="black", linewidth=0.8, linestyle=":", zorder=0)
    if of["collapsed_heads"]["value"].any():
        strip(d, names, of["collapsed_heads"], f"heads with distance < {limits['relative']:.2f} patches, %")
    else:
        strip(d, names, of["smallest_distance"], "distance of the most local head, patches "
              f"(0 % of heads < {limits['relative']:.2f})")
    for letter, ax in zip("abcd", (a, b, c, d)):
        ax.set_title(f"({letter})", loc="left")
    figures.legend(figure, *b.get_legend_handles_labels())
    figures.foot(figure, "(a, c, d) mean over seeds with 95% interval; below it each seed, in (a) with two standard "
                 "errors. (b) mean and range of seeds")
    return figure


def complete(seeds: pd.DataFrame, found: Runs, where: str, allow_missing: bool) -> None:
    """Name what was not measured in every run; raises UserError unless that is allowed."""
    lacking = [f"{panel} of {name}" for panel in PANELS for name, runs in found.items()
               if ((seeds["panel"] == panel) & (seeds["condition"] == name)).sum() < len(runs)
               and (panel, name) != ("hessian_trace", INIT)]
    if lacking and not allow_missing:
        raise UserError(f"{where}: not measured: {', '.join(lacking)}; --allow_missing draws the rest")
    for one in lacking:
        print(f"missing: {one}", file=sys.stderr)


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "forensics_summary", "--forensics", help="a forensics.json").parse_args()
    content = results.read_forensics(args.forensics)
    chosen = figures.choose(args.conditions, list(content["conditions"]), args.forensics, args.allow_missing)
    found = groups(content, chosen, args.forensics)
    seeds = pd.concat([by_seed(found, panel) for panel in PANELS], ignore_index=True)
    complete(seeds, found, args.forensics, args.allow_missing)
    spectra = pd.concat([spectrum(runs).assign(condition=name) for name, runs in found.items()])
    table = pd.concat([means(seeds), seeds, spectra.assign(panel="locality_spectrum")], ignore_index=True)
    with figures.style(args.style):
        paths = figures.save(draw(content, found, seeds, spectra), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
