"""Studies in a queue: on a real Slurm of one node, and what is asked of one."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from graft.config import queue
from graft.errors import UserError
from small import ROOT, environment, weights
from test_multinode import LOOPBACK, as_one_machine, launchers

TINY = """
base: configs/base/digits_vit.yaml
seeds: [0]
set: [student.dim=16, student.depth=2, student.heads=2, task.subset=160, train.batch_size=32, train.log_every=100,
      train.tensorboard=false, train.eval_every=0, train.checkpoint_every=0, optim.warmup=1st, train.duration=%s]
queue: {gpus: 0, cpus: 1, time: "1:00:00", work: {gpus: 0}, eval: {gpus: 0}, none: {cpus: 1}}
"""
GRAPH = "study: graph" + TINY % "4st" + """
teachers:
  teacher: {base: configs/base/digits_cnn.yaml}
  broken: {base: configs/base/digits_cnn.yaml, set: [optim.lr=1e30, optim.clip=0]}
conditions:
  baseline: {}
  student: {configs: [configs/distill/digits_cnn.yaml], teacher: teacher}
  dependant: {configs: [configs/distill/digits_cnn.yaml], teacher: broken}
then: [scores, table, figures]
figures: [curves]
"""
STEPS = 1000
LONG = "study: long" + TINY % f"{STEPS}st" + """
conditions: {baseline: {}, limit: {}, signal: {}, cancel: {}, pair: {}, pair_signal: {}}
then: []
"""


@dataclass
class Slurm:
    """A Slurm of one node with two CPUs, and a copy of the project whose studies it runs."""

    project: Path
    environment: dict[str, str]

    def __call__(self, *words: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(words, cwd=self.project, env={**self.environment, **more}, capture_output=True, text=True,
                              timeout=900)

    def submit(self, *words: str, code: int = 0, **more: str) -> dict[str, str]:
        """What `study.sh` submits: names and the ids of their jobs."""
        done = self("bash", "scripts/study.sh", *words, QUEUE="slurm", **more)
        assert done.returncode == code, done.stderr
        lines = re.findall(r"^(\d+) (\S+/\S+)(?=$|  after)", done.stdout, re.MULTILINE)
        found = {name: number for number, name in lines}
        assert f"{len(found)} submitted" in done.stdout
        return found

    def states(self) -> dict[str, str]:
        """Of all jobs, also those that have ended, by name."""
        lines = self("squeue", "--noheader", "--states=all", "--format=%j %T").stdout.splitlines()
        return {name.split("/", 1)[1]: state for name, state in (line.split() for line in lines)}

    def wait(self, ready, seconds: float = 900) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, f"{self.states()}\n" + "\n".join(
                f"{path}: {path.read_text()[-600:]}" for path in self.project.glob("experiments/*/*/*/log.txt"))
            time.sleep(0.3)

    def end(self) -> None:
        self.wait(lambda: not self("squeue", "--noheader").stdout)

    def folder(self, name: str) -> Path:
        return next(self.project.glob("experiments/*")) / name

    def log(self, name: str) -> str:
        path = self.folder(name) / "log.txt"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    if shutil.which("sbatch") is None or shutil.which("munged") is None:
        pytest.skip("Slurm is not here: apt-get install -y --no-install-recommends slurm-wlm munge")
    if os.getuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
    at, project = tmp_path / "slurm", tmp_path / "project"
    for name in ("configs", "src", "scripts"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "graph.yaml").write_text(GRAPH)
    (project / "long.yaml").write_text(LONG)
    kept = {key: value for key, value in os.environ.items()
            if not key.startswith(("SLURM_", "SBATCH_", "QUEUE", "PYTEST")) and key not in ("PYTHONPATH", "GPUS")}
    environment = {**kept, "SLURM_CONF": str(at / "slurm.conf"), "GRAFT_PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
                   "TMPDIR": str(tmp_path)}
    script = str(ROOT / "tests/slurm_one_node.sh")
    try:
        done = subprocess.run(["bash", script, "start", str(at)], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        yield Slurm(project, environment)
    finally:
        subprocess.run(["bash", script, "stop", str(at)], timeout=600)


@pytest.mark.slow
def test_a_study_from_its_teacher_to_its_figures(slurm):
    runs = ["teacher/seed0", "broken/seed0", "baseline/seed0", "student/seed0", "dependant/seed0"]
    steps = ["then/scores", "then/table", "then/figures"]
    node = slurm("sinfo", "--noheader", "--format=%N").stdout.strip()
    # Drained, or what is to fail may have failed before the second submission.
    assert not slurm("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test").returncode
    assert list(slurm.submit("graph.yaml")) == runs + steps
    assert not slurm.submit("graph.yaml"), "all of it is queued"
    assert not slurm("scontrol", "update", f"NodeName={node}", "State=RESUME").returncode
    slurm.end()
    states = slurm.states()
    assert states.pop("broken/seed0") == "FAILED" and "error: " in slurm.log("broken/seed0")
    assert states.pop("dependant/seed0") == "CANCELLED" and not slurm.log("dependant/seed0")
    assert states == dict.fromkeys(["teacher/seed0", "baseline/seed0", "student/seed0", *steps], "COMPLETED")
    at = slurm.folder("")
    assert "| student |" in (at / "table.md").read_text() and "dependant" not in (at / "table.md").read_text()
    assert (at / "figures/curves.pdf").exists()
    assert not slurm.submit("graph.yaml", "--only", "student"), "all of it is done"
    again = slurm.submit("graph.yaml")
    assert list(again) == ["broken/seed0", "dependant/seed0", *steps], "what failed, and what follows"
    done = slurm("sbatch", "--parsable", "--wait", "--output=again.txt", "--export=ALL,GRAFT_GRACE=1",
                 "scripts/lib/slurm_job.sh", "run", "experiments/graph/student/seed0", "", "false")
    assert done.returncode == 0 and "student/seed0: done" in (slurm.project / "again.txt").read_text()


@pytest.mark.slow
def test_whatever_stops_a_run_it_ends_as_if_nothing_had(slurm):
    def steps(name: str) -> list[int]:
        """At which it was saved, one for each time that it was stopped."""
        return [int(step) for step in re.findall(r"saved at step (\d+)", slurm.log(name))]

    def going(name: str):
        return lambda: "step 100/" in slurm.log(name)

    def limit(minutes: int) -> None:
        assert not slurm("scontrol", "update", f"JobId={jobs['limit/seed0']}", f"TimeLimit={minutes}").returncode

    pairs = slurm.submit("long.yaml", "--only", "pair", "pair_signal", QUEUE_PROCESSES="2")
    jobs = slurm.submit("long.yaml", "--only", "limit", "baseline", QUEUE_SIGNAL="115")
    # two at once on one machine, each with a port of its own
    slurm.wait(lambda: [slurm.states()[f"{name}/seed0"] for name in ("pair", "pair_signal")] == ["RUNNING"] * 2)
    slurm.wait(going("pair_signal/seed0"))
    slurm("scancel", "--signal=USR1", pairs["pair_signal/seed0"])
    # Slurm looks at time limits every 30 seconds; the run is held until it does, to be in its middle on any machine.
    slurm.wait(going("limit/seed0"))
    os.kill(json.loads((slurm.folder("limit/seed0") / "status.json").read_text())["pid"], signal.SIGSTOP)
    limit(2 + int(slurm("squeue", "--noheader", f"--jobs={jobs['limit/seed0']}", "--format=%M").stdout.split(":")[-2]))
    slurm.wait(lambda: slurm.states()["limit/seed0"] == "PENDING")
    limit(60)
    jobs |= slurm.submit("long.yaml", "--only", "signal", "cancel")
    slurm.wait(going("signal/seed0"))
    slurm("scancel", "--signal=USR1", jobs["signal/seed0"])
    slurm.wait(going("cancel/seed0"))
    slurm("scancel", jobs["cancel/seed0"])
    slurm.wait(lambda: slurm.states()["cancel/seed0"] == "CANCELLED")
    assert steps("cancel/seed0") and "queued again" not in slurm.log("cancel/seed0")
    assert list(slurm.submit("long.yaml", "--only", "cancel")) == ["cancel/seed0"]
    slurm.end()
    assert set(slurm.states().values()) <= {"COMPLETED", "CANCELLED"}
    for name in ("signal", "limit", "cancel"):
        assert any(0 < step < STEPS for step in steps(f"{name}/seed0")), name
        assert weights(slurm.folder(f"{name}/seed0")) == weights(slurm.folder("baseline/seed0")), name
    assert "on 2 × cpu" in slurm.log("pair/seed0") and steps("pair_signal/seed0") and not steps("pair/seed0")
    assert weights(slurm.folder("pair_signal/seed0")) == weights(slurm.folder("pair/seed0"))


@pytest.mark.slow
def test_two_tasks_of_srun_train_as_one_machine_of_two(slurm, tmp_path):
    where = tmp_path / "tasks/x"
    (tmp_path / "tasks.conf").write_text("".join(f"{rank} {shlex.join(command)}\n"
                                                 for rank, command in enumerate(launchers(where))))
    done = slurm("srun", "--ntasks=2", "--multi-prog", str(tmp_path / "tasks.conf"),
                 **{**LOOPBACK, "PYTHONPATH": environment()["PYTHONPATH"]})
    assert done.returncode == 0 and "on 2 × cpu" in done.stdout, done.stderr
    as_one_machine(where, tmp_path / "one/x")


@pytest.mark.slow
def test_a_sweep_of_hydra_is_an_array_of_jobs(slurm):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install hydra-submitit-launcher")
    done = slurm(sys.executable, "scripts/sweep.py", "--multirun", "hydra/launcher=submitit_slurm", "study=long.yaml",
                 "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=5", "condition=baseline", "seed=0,1",
                 "set=[train.duration=4st]", PYTHONPATH=str(slurm.project / "src"))
    assert done.returncode == 0, done.stderr
    slurm.end()  # the sweep ends with its results, a moment before the queue knows
    assert slurm("squeue", "--noheader", "--states=all", "--format=%T").stdout.split() == ["COMPLETED"] * 2
    for seed in (0, 1):
        assert json.loads((slurm.folder(f"baseline/seed{seed}") / "status.json").read_text())["state"] == "done"


# ------------------------------------------------------------------------------------------- what is asked for

@pytest.mark.parametrize("variables, starts", [
    ({}, ["src/x.py"]),
    ({"QUEUE_GPUS": "2"}, ["2gpu.yaml", "--num_processes", "2", "src/x.py"]),
    ({"QUEUE_GPUS": "8", "QUEUE_LAUNCH": "fsdp"}, ["fsdp.yaml", "--num_processes", "8", "src/x.py"]),
    ({"QUEUE_GPUS": "8", "QUEUE_NODES": "2"}, ["multinode.yaml", "--num_machines", "2", "--rdzv_backend", "static",
                                               "--num_processes", "16", "src/x.py"]),
])
def test_what_sbatch_is_given(tmp_path, variables, starts):
    for name, text in {"squeue": "", "sbatch": f'printf "%s\\n" "$@" >>{tmp_path}/given; echo 7', "scontrol": "echo A",
                       "srun": 'while [ "$1" != "${1#--}" ]; do shift; done; SLURM_NODEID=1 exec "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    job = {"name": "a/seed0", "kind": "run", "state": "new", "needs": [], "share": "run", "threads": 1, "note": "",
           "folder": str(tmp_path / "a b"), "digest": "d", "script": "src/x.py", "words": ["key=1 2"]}
    graph = {"folder": str(tmp_path / "s"), "file": "f", "queue": {"partition": "big"}, "jobs": [job], "steps": []}
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"),
                   "GRAFT_PYTHON": str(tmp_path / "python"), **variables}
    done = subprocess.run([sys.executable, str(ROOT / "scripts/lib/slurm.py")], input=json.dumps(graph), text=True,
                          capture_output=True, env=environment)
    assert done.stdout == "7 a/seed0\n1 submitted\n", done.stderr
    given = (tmp_path / "given").read_text().splitlines()
    assert {"--partition=big", "--requeue", "--signal=USR1@180", f"--nodes={variables.get('QUEUE_NODES', 1)}",
            f"--gpus-per-node={variables.get('QUEUE_GPUS', 1)}"} <= {*given}
    command = given[given.index("scripts/lib/slurm_job.sh"):]
    ran = subprocess.run(["bash", str(ROOT / command[0]), *command[1:]], cwd=ROOT, text=True, capture_output=True, env={
        **environment, "GRAFT_GRACE": "1", "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "A,B",
        "SLURM_JOB_NUM_NODES": variables.get("QUEUE_NODES", "1")}).stdout.split()
    rank = ["--machine_rank", "1", "--main_process_ip", "A", "--main_process_port", "10012"]
    launch = ["-m", "accelerate.commands.launch", *(rank if "QUEUE_NODES" in variables else []), "--config_file"]
    begins = [*launch, f"configs/accelerate/{starts[0]}", *starts[1:]] if len(starts) > 1 else starts
    assert ran == [*begins, "key=1", "2"]


def test_a_steps_programs_get_the_devices_that_it_has(tmp_path):
    for name, text in {"squeue": "", "sbatch": f'printf "%s\\n" "$@" >>{tmp_path}/given; echo 7'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    steps = [{"name": f"then/{name}", "state": "new", "folder": str(tmp_path / "s/then" / name), "share": share,
              "threads": 1, "needs": [], "any": False, "digest": "d", "command": ["true"]}
             for name, share in {"scores": "eval", "forensics": "work", "table": "none"}.items()]
    graph = {"folder": str(tmp_path / "s"), "file": "f", "queue": {"eval": {"gpus": 4}, "work": {"gpus": 2}},
             "jobs": [], "steps": steps}
    done = subprocess.run([sys.executable, str(ROOT / "scripts/lib/slurm.py")], input=json.dumps(graph), text=True,
                          env={**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 0
    given = re.findall(r"^--export=.*?(,GPUS_PER.*|,CUDA.*)?$", (tmp_path / "given").read_text(), re.MULTILINE)
    assert given[:2] == [f",GPUS_PER_EVAL={n},GPUS_PER_WORK={n}" for n in (4, 2)] and "GPUS_PER" not in given[2]


@pytest.mark.parametrize("kind, name, keeps, times", [
    ("step", "then/forensics", "", 5),
    ("work", "cache-a/work", "touch cache/a/.lock; touch -d '8 seconds ago' cache/a/manifest.json", 5),
    ("work", "cache-a/work", "touch baseline/seed0/metrics.jsonl", 5),
    ("work", "cache-a/work", "touch cache/a/values", 6),
    ("step", "then/scores", "touch baseline/seed0/eval/test-4.jsonl", 6),
    ("run", "baseline/seed0", "touch baseline/seed0/metrics.jsonl", 5),
])
def test_what_keeps_nothing_before_its_limit_is_given_up(tmp_path, kind, name, keeps, times):
    """A program that is stopped before it keeps anything would be queued for ever; each try takes ten seconds here."""
    for folder in ("bin", f"study/{name}", "study/cache/a", "study/baseline/seed0/eval"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    ago = f"mkdir {tmp_path}/began && echo $(($(/bin/date +%s%N) - 10000000000)) || /bin/date +%s%N"
    for program, text in {"srun": f"cd {tmp_path}/study; {keeps or ':'}; exit 138", "sleep": "", "scontrol": "",
                          "date": ago}.items():
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    job = ["bash", str(ROOT / "scripts/lib/slurm_job.sh"), kind, str(tmp_path / "study" / name), "d", "true"]
    variables = {**environment(), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "GRAFT_GRACE": "1",
                 "SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1"}
    said = []
    for _ in range(times):
        said.append(subprocess.run(job, cwd=ROOT, text=True, capture_output=True, env=variables).stdout)
        (tmp_path / "began").rmdir()
    last = "queued again" if times > 5 else "error: stopped five times without a step forward"
    assert all("queued again" in text for text in said[:-1]) and last in said[-1], said
    assert (tmp_path / "study" / name / "stopped.txt").exists() is (times > 5), "submitted anew, it has five again"


def test_a_study_and_the_environment_have_the_last_word():
    variables = {"QUEUE_TIME": "1-0:00:00", "QUEUE_RUN_GPUS": "2", "QUEUE_OPTIONS": "[--exclusive]", "QUEUE": "slurm"}
    got = queue.resources({"time": "4:00:00", "eval": {"gpus": 4}}, "mine.yaml", variables)
    assert [got[kind].gpus for kind in queue.KINDS] == [2, 1, 4, 0] and got["run"].on_a_node == 2
    assert {item.time for item in got.values()} == {"1-0:00:00"} and got["none"].options == ["--exclusive"]


@pytest.mark.parametrize("study, environment, said", [
    ({"tme": "1:00:00"}, {}, "mine.yaml: queue.tme: unknown key; did you mean time?"),
    ({"time": "24h"}, {}, "mine.yaml: queue.time: expected a time such as 4:00:00"),
    ({"time": 86400}, {}, "mine.yaml: queue.time: expected text"),
    ({"eval": {"gpu": 1}}, {}, "mine.yaml: queue.eval.gpu: unknown key; did you mean gpus?"),
    ({"eval": 1}, {}, "mine.yaml: queue.eval: expected a mapping, got 1"),
    ({"options": ["exclusive"]}, {}, "mine.yaml: queue.options: expected options of sbatch"),
    ({"memory": "lots"}, {}, "mine.yaml: queue.memory: expected an amount such as 64G"),
    ({"time": "0:02:00"}, {}, "run: signal: 180 seconds before a limit of 0:02:00 is never"),
    ({}, {"QUEUE_GPUS": "two"}, "QUEUE_GPUS: gpus: expected an integer, got 'two'"),
    ({}, {"QUEUE_PARTITON": "x"}, "QUEUE_PARTITON: partiton: unknown key; did you mean partition?"),
])
def test_what_no_queue_has_is_one_line(monkeypatch, study, environment, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        queue.resources(study, "mine.yaml", environment)
    assert said in str(error.value) and "\n" not in str(error.value)
