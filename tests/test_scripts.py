"""The scripts' command lines: parsed before torch is imported, so that help and mistakes are answered at once."""

import subprocess
import sys

import pytest

from small import ROOT, environment

# Hydra has a command line of its own.
SCRIPTS = [path for path in sorted((ROOT / "scripts").glob("*.py")) if path.stem != "sweep"]
ASK = """
import contextlib, io, runpy, sys
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_path(path, run_name="__main__")
    heavy = [name for name in ("torch", "transformers", "timm", "accelerate", "peft") if name in sys.modules]
    print(path, *heavy) if heavy or "usage:" not in out.getvalue() else None
"""


@pytest.mark.slow
def test_help_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", ASK, *map(str, SCRIPTS)], capture_output=True, text=True, cwd=ROOT,
                          env=environment())
    assert done.returncode == 0 and done.stdout == done.stderr == "", done.stdout + done.stderr
