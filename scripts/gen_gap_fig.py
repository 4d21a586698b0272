"""What training gained against the gap that worked examples opened before it, across studies; 95% intervals.

    python scripts/gen_gap_fig.py --out assets \\
        --results experiments/words_smollm2/results.json experiments/words_gemma270m/results.json

Across: accuracy of the untrained model with worked examples minus without. Up: accuracy of each condition without
examples minus that of the untrained model. On the diagonal the whole gap is closed.
"""

import math
from typing import Any

import pandas as pd

from graft.errors import UserError, exit_cleanly
from graft.reporting import figures, results
from graft.reporting.estimates import cross

CONDITIONS = ("baseline", "distill", "kd_only", "kd_only_zeroshot")


def rows(content: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """One row a condition with a share of the gap: gap and gain in points, with intervals."""
    found = []
    for name, condition in content["conditions"].items():
        closed = condition.get("gap_closed", {}).get(split, {}).get("accuracy", {})
        versus = condition.get("vs_untrained", {}).get(split, {}).get("accuracy")
        if "gap" not in closed or versus is None:
            continue
        gap_low, gap_high = (closed["gap"] if end is None else end for end in closed["gap_ci95"])
        low, high = (versus["difference"] if end is None else end for end in versus["ci95"])
        found.append({"study": content["study"], "condition": name, "split": split, "seeds": versus["seeds"][0],
                      **{key: 100 * value for key, value in {
                          "gap": closed["gap"], "gap_low": gap_low, "gap_high": gap_high,
                          "gain": versus["difference"], "low": low, "high": high}.items()}})
    return found


def draw(table: pd.DataFrame) -> figures.Figure:
    """A point a condition and study; studies are told apart by their marker."""
    figure, (ax,) = figures.axes(figures.COLUMN, 2.6)
    conditions, studies = (list(dict.fromkeys(table[key])) for key in ("condition", "study"))
    for row in table.itertuples():
        look = {**figures.look(conditions.index(row.condition)),
                "marker": figures.MARKERS[studies.index(row.study) % len(figures.MARKERS)]}
        cross(ax, (row.gap, row.gap_low, row.gap_high), (row.gain, row.low, row.high), look, row.seeds)
    ends = [math.floor(min(0, table["gap_low"].min())), math.ceil(table["gap_high"].max())]
    ax.plot(ends, ends, color="0.35", linestyle=(0, (5, 2)), linewidth=0.8, zorder=1, label="the whole gap")
    ax.axhline(0, color="0.35", linewidth=0.7, zorder=1)
    for i, name in enumerate(conditions):
        ax.plot([], [], color=figures.look(i)["color"], marker="s", linestyle="", markersize=4, label=name)
    for i, name in enumerate(studies if len(studies) > 1 else []):
        ax.plot([], [], color="0.35", marker=figures.MARKERS[i % len(figures.MARKERS)], linestyle="", markersize=4,
                label=name)
    ax.set_xlabel("gap before training, points")
    ax.set_ylabel("gain, points")
    figures.legend(figure, *ax.get_legend_handles_labels())
    figures.foot(figure, "95% intervals for new questions, and seeds where there are several; hollow: 1 seed")
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "gap", "--results", nargs="+", help="one results.json a study",
                             split="test").parse_args()
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in args.results:
        content = results.read_results(path)
        if content["study"] in groups:
            raise UserError(f"{path}: study: a second one of the name {content['study']!r}")
        found, where = {row["condition"]: row for row in rows(content, args.split)}, f"{path}: {args.split}"
        if not found:
            raise UserError(f"{where}: no condition has a gap to close; score with --icl")
        asked = args.conditions or [name for name in CONDITIONS if name in found] or None
        groups[content["study"]] = [found[name] for name in figures.choose(asked, list(found), where,
                                                                          args.allow_missing)]
    table = pd.DataFrame([row for group in groups.values() for row in group])
    with figures.style(args.style):
        paths = figures.save(draw(table), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
