"""graft: what happens to a student when it learns from a teacher of another kind."""

import sys
from pathlib import Path

__version__ = "0.2.0"


def _refuse_other_checkouts() -> None:
    """End, with one line, a script of another checkout: in this one's environment it would run on this code unasked."""
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "none").resolve()
    here = Path(__file__).resolve().parent
    for root in script.parents:
        inside = script.relative_to(root).parts
        if (root / "src/graft/__init__.py").is_file() and (inside[0] == "scripts" or inside[:2] == ("src", "graft")):
            if (root / "src/graft").resolve() != here:
                print(f"error: {script}: Python finds the package of another checkout, {here}; "
                      f"use this one's with PYTHONPATH={root / 'src'}", file=sys.stderr)
                sys.exit(2)
            return


_refuse_other_checkouts()
