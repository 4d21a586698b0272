"""Reliability diagrams: how often a prediction made with some confidence is right, and how many are made with it.

    python scripts/gen_reliability_fig.py --results experiments/demo/robustness.json --out assets
"""

import math

import pandas as pd

from graft.errors import exit_cleanly
from graft.reporting import figures, results

FEW = 10  # predictions below which a bin's accuracy says little: a hollow marker off the line

def bins(runs: list[dict]) -> pd.DataFrame:
    """One row a bin and run that has predictions in it, then (seed NaN) the bins of all runs together."""
    rows = pd.DataFrame([{"seed": run["seed"], **row} for run in runs
                         for row in run["clean"]["reliability"] if row["n"]])
    share = rows["n"] / rows.groupby("seed")["n"].transform("sum")
    weighted = rows.assign(confidence=rows["confidence"] * rows["n"], accuracy=rows["accuracy"] * rows["n"])
    pooled = weighted.groupby(["low", "high"], as_index=False)[["n", "confidence", "accuracy"]].sum()
    pooled[["confidence", "accuracy"]] = pooled[["confidence", "accuracy"]].div(pooled["n"], axis=0)
    return pd.concat([rows.assign(share=share), pooled.assign(share=pooled["n"] / pooled["n"].sum())],
                     ignore_index=True)


def draw(table: pd.DataFrame, errors: dict[str, tuple[float, float]]) -> figures.Figure:
    """One panel a condition, in percent; `errors`: mean ECE over seeds, and that of calibrated models."""
    shares = ["low", "high", "share", "confidence", "accuracy"]
    table = table.assign(**100 * table[shares])
    columns = figures.across(len(errors))
    rows = math.ceil(len(errors) / columns)
    width = figures.PAGE if columns > 1 else figures.COLUMN
    figure, panels = figures.axes(width, rows * (0.65 + (width - 0.5) / columns), rows, columns)
    for i, (panel, (condition, (error, calibrated))) in enumerate(zip(panels, errors.items(), strict=False)):
        own = table[table["condition"] == condition]
        pooled, seeds = own[own["seed"].isna()], own[own["seed"].notna()]
        panel.bar(pooled["low"], pooled["share"], pooled["high"] - pooled["low"], align="edge", color="0.88",
                  edgecolor="white", linewidth=0.4, label="share of predictions")
        panel.plot([0, 100], [0, 100], color="0.5", linewidth=0.8, linestyle=(0, (4, 2)), label="calibrated")
        panel.plot(seeds["confidence"], seeds["accuracy"], ".", color="0.45", markersize=3, label="one seed")
        few = pooled["n"] < FEW
        panel.plot(pooled["confidence"][~few], pooled["accuracy"][~few], **figures.look(i))
        panel.plot(pooled["confidence"][few], pooled["accuracy"][few], fillstyle="none",
                   **figures.look(i) | {"linestyle": ""})
        panel.plot([], [], color="0.2", marker="o", label="all seeds")
        panel.plot([], [], color="0.2", marker="o", fillstyle="none", linestyle="", label=f"fewer than {FEW}")
        panel.set_title(f"{condition}\nECE {100 * error:.1f} %\nif calibrated {100 * calibrated:.1f} %")
        panel.set_xlim(0, 100)
        panel.set_ylim(-3, 103)
        panel.set_aspect("equal")
    for panel in panels[len(errors):]:
        panel.remove()
    for i, panel in enumerate(panels[:len(errors)]):
        panel.set_xlabel("confidence, %")
        if i % columns == 0:
            panel.set_ylabel("accuracy; share, %")
    figures.legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "reliability", "--results", help="a robustness.json").parse_args()
    content = results.read_robustness(args.results)
    conditions = content["conditions"]
    chosen = figures.choose(args.conditions, content["order"], args.results, args.allow_missing)
    table = pd.concat([bins(conditions[name]["runs"]).assign(condition=name) for name in chosen])
    table = table[["condition", "seed", "low", "high", "n", "share", "confidence", "accuracy"]]
    errors = {name: tuple(sum(run["clean"][key] for run in conditions[name]["runs"]) / len(conditions[name]["runs"])
                          for key in ("ece", "ece_calibrated")) for name in chosen}
    with figures.style(args.style):
        paths = figures.save(draw(table, errors), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
