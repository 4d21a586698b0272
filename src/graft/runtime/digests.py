"""SHA-256 of a module's weights, and of files that seldom change, remembered from one process to the next.

Contents are read once; after that a file counts as unchanged while its size and the times of its last change (mtime,
and ctime, which nothing can set back) are. A file that changed within the last seconds is not remembered: it could
change again within the clock's tick.
`<cache>/digests/` holds one small JSON file for each folder; losing it costs time only.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

from graft.runtime.checkpoint import sha256
from graft.runtime.files import cache_dir, parsed, write_text

YOUNG = 2.0  # seconds


def of_state(module: nn.Module) -> str:
    """Hex digest of a module's weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_files(files: Sequence[Path]) -> list[str]:
    """Hex digest of each file's bytes. Processes that ask at once read a file only once."""
    wanted: dict[Path, list[Path]] = {}
    for file in files:
        wanted.setdefault(file.parent.resolve(), []).append(file)
    found: dict[Path, str] = {}
    for folder, own in wanted.items():
        found |= _of_folder(folder, own)
    return [found[file] for file in files]


def _of_folder(folder: Path, files: list[Path]) -> dict[Path, str]:
    name = hashlib.sha256(str(folder).encode(errors="surrogateescape")).hexdigest()[:32]
    memory = cache_dir() / "digests" / f"{name}.json"
    with _alone(memory):
        known, found = _recall(memory), {}
        before = dict(known)
        for file in files:
            seen = _looks(file)
            entry = known.get(file.name)
            found[file] = entry[-1] if entry and entry[:-1] == seen else sha256(file)
            if time.time_ns() - max(seen[1:]) > YOUNG * 1e9 and _looks(file) == seen:
                known[file.name] = [*seen, found[file]]
        if known != before:
            with contextlib.suppress(OSError):  # a full or read-only disk: it is read again next time
                write_text(memory, json.dumps(known))
    return found


def _looks(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _recall(memory: Path) -> dict[str, list]:
    try:
        known = parsed(memory.read_text())
        return {name: entry for name, entry in known.items() if isinstance(entry, list) and len(entry) == 4}
    except (OSError, ValueError, AttributeError):
        return {}


@contextlib.contextmanager
def _alone(memory: Path) -> Iterator[None]:
    """Whoever comes second waits and finds the digests there; where nothing can be written, everybody reads."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(memory.with_suffix(".lock"))
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()
