"""A run as a process among others: provenance, one job per folder, signals, status."""

import ctypes
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import torch
from accelerate import Accelerator

from graft.errors import Locked, Preempted
from graft.runtime.checkpoint import write_text

LEASE_SECONDS = 180.0
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "transformers", "numpy", "omegaconf")
# An environment dump could hold secrets; these names cannot.
ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "OMP_NUM_THREADS", "WORLD_SIZE", "CUBLAS_WORKSPACE_CONFIG")


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@functools.cache
def code_sha() -> str:
    """Commit of the source tree, with `+dirty` if files differ from it; `unknown` outside a checkout."""
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=Path(__file__).parent.parent, capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance() -> dict[str, Any]:
    """What is needed to explain a number later: code, packages, machine, command."""
    return {"time": now(), "argv": sys.argv, "code_sha": code_sha(), "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
            "cuda": torch.version.cuda if torch.cuda.is_available() else None, "host": platform.node(),
            "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}}


def accelerator(**options: Any) -> Accelerator:
    """The Accelerator of this process.

    `mixed_precision` is off: precision is the experiment's, `Run.autocast` applies it. Without a GPU `cpu` must be
    said, or accelerate lets every launched process train alone.
    """
    return Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available(), **options)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the launcher dies (Linux).

    Otherwise a killed `accelerate launch` leaves workers that hold the GPU and keep writing checkpoints.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class StopSignal:
    """Notes SIGTERM, SIGINT and SIGUSR1; the loop looks at `number` at the step's edge.

    The handler only sets a flag, because saving inside one can deadlock. A second SIGINT, a person pressing
    Ctrl-C again, ends the process at once: checkpoints are renamed into place, so even that loses no earlier
    one. A second SIGTERM does not: launchers and schedulers send it more than once while the save goes on.
    """

    def __init__(self) -> None:
        self.number = 0
        self.before = {number: signal.signal(number, self._note)
                       for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.number == number == signal.SIGINT:
            os._exit(128 + number)
        self.number = self.number or number


def lock(run_dir: Path) -> filelock.BaseFileLock:
    """Take the run's folder for this job; a dead owner on this host is replaced at once, elsewhere after 180 s.

    Raises Locked, naming the owner, while it is alive.
    """
    path = run_dir / ".lock"
    lease = filelock.SoftFileLease(path, lease_duration=LEASE_SECONDS, thread_local=False, timeout=0.5)
    try:
        lease.acquire()
        return lease
    except filelock.Timeout:
        owner = " ".join(path.read_text().split()) if path.exists() else "unknown"
        raise Locked(f"{run_dir}: another job is running here (lock: {owner}); wait for it or stop it") from None


def write_status(run_dir: Path, state: str, step: int, exit_code: int | None = None, message: str = "") -> None:
    """Replace `status.json`: `running`, `done`, `preempted` or `failed`."""
    write_text(run_dir / "status.json", json.dumps({"state": state, "step": step, "exit_code": exit_code,
                                                    "message": message, "time": now(), "pid": os.getpid()}) + "\n")


class Job:
    """A run's folder in the hands of one process: locked against other jobs, with its `status.json` kept.

    Raises Locked while another job has it.
    """

    def __init__(self, run_dir: Path):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.dir, self.lock = run_dir, lock(run_dir)
        status = run_dir / "status.json"
        self.before = status.read_text() if status.exists() else ""
        write_status(run_dir, "running", 0)

    def end(self, error: BaseException | None, step: int, finished: bool, begun: bool) -> None:
        """Say how the job ended and give the folder back; `begun`: the run's configuration was accepted here."""
        if error is None:
            write_status(self.dir, "done" if finished else "running", step, 0)
        elif not begun and self.before:
            # Refused before it began, by another configuration, say: what was there stays as it was.
            write_text(self.dir / "status.json", self.before)
        else:
            code = getattr(error, "exit_code", 1)
            state = "preempted" if isinstance(error, Preempted) else "failed"
            write_status(self.dir, state, step, code, " ".join(str(error).split())[:2000])
        self.lock.release()
