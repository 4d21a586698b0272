"""One-vs-rest ROC: the mean curve over classes of each condition with its range over seeds, and the AUC by class.

    python scripts/gen_roc_fig.py --results experiments/demo/robustness.json --out assets
"""

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from graft.errors import UserError, exit_cleanly
from graft.reporting import figures, results

POINTS = 101


def macro_curve(run: dict, at: np.ndarray) -> np.ndarray:
    """Mean over classes of the true-positive rate at false-positive rates `at`, as steps: never above the curve."""
    rates = [np.array(curve["tpr"])[np.searchsorted(curve["fpr"], at, side="right") - 1]
             for curve in run["clean"]["roc"].values()]
    return np.mean(rates, axis=0)


def curves(condition: str, runs: list[dict], at: np.ndarray) -> pd.DataFrame:
    """Mean, lowest and highest over seeds of the macro curve."""
    rates = np.stack([macro_curve(run, at) for run in runs])
    return pd.DataFrame({"condition": condition, "kind": "curve", "seeds": len(runs), "fpr": at,
                         "mean": rates.mean(0), "min": rates.min(0), "max": rates.max(0)})


def areas(condition: str, runs: list[dict]) -> pd.DataFrame:
    """Mean, lowest and highest over seeds of each class's AUC; `class` is "macro" for the mean over classes."""
    values = pd.DataFrame([{**{row["class"]: row["auc"] for row in run["clean"]["per_class"]},
                            "macro": run["clean"]["macro"]["auc"]} for run in runs]).astype(float)
    return pd.DataFrame({"condition": condition, "kind": "auc", "seeds": len(runs), "class": values.columns,
                         "mean": values.mean().to_numpy(), "min": values.min().to_numpy(),
                         "max": values.max().to_numpy()})


def draw(table: pd.DataFrame, conditions: list[str]) -> figures.Figure:
    """Left the curves, false positives on a logarithmic axis; right the AUC of each class; in percent."""
    figure, (left, right) = figures.axes(figures.PAGE, 2.6, 1, 2)
    spread = np.linspace(-0.3, 0.3, len(conditions)) if len(conditions) > 1 else [0.0]
    for i, condition in enumerate(conditions):
        own = table[table["condition"] == condition]
        curve, auc = own[own["kind"] == "curve"], own[own["kind"] == "auc"]
        macro = 100 * auc.loc[auc["class"] == "macro", "mean"].iloc[0]
        left.plot(100 * curve["fpr"], 100 * curve["mean"], **figures.look(i), markevery=(5 * i, 25),
                  label=f"{condition} ({macro:.2f})")
        left.fill_between(100 * curve["fpr"], 100 * curve["min"], 100 * curve["max"], color=f"C{i % 10}", alpha=0.15,
                          linewidth=0)
        auc = auc[auc["class"] != "macro"]
        middle, place = 100 * auc["mean"], np.arange(len(auc)) + spread[i]
        right.errorbar(place, middle, yerr=[middle - 100 * auc["min"], 100 * auc["max"] - middle],
                       **figures.look(i) | {"linestyle": ""}, elinewidth=0.7)
    left.set_xscale("log")
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("false-positive rate, %")
    left.set_ylabel("true-positive rate, mean over classes, %")
    left.legend(title="macro AUC, % (chance 50)", loc="lower right")
    names = list(table.loc[table["class"].notna() & (table["class"] != "macro"), "class"].unique())
    right.set_xticks(range(len(names)), names, **({"rotation": 45, "ha": "right"} if len(max(names)) > 2 else {}))
    right.grid(axis="x", visible=False)
    right.set_xlabel("class against the rest")
    right.set_ylabel("AUC, mean and range of seeds, %")
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "roc", "--results", help="a robustness.json").parse_args()
    content = results.read_robustness(args.results)
    conditions = content["conditions"]
    chosen = figures.choose(args.conditions, content["order"], args.results, args.allow_missing)
    runs = {name: conditions[name]["runs"] for name in chosen}
    for name in chosen:
        if any(run["clean"]["macro"]["auc"] is None for run in runs[name]):
            raise UserError(f"{args.results}: {name}: no ROC; its labels have one class")
    smallest = 1 / max(run["clean"]["n"] for name in chosen for run in runs[name])
    at = np.geomspace(smallest, 1, POINTS)
    table = pd.concat([part for name in chosen for part in (curves(name, runs[name], at), areas(name, runs[name]))])
    with figures.style(args.style):
        paths = figures.save(draw(table, chosen), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
