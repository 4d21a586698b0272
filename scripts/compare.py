"""Studies, or two versions of one, side by side: which conditions are of another accuracy, beyond their intervals.

    python scripts/compare.py before/results.json experiments/demo/results.json
    python scripts/compare.py A/results.json B/results.json C/results.json --json changes.json --markdown changes.md

Every file is compared with the first. Over the same items (the digest of the split is equal, and the per-example rows
of both lie beside their results.json) differences are paired; otherwise they are not, and the table says why.
"""

from pathlib import Path

from graft.config import script_options
from graft.errors import UserError, exit_cleanly


def main() -> None:
    """Read, compare, show."""
    parser = script_options.parser(__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="results.json", help="two or more; the first is the "
                        "one that the others are compared with")
    parser.add_argument("--split", choices=script_options.SPLITS, default="test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    options = parser.parse_args()
    if len(options.results) < 2:
        raise UserError("expected two or more results.json, got one")
    from graft.reporting import changes, results, tables
    from graft.runtime.files import write_text

    found = changes.compare(changes.read(options.results, options.split), options.split)
    frames = [frame for frame in changes.tables_of(found) if len(frame)]
    print(changes.files_of(found))
    for frame in frames:
        print(f"\n{frame.to_string(index=False)}")
    if options.json:
        results.write_json(options.json, found)
    if options.markdown:
        write_text(options.markdown,
                   "\n".join([changes.files_of(found).replace("\n", "  \n") + "\n",
                              *map(tables.cells_to_markdown, frames)]))


if __name__ == "__main__":
    exit_cleanly(main)
