"""Spectral density of the loss's Hessian at the students of each condition, with the largest eigenvalues.

    python scripts/gen_hessian_fig.py --forensics experiments/demo/forensics.json --out assets

Needs a forensics.json that was written with --hessian; draws the runs whose spectrum it has.
"""

from typing import Any

import pandas as pd

from graft.errors import UserError, exit_cleanly
from graft.reporting import figures, results


def measured(content: dict[str, Any], asked: list[str] | None, where: str, allow_missing: bool) -> list[str]:
    """The conditions to draw of which a run has a spectrum; one without is missing like one that is not there."""
    present = [name for name, condition in content["conditions"].items() if spectra(condition)]
    return figures.choose(asked or list(content["conditions"]), present, f"{where}: Hessian spectrum", allow_missing)


def spectra(condition: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that have one."""
    return [run for run in condition["runs"] if "spectrum" in run.get("hessian", {})]


def densities(condition: str, runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of kind `density`, then of kind `top`, the largest eigenvalues; `parameters` scales one direction."""
    parts = []
    for run in runs:
        hessian = run["hessian"]
        curve = pd.DataFrame({"kind": "density", "eigenvalue": hessian["spectrum"]["eigenvalue"],
                              "density": hessian["spectrum"]["density"]})
        top = pd.DataFrame({"kind": "top", "eigenvalue": hessian.get("eigenvalues", {}).get("values", [])})
        parts.append(pd.concat([curve, top]).assign(seed=run["seed"], parameters=hessian["parameters"]))
    return pd.concat(parts).assign(condition=condition)


def draw(table: pd.DataFrame, conditions: list[str], images: int) -> figures.Figure:
    """One panel a condition on common axes, one line a seed, a tick for each of the largest eigenvalues."""
    figure, panels = figures.axes(figures.COLUMN, 0.45 + 0.95 * len(conditions), len(conditions), 1, sharex=True,
                                  sharey=True)
    span = table["eigenvalue"].max() - table["eigenvalue"].min()
    floor = 0.1 / (table["parameters"].max() * span)  # a tenth of one direction spread over all: below is rounding
    for i, (panel, condition) in enumerate(zip(panels, conditions, strict=True)):
        own = table[table["condition"] == condition]
        for seed, rows in own.groupby("seed"):
            curve, top = rows[rows["kind"] == "density"], rows[rows["kind"] == "top"]
            panel.plot(curve["eigenvalue"], curve["density"], color=f"C{i % 10}", linestyle=figures.LINES[seed % 10],
                       linewidth=0.8)
            panel.plot(top["eigenvalue"], [0.03] * len(top), "|", color="black", markersize=4,
                       transform=panel.get_xaxis_transform())
        seeds = own["seed"].nunique()
        panel.text(1, 0.97, f"{condition} ({seeds} seed{'s' * (seeds > 1)})", transform=panel.transAxes, ha="right",
                   va="top")
    panels[0].set_yscale("log")
    figures.logarithmic(panels[0].yaxis)
    panels[0].set_ylim(floor, 5 * table["density"].max())
    panels[-1].set_xlabel(f"Hessian eigenvalue ({images} images; ticks: largest)")
    figure.supylabel("spectral density", fontsize="medium")
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "hessian_spectrum", "--forensics",
                             help="a forensics.json, written with --hessian").parse_args()
    content = results.read_forensics(args.forensics)
    chosen = measured(content, args.conditions, args.forensics, args.allow_missing)
    runs = {name: spectra(content["conditions"][name]) for name in chosen}
    table = pd.concat([densities(name, own) for name, own in runs.items()])
    images = {run["hessian"]["n"] for own in runs.values() for run in own}
    if len(images) > 1:
        raise UserError(f"{args.forensics}: hessian.n: expected one number of images, got {sorted(images)}")
    with figures.style(args.style):
        paths = figures.save(draw(table, chosen, *images), args,
                             table[["condition", "seed", "kind", "eigenvalue", "density", "parameters"]])
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
