"""Accuracy by checkpoint of each condition: every seed, their mean and its 95% interval, and the untrained model's.

    python scripts/gen_checkpoint_fig.py --results experiments/gsm8k_qwen1b7/results.json --out assets

Checkpoints are scored on validation by eval_checkpoints.py --steps all; the untrained model without and with worked
examples (base_0shot and base_kshot) by eval_icl.py.
"""

import math
from typing import Any

import pandas as pd

from graft.errors import exit_cleanly
from graft.reporting import figures, results
from graft.reporting.estimates import REFERENCES, estimate, estimates, limits, name_missing, note, reference_lines

BASELINE = {"color": "0.55", "linestyle": "-", "linewidth": 0.9}


def curves(content: dict[str, Any], split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The mean of each condition at the steps that all its seeds have, with its interval; then one row a checkpoint."""
    points, means = [], []
    for name, condition in content["conditions"].items():
        own = [one for one in condition.get("curve", ()) if one["split"] == split]
        points += [{"condition": name, "split": split, "step": one["step"], "seed": one["seed"], "n": one["n"],
                    "accuracy": 100 * one["metrics"]["accuracy"]["value"]} for one in own]
        seeds = {one["seed"] for one in own}
        summary = condition.get("curve_summary", {}).get(split, {})
        for step in sorted({one["step"] for one in own}):
            there = [one for one in own if one["step"] == step]
            if {one["seed"] for one in there} == seeds:
                means.append({"condition": name, "split": split, "step": step,
                              **estimate(there, summary.get(str(step), {}).get("accuracy"))})
    return pd.DataFrame(means, columns=["condition", "split", "step", "seeds", "n", "accuracy", "low", "high",
                                        "interval"]), pd.DataFrame(points)


def draw(means: pd.DataFrame, points: pd.DataFrame, chosen: list[str], found: dict[str, dict[str, Any]],
         baseline: str, split: str) -> figures.Figure:
    """One panel a condition on common axes; in each the baseline and the untrained model."""
    columns = figures.across(len(chosen))
    rows = math.ceil(len(chosen) / columns)
    width, height = (figures.COLUMN, 2.2) if columns == 1 else (figures.PAGE, 0.3 + 1.3 * rows)
    figure, panels = figures.axes(width, height, rows, columns, sharex=True, sharey=True)
    by_name = dict(tuple(means.groupby("condition", sort=False)))
    for i, (panel, name) in enumerate(zip(panels, chosen, strict=False)):
        reference_lines(panel, found, "y")
        if baseline in by_name:
            panel.plot(by_name[baseline]["step"], by_name[baseline]["accuracy"], **BASELINE, label=baseline)
        own, look = by_name[name], figures.look(i)
        for _, seed in points[points["condition"] == name].groupby("seed"):
            panel.plot(seed["step"], seed["accuracy"], color=look["color"], linewidth=0.5, alpha=0.7)
        panel.errorbar(own["step"], own["accuracy"], yerr=[own["accuracy"] - own["low"], own["high"] - own["accuracy"]],
                       **look, capsize=1.5, elinewidth=0.7,
                       markerfacecolor="white" if own["seeds"].iloc[0] == 1 else look["color"])
        panel.set_title(name)
        panel.xaxis.get_major_locator().set_params(integer=True)
        lowest = i + columns >= len(chosen)  # there is nothing below it
        panel.tick_params(labelbottom=lowest)
        panel.set_xlabel("optimizer step" if lowest else "")
    lines = pd.DataFrame([*means.to_dict("records"), *found.values()])
    panels[0].set_ylim(limits([*lines["accuracy"], *points["accuracy"]], [*lines["low"], *lines["high"]]))
    for panel in panels[len(chosen):]:
        panel.remove()
    figure.supylabel(f"{split} accuracy, %", fontsize="medium")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figures.legend(figure, handles, labels)
    note(figure, " (thin lines)", "hollow, grey bands")
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "checkpoint", "--results", help="a results.json", split="val").parse_args()
    content = results.read_results(args.results)
    means, points = curves(content, args.split)
    where = f"{args.results}: {args.split}: scored checkpoints"
    chosen = figures.choose(args.conditions, list(means["condition"].unique()), where, args.allow_missing)
    baseline = content.get("baseline", "")
    means, points = (part[part["condition"].isin([*chosen, baseline])] for part in (means, points))
    found = {name: one for name, one in estimates(content, args.split).items() if name in REFERENCES}
    name_missing(found, f"{args.results}: {args.split}")
    table = pd.concat([part for part in (means, pd.DataFrame(found.values()), points) if len(part)], ignore_index=True)
    with figures.style(args.style):
        paths = figures.save(draw(means, points, chosen, found, baseline, args.split), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
