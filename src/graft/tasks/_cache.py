"""Decoded images on disk, so that decoding is paid for once.

The folder is `$GRAFT_CACHE`, or `cache`. An entry is complete as soon as it is visible, holds the SHA-256 of its
array, and is made anew where that does not hold.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock

from graft.errors import DISK, DiskProblem, UserError
from graft.runtime import digests
from graft.runtime.checkpoint import sha256
from graft.runtime.files import cache_dir, parsed
from graft.tasks._images import DECODER

FORMAT = 2  # of an entry


def arrays(name: str, files: list[Path], how: str, decode: Callable[[], tuple[np.ndarray, str]]
           ) -> tuple[np.ndarray, str]:
    """What `decode()` returns, from the cache if files of these contents were decoded before, `how` says how.

    The array is a read-only memory map. Of several processes one decodes and the others wait.
    Raises `UserError` if the cache cannot be written, `DiskProblem` if that is for want of space.
    """
    key = hashlib.sha256(repr((FORMAT, DECODER, how, digests.of_files(files))).encode()).hexdigest()[:16]
    entry = _folder() / f"{name}-{key}"
    with _one_line():
        lock = _locked(entry)
    with lock:
        found = _read(entry)
        if found is None:
            decoded = decode()
            with _one_line():
                _write(entry, *decoded)
                found = _read(entry)
    if found is None:
        raise UserError(f"{entry}: is not what was written a moment ago; set GRAFT_CACHE to another disk")
    return found


def once(name: str, work: Callable[[], None]) -> None:
    """Do `work()` unless it ended well under this name before. Of several processes one does it, the others wait."""
    entry = _folder() / name
    try:
        lock = _locked(entry)
    except OSError:  # nothing can be kept here
        return work()
    with lock:
        if not entry.exists():
            work()
            with contextlib.suppress(OSError):
                entry.touch()


def _folder() -> Path:
    return cache_dir() / "decoded"


def _locked(entry: Path) -> contextlib.AbstractContextManager:
    """The lock of an entry, taken; the end of the context gives it back."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{entry}.lock").acquire()


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = DiskProblem if error.errno in (None, *DISK) else UserError  # numpy keeps no errno of a short write
        raise kind(f"{_folder()}: cannot keep decoded images ({error.strerror or error}); "
                   "set GRAFT_CACHE to another folder") from None


def _read(entry: Path) -> tuple[np.ndarray, str] | None:
    """What is there, or None if it is absent or not what was written."""
    try:
        manifest = parsed((entry / "manifest.json").read_text())
        if _digest(entry, manifest["encoding"]) != manifest["sha256"]:
            return None
        return np.load(entry / "images.npy", mmap_mode="r"), manifest["encoding"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(entry: Path, encoding: str) -> str:
    return hashlib.sha256(f"{sha256(entry / 'images.npy')} {encoding}".encode()).hexdigest()


def _write(entry: Path, images: np.ndarray, encoding: str) -> None:
    partial = entry.with_name(f"{entry.name}.partial")
    try:
        for leftover in (partial, entry):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        np.save(partial / "images.npy", images)
        manifest = {"encoding": encoding, "sha256": _digest(partial, encoding)}
        (partial / "manifest.json").write_text(json.dumps(manifest))
        os.replace(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # what a full disk left
