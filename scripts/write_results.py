"""Tables of a results.json: Markdown for people, CSV for programs, LaTeX for the paper.

    python scripts/write_results.py --results experiments/demo/results.json --out experiments/demo
"""

import argparse
from pathlib import Path

from graft import results
from graft.errors import exit_cleanly

NOTES = """
Accuracy: mean and 95% t-interval over seeds, none with one seed. Difference to `{baseline}`: 95% interval for new
seeds and new examples; where it says (1 seed), for new examples alone: it then speaks of these checkpoints, not of
the method. p: two-sided, Holm-adjusted over the conditions of a split. Detectable: the smallest true difference
found in 80% of repetitions.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--results", required=True, help="a results.json")
    parser.add_argument("--out", required=True, type=Path, help="folder for table.md, table.csv and table.tex")
    args = parser.parse_args()
    content = results.read_results(args.results)
    frame = results.table(content)
    args.out.mkdir(parents=True, exist_ok=True)
    for suffix, text in results.FORMATS.items():
        path = args.out / f"table.{suffix}"
        notes = NOTES.format(baseline=content.get("baseline")) if suffix == "md" and content.get("baseline") else ""
        path.write_text(text(frame) + notes, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    exit_cleanly(main)
