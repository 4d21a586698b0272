"""Tables of a results.json: Markdown for people, CSV for programs, LaTeX for the paper.

    python scripts/write_results.py --results experiments/demo/results.json --out experiments/demo
    python scripts/write_results.py --results experiments/demo/results.json --out experiments/demo --into README.md

Contrasts are a second table; as CSV, which holds one table a file, in contrasts.csv.
`--into` also puts the test split's rows between the lines `<!-- results demo -->` and `<!-- /results demo -->` (the
study's name) of a file, the contrasts alone between such lines that say `contrasts` for `results`, what the columns
mean where they say `notes`, and the verdicts of the forensics.json beside where they say `verdicts`: no number in it is
typed.
"""

import argparse
from pathlib import Path

from graft.config import script_options
from graft.errors import UserError, exit_cleanly
from graft.reporting import claims, results, tables
from graft.reporting.reading import labels
from graft.runtime.files import write_text

NOTES = """
Accuracy: mean and 95% t-interval over seeds, none with one seed. Difference to `{baseline}`: 95% interval for new
seeds and new examples; where it says (1 seed), for new examples alone: it then speaks of these checkpoints, not of
the method. p: two-sided, Holm-adjusted over the conditions of a split. Detectable: the smallest true difference
found in 80% of repetitions; none: not even the largest possible. Intervals and detectable are of one comparison alone,
p of all of them: a comparison is decided if its interval excludes 0 and p is below 0.05.
"""
TEXT_NOTES = """
Accuracy: answers in the asked format with the right result; flexible: the right result in any format. Cut off: answers
that reached the limit of tokens before they ended.
"""
UNTRAINED_NOTES = """
To base_0shot: difference to the untrained model; 95% interval for new seeds of the condition and new examples.
"""
GAP_NOTES = """
Gap closed: (accuracy - base_0shot) / (base_kshot - base_0shot), the share of what worked examples in the prompt give
the untrained model that the condition has without them; 95% interval as for the difference, none unless the gap's own
interval lies above 0.
"""
HEAD_NOTES = """
Class token: the same difference where every student is read by its class token alone, whatever it is read by elsewhere.
"""
CUT_NOTES = """
*: the interval would go on, but there is nothing beyond.
"""
PRIMARY_NOTES = """
Primary, adjusted among themselves, the others among themselves: {pairs}.
"""
CONTRAST_NOTES = """
Contrast: accuracy of the first condition minus that of the second; 95% interval, p and detectable as those of a
difference to the baseline, p Holm-adjusted over the contrasts of a split.
"""


def notes(content: dict) -> str:
    """What the columns of the tables mean."""
    parts = [NOTES.format(baseline=content["baseline"])] if content.get("baseline") else []
    columns = {"class_token": HEAD_NOTES, "flexible": TEXT_NOTES, "to_base": UNTRAINED_NOTES, "gap_closed": GAP_NOTES}
    parts += [text for column, text in columns.items() if column in tables.table(content)]
    parts += [CONTRAST_NOTES] * bool(content.get("contrasts"))
    if content.get("primary"):
        names = labels(content)
        pairs = [" - ".join(names.get(name, name) for name in pair) for pair in content["primary"]]
        parts.append(PRIMARY_NOTES.format(pairs="; ".join(pairs)))
    return "".join([*parts, *[CUT_NOTES] * ("*" in tables.shown(content))])


def blocks(content: dict, path: Path) -> dict[str, str]:
    """What documents show of a results.json at `path`, by the mark it stands at."""
    tested = tables.of_split(tables.contrasts(content), "test")
    found = {"results": tables.shown(content, "test"), "notes": notes(content),
             **({"contrasts": tables.to_markdown(tested)} if len(tested) else {})}
    if (beside := path.with_name("forensics.json")).exists():
        names = labels(content)
        told = claims.verdicts(results.read_forensics(beside), lambda name: names.get(name, name))
        found |= {"verdicts": tables.cells_to_markdown(told)} if len(told) else {}
    return found


def main() -> None:
    """Read, format, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--results", required=True, help="a results.json")
    parser.add_argument("--out", required=True, type=Path, help="folder for table.md, table.csv and table.tex")
    parser.add_argument("--split", choices=script_options.SPLITS, help="of this one alone (default: all)")
    parser.add_argument("--into", type=Path, help="a file with such lines, such as README.md")
    args = parser.parse_args()
    content = results.read_results(args.results)
    frame, contrasts = (tables.of_split(one, args.split) for one in (tables.table(content), tables.contrasts(content)))
    if not len(frame):
        raise UserError(f"{args.results}: no condition is scored on {args.split}")
    both = [frame, contrasts] if len(contrasts) else [frame]
    texts = {"table.md": tables.shown(content, args.split or "") + notes(content), "table.csv": tables.to_csv(frame),
             "table.tex": "\n".join(map(tables.to_latex, both))}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "contrasts.csv").unlink(missing_ok=True)  # of a results.json that had some
    for name, text in (texts | ({"contrasts.csv": tables.to_csv(contrasts)} if len(contrasts) else {})).items():
        write_text(args.out / name, text)
        print(args.out / name)
    if args.into:
        known = {f"{mark} {content['study']}": text for mark, text in blocks(content, Path(args.results)).items()}
        there = args.into.read_text(encoding="utf-8")
        for mark in [mark for mark in known if f"<!-- {mark} -->" in there] or known:
            tables.insert(args.into, mark, known[mark])
        print(args.into)


if __name__ == "__main__":
    exit_cleanly(main)
