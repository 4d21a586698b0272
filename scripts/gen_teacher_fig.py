"""Teacher strength against student gain: what students gain over the baseline, by the accuracy of their teacher.

    python scripts/gen_teacher_fig.py --results experiments/demo/results.json --out assets

A condition's teacher is the scored run of the same results.json that its configuration names (`teacher.path`), so
teachers must be among eval_checkpoints.py's --references. Controls with shuffled or random teachers have none.
"""

import sys

import pandas as pd

from graft.errors import exit_cleanly
from graft.reporting import figures, results
from graft.reporting.gains import gains, teacher_of


def draw(rows: pd.DataFrame) -> figures.Figure:
    """Points with 95% intervals; the slanted line is where a student reaches its teacher."""
    figure, (ax,) = figures.axes(figures.COLUMN, 2.1)
    for i, row in enumerate(rows.itertuples()):
        ax.errorbar(100 * row.teacher_accuracy, 100 * row.gain, capsize=2,
                    yerr=[[100 * (row.gain - row.low)], [100 * (row.high - row.gain)]],
                    **figures.look(i) | {"linestyle": ""}, label=f"{row.condition} ({row.teacher})")
    baseline = 100 * rows["baseline_accuracy"].iloc[0]
    accuracies = 100 * rows["teacher_accuracy"]
    low, high = min(accuracies.min(), baseline) - 1, max(accuracies.max(), baseline) + 1
    ax.plot([low, high], [low - baseline, high - baseline], color="0.5", linewidth=0.8, linestyle=(0, (4, 2)),
            label="as good as the teacher")
    ax.axhline(0, color="0.5", linewidth=0.8)
    ax.axvline(baseline, color="0.5", linewidth=0.8, linestyle=":", label="accuracy of the baseline")
    ax.set_xlim(low, high)
    ax.set_xlabel(f"{rows['split'].iloc[0]} accuracy of the teacher, %")
    ax.set_ylabel("student − baseline, points")
    figures.legend(figure, *ax.get_legend_handles_labels())
    return figure


def main() -> None:
    """Read, draw, write."""
    args = figures.arguments(__doc__, "teacher", "--results", help="a results.json", split="test").parse_args()
    content = results.read_results(args.results)
    rows = gains(content, args.split)
    if not args.conditions:  # said aloud, so that no point is taken for all there is
        known = [] if rows.empty else list(rows["condition"])
        for name, condition in content["conditions"].items():
            if teacher_of(condition) and name not in known:
                print(f"left out {name}: its teacher {teacher_of(condition)} has no accuracy in {args.results}",
                      file=sys.stderr)
    where = f"{args.results}: {args.split}: with a scored teacher"
    chosen = figures.choose(args.conditions, [] if rows.empty else list(rows["condition"]), where, args.allow_missing)
    rows = rows.set_index("condition", drop=False).loc[chosen].reset_index(drop=True)
    with figures.style(args.style):
        paths = figures.save(draw(rows), args, rows)
    print(*paths, sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
