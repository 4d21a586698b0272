"""Accuracy of every trained condition and the share of the k-shot gap that it closes, with 95% intervals.

    python scripts/gen_ablation_fig.py --results experiments/gsm8k_qwen1b7/results.json --out assets

The untrained model without and with worked examples (base_0shot and base_kshot, from eval_icl.py) is drawn as lines;
behind anything else that it was asked (base_2shot, base_NAME) it is a row where `--conditions` names it.
"""

import math
import sys
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from graft.errors import exit_cleanly
from graft.reporting import figures, results
from graft.reporting.comparisons import UNTRAINED
from graft.reporting.estimates import REFERENCES, estimates, limits, name_missing, note, point, reference_lines

SHARES = {"": "accuracy", "flexible_": "accuracy_flexible"}  # prefix of their columns, and metric


def seed_values(content: dict[str, Any], chosen: list[str], split: str) -> pd.DataFrame:
    """One row a run: its accuracy in percent."""
    return pd.DataFrame([{"condition": name, "split": split, "seed": run["seed"], "n": run["n"],
                          "accuracy": 100 * run["metrics"]["accuracy"]["value"]}
                         for name in chosen for run in content["conditions"][name]["runs"] if run["split"] == split])


def shares(content: dict[str, Any], split: str) -> pd.DataFrame:
    """The shares of the gap each condition closes, in percent, with intervals; empty without a gap."""
    rows = []
    for name, condition in content["conditions"].items():
        if closed := condition.get("gap_closed", {}).get(split):
            rows.append({"condition": name})
            for prefix, metric in SHARES.items():
                one = closed.get(metric, {"value": None, "ci95": (None, None)})
                rows[-1] |= dict(zip(share_columns(prefix), (one["value"], *one["ci95"])))
    columns = [column for prefix in SHARES for column in share_columns(prefix)]
    return pd.DataFrame(rows, columns=["condition", *columns]).astype(dict.fromkeys(columns, float)).set_index(
        "condition") * 100


def share_columns(prefix: str) -> list[str]:
    """Columns of a share and its ends."""
    return [f"{prefix}{name}" for name in ("gap_closed", "gap_low", "gap_high")]


def shown_shares(rows: pd.DataFrame) -> list[str]:
    """Those of `SHARES` that have intervals; flexible ones only where one differs by a percent of the gap."""
    some = [prefix for prefix in SHARES if rows[f"{prefix}gap_low"].notna().any()]
    strict, flexible = (rows[share_columns(prefix)].to_numpy() for prefix in SHARES)
    return some[:1] if np.allclose(strict, flexible, rtol=0, atol=1, equal_nan=True) else some


def draw(rows: pd.DataFrame, seeds: pd.DataFrame, found: dict[str, dict[str, Any]], split: str) -> figures.Figure:
    """One line a condition, from top to bottom; the second panel only where there are shares with intervals."""
    prefixes = shown_shares(rows)
    panels = 1 + bool(prefixes)
    height = 0.7 + 0.28 * len(rows) if len(prefixes) > 1 else 0.55 + 0.24 * len(rows)
    figure, axes = figures.axes(figures.PAGE if panels > 1 else figures.COLUMN, height, 1, panels, sharey=True)
    reference_lines(axes[0], found, "x")
    for y, row in enumerate(rows.itertuples()):
        point(axes[0], y, figures.look(y), row.seeds, row.accuracy, row.low, row.high)
        own = seeds[seeds["condition"] == row.condition]
        if row.seeds > 1:
            axes[0].plot(own["accuracy"], y + figures.below(len(own)), ".", color="0.3", markersize=2.5, zorder=4)
    axes[0].set_yticks(range(len(rows)), rows["condition"])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    lines = pd.DataFrame([*rows.to_dict("records"), *(found[name] for name in REFERENCES if name in found)])
    axes[0].set_xlim(limits([*lines["accuracy"], *seeds["accuracy"]], [*lines["low"], *lines["high"]]))
    axes[0].set_xlabel(f"{split} accuracy, %")
    for ax in axes:
        ax.grid(axis="y", visible=False)
    if panels > 1:
        draw_shares(axes[1], rows, prefixes)
    if axes[0].get_legend_handles_labels()[0]:
        figures.legend(figure, *axes[0].get_legend_handles_labels())
    note(figure, " (dots)", "hollow, grey bands", *["shares: over both"] * (panels > 1))
    return figure


def draw_shares(ax: Axes, rows: pd.DataFrame, prefixes: list[str]) -> None:
    """Shares of the gap, the flexible ones in grey below the strict where both are shown."""
    for prefix in prefixes:
        shift = 0.0 if len(prefixes) == 1 else 0.24 if prefix else -0.14
        for y, (seeds, *share) in enumerate(rows[["seeds", *share_columns(prefix)]].itertuples(index=False)):
            if not math.isnan(share[1]):
                point(ax, y + shift, figures.look(y) | ({"color": "0.45"} if prefix else {}), seeds, *share)
    for at, look in zip((0, 100), REFERENCES.values()):
        ax.axvline(at, **look, linewidth=0.9, zorder=1)
    middles, *ends = (np.concatenate(columns) for columns in zip(*(rows[share_columns(prefix)].to_numpy().T
                                                                  for prefix in prefixes)))
    ax.set_xlim(limits([0, 100, *middles], [*ends[0], *ends[1]], -math.inf, math.inf))
    by = "\ncoloured: strict; grey, below: flexible" if len(prefixes) > 1 else ", flexible" if prefixes[0] else ""
    ax.set_xlabel(f"share of the k-shot gap closed, %{by}")


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "ablation", "--results", help="a results.json", split="test").parse_args()
    content = results.read_results(args.results)
    where = f"{args.results}: {args.split}"
    found = estimates(content, args.split)
    name_missing(found, where)
    trained = [name for name in found if not name.startswith(UNTRAINED)]
    chosen = figures.choose(args.conditions or trained, list(found), where, args.allow_missing)
    gaps, seeds = shares(content, args.split), seed_values(content, chosen, args.split)
    if len(gaps) and gaps[["gap_low", "flexible_gap_low"]].isna().all(axis=None):
        print(f"{where}: no shares: the interval of the k-shot gap is not above 0", file=sys.stderr)
    rows = pd.DataFrame([found[name] for name in chosen]).join(gaps, on="condition")
    referred = pd.DataFrame([found[name] for name in REFERENCES if name in found and name not in chosen])
    with figures.style(args.style):
        paths = figures.save(draw(rows, seeds, found, args.split), args,
                             pd.concat([part for part in (rows, referred, seeds) if len(part)], ignore_index=True))
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
