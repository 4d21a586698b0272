"""A run's folder in the hands of a job, and its `status.json`."""

import json
import os
from pathlib import Path

from graft.errors import Preempted
from graft.runtime.files import write_text
from graft.runtime.lock import lock
from graft.runtime.provenance import now


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
