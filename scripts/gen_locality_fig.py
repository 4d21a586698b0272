"""Locality spectrum: every head's mean attention distance, sorted, beside uniform attention and untrained students.

    python scripts/gen_locality_fig.py --forensics experiments/demo/forensics.json --out assets
"""


import pandas as pd

from graft.errors import exit_cleanly
from graft.reporting import figures, results
from graft.reporting.spectra import column, draw_spectrum, groups, legend, spectrum


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "locality_spectrum", "--forensics", help="a forensics.json").parse_args()
    content = results.read_forensics(args.forensics)
    chosen = figures.choose(args.conditions, list(content["conditions"]), args.forensics, args.allow_missing)
    table = pd.concat([spectrum(runs).assign(condition=name)
                       for name, runs in groups(content, chosen, args.forensics).items()])
    uniform = content["references"]["uniform"]["mean_distance"]
    with figures.style(args.style):
        figure, ax = column()
        draw_spectrum(ax, table, uniform, content["thresholds"]["relative"])
        legend(figure)
        table = table[["condition", "seeds", "rank", "mean", "min", "max"]].assign(uniform=uniform)
        paths = figures.save(figure, args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
