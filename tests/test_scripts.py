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


@pytest.fixture
def checkout(tmp_path):
    """A folder with setup.sh, a Python that notes each environment that it makes, and how to start it there."""
    for name in ("scripts/lib", "bin"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("scripts/setup.sh", "scripts/lib/environment.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("x")
    python, squeue = tmp_path / "bin/python3.13", tmp_path / "bin/squeue"
    python.write_text('#!/bin/sh\n[ "$2" = venv ] || exit 0\nmkdir -p "$3/bin"; cp "$0" "$3/bin/python"\n'
                      f"echo >>{tmp_path}/made; sleep 0.3\n")
    squeue.write_text("#!/bin/sh\necho $RUNNING\n")
    for path in (python, squeue):
        path.chmod(0o755)
    kept = {name: value for name, value in environment().items() if name not in ("GRAFT_PYTHON", "SLURM_JOB_ID")}

    def start(*words, **more):
        return subprocess.Popen(["bash", tmp_path / "scripts/setup.sh", *words], text=True, stderr=subprocess.PIPE,
                                env={**kept, "PATH": f"{tmp_path / 'bin'}:{kept['PATH']}", **more})

    return tmp_path, start


def test_an_environment_in_use_is_not_made_anew(checkout):
    """Its modules would vanish under the run that is going on; nothing is touched."""
    at, start = checkout
    (at / ".venv").mkdir()
    (at / ".venv/module.so").write_text("x")

    def refused(said, *words, **more):
        process = start(*words, **more)
        _, line = process.communicate(timeout=60)
        assert process.returncode == 2 and line.count("\n") == 1 and said in line, line

    with (at / ".venv/module.so").open() as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        refused(f"process {os.getpid()} runs out of it")
    refused("jobs of Slurm run out of it", RUNNING=str(at))
    refused("neither a job of Slurm nor", SLURM_JOB_ID="1")
    refused("nor a command that only looks", "demo", "--list")
    assert (at / ".venv/module.so").exists() and not (at / "made").exists()


def test_two_terminals_make_one_environment(checkout):
    at, start = checkout
    both = [start("demo"), start("demo_language", SLURM_JOB_ID="1")]
    said = sorted(process.communicate(timeout=60)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0] and (at / "made").read_text() == "\n", said
    (at / "requirements.lock").write_text("y")
    process = start("demo", RUNNING="/elsewhere")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and (at / "made").read_text() == "\n\n", said
