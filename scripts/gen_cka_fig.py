"""Similarity of blocks as heat-maps: each condition's students with themselves, and with their teacher.

    python scripts/gen_cka_fig.py --forensics experiments/demo/forensics.json --out assets
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from graft.errors import exit_cleanly
from graft.reporting import figures, results
from graft.reporting.spectra import INIT

ACROSS = 4  # panels in a row
WRITTEN = 5  # blocks up to which every value is written into its cell
UNKNOWN = "0.75"  # grey of a block that does not vary over the images


def together(name: str, pair: str, found: list[dict[str, Any]], references: dict[str, Any]) -> dict[str, Any]:
    """One panel: the mean matrix over seeds, a block that is dead in a seed NaN, and what it is to be read beside."""
    mean = np.mean([np.array(one["cka"], float) for one in found], axis=0)
    nulls = [one["null"]["max_abs"] for one in found if one["null"]["max_abs"] is not None]
    return {"condition": name, "pair": pair, "cka": mean, "null": max(nulls, default=math.nan), "seeds": len(found),
            "layers_1": found[0]["layers_1"], "layers_2": found[0]["layers_2"],
            "references": {key: average(np.array(one["cka"], float)) for key, one in references.items()}}


def average(matrix: np.ndarray) -> float:
    """Mean of the values that are known; NaN if none is."""
    known = matrix[~np.isnan(matrix)]
    return float(known.mean()) if len(known) else math.nan


def rows_of_panels(content: dict[str, Any], chosen: list[str]) -> list[list[dict[str, Any]]]:
    """Self-similarity of each condition and of untrained students, then similarity with the teachers."""
    own = {name: [run["cka"] for run in content["conditions"][name]["runs"]] for name in chosen}
    selves = [together(name, "self", [cka["self"] for cka in runs], {}) for name, runs in own.items()]
    untrained = [run["cka"]["self"] for run in content["references"]["random_init"]["runs"]]
    selves.append(together(INIT, "self", untrained, {}))
    teachers = [together(name, "teacher", [cka["teacher"] for cka in runs],
                         content["references"]["teacher_cka"].get(name, {}))
                for name, runs in own.items() if all(cka.get("teacher") for cka in runs)]
    return [kind[i:i + ACROSS] for kind in (selves, teachers) for i in range(0, len(kind), ACROSS)]


def title(panel: dict[str, Any]) -> str:
    """Name, mean, null, and the mean of students that never met the teacher (one seed each)."""
    lines = [panel["condition"], f"mean {average(panel['cka']):.2f}, null ±{panel['null']:.3f}"]
    if panel["references"]:
        short = {"random_init": "init"}
        lines.append(", ".join(f"{short.get(key, key)} {value:.2f}" for key, value in panel["references"].items()))
    return "\n".join(lines)


def heat_map(ax: Axes, panel: dict[str, Any], norm: Normalize) -> None:
    """Blocks of the student upwards, of the other model to the right, both from 1."""
    matrix = panel["cka"]
    high, wide = matrix.shape
    ax.set_facecolor(UNKNOWN)
    ax.pcolormesh(np.arange(wide + 1) + 0.5, np.arange(high + 1) + 0.5, np.ma.masked_invalid(matrix), norm=norm,
                  cmap="cividis")
    ax.set_box_aspect(1)
    ax.grid(visible=False)
    for axis, count in ((ax.xaxis, wide), (ax.yaxis, high)):
        axis.set_ticks(range(1, count + 1, 1 if count <= 6 else math.ceil(count / 4)))
    if max(high, wide) <= WRITTEN:
        for (i, j), value in np.ndenumerate(matrix):
            text = "?" if math.isnan(value) else f"{value:.2f}"
            ax.text(j + 1, i + 1, text, ha="center", va="center", fontsize=6,
                    color="black" if math.isnan(value) or value > 0.5 else "white")
    ax.set_title(title(panel), fontsize=6.5)
    ax.set_xlabel("teacher's block" if panel["pair"] == "teacher" else "block")


def draw(rows: list[list[dict[str, Any]]], note: str) -> figures.Figure:
    """One panel a condition in each of the two kinds; one scale from 0 to 1 for all."""
    columns = max(map(len, rows))
    height = 0.1 + len(rows) * (0.65 + 4.6 / (columns + 0.3)) + 0.1 * any(row[0]["references"] for row in rows)
    figure, axes = figures.axes(figures.PAGE, height, len(rows), columns)
    norm = Normalize(0, 1, clip=True)
    for place, ax in enumerate(axes):
        row = rows[place // columns][place % columns:]
        if not row:
            ax.remove()
            continue
        heat_map(ax, row[0], norm)
        if place % columns == 0:
            ax.set_ylabel("student's block")
    figure.colorbar(ScalarMappable(norm, "cividis"), ax=figure.axes, label="CKA", fraction=0.03, aspect=30)
    figures.foot(figure, note)
    return figure


def describe(rows: list[list[dict[str, Any]]], kernel: str, images: int) -> str:
    """What the numbers are, for the foot of the figure."""
    panels = [panel for row in rows for panel in row]
    few, many = min(panel["seeds"] for panel in panels), max(panel["seeds"] for panel in panels)
    seeds = f"mean of {few} seeds" if few == many > 1 else "1 seed" if many == 1 else f"mean of {few} to {many} seeds"
    note = f"unbiased {kernel} CKA of {images} images, {seeds}; null: largest value of shuffled pairs"
    return note + ("; grey: no variation" if any(np.isnan(panel["cka"]).any() for panel in panels) else "")


def cells(panel: dict[str, Any]) -> pd.DataFrame:
    """The numbers of a panel, one row a pair of blocks."""
    found = pd.DataFrame([{"layer_1": panel["layers_1"][i], "layer_2": panel["layers_2"][j], "cka": value}
                          for (i, j), value in np.ndenumerate(panel["cka"])])
    return found.assign(condition=panel["condition"], pair=panel["pair"], seeds=panel["seeds"],
                        null_max_abs=panel["null"],
                        **{f"mean_{key}": value for key, value in panel["references"].items()})


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "cka_heatmap", "--forensics", help="a forensics.json").parse_args()
    content = results.read_forensics(args.forensics)
    chosen = figures.choose(args.conditions, list(content["conditions"]), args.forensics, args.allow_missing)
    rows = rows_of_panels(content, chosen)
    first = content["conditions"][chosen[0]]["runs"][0]["cka"]["self"]
    note = describe(rows, first["kernel"], first["n"])
    table = pd.concat([cells(panel) for row in rows for panel in row])
    front = ["condition", "pair", "layer_1", "layer_2", "cka", "seeds", "null_max_abs"]
    with figures.style(args.style):
        paths = figures.save(draw(rows, note), args,
                             table[[*front, *(key for key in table if key not in front)]])
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
