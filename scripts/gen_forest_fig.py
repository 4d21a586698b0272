"""Differences from the baseline with their intervals: what a study decides, and what it does not.

    python scripts/gen_forest_fig.py --results experiments/demo/results.json --out assets

Intervals are those of the paired differences, for new seeds and new examples; whether the means' own intervals overlap
answers another question. Contrasts between conditions stand below the line.
"""

from typing import Any

import pandas as pd

from graft.errors import UserError, exit_cleanly
from graft.reporting import figures, reading, results, stats


def rows(content: dict[str, Any], split: str, asked: list[str] | None, where: str,
         allow_missing: bool) -> pd.DataFrame:
    """A line a comparison, in points: those with the baseline, then the contrasts. Raises UserError without any."""
    versus = {name: found for name, condition in content["conditions"].items()
              if (found := condition.get("vs_baseline", {}).get(split, {}).get("accuracy"))}
    if not versus:
        raise UserError(f"{where}: {split}: no condition is compared with a baseline")
    chosen = figures.choose(asked and [name for name in asked if name != content.get("baseline")], list(versus), where,
                            allow_missing)
    lines = [("vs_baseline", name, versus[name]) for name in chosen]
    lines += [("contrast", f"{one['a']} − {one['b']}", one) for one in reading.contrasts(content, split)
              if not asked or {one["a"], one["b"]} <= {*asked}]
    return pd.DataFrame([{"kind": kind, "comparison": name, "split": split, "difference": 100 * one["difference"],
                          **dict(zip(("low", "high"), (end if end is None else 100 * end for end in one["ci95"]))),
                          "p_holm": one["p_holm"], "scope": one["scope"], "seeds": min(one["seeds"])}
                         for kind, name, one in lines])


def draw(table: pd.DataFrame, baseline: str) -> figures.Figure:
    """One line a comparison, from top to bottom; filled where decided, a cross where no interval speaks of seeds."""
    gap = 0.6 * ((table["kind"] == "contrast") & (table["kind"].shift() == "vs_baseline"))
    places = table.index + gap.cumsum()
    figure, (ax,) = figures.axes(figures.PAGE, 0.75 + 0.2 * (places.max() + 1))
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=0)
    for y, row in zip(places, table.itertuples(), strict=True):
        of_seeds = row.scope.startswith("seeds")
        decided = of_seeds and not pd.isna(row.low) and stats.decided((row.low, row.high), row.p_holm)
        colour = "C0" if row.kind == "vs_baseline" else "C1"
        if not pd.isna(row.low):
            ax.plot([row.low, row.high], [y, y], color=colour, linewidth=1.2, solid_capstyle="butt",
                    alpha=1 if of_seeds else 0.4)
        ax.plot(row.difference, y, marker="o" if of_seeds else "x", color=colour, markersize=4,
                markerfacecolor=colour if decided else "white")
    ax.set_yticks(places, [row.comparison + (f" − {baseline}" if row.kind == "vs_baseline" else "")
                           for row in table.itertuples()])
    ax.set_ylim(places.max() + 0.6, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"difference in {table['split'][0]} accuracy, points")
    figures.foot(figure, "95% intervals; filled: decided, by interval and adjusted p; hollow: not; cross: one seed")
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "differences", "--results", help="a results.json", split="test").parse_args()
    content = results.read_results(args.results)
    table = rows(content, args.split, args.conditions, args.results, args.allow_missing)
    with figures.style(args.style):
        paths = figures.save(draw(table, content["baseline"]), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
