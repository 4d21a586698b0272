"""Layer progression: mean attention distance of each block's heads, beside uniform attention and untrained students.

    python scripts/gen_layer_fig.py --forensics experiments/demo/forensics.json --out assets
"""

import pandas as pd

from graft.errors import exit_cleanly
from graft.reporting import figures, results
from graft.reporting.spectra import column, groups, legend, lines, over_seeds


def draw(table: pd.DataFrame, uniform: float) -> figures.Figure:
    """One line a condition over its blocks."""
    figure, ax = column()
    lines(ax, table, "block", uniform)
    ax.set_xlabel("block")
    legend(figure)
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "layer_progression", "--forensics", help="a forensics.json").parse_args()
    content = results.read_forensics(args.forensics)
    chosen = figures.choose(args.conditions, list(content["conditions"]), args.forensics, args.allow_missing)
    layers = {name: over_seeds([run["layer_distance"] for run in runs])
              for name, runs in groups(content, chosen, args.forensics).items()}
    table = pd.concat([found.assign(condition=name, block=range(1, len(found) + 1))
                       for name, found in layers.items()])
    uniform = content["references"]["uniform"]["mean_distance"]
    table = table[["condition", "seeds", "block", "mean", "min", "max"]].assign(uniform=uniform)
    with figures.style(args.style):
        paths = figures.save(draw(table, uniform), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
