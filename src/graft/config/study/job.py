"""One process of a study: what it is, what starts it, what it needs."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.config.options import Config

ALONE = ("cpu", "1gpu")  # launch configurations that say nothing of a single process but where it runs


@dataclass(frozen=True)
class Job:
    """One process: a training run, a program that makes what runs start from (work), or a step that follows."""

    name: str  # <condition>/seed<k>, <name>/work or then/<step>: also its folder below the study's
    kind: str  # run | work | step
    script: str
    words: tuple[str, ...]
    folder: Path
    needs: tuple[str, ...] = ()  # names of jobs
    config: Config | None = None  # what it resolves to
    digest: str = ""  # of what makes it this job and no other; a run's is its configuration's
    threads: int = 1  # of the CPU, where there is no GPU
    gpus: str = "run"  # whose share: run | work | eval | none


def command(job: Job, python: str, accelerate: str = "cpu", processes: int = 1) -> list[str]:
    """The words that start a job: Python itself, which so gets the signals; a run of several processes by a launcher.

    A launch configuration of one's own, or one that shards, is always used.
    """
    if job.kind != "run" or (processes == 1 and accelerate in ALONE):
        return [python, job.script, *job.words]
    launch = ["-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{accelerate}.yaml",
              "--num_processes", str(processes)]
    return [python, *launch, job.script, *job.words]


def work(name: str, at: Path, script: str, words: Iterable[str], needs: Iterable[str], about: dict[str, Any],
         **more: Any) -> Job:
    """A program whose result lies in the study's folder `at`; `about` is what makes it this one and no other."""
    digest = hashlib.sha256(json.dumps({"script": script, **about}, sort_keys=True).encode()).hexdigest()
    return Job(f"{name}/work", "work", script, tuple(words), at / name / "work", tuple(dict.fromkeys(needs)),
               digest=digest, **more)
