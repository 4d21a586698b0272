"""Training curves: validation accuracy and loss terms over optimizer steps, mean of the seeds and their range.

    python scripts/gen_curves_fig.py --base_dir experiments/demo --conditions baseline distill --out assets
"""

import argparse
import math
from pathlib import Path

import pandas as pd

from graft import figures, journal
from graft.errors import UserError, exit_cleanly


def read_metrics(path: Path) -> pd.DataFrame:
    """The numbers of one metrics.jsonl, one row a step; training and validation lines of a step are merged."""
    merged: dict[int, dict] = {}
    for record in journal.read(path):
        merged.setdefault(record["step"], {}).update(record)
    if not merged:
        raise UserError(f"{path}: nothing logged")
    return pd.DataFrame(merged.values())


def curves(base_dir: Path, condition: str) -> pd.DataFrame:
    """Mean, lowest and highest of each key over the seeds, at the steps that all seeds have."""
    seeds = [read_metrics(path).set_index("step").select_dtypes("number")
             for path in sorted(base_dir.glob(f"{condition}/seed*/metrics.jsonl"))]
    tidy = pd.concat([frame.melt(ignore_index=False, var_name="key").dropna().reset_index() for frame in seeds])
    found = tidy.groupby(["key", "step"], sort=True)["value"].agg(["mean", "min", "max", "count"]).reset_index()
    found = found[found["count"] == len(seeds)].rename(columns={"count": "seeds"})
    return found.assign(condition=condition)


def draw(table: pd.DataFrame, conditions: list[str], keys: list[str]) -> figures.Figure:
    """One panel a key, three in a row; one legend for all."""
    columns = min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure, panels = figures.axes(figures.PAGE if columns > 1 else figures.COLUMN, 0.4 + 1.7 * rows, rows, columns)
    for panel, key in zip(panels, keys, strict=False):
        for i, condition in enumerate(conditions):
            own = table[(table["condition"] == condition) & (table["key"] == key)]
            every = max(1, len(own) // 6)
            panel.plot(own["step"], own["mean"], **figures.look(i), markevery=(i % every, every), label=condition)
            panel.fill_between(own["step"], own["min"], own["max"], color=f"C{i % 10}", alpha=0.2, linewidth=0)
        panel.set_title(key)
        panel.set_xlabel("optimizer step")
    for panel in panels[len(keys):]:
        panel.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(conditions)))
    return figure


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--base_dir", required=True, type=Path, help="holds <condition>/seed<k>/metrics.jsonl")
    parser.add_argument("--conditions", nargs="+", help="these, in this order (default: all)")
    parser.add_argument("--keys", nargs="+", help="one panel each (default: val/accuracy and all train/ terms)")
    parser.add_argument("--out", required=True, help="folder for curves.pdf, .png and .csv")
    parser.add_argument("--allow_missing", action="store_true", help="draw the conditions that are there")
    args = parser.parse_args()
    present = sorted({path.parents[1].name for path in args.base_dir.glob("*/seed*/metrics.jsonl")})
    conditions = figures.choose(args.conditions, present, str(args.base_dir), args.allow_missing)
    table = pd.concat([curves(args.base_dir, name) for name in conditions], ignore_index=True)
    logged = list(dict.fromkeys(table["key"]))
    first = ("val/accuracy", "train/loss")
    keys = args.keys or [*(key for key in first if key in logged),
                         *(key for key in logged if key.startswith("train/") and key not in first)]
    unknown = [key for key in keys if key not in logged]
    if unknown or not keys:
        raise UserError(f"{args.base_dir}: no values of {', '.join(unknown) or 'train/ or val/accuracy'}; "
                        f"there are: {', '.join(logged) or 'none'}")
    table = table[table["key"].isin(keys)][["condition", "key", "step", "mean", "min", "max", "seeds"]]
    with figures.style():
        paths = figures.save(draw(table, conditions, keys), args.out, "curves", table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
