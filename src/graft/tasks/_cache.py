"""Decoded images on disk, so that decoding is paid for once.

The folder is `$GRAFT_CACHE`, or `cache`. An entry is complete as soon as it is visible.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from graft.errors import UserError

FORMAT = 1  # raise it when what is decoded from the same files changes


def arrays(name: str, files: list[Path], decode: Callable[[], tuple[np.ndarray, str]]) -> tuple[np.ndarray, str]:
    """What `decode()` returns, from the cache if these files (by name, size and time) were decoded before.

    The array is a read-only memory map. Of several processes one decodes and the others wait.
    Raises `UserError` if the cache cannot be written.
    """
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((FORMAT, stats)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("GRAFT_CACHE") or "cache") / "decoded"
    entry = folder / f"{name}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            found = _read(entry)
            if found is None:
                _write(entry, *decode())
                found = _read(entry)
    except OSError as error:
        raise UserError(f"{folder}: cannot keep decoded images ({error}); set GRAFT_CACHE to another folder") from None
    assert found is not None, entry
    return found


def _read(entry: Path) -> tuple[np.ndarray, str] | None:
    try:
        return np.load(entry / "images.npy", mmap_mode="r"), (entry / "encoding.txt").read_text()
    except (OSError, ValueError):  # absent, or cut short by a full disk
        return None


def _write(entry: Path, images: np.ndarray, encoding: str) -> None:
    partial = entry.with_name(f"{entry.name}.partial")
    for leftover in (partial, entry):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    np.save(partial / "images.npy", images)
    (partial / "encoding.txt").write_text(encoding)
    os.replace(partial, entry)
