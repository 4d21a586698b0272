"""A run's folder in the hands of a job, and its `status.json`. No torch here."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from graft.errors import Locked, Preempted, UserError, disk_problem, ending
from graft.runtime.files import overwrite, read_json, write_text
from graft.runtime.lock import RunLock
from graft.runtime.provenance import now


def write_status(run_dir: Path, state: str, step: int, exit_code: int | None = None, message: str = "") -> None:
    """Replace `status.json`: `running`, `done`, `preempted` or `failed`."""
    text = json.dumps({"state": state, "step": step, "exit_code": exit_code, "message": message, "time": now(),
                       "pid": os.getpid()}) + "\n"
    try:
        write_text(run_dir / "status.json", text)
    except OSError as error:
        if state != "failed" or disk_problem(error) is None:
            raise
        overwrite(run_dir / "status.json", text)  # a full disk must not leave a failed run as `running`


class Job:
    """A run's folder in the hands of one process: locked against other jobs, with its `status.json` kept.

    Raises Locked while another job has it, Preempted when `stopped()` while its lock is waited for.
    """

    def __init__(self, run_dir: Path, say: Callable[[str], None] = print, stopped: Callable[[], bool] = lambda: False):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.dir, self.lock = run_dir, RunLock(run_dir, say, stopped)
        try:
            self.before = read_json(run_dir / "status.json", "state")
            write_status(run_dir, "running", 0)
        except BaseException:
            self.lock.release()
            raise

    @property
    def trouble(self) -> UserError | None:
        """Why this job may not write here any more, if so."""
        if self.lock.lost:
            return Locked(f"{self.dir}: the lock was lost, another job may be running here; stopped without saving")
        return None

    def end(self, error: BaseException | None, step: int, finished: bool, begun: bool) -> None:
        """Say how the job ended and give the folder back; `begun`: the run's configuration was accepted here.

        Raises OSError if that cannot be written. Where the lock was lost the status is another job's.
        """
        try:
            if self.lock.lost:
                return
            if error is None:
                write_status(self.dir, "done" if finished else "running", step, 0)
            elif not begun and self.before:
                # Refused before it began, by another configuration, say: what was there stays as it was.
                write_text(self.dir / "status.json", json.dumps(self.before) + "\n")
            else:
                line, code = ending(error) or (str(error) or type(error).__name__, 1)
                state = "preempted" if isinstance(error, Preempted) else "failed"
                write_status(self.dir, state, step, code, " ".join(line.split())[:2000])
        finally:
            self.lock.release()
