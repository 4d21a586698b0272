"""The ways a run can end, each with one line for the user and one exit code.

`accelerate launch` turns every failure into exit code 1, so the same code and line are also written
to `status.json` in the run's folder; orchestration reads that file, not `$?`.
"""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad configuration, data or arguments: nothing was started and nothing was lost."""

    exit_code = 2


class NonFinite(UserError):
    """A loss or gradient was not finite; the update was not applied."""

    exit_code = 3


class Locked(UserError):
    """Another live job owns the run directory."""

    exit_code = 4


class NoValidCheckpoint(UserError):
    """Checkpoints exist and none of them is intact; starting over silently would hide that."""

    exit_code = 5


class DiskProblem(UserError):
    """Three checkpoints in a row could not be written."""

    exit_code = 74


class Preempted(UserError):
    """A signal asked the run to stop; it saved at the step's edge first."""

    exit_code = 143


def exit_cleanly(main: Callable[[], None]) -> None:
    """Run `main`; a `UserError` becomes one line on stderr and its exit code, never a traceback.

    So does a file that cannot be read or written.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(UserError.exit_code)
