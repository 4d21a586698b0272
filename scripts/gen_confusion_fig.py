"""Confusion matrices: of each true class, the share predicted as each class, over all seeds; errors in colour.

    python scripts/gen_confusion_fig.py --results experiments/demo/robustness.json --out assets
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from graft.errors import exit_cleanly
from graft.reporting import figures, results

ANNOTATED = 12  # classes up to which the numbers are written into the cells


def draw(counts: dict[str, NDArray], classes: list[str]) -> figures.Figure:
    """One panel a condition; `counts` (K, K), true by predicted. The diagonal is grey."""
    columns = figures.across(len(counts), 3)
    rows = math.ceil(len(counts) / columns)
    width = figures.PAGE if columns > 1 else figures.COLUMN
    side = (width - 0.7) / (1 if columns == 1 else 3)  # inches, of a panel
    figure, panels = figures.axes(width, 0.45 + rows * side, rows, columns)
    percent = {name: 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1) for name, matrix in counts.items()}
    errors = {name: np.ma.masked_where(np.eye(len(classes), dtype=bool), shares) for name, shares in percent.items()}
    highest = max(float(matrix.max()) for matrix in errors.values()) or 1.0
    for i, (panel, name) in enumerate(zip(panels, counts, strict=False)):
        image = panel.imshow(errors[name], cmap="Blues", vmin=0, vmax=highest)
        if len(classes) <= ANNOTATED:
            _annotate(panel, percent[name], highest)
        step = 1 if len(classes) <= 20 else math.ceil(len(classes) / 20)
        ticks = range(0, len(classes), step)
        slanted = {"rotation": 45, "ha": "right"} if max(map(len, classes)) > 2 else {}
        panel.set_xticks(ticks, [classes[k] for k in ticks], **slanted)
        panel.set_yticks(ticks, [classes[k] for k in ticks])
        panel.grid(visible=False)
        panel.set_facecolor("0.9")  # the diagonal
        panel.set_title(name)
        panel.set_xlabel("predicted")
        if i % columns == 0:
            panel.set_ylabel("true")
    for panel in panels[len(counts):]:
        panel.remove()
    figure.colorbar(image, ax=panels[:len(counts)], fraction=0.03, pad=0.01, label="errors, % of the true class")
    return figure


def _annotate(panel, percent: NDArray, highest: float) -> None:
    """Whole percent, where at least a half."""
    for (true, predicted), value in np.ndenumerate(percent):
        if value >= 0.5:
            dark = true != predicted and value > 0.5 * highest
            panel.text(predicted, true, f"{value:.0f}", ha="center", va="center", fontsize=5.5,
                       color="white" if dark else "black", weight="bold" if true == predicted else "normal")


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "confusion", "--results", help="a robustness.json").parse_args()
    content = results.read_robustness(args.results)
    conditions, classes = content["conditions"], content["data"]["classes"]
    chosen = figures.choose(args.conditions, content["order"], args.results, args.allow_missing)
    counts = {name: sum(np.array(run["clean"]["confusion"]) for run in conditions[name]["runs"]) for name in chosen}
    table = pd.DataFrame([{"condition": name, "seeds": len(conditions[name]["runs"]), "true": classes[i],
                           "predicted": classes[j], "count": count, "percent": 100 * count / max(matrix[i].sum(), 1)}
                          for name, matrix in counts.items() for (i, j), count in np.ndenumerate(matrix)])
    with figures.style(args.style):
        paths = figures.save(draw(counts, classes), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
