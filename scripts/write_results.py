"""Tables of a results.json: Markdown for people, CSV for programs, LaTeX for the paper.

    python scripts/write_results.py --results experiments/demo/results.json --out experiments/demo
    python scripts/write_results.py --results experiments/demo/results.json --out experiments/demo --into README.md

`--into` also puts the test split's rows between the lines `<!-- results -->` and `<!-- /results -->` of a file, so
that no number in it is typed.
"""

import argparse
from pathlib import Path

from graft import results
from graft.errors import UserError, exit_cleanly

NOTES = """
Accuracy: mean and 95% t-interval over seeds, none with one seed. Difference to `{baseline}`: 95% interval for new
seeds and new examples; where it says (1 seed), for new examples alone: it then speaks of these checkpoints, not of
the method. p: two-sided, Holm-adjusted over the conditions of a split. Detectable: the smallest true difference
found in 80% of repetitions.
"""


def insert(path: Path, text: str) -> None:
    """Replace what stands between the two marker lines of a file. Raises UserError if they are not there."""
    before, opening, rest = path.read_text(encoding="utf-8").partition("<!-- results -->\n")
    _, closing, after = rest.partition("<!-- /results -->\n")
    if not opening or not closing:
        raise UserError(f"{path}: expected the lines <!-- results --> and <!-- /results -->")
    path.write_text(before + opening + text + closing + after, encoding="utf-8")


def main() -> None:
    """Read, format, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--results", required=True, help="a results.json")
    parser.add_argument("--out", required=True, type=Path, help="folder for table.md, table.csv and table.tex")
    parser.add_argument("--into", type=Path, help="a file with <!-- results --> lines, such as README.md")
    args = parser.parse_args()
    content = results.read_results(args.results)
    frame = results.table(content)
    args.out.mkdir(parents=True, exist_ok=True)
    for suffix, text in results.FORMATS.items():
        path = args.out / f"table.{suffix}"
        notes = NOTES.format(baseline=content.get("baseline")) if suffix == "md" and content.get("baseline") else ""
        path.write_text(text(frame) + notes, encoding="utf-8")
        print(path)
    if args.into:
        insert(args.into, results.to_markdown(frame[frame["split"] == "test"]))
        print(args.into)


if __name__ == "__main__":
    exit_cleanly(main)
