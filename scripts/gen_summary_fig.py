"""Several studies side by side: the untrained model without and with worked examples, and what training made of it.

    python scripts/gen_summary_fig.py --out assets \\
        --results experiments/gsm8k_qwen1b7/results.json experiments/gsm8k_llama3b/results.json

Each results.json is a group with its study's name. By default base_0shot, base_kshot, baseline, distill and kd_only are
drawn where they are there; the ones asked for by --conditions must be in every study (or --allow_missing).
"""

import numpy as np
import pandas as pd

from graft.errors import UserError, exit_cleanly
from graft.reporting import figures, results
from graft.reporting.estimates import estimates, limits, note, point

CONDITIONS = [*results.GAP, "baseline", "distill", "kd_only"]


def draw(table: pd.DataFrame, conditions: list[str], split: str) -> figures.Figure:
    """One group a study, from top to bottom; a condition has the same place and look in each."""
    studies = list(dict.fromkeys(table["study"]))
    figure, (ax,) = figures.axes(figures.PAGE, 0.45 + len(studies) * (0.2 + 0.12 * len(conditions)))
    offsets = np.linspace(-0.34, 0.34, len(conditions)) if len(conditions) > 1 else [0.0]
    for row in table.itertuples():
        i = conditions.index(row.condition)
        point(ax, studies.index(row.study) + offsets[i], figures.look(i), row.seeds, row.accuracy, row.low, row.high)
    for edge in range(1, len(studies)):
        ax.axhline(edge - 0.5, color="0.8", linewidth=0.5)
    for i, name in enumerate(conditions):
        ax.plot([], [], **figures.look(i) | {"linestyle": ""}, markersize=4.5, label=name)
    ax.set_yticks(range(len(studies)), studies)
    ax.set_ylim(len(studies) - 0.5, -0.5)
    ax.set_xlim(limits([*table["accuracy"]], [*table["low"], *table["high"]]))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"{split} accuracy, %")
    figures.legend(figure, *ax.get_legend_handles_labels())
    note(figure, "", "hollow")
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "summary", "--results", nargs="+", help="one results.json a study",
                             split="test").parse_args()
    groups: dict[str, list[dict]] = {}
    for path in args.results:
        content = results.read_results(path)
        if content["study"] in groups:
            raise UserError(f"{path}: study: a second one of the name {content['study']!r}")
        found, where = estimates(content, args.split), f"{path}: {args.split}"
        asked = args.conditions or [name for name in CONDITIONS if name in found]
        if not asked:
            raise UserError(f"{where}: none of {', '.join(CONDITIONS)}; there are: {', '.join(found) or 'none'}")
        chosen = figures.choose(asked, list(found), where, args.allow_missing)
        groups[content["study"]] = [{"study": content["study"], **found[name]} for name in chosen]
    table = pd.DataFrame([row for group in groups.values() for row in group])
    conditions = [name for name in args.conditions or CONDITIONS if name in set(table["condition"])]
    with figures.style(args.style):
        paths = figures.save(draw(table, conditions, args.split), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
