"""Training curves: validation scores and loss terms over optimizer steps, mean of the seeds and their range.

    python scripts/gen_curves_fig.py --base_dir experiments/demo --conditions baseline distill --out assets
    python scripts/gen_curves_fig.py --base_dir experiments/gsm8k_qwen1b7 --keys train/ce train/topk val/nll \
        --band ci95 --name losses --out assets
"""

import math
import sys
from pathlib import Path

import pandas as pd
from scipy import stats

from graft.errors import UserError, exit_cleanly
from graft.reporting import figures
from graft.reporting.quantities import is_share, quantity
from graft.runtime import files

BANDS = {"range": ("min", "max"), "ci95": ("low", "high")}  # columns of the table


def read_metrics(path: Path) -> pd.DataFrame:
    """The numbers of one metrics.jsonl, one row a step; training and validation lines of a step are merged."""
    merged: dict[int, dict] = {}
    from graft.training import journal  # imports torch, which the command line does not wait for

    for record in journal.read(path):
        merged.setdefault(record["step"], {}).update(record)
    if not merged:
        raise UserError(f"{path}: nothing logged")
    return pd.DataFrame(merged.values())


def logs(condition: Path) -> list[Path]:
    """The metrics.jsonl of each seed of a condition."""
    return [run / "metrics.jsonl" for run in files.seeds(condition) if (run / "metrics.jsonl").is_file()]


def curves(base_dir: Path, condition: str) -> pd.DataFrame:
    """Mean, range and 95% t-interval of each key over the seeds, at the steps that all seeds have.

    There is no interval with one seed and where all are equal; that of a share stays within 0 and 1.
    """
    seeds = [read_metrics(path).set_index("step").select_dtypes("number") for path in logs(base_dir / condition)]
    tidy = pd.concat([frame.melt(ignore_index=False, var_name="key").dropna().reset_index() for frame in seeds])
    found = tidy.groupby(["key", "step"], sort=True)["value"].agg(["mean", "min", "max", "sem", "count"]).reset_index()
    found = found[found["count"] == len(seeds)].rename(columns={"count": "seeds"})
    half = (found["sem"] * stats.t.ppf(0.975, len(seeds) - 1)).where(found["max"] > found["min"])  # NaN with one seed
    share = found["key"].map(is_share)
    low, high = found["mean"] - half, found["mean"] + half
    return found.assign(condition=condition, low=low.clip(lower=0).where(share, low),
                        high=high.clip(upper=1).where(share, high))


def draw(table: pd.DataFrame, conditions: list[str], keys: list[str], band: str) -> figures.Figure:
    """One panel a key, one legend for all."""
    columns = figures.across(len(keys))
    rows = math.ceil(len(keys) / columns)
    figure, panels = figures.axes(figures.PAGE if columns > 1 else figures.COLUMN, 0.1 + 1.7 * rows, rows, columns)
    low, high = BANDS[band]
    for panel, key in zip(panels, keys, strict=False):
        title, scale = quantity(key)
        for i, condition in enumerate(conditions):
            own = table[(table["condition"] == condition) & (table["key"] == key)]
            own = own.assign(**scale * own[["mean", low, high]])
            every = max(1, len(own) // 6)
            panel.plot(own["step"], own["mean"], **figures.look(i), markevery=(i % every, every), label=condition)
            panel.fill_between(own["step"], own[low], own[high], color=f"C{i % 10}", alpha=0.2, linewidth=0)
        panel.set_title(title)
        panel.set_xlabel("optimizer step")
    for panel in panels[len(keys):]:
        panel.remove()
    figures.legend(figure, *panels[0].get_legend_handles_labels())
    figures.foot(figure, "mean and 95% interval over seeds, none with one" if band == "ci95" else
                 "mean of the seeds, and from the lowest to the highest of them")
    return figure


def main() -> None:
    """Read, draw, write."""
    parser = figures.arguments(__doc__, "curves", "--base_dir", type=Path,
                               help="holds <condition>/seed<k>/metrics.jsonl")
    parser.add_argument("--keys", nargs="+", help="one panel each (default: val/accuracy or val/nll, all train/ terms)")
    parser.add_argument("--band", choices=list(BANDS), default="range", help="around the mean over seeds: lowest and "
                        "highest of them (default), or the 95%% t-interval")
    args = parser.parse_args()
    present = sorted(path.name for path in args.base_dir.glob("*") if path.is_dir() and logs(path))
    conditions = figures.choose(args.conditions, present, str(args.base_dir), args.allow_missing)
    table = pd.concat([curves(args.base_dir, name) for name in conditions], ignore_index=True)
    logged = list(dict.fromkeys(table["key"]))
    first = ("val/accuracy" if "val/accuracy" in logged else "val/nll", "train/loss")
    keys = args.keys or [*(key for key in first if key in logged),
                         *(key for key in logged if key.startswith("train/") and key not in first)]
    unknown = [key for key in keys if key not in logged]
    keys = [key for key in keys if key in logged]
    if (unknown and not args.allow_missing) or not keys:
        raise UserError(f"{args.base_dir}: no values of {', '.join(unknown) or 'train/ or val/accuracy'}; "
                        f"there are: {', '.join(logged) or 'none'}")
    for key in unknown:
        print(f"missing: {key}", file=sys.stderr)
    table = table[table["key"].isin(keys)][["condition", "key", "step", "mean", *BANDS[args.band], "seeds"]]
    with figures.style(args.style):
        paths = figures.save(draw(table, conditions, keys, args.band), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
