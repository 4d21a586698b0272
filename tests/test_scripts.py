"""The scripts' command lines: parsed before torch is imported, so that help and mistakes are answered at once."""

import mmap
import os
import shutil
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


def test_an_environment_in_use_is_not_made_anew(tmp_path):
    """Its modules would vanish under the run that is going on; nothing is touched."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    for name in ("requirements.lock", "pyproject.toml", ".venv/module.so"):
        (tmp_path / name).write_text("x")
    with (tmp_path / ".venv/module.so").open() as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        done = subprocess.run(["bash", tmp_path / "scripts/setup.sh"], capture_output=True, text=True,
                              env={name: value for name, value in environment().items() if name != "GRAFT_PYTHON"})
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
        assert f"process {os.getpid()} runs out of it" in done.stderr
    assert (tmp_path / ".venv/module.so").exists()
