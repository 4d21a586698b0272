"""Write the tables of conditions into documents, from the study files: nothing in them is typed twice.

    python scripts/lib/conditions.py configs/README.md README.md

Each file gets the table of NAME between its lines `<!-- conditions NAME -->` and `<!-- /conditions NAME -->`.
"""

import re
import sys
from pathlib import Path

from graft.config import study
from graft.config.study import describe
from graft.errors import UserError, exit_cleanly
from graft.reporting import tables


def main() -> None:
    """Find the places, write."""
    if len(sys.argv) == 1:
        raise UserError("expected files, such as configs/README.md")
    for file in map(Path, sys.argv[1:]):
        for name in re.findall(r"^<!-- conditions (\S+) -->$", file.read_text(encoding="utf-8"), re.MULTILINE):
            tables.insert(file, f"conditions {name}", describe.conditions(study.load(name)))
            print(f"{file}: {name}")


if __name__ == "__main__":
    exit_cleanly(main)
