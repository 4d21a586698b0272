"""scripts/study.sh: what is done is skipped if it is what is asked for, one failure stops only what needs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import progress
from graft.runtime import runs
from small import ROOT

# Stands in for Python: a training run is done at once, one of a condition called `broken` fails, `slow` waits for a
# signal; the programs that plan are the real ones.
STUB = f"""#!{sys.executable}
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
if words[0] == "scripts/lib/jobs.py":
    os.execv({sys.executable!r}, [{sys.executable!r}, *words])
if words[0] in ("scripts/lib/preflight.py", "scripts/progress.py"):
    sys.exit()
with open(os.environ["STARTED"], "a") as log:
    log.write(json.dumps(words) + "\\n")
if "--output_dir" in words and "--dry_run" not in words:
    from graft import config
    out, seed = words[words.index("--output_dir") + 1], int(words[words.index("--seed") + 1])
    files = [w for w in words if w.endswith(".yaml") and "=" not in w and "accelerate" not in w]
    cfg = config.load(files, [w for w in words if "=" in w], seed=seed, output_dir=out)
    if out.endswith("/broken"):
        print("error: it is broken")
        sys.exit(2)
    if out.endswith("/slow"):
        signal.signal(signal.SIGTERM, lambda *_: (cfg.run_dir.joinpath("saved").touch(), os._exit(143)))
        Path(os.environ["STARTED"] + ".slow").touch()
        time.sleep(60)
    cfg.run_dir.joinpath("config.yaml").touch()
    attempts = [{{"config_sha256": cfg.sha256, "config": cfg.identity()}}]
    cfg.run_dir.joinpath("metadata.json").write_text(json.dumps({{"attempts": attempts}}))
    cfg.run_dir.joinpath("status.json").write_text('{{"state": "done"}}')
if words[0] == "scripts/write_results.py":
    Path(words[words.index("--out") + 1], "table.md").write_text("| the table |\\n")
"""
STUDY = """
study: small
base: configs/base/digits_vit.yaml
seeds: [0, 1]
teachers:
  teacher: {base: configs/base/digits_cnn.yaml}
  broken: {base: configs/base/digits_cnn.yaml}
conditions:
  baseline: {}
  student: {configs: [configs/distill/digits_cnn.yaml], teacher: teacher}
  dependant: {configs: [configs/distill/digits_cnn.yaml], teacher: broken}
contrasts: [student:dependant]
then: [scores, table]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the scripts, which work in the folder above their own, with a study and a stub in Python's place."""
    for name in ("configs", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    for name, text in {"python": STUB, "nvidia-smi": "#!/bin/sh\nexit 1\n"}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "small.yaml").write_text(STUDY)
    return tmp_path


def environment(project: Path, **more: str) -> dict[str, str]:
    theirs = ("CUDA_VISIBLE_DEVICES", "GPUS", "GPUS_PER_JOB", "SLOTS", "QUEUE", "EVAL_ARGS", "ACCELERATE",
              "DINOV2_CHECKPOINT", "OMP_NUM_THREADS", "GPU_BUSY", "SLURM_JOB_ID")
    kept = {key: value for key, value in os.environ.items() if key not in theirs}
    return {**kept, "GRAFT_PYTHON": str(project / "bin/python"), "STARTED": str(project / "started"), "SLOTS": "2",
            "PATH": f"{project / 'bin'}:{os.environ['PATH']}", **more}


def study(project: Path, *words: str, **more: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    """What `study.sh small.yaml` said, and the commands that it started."""
    started = project / "started"
    started.write_text("")
    done = subprocess.run(["bash", "scripts/study.sh", "small.yaml", *words], cwd=project, text=True,
                          capture_output=True, timeout=900, env=environment(project, **more))
    return done, [json.loads(line) for line in started.read_text().splitlines()]


def trained(commands: list[list[str]]) -> list[str]:
    """The runs among the commands."""
    return sorted(f"{Path(words[words.index('--output_dir') + 1]).name}/{words[words.index('--seed') + 1]}"
                  for words in commands if {"--output_dir", "--dry_run"} & {*words} == {"--output_dir"})


@pytest.mark.slow
def test_a_failed_condition_stops_only_what_needs_it(project):
    done, started = study(project)
    assert trained(started) == ["baseline/0", "baseline/1", "broken/0", "student/0", "student/1", "teacher/0"]
    assert done.returncode == 1 and "failed: broken/seed0" in done.stderr
    assert "FAILED broken/seed0: error: it is broken" in done.stderr
    assert "SKIPPED what needs broken/seed0: dependant/seed0 dependant/seed1" in done.stderr
    scores, table = (words for words in started if "--output_dir" not in words)
    assert scores[scores.index("--conditions") + 1:scores.index("--baseline")] == ["baseline", "student"]
    assert "--contrasts" not in scores, "one of the pair is not there"
    assert "| the table |" in done.stdout and table[0] == "scripts/write_results.py"
    again, started = study(project)
    assert trained(started) == ["broken/0"] and again.returncode == 1, "what is done is skipped, failed runs are not"
    assert "done, skipped: teacher/seed0 baseline/seed0" in again.stdout


@pytest.mark.slow
def test_what_becomes_ready_comes_in_the_studys_order(project):
    """A seed whose teacher has just ended goes before later seeds that were ready all the time."""
    (project / "small.yaml").write_text(STUDY.replace("broken", "fine"))
    _, started = study(project, SLOTS="1")
    order = [f"{Path(words[words.index('--output_dir') + 1]).name}/{words[words.index('--seed') + 1]}"
             for words in started if "--output_dir" in words]
    assert order == ["teacher/0", "fine/0", *(f"{name}/{seed}" for seed in (0, 1)
                                              for name in ("baseline", "student", "dependant"))]


@pytest.mark.slow
def test_a_study_without_failures_and_what_is_asked_of_it_later(project):
    (project / "small.yaml").write_text(STUDY.replace("broken", "fine"))
    done, started = study(project, SLOTS="1")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len(trained(started)) == 8
    done, started = study(project, "--set", "optim.lr=0.5")
    assert done.returncode == 1 and not trained(started), "another run's result is neither overwritten nor taken"
    assert "REFUSED baseline/seed0: experiments/small/baseline/seed0 holds another result (optim.lr: 0.006 -> 0.5" in \
        done.stderr
    done, started = study(project, "--set", "optim.lr=0.5", "--name", "other", "--only", "student", "--seeds", "1")
    waits = "what follows (scores table) waits for baseline, which is not done\n"
    assert trained(started) == ["student/1", "teacher/0"] and (done.returncode, done.stderr) == (0, waits)
    assert study(project, "--then", "--name", "other")[0].returncode != 0, "what was asked for did not happen"
    done, _ = study(project, "--list")
    assert "baseline/seed1: done" in done.stdout and "then/scores: after its runs" in done.stdout
    done, _ = study(project, "--list", "--name", "fresh", "--only", "student")
    assert done.returncode == 0 and "student/seed1: new  after teacher/seed0" in done.stdout
    assert done.stdout.endswith(waits)
    graph = json.loads(study(project, "--graph")[0].stdout)
    assert graph["then"] == ["bash", "scripts/study.sh", str(project / "small.yaml"), "--then"]
    assert {job["name"]: job["needs"] for job in graph["jobs"]}["student/seed1"] == ["teacher/seed0"]


@pytest.mark.slow
def test_dry_runs_and_smoke_runs(project):
    done, started = study(project, "--dry_run", "--only", "student")
    assert done.returncode == 0 and done.stdout.splitlines() == [
        "later student/seed0: needs teacher/seed0", "ok teacher/seed0",
        "checked 1 of 2 configurations, seeds apart; 0 failed, 1 wait for what they need"]
    assert [words[-1] for words in started] == ["--dry_run"] and not (project / "experiments").exists()
    done, started = study(project, "--smoke", "--only", "student")
    words, = (words for words in started if "src/graft/train_distill.py" in words)
    assert words[words.index("--output_dir"):] == [
        "--output_dir", "experiments/small-smoke/student", "--seed", "0",
        "teacher.path=experiments/small-smoke/teacher/seed0"] and "configs/smoke/cpu.yaml" in words


@pytest.mark.slow
def test_more_gpus_for_a_job_than_there_are(project):
    (project / "bin/nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: one (UUID: GPU-1)'\n")
    done, started = study(project, GPUS_PER_JOB="99")
    assert done.returncode == 2 and not started
    assert "error: teacher/seed0: wants 99 GPUs, which are more than there are" in done.stderr


@pytest.mark.slow
def test_an_interrupted_study_lets_its_runs_save(project):
    (project / "small.yaml").write_text(STUDY.replace("broken", "slow"))
    going = subprocess.Popen(["bash", "scripts/study.sh", "small.yaml", "--only", "dependant"], cwd=project, text=True,
                             stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(project))
    while not (project / "started.slow").exists():
        assert going.poll() is None
        time.sleep(0.1)
    going.send_signal(signal.SIGTERM)
    _, said = going.communicate(timeout=600)
    assert going.returncode == 143 and "interrupted; run the same command again to continue" in said
    assert (project / "experiments/small/slow/seed0/saved").exists()


def test_progress_estimate():
    assert progress.remaining([(0.0, None), (0.0, None)], 2) is None
    assert progress.remaining([(1.0, 40.0), (0.5, 60.0), (0.0, None)], 2) == pytest.approx((30 + 50) / 2)


def test_progress_reads_a_run(tmp_path):
    assert runs.look(tmp_path) == (0.0, None)
    (tmp_path / "status.json").write_text(json.dumps({"state": "done", "time": "2026-01-01T00:01:00+00:00"}))
    (tmp_path / "metadata.json").write_text(json.dumps({"attempts": [
        {"time": "2026-01-01T00:00:00+00:00", "resumed_at": 0, "total_steps": 10}]}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n')
    assert runs.look(tmp_path) == (1.0, 60.0)
    for name in ("status.json", "metadata.json", "metrics.jsonl"):
        content = (tmp_path / name).read_text()
        for damage in ("", "5", "{}", '{"step": null}', "[" * 100_000, '{"attempts": [5]}'):
            (tmp_path / name).write_text(damage)
            assert runs.look(tmp_path) == (0.0, None)
        (tmp_path / name).write_text(content)


# --------------------------------------------------------------------------------------------- devices

TWO = "GPU 0: A (UUID: GPU-aa-1)\nGPU 1: A (UUID: GPU-bb-2)\n"
MIG = TWO.replace("\n", "\n  MIG 1g.5gb  Device  0: (UUID: MIG-cc-3)\n  MIG 1g.5gb  Device  1: (UUID: MIG-dd-4)\n", 1)
IDLE = "0, GPU-aa-1, 3\n1, GPU-bb-2, 3\n"


def engine(project: Path, commands: str, listed: str, memory: str, apps: str = "", **more: str):
    """What bash says to `commands` once it has read the engine, on a machine whose nvidia-smi shows that."""
    for name, text in {"list": listed, "memory": memory, "apps": apps}.items():
        (project / name).write_text(text)
    (project / "bin/nvidia-smi").write_text(
        f'#!/bin/sh\ncase "$1" in -L) cat {project}/list ;; *compute*) cat {project}/apps ;; *) cat {project}/memory ;;'
        " esac\n")
    known = environment(project)
    return subprocess.run(["bash", "-c", f"source scripts/lib/engine.sh; {commands}"], cwd=project, text=True,
                          capture_output=True, timeout=60, env={**known, "TMPDIR": str(project), **more})


@pytest.mark.parametrize("listed, memory, apps, more, ours, free", [
    (TWO, IDLE, "", {}, 2, "GPU-aa-1 GPU-bb-2"),
    (TWO, IDLE, "GPU-aa-1\n", {}, 2, "GPU-bb-2"),
    (TWO, "0, GPU-aa-1, 3\n1, GPU-bb-2, 9000\n", "", {}, 2, "GPU-aa-1"),
    (TWO, "0, GPU-aa-1, [N/A]\n1, GPU-bb-2, [Not Supported]\n", "GPU-bb-2\n", {}, 2, "GPU-aa-1"),
    (TWO, IDLE, "", {"CUDA_VISIBLE_DEVICES": "1"}, 1, "GPU-bb-2"),
    (TWO, IDLE, "", {"CUDA_VISIBLE_DEVICES": "GPU-bb"}, 1, "GPU-bb-2"),
    (TWO, IDLE, "", {"CUDA_VISIBLE_DEVICES": "0,1", "GPUS": "1"}, 1, "GPU-bb-2"),
    (TWO, IDLE, "", {"CUDA_VISIBLE_DEVICES": ""}, 0, ""),
    (TWO, IDLE, "GPU-aa-1\n", {"GPU_BUSY": "ignore"}, 2, "GPU-aa-1 GPU-bb-2"),  # a display, or MPS
    (TWO, IDLE, "GPU-aa-1\n", {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0"}, 1, "GPU-aa-1"),  # given by a queue
    (MIG, IDLE, "", {}, 3, "MIG-cc-3 MIG-dd-4 GPU-bb-2"),
    (MIG, IDLE, "MIG-cc-3\n", {"GPUS": "0"}, 2, "MIG-dd-4"),
    (MIG, IDLE, "", {"CUDA_VISIBLE_DEVICES": "MIG-dd-4"}, 1, "MIG-dd-4"),
])
def test_gpus_that_are_ours_and_free(project, listed, memory, apps, more, ours, free):
    done = engine(project, 'echo "$GRAFT_GPUS" $(free_gpus)', listed, memory, apps, **more)
    assert done.stdout.split() == [str(ours), *free.split()] and not done.stderr


def test_gpus_that_are_not_granted_are_one_line(project):
    done = engine(project, "true", TWO, IDLE, GPUS="1", CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "error: GPUS: '1': no such GPU here among those of CUDA_VISIBLE_DEVICES"]


def test_a_job_waits_for_a_gpu_with_one_line_and_locks_it_for_its_user(project):
    # Free at the fourth look.
    (project / "bin/sleep").write_text(f"#!/bin/sh\necho >>{project}/slept\n"
                                       f"[ $(wc -l <{project}/slept) -lt 3 ] || : >{project}/apps\n")
    (project / "bin/sleep").chmod(0o755)
    show = """bash -c 'echo $CUDA_VISIBLE_DEVICES; ls "$TMPDIR"/*.lock'"""
    done = engine(project, f"_in_background {project}/log.txt 2 1 {show}", TWO, IDLE, "GPU-aa-1\n")
    assert done.stderr.splitlines() == [
        f"{project}: waiting for 2 of 2 GPUs to be free: no process on them and less than 600 MiB in use "
        "(GPU_BUSY=ignore takes them as they are)"]
    assert (project / "log.txt").read_text().split() == ["GPU-aa-1,GPU-bb-2", *(
        f"{project}/graft-{os.getuid()}-{gpu}.lock" for gpu in ("GPU-aa-1", "GPU-bb-2"))]
    done = engine(project, f"_in_background {project}/none.txt 0 1 {show.replace('ls ', ': ')}", TWO, IDLE)
    assert (project / "none.txt").read_text() == "\n", "what wants no GPU sees none"
