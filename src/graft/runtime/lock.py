"""One job per folder."""

from pathlib import Path

import filelock

from graft.errors import Locked

LEASE_SECONDS = 180.0


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
