"""What stops a run from outside: signals, and the end of its launcher. No torch here."""

import ctypes
import os
import signal
import sys
from typing import Any


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
