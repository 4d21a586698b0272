"""What stops a run from outside: signals, and the end of its launcher. No torch here."""

import ctypes
import os
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1
# What only a launcher sets: accelerate for one process; torchrun, and accelerate for several.
ACCELERATE = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND")
TORCHRUN = "TORCHELASTIC_RUN_ID"


def follow_launcher() -> None:
    """End with the launcher that started this process (Linux); call it before anything slow is imported.

    Otherwise a killed `accelerate launch` leaves workers that hold the GPU and keep writing checkpoints. The kernel is
    asked for SIGTERM when the launcher dies; one that died before that is missed, because its place as the parent has
    been taken by whoever adopts orphans. A process started without a launcher survives its shell.
    """
    if sys.platform != "linux" or not (TORCHRUN in os.environ or all(name in os.environ for name in ACCELERATE)):
        return
    parent = os.getppid()
    python = _is_python(parent)  # a launcher is
    if python:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent or not (python or _shares_session(parent)):
        print("error: the launcher that started this process is gone", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)


def _shares_session(parent: int) -> bool:
    """As what stands between launcher and worker does (a profiler, `bash -c`); who adopts orphans does not."""
    try:
        return parent > 1 and os.getsid(parent) == os.getsid(0)
    except OSError:  # gone
        return False


def _is_python(pid: int) -> bool:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("python")
    except OSError:  # gone, or another user's, which no launcher of ours is
        return False


class StopSignal:
    """Notes the signals that ask a run to stop; the loop looks at `number` at the step's edge.

    SIGHUP and SIGQUIT are left alone where they were ignored (`nohup`, a script's background job), but not under
    torchrun: it passes on what is about to end it, and its workers cannot see a terminal's hangup themselves.

    The handler only sets a flag, because saving inside one can deadlock. A second SIGINT, a person pressing
    Ctrl-C again, ends the process at once: checkpoints are renamed into place, so even that loses no earlier
    one. A second SIGTERM does not: launchers and schedulers send it more than once while the save goes on.
    """

    def __init__(self) -> None:
        self.number = 0
        wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
        wanted += [number for number in (signal.SIGHUP, signal.SIGQUIT)
                   if TORCHRUN in os.environ or signal.getsignal(number) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self._note) for number in wanted}

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.number == number == signal.SIGINT:
            os._exit(128 + number)
        self.number = self.number or number
