"""One job per folder: a lock that no dead owner keeps, wherever it ran, and whose loss is noticed."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import filelock

from graft.errors import Locked, Preempted

LEASE_SECONDS = 180.0  # an owner that gave no sign of life for so long is dead; a live one gives one every third of it


class RunLock:
    """A run's folder in the hands of this job, from construction to `release`.

    A dead owner on this host is replaced at once. One on another host or in another container, and a lock that cannot
    be read, are waited for, with one line, until their last sign of life (the file's mtime, by the clock that dates
    this folder's files) is a lease old. Raises Locked, naming the owner, as soon as it is known to be alive, and
    Preempted when `stopped()`.
    """

    def __init__(self, run_dir: Path, say: Callable[[str], None] = print, stopped: Callable[[], bool] = lambda: False):
        self.dir, self.path = run_dir, run_dir / ".lock"
        self.lease = filelock.SoftFileLease(self.path, lease_duration=LEASE_SECONDS, thread_local=False, timeout=0.5)
        while not self._acquired():
            self._outwait(say, stopped)
        self.identity = _file(self.path)

    @property
    def lost(self) -> bool:
        """Whether another job has taken the folder, because this one was silent for too long, or the lock is gone."""
        return self.lease.compromise is not None or _file(self.path) != self.identity

    def release(self) -> None:
        """Give the folder back; a lock that was lost is another job's and stays."""
        self.lease.release()

    def _acquired(self) -> bool:
        try:
            self.lease.acquire()
            return True
        except (filelock.Timeout, filelock.LeaseSettingsMismatch):
            return False

    def _outwait(self, say: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        """Return when the lock that is there has gone, or has been removed because its owner is dead."""
        here, now = self._here()
        file, owner = _file(self.path), self.lease.owner
        if file is None:
            return
        sign = _mtime(self.path)
        alive = Locked(f"{self.dir}: another job is running here ({_name(owner)}); wait for it or stop it")
        if owner and owner.hostname == here:  # a dead one would have been replaced
            raise alive
        lease = max(LEASE_SECONDS, owner.lease_duration or 0.0) if owner else LEASE_SECONDS
        silent = max(0.0, now - sign)
        end = time.monotonic() + lease - silent
        if silent < lease:
            say(f"{self.dir}: locked by {_name(owner)}; waiting {math.ceil(lease - silent)} s for a sign of life")
        while time.monotonic() < end:
            if stopped():
                raise Preempted(f"{self.dir}: stopped by a signal while waiting for its lock; nothing was started")
            time.sleep(min(1.0, lease / 20))
            if _file(self.path) != file:
                return
            if _mtime(self.path) != sign:
                if owner or self.lease.owner is None:
                    raise alive
                return  # it was being written
        if (_file(self.path), _mtime(self.path)) == (file, sign):
            say(f"{self.dir}: no sign of life from {_name(owner)} for {max(silent, lease):.0f} s; its lock is removed")
            self.path.unlink(missing_ok=True)

    def _here(self) -> tuple[str, float]:
        """This host's name as locks have it (with its container's), and the time by the clock that dates the locks."""
        probe = filelock.SoftFileLease(self.path.with_name(f".lock.{os.getpid()}"), lease_duration=LEASE_SECONDS)
        with probe:
            return probe.owner.hostname if probe.owner else "", _mtime(Path(probe.lock_file))


def _file(path: Path) -> tuple[int, int] | None:
    """Which file a path names; None if there is none."""
    try:
        stat = os.lstat(path)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def _mtime(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def _name(owner: object) -> str:
    return f"pid {owner.pid} on {owner.hostname}" if owner else "a lock that cannot be read"
