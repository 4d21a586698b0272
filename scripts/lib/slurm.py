"""Give the jobs of a study to Slurm, each after what it needs: what is neither done nor queued.

    python scripts/lib/jobs.py cifar10 --graph | python scripts/lib/slurm.py

A job for each run and seed, no arrays: each waits for its own teacher, has its own state, and is queued again alone.
What it is stands in its comment (its folder and the digest of its configuration); squeue shows it. What can never
start, because what it needs has failed, Slurm removes. What a job gets: `graft.config.queue`; what it does:
scripts/lib/slurm_job.sh.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from graft.config.queue import Resources, resources
from graft.errors import UserError, exit_cleanly

ROOT = Path(__file__).parent.parent.parent
PYTHON = os.environ.get("GRAFT_PYTHON") or sys.executable
Job = dict[str, Any]


def asked(*words: str) -> str:
    """What a program of Slurm's prints. Raises UserError if it is not there, or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    except FileNotFoundError:
        raise UserError(f"{words[0]}: not found; QUEUE=slurm needs a machine that has Slurm") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"{words[0]}: {said.removeprefix(f'{words[0]}: ').removeprefix('error: ')}")
    return done.stdout


def comment(job: Job) -> str:
    """What identifies a job in the queue."""
    return f"graft {job['digest'][:16]} {(ROOT / job['folder']).resolve()}"


def in_the_queue() -> dict[str, str]:
    """The comments of this user's jobs, and their ids."""
    lines = asked("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i %k").splitlines()
    return {about: number for number, _, about in (line.partition(" ") for line in lines)}


def command(job: Job, got: Resources) -> list[str]:
    """The words that a job runs: Python itself for one process, which so gets the signals; else a launcher."""
    if job.get("kind") is None:
        return job["command"]
    words, processes = [job["script"], *job["words"]], got.nodes * got.on_a_node
    if job["kind"] != "run" or processes == 1:
        return [PYTHON, *words]
    name = "fsdp" if got.launch == "fsdp" else "2gpu" if got.gpus else "cpu2"
    several = ["--num_machines", str(got.nodes)]
    if got.nodes > 1:
        name = name if got.launch == "fsdp" else "multinode"
        several += ["--rdzv_backend", "static"]
    return [PYTHON, "-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{name}.yaml",
            *(several if got.nodes > 1 else []), "--num_processes", str(processes), *words]


def submit(job: Job, study: str, got: Resources, after: list[str]) -> str:
    """Submit it; its id."""
    folder, run = Path(job["folder"]), job.get("kind") == "run"
    log = folder / ("log.txt" if "kind" in job else "queue.txt")  # the programs of a step have logs of their own
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    threads = job["threads"] if job["threads"] > 1 else os.environ.get("OMP_NUM_THREADS", 1)
    variables = f"ALL,GRAFT_GRACE={got.signal},OMP_NUM_THREADS={threads}"
    variables += "" if got.gpus else ",ACCELERATE_USE_CPU=1,CUDA_VISIBLE_DEVICES="
    if got.gpus and "kind" not in job:  # a step's programs take of the job's devices what these say
        variables += f",GPUS_PER_EVAL={got.gpus},GPUS_PER_WORK={got.gpus}"
    words = [f"--job-name={study}/{job['name']}", f"--comment={comment(job)}", f"--chdir={ROOT}", f"--output={log}",
             "--open-mode=append", "--requeue", f"--signal=USR1@{got.signal}", f"--time={got.time}",
             f"--nodes={got.nodes if run else 1}", "--ntasks-per-node=1", f"--cpus-per-task={got.cpus}",
             f"--export={variables}"]
    words += [f"--gpus-per-node={got.gpus}"] if got.gpus else []
    words += [f"--mem={got.memory}"] if got.memory else []
    words += [f"--{key}={value}" for key in ("partition", "account", "qos") if (value := getattr(got, key))]
    words += [f"--dependency={','.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    said = asked("sbatch", "--parsable", *words, *got.options, "scripts/lib/slurm_job.sh", job.get("kind", "step"),
                 str(folder), job["digest"], *command(job, got))
    return said.strip().split(";")[0]


class Submission:
    """One pass over a study's jobs: `ids` of those that are in the queue, `blocked` those that are refused."""

    def __init__(self, graph: dict[str, Any]):
        self.study, self.graph = Path(graph["folder"]).name, graph
        self.got = resources(graph["queue"], graph["file"], os.environ)
        self.queued = in_the_queue()
        self.folders = {about.split(" ", 2)[2]: about for about in self.queued if about.startswith("graft ")}
        self.ids: dict[str, str] = {}
        self.blocked: dict[str, str] = {}
        self.count = 0

    def place(self, job: Job, after: list[str]) -> None:
        """The job into the queue, unless it is there."""
        name, about = job["name"], comment(job)
        other = self.folders.get(about.split(" ", 2)[2], about)
        if number := self.queued.get(about):
            print(f"{number} {name}: is queued")
        elif other != about:
            self.blocked[name] = f"job {self.queued[other]} is queued for {job['folder']} as another one"
            print(f"REFUSED {name}: {self.blocked[name]}", file=sys.stderr)
            return
        else:
            number = submit(job, self.study, self.got[job["share"]], after)
            self.count += 1
            print(f"{number} {name}{'  after ' + ','.join(after) if after else ''}", flush=True)
        self.ids[name] = number

    def runs(self) -> None:
        """Runs, caches and what else is no step, each after what it needs."""
        for job in self.graph["jobs"]:
            if job["state"] == "done":
                continue
            gone = [need for need in job["needs"] if need in self.blocked]
            if job["state"] == "other" or gone:  # the first was said by jobs.py
                self.blocked[job["name"]] = job["note"]
                if gone:
                    print(f"SKIPPED {job['name']}: needs {gone[0]}", file=sys.stderr)
                continue
            self.place(job, [f"afterok:{self.ids[need]}" for need in job["needs"] if need in self.ids])

    def steps(self) -> None:
        """What follows, once all runs have ended, well or not."""
        ended = [f"afterany:{number}" for number in self.ids.values()]
        for step in self.graph["steps"]:
            needs = [self.ids[need] for need in step["needs"] if need in self.ids]
            if step["state"] == "new" or ended or needs:
                how = "afterany" if step["any"] else "afterok"
                self.place(step, [f"{how}:{number}" for number in needs] or ended)


def main() -> None:
    """Read the graph, submit."""
    submission = Submission(json.load(sys.stdin))
    submission.runs()
    submission.steps()
    print(f"{submission.count} submitted" + (f", {len(submission.ids) - submission.count} queued before"
                                             if len(submission.ids) > submission.count else ""))
    if submission.blocked:
        sys.exit(1)


if __name__ == "__main__":
    exit_cleanly(main)
