"""scripts/lib.sh: what is done is skipped, one failure does not stop the others and is not swallowed."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from small import ROOT

# Stands in for Python: notes what would be trained, pretends it is done; a condition called `broken` fails.
STUB = """#!/usr/bin/env bash
set -euo pipefail
if [[ "$1" == - ]]; then exec python3 "$@"; fi
while [[ $# -gt 0 ]]; do
    case "$1" in --output_dir) dir=$2 ;; --seed) seed=$2 ;; esac
    shift
done
echo "$dir/seed$seed" >>"$STARTED"
if [[ "$dir" == */broken ]]; then echo "error: it is broken"; exit 1; fi
mkdir -p "$dir/seed$seed"
echo '{"state": "done"}' >"$dir/seed$seed/status.json"
"""
SEQUENCE = """
STUDY=%s
source scripts/lib.sh
job teacher 0 train_baseline.py
job broken 0 train_baseline.py
finish_jobs
for seed in 0 1; do
    needs teacher && job student "$seed" train_distill.py
    needs broken && job dependant "$seed" train_distill.py
done
finish_jobs
sequence_status
"""


@pytest.fixture
def study(tmp_path: Path):
    name = f"test-{os.getpid()}"
    folder = ROOT / "experiments" / name
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(study: Path, tmp_path: Path, text: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    stub, started = tmp_path / "python", tmp_path / "started"
    stub.write_text(STUB)
    stub.chmod(0o755)
    started.write_text("")
    done = subprocess.run(["bash", "-c", text % study.name], cwd=ROOT, text=True, capture_output=True, timeout=60,
                          env={**os.environ, "GRAFT_PYTHON": str(stub), "STARTED": str(started), "SLOTS": "2",
                               "PATH": "/usr/bin:/bin:" + os.environ["PATH"]})
    return done, sorted(line.split(f"{study.name}/")[1] for line in started.read_text().splitlines())


def test_a_failed_condition_stops_only_what_needs_it(study, tmp_path):
    done, started = run(study, tmp_path, SEQUENCE)
    assert started == ["broken/seed0", "student/seed0", "student/seed1", "teacher/seed0"]
    assert done.returncode != 0
    assert "FAILED broken/seed0: error: it is broken" in done.stderr
    assert "SKIPPED what needs broken" in done.stderr
    again, started = run(study, tmp_path, SEQUENCE)
    assert started == ["broken/seed0"] and again.returncode != 0, "done runs are skipped, failed ones tried again"


def test_more_gpus_for_a_job_than_there_are(study, tmp_path, monkeypatch):
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: GPU-1)'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("GPUS_PER_JOB", "99")
    done, started = run(study, tmp_path, SEQUENCE)
    assert done.returncode == 2 and not started
    assert "error: teacher/seed0: wants 99 GPUs, which are more than there are" in done.stderr


def test_a_sequence_without_failures_succeeds(study, tmp_path):
    done, started = run(study, tmp_path, SEQUENCE.replace(" broken", " fine"))
    assert done.returncode == 0, done.stderr
    assert len(started) == 6 and not done.stderr


@pytest.mark.parametrize("name", ["a b", "../x", "a;b", "$(x)", "A", '"', ""])
def test_names_that_a_shell_could_misread_are_refused(study, tmp_path, name):
    done, started = run(study, tmp_path, f"STUDY=%s\nsource scripts/lib.sh\njob '{name}' 0 train_baseline.py\n")
    assert done.returncode != 0 and "bad condition name" in done.stderr and started == []


def test_progress_estimate():
    import progress
    assert progress.remaining([(0.0, None), (0.0, None)], 2) is None
    assert progress.remaining([(1.0, 40.0), (0.5, 60.0), (0.0, None)], 2) == pytest.approx((30 + 50) / 2)


def test_progress_reads_a_run(tmp_path):
    import progress
    assert progress.look(tmp_path) == (0.0, None)
    (tmp_path / "status.json").write_text(json.dumps({"state": "done", "time": "2026-01-01T00:01:00+00:00"}))
    (tmp_path / "metadata.json").write_text(json.dumps({"attempts": [
        {"time": "2026-01-01T00:00:00+00:00", "resumed_at": 0, "total_steps": 10}]}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n')
    assert progress.look(tmp_path) == (1.0, 60.0)
