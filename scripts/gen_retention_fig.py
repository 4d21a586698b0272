"""What each condition gained on its own rule against what it kept: other rules, and plain text; 95% intervals.

    python scripts/gen_retention_fig.py --retention experiments/words_smollm2/retention.json \\
        --results experiments/words_smollm2/results.json --out assets

Across: accuracy on the trained rule without examples, as a difference to the untrained model (`vs_untrained`). Up: the
difference on other rules with examples, and KL(untrained || trained) on plain text, which is 0 where nothing changed.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from graft.errors import UserError, exit_cleanly
from graft.reporting import figures, reading, results
from graft.reporting.estimates import cross

ENDS = ("low", "high")


def rows(content: dict[str, Any], kept: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """One row a condition that is in both files: gain and what was kept, in points and nats."""
    found = []
    for name, condition in kept["conditions"].items():
        versus = content["conditions"].get(name, {}).get("vs_untrained", {}).get(split, {}).get("accuracy")
        if versus is None:
            continue
        row = {"condition": name, "split": split, "seeds": versus["seeds"][0], **_scaled("gain", versus, 100)}
        if "accuracy" in condition["retention"]:
            row |= _scaled("others", condition["retention"]["accuracy"], 100)
        found.append(row | _scaled("kl", condition["retention"]["kl"], 1))
    return found


def _scaled(key: str, one: dict[str, Any], by: float) -> dict[str, float]:
    middle = one.get("difference", one.get("mean"))
    ends = [middle if end is None else end for end in one["ci95"]]
    return {key: by * middle, **{f"{key}_{end}": by * value for end, value in zip(ENDS, ends)}}


def panel(ax: Axes, table: pd.DataFrame, key: str, title: str) -> None:
    """Gain across, `key` up, a cross of intervals a condition."""
    for i, row in enumerate(table.to_dict("records")):
        across, up = ([row[name] for name in (of, f"{of}_low", f"{of}_high")] for of in ("gain", key))
        cross(ax, across, up, figures.look(i), row["seeds"], row["condition"])
    ax.axhline(0, color="0.35", linewidth=0.7, zorder=1)
    ax.axvline(0, color="0.35", linewidth=0.7, zorder=1)
    ax.set_xlabel("gain on the trained rule, points")
    ax.set_ylabel(title)


def draw(table: pd.DataFrame) -> figures.Figure:
    """One panel of other rules, where there are any, and one of plain text."""
    panels = {"others": "other rules with examples,\nto untrained, points"} if "others" in table else {}
    panels["kl"] = "divergence on plain text, nats"
    figure, axes = figures.axes(figures.PAGE if len(panels) > 1 else figures.COLUMN, 2.4, 1, len(panels))
    for ax, (key, title) in zip(axes, panels.items()):
        panel(ax, table, key, title)
    figures.legend(figure, *axes[0].get_legend_handles_labels())
    figures.foot(figure, "95% intervals for new seeds and new questions; hollow: 1 seed, for new questions alone")
    return figure


def main() -> None:
    """Read, draw, write."""
    parser = figures.arguments(__doc__, "retention", "--retention", help="a retention.json", split="test")
    parser.add_argument("--results", required=True, help="the results.json of the same study")
    args = parser.parse_args()
    content, kept = results.read_results(args.results), reading.read_retention(args.retention)
    reading.check_same(content, kept, args.retention)
    found = {row["condition"]: row for row in rows(content, kept, args.split)}
    if not found:
        raise UserError(f"{args.results}: {args.split}: no condition has a difference to the untrained model; score "
                        "with --icl")
    chosen = figures.choose(args.conditions, list(found), args.retention, args.allow_missing)
    table = pd.DataFrame([found[name] for name in chosen])
    with figures.style(args.style):
        paths = figures.save(draw(table), args, table)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
