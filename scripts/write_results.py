"""Tables of a results.json: Markdown for people, CSV for programs, LaTeX for the paper.

    python scripts/write_results.py --results experiments/demo/results.json --out experiments/demo
    python scripts/write_results.py --results experiments/demo/results.json --out experiments/demo --into README.md

`--into` also puts the test split's rows between the lines `<!-- results demo -->` and `<!-- /results demo -->` (the
study's name) of a file, so that no number in it is typed.
"""

import argparse
from pathlib import Path

import pandas as pd

from graft import results, tables
from graft.errors import UserError, exit_cleanly

NOTES = """
Accuracy: mean and 95% t-interval over seeds, none with one seed. Difference to `{baseline}`: 95% interval for new
seeds and new examples; where it says (1 seed), for new examples alone: it then speaks of these checkpoints, not of
the method. p: two-sided, Holm-adjusted over the conditions of a split. Detectable: the smallest true difference
found in 80% of repetitions.
"""
TEXT_NOTES = """
Accuracy: answers in the asked format with the right result; flexible: the right result in any format.
"""
GAP_NOTES = """
Gap closed: (accuracy - base_0shot) / (base_kshot - base_0shot), the share of what worked examples in the prompt give
the untrained model that the condition has without them; 95% interval as for the difference, none unless the gap's own
interval lies above 0.
"""


def notes(content: dict, frame: pd.DataFrame) -> str:
    """What the columns of the table mean."""
    parts = [NOTES.format(baseline=content["baseline"])] if content.get("baseline") else []
    parts += [text for column, text in {"flexible": TEXT_NOTES, "gap_closed": GAP_NOTES}.items() if column in frame]
    return "".join(parts)


def insert(path: Path, study: str, text: str) -> None:
    """Replace what stands between the study's two marker lines in a file. Raises UserError if they are not there."""
    before, opening, rest = path.read_text(encoding="utf-8").partition(f"<!-- results {study} -->\n")
    _, closing, after = rest.partition(f"<!-- /results {study} -->\n")
    if not opening or not closing:
        raise UserError(f"{path}: expected the lines <!-- results {study} --> and <!-- /results {study} -->")
    path.write_text(before + opening + text + closing + after, encoding="utf-8")


def main() -> None:
    """Read, format, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--results", required=True, help="a results.json")
    parser.add_argument("--out", required=True, type=Path, help="folder for table.md, table.csv and table.tex")
    parser.add_argument("--into", type=Path, help="a file with such lines, such as README.md")
    args = parser.parse_args()
    content = results.read_results(args.results)
    frame = tables.table(content)
    args.out.mkdir(parents=True, exist_ok=True)
    for suffix, text in tables.FORMATS.items():
        path = args.out / f"table.{suffix}"
        path.write_text(text(frame) + (notes(content, frame) if suffix == "md" else ""), encoding="utf-8")
        print(path)
    if args.into:
        insert(args.into, content["study"], tables.to_markdown(frame[frame["split"] == "test"]))
        print(args.into)


if __name__ == "__main__":
    exit_cleanly(main)
