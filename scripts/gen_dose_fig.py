"""Accuracy, attention distance and curvature against the attention distance that was imposed, beside the other arms.

    python scripts/gen_dose_fig.py --forensics experiments/mine/forensics.json --out assets

Needs a forensics.json that was written with --doses, and the results.json beside it. The line joins the imposed arms,
the most local one first; it is what the claim `locality_explains` reads. The conditions of the claims have a name each,
or those that `--conditions` asks for; all others are grey.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from graft.config.study.options import claimed
from graft.errors import UserError, exit_cleanly
from graft.reporting import figures, results

PANELS = {"accuracy": "{split} accuracy, %", "trace": "Hessian trace"}


def runs(forensics: dict[str, Any], scores: dict[str, Any], chosen: list[str], split: str) -> pd.DataFrame:
    """A line a run: condition, seed, whether imposed, attention distance (patches), accuracy (%), trace."""
    doses = [point["condition"] for point in forensics["imposed"]]
    accuracy = {(name, run["seed"]): 100 * run["metrics"]["accuracy"]["value"]
                for name, condition in scores["conditions"].items() for run in condition["runs"]
                if run["split"] == split}
    return pd.DataFrame([{"condition": name, "dose": doses.index(name) if name in doses else None, "seed": run["seed"],
                          "distance": sum(run["layer_distance"]) / len(run["layer_distance"]),
                          "accuracy": accuracy.get((name, run["seed"])),
                          "trace": run.get("hessian", {}).get("trace", {}).get("value")}
                         for name in chosen for run in forensics["conditions"][name]["runs"]])


def draw(table: pd.DataFrame, uniform: float, split: str, named: list[str]) -> figures.Figure:
    """A panel each for accuracy and, where it was measured, curvature; dots are runs, the line goes through means."""
    shown = [name for name in PANELS if table[name].notna().any()]
    others = table[~table["condition"].isin(named)]
    figure, panels = figures.axes(figures.COLUMN, 0.35 + 1.9 * len(shown), len(shown), 1, sharex=True)
    imposed = table.dropna(subset=["dose"]).groupby("dose")[["distance", *shown]].mean()
    for panel, name in zip(panels, shown, strict=True):
        panel.axvline(uniform, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
        panel.plot(imposed["distance"], imposed[name], color="0.35", linewidth=1, zorder=1)
        if len(others):
            panel.plot(others["distance"], others[name], linestyle="none", marker=".", color="0.65", markersize=4,
                       label="(other conditions)", zorder=0.5)
        for i, condition in enumerate(named):
            own = table[table["condition"] == condition]
            look = figures.look(i)
            panel.plot(own["distance"], own[name], linestyle="none", marker=look["marker"], color=look["color"],
                       markersize=3.5, label=condition, markerfacecolor="white" if own["dose"].isna().all() else None)
        panel.set_ylabel(PANELS[name].format(split=split))
    panels[-1].set_xlabel("attention distance, patches (dotted: uniform attention)")
    figures.legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "dose_response", "--forensics", help="a forensics.json, written with --doses",
                             split="test").parse_args()
    content = results.read_forensics(args.forensics)
    if not content.get("imposed"):
        raise UserError(f"{args.forensics}: imposed: missing; expected one that was written with --doses")
    scores = Path(args.forensics).parent / "results.json"
    chosen = figures.choose(args.conditions, list(content["conditions"]), args.forensics, args.allow_missing)
    table = runs(content, results.read_results(scores), chosen, args.split)
    if table["accuracy"].isna().all():
        raise UserError(f"{scores}: --split {args.split}: no accuracy of any of {', '.join(chosen)}")
    named = chosen if args.conditions else claimed(chosen, content.get("roles", {}), [
        point["condition"] for point in content["imposed"]])
    with figures.style(args.style):
        uniform = content["references"]["uniform"]["mean_distance"]
        paths = figures.save(draw(table, uniform, args.split, named), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
