"""Accuracy of each condition: every seed, their mean and its 95% interval, against the baseline's.

    python scripts/gen_accuracy_fig.py --results experiments/demo/results.json --out assets
"""

import pandas as pd

from graft.errors import exit_cleanly
from graft.reporting import figures, results, tables


def draw(rows: pd.DataFrame, seeds: pd.DataFrame, baseline: str, title: str) -> figures.Figure:
    """One line a condition, from top to bottom; values in percent."""
    figure, (ax,) = figures.axes(figures.COLUMN, 0.55 + 0.26 * len(rows))
    for y, row in enumerate(rows.itertuples()):
        look = figures.look(y)
        if row.condition == baseline:
            ax.axvline(row.accuracy, color="0.6", linewidth=0.8, zorder=0)
            if not pd.isna(row.low):
                ax.axvspan(row.low, row.high, color="0.92", zorder=0)
        if not pd.isna(row.low):
            ax.errorbar(row.accuracy, y, xerr=[[row.accuracy - row.low], [row.high - row.accuracy]],
                        color=look["color"], capsize=2, zorder=2)
        ax.plot(row.accuracy, y, marker=look["marker"], color=look["color"], markersize=5, zorder=3)
        own = seeds[seeds["condition"] == row.condition]
        if len(own) > 1:
            ax.plot(own["accuracy"], y + figures.below(len(own)), ".", color="0.3", markersize=3, zorder=4)
    ax.set_yticks(range(len(rows)), [row.condition + ("\n(1 seed)" if row.seeds == 1 else "")
                                     for row in rows.itertuples()])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(title)
    grey = "; grey: baseline" if baseline in set(rows["condition"]) else ""
    figures.foot(figure, f"mean and 95% interval over seeds (dots){grey}")
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "accuracy", "--results", help="a results.json", split="test").parse_args()
    content = results.read_results(args.results)
    frame = tables.table(content)
    frame = frame[frame["split"] == args.split].set_index("condition", drop=False)
    chosen = figures.choose(args.conditions, list(frame.index), f"{args.results}: {args.split}", args.allow_missing)
    columns = ["condition", "split", "seeds", "n", "accuracy", "low", "high", "chance"]
    rows = frame.loc[chosen, columns].reset_index(drop=True)
    chance = rows["chance"][0]
    seeds = pd.DataFrame([{"condition": name, "split": args.split, "seed": run["seed"], "n": run["n"],
                           "accuracy": run["metrics"]["accuracy"]["value"], "chance": chance}
                          for name in chosen for run in content["conditions"][name]["runs"]
                          if run["split"] == args.split])
    for part in (rows, seeds):
        part[part.columns.intersection(["accuracy", "low", "high", "chance"])] *= 100
    title = f"{args.split} accuracy, %" + ("" if pd.isna(chance) else f" (chance {100 * chance:.3g})")
    with figures.style(args.style):
        figure = draw(rows, seeds, content.get("baseline", ""), title)
        paths = figures.save(figure, args, pd.concat([rows, seeds], ignore_index=True))
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
