"""The ways a run can end, each with one line for the user and one exit code.

`accelerate launch` turns every failure into exit code 1, so the same code and line are also written
to `status.json` in the run's folder; orchestration reads that file, not `$?`.
"""

import contextlib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import TextIO, TypeVar

T = TypeVar("T")
_ends = {"at_once": False}


class UserError(ValueError):
    """Bad configuration, data or arguments: nothing was started and nothing was lost.

    `told`: another process of the run says it, so this one ends without a word.
    """

    exit_code = 2
    told = False


class NonFinite(UserError):
    """A loss or gradient was not finite and the update not applied, or a weight was not and nothing saved."""

    exit_code = 3


class Locked(UserError):
    """Another live job owns the run directory."""

    exit_code = 4


class NoValidCheckpoint(UserError):
    """Checkpoints exist and none of them is intact; starting over silently would hide that."""

    exit_code = 5


class DiskProblem(UserError):
    """The disk is full, over its quota or broken: what had to be written, or read, was not."""

    exit_code = 74


class Preempted(UserError):
    """A signal asked the run to stop; it saved at the step's edge first."""

    exit_code = 143


DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
# Of libraries that keep no errno: safetensors and tokenizers (Rust), torch.save.
RUST = re.compile(r"os error (\d+)")
TORCH = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+")


def disk_problem(error: BaseException | None) -> str | None:
    """What the disk did, in words, if that is why `error` was raised (or what it was raised from); else None."""
    while error is not None:
        if isinstance(error, DiskProblem):
            return str(error)
        if isinstance(error, OSError) and error.errno in DISK:
            return f"{error.filename or 'a file'}: {os.strerror(error.errno)}"
        if (found := RUST.search(str(error))) and int(found[1]) in DISK:
            return f"a file could not be written: {os.strerror(int(found[1]))}"
        if isinstance(error, RuntimeError) and TORCH.search(str(error)):
            return "a file could not be written: the disk is full, or the file is larger than is allowed"
        error = error.__cause__ or error.__context__
    return None


def ending(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code that an error ends a program with; None for a fault of the program's own."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if problem := disk_problem(error):
        return problem, DiskProblem.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", UserError.exit_code
    return None


def leave_at_once() -> None:
    """From here on `exit_cleanly` ends this process, one of a group, without tearing anything down.

    Threads of a process group can outlive it and abort the process while the interpreter shuts down ("terminate called
    without an active exception", seen over gloo, once in some sixty runs), and the launcher would call a finished run
    failed, or give another exit code than the run's own.
    """
    _ends["at_once"] = True


def exit_cleanly(main: Callable[[], T]) -> T:
    """What `main` returns; a `UserError` becomes one line on stderr and its exit code, never a traceback.

    So does a file that cannot be read or written. A reader of our output that has left (`| head`) is no error.
    """
    threading.excepthook = _in_a_thread
    try:
        try:
            result = main()
        except SystemExit:  # after --help, say
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        if _ends["at_once"]:
            _leave("", 0)
        return result
    except BrokenPipeError:
        _leave("", 128 + signal.SIGPIPE)
    except Exception as error:
        end = ending(error)
        if end is None:
            raise
        _leave("" if getattr(error, "told", False) else end[0], end[1])


def _leave(line: str, code: int) -> None:
    """Exit with `code` after one line on stderr, also where stdout or stderr themselves are what cannot be written."""
    if line:
        with contextlib.suppress(OSError):
            print(f"error: {' '.join(line.split())}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _silence(stream)
    if _ends["at_once"]:
        os._exit(code)
    sys.exit(code)


def _silence(stream: TextIO) -> None:
    """Let what the stream still holds go nowhere: at the interpreter's exit it would change the exit code."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _in_a_thread(failed: threading.ExceptHookArgs) -> None:
    """A thread that writes for us (TensorBoard's) found the disk full: whoever it writes for hears of it."""
    if disk_problem(failed.exc_value) is None:
        threading.__excepthook__(failed)
