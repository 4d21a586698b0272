"""Small files beside a run's checkpoints: written whole or not at all, read without trusting them. No torch here."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graft.errors import UserError

SEED = re.compile(r"seed\d+")


def cache_dir() -> Path:
    """Where caches live: `$GRAFT_CACHE`, else `cache/` in the working directory."""
    return Path(os.environ.get("GRAFT_CACHE") or "cache")


def named_by(about: dict[str, Any]) -> str:
    """A name for what is made of `about`, and of nothing else."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def permitted() -> int:
    """The permissions that the umask leaves; libraries that write 0600 would keep group members from reading."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o777 & ~umask


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file so that a reader sees the old content or the new, never a part, also after a power cut.

    An OSError, such as that of a full disk, leaves nothing behind, and names `path`. Raises UserError for a device or
    a pipe, in whose place a file would be put.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: expected the name of a file, got a device or a pipe")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a write names no file
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small file, `whole`."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def overwrite(path: Path, text: str) -> None:
    """Write over a small file in place, where the disk has no room for a second one. A power cut may leave a part."""
    with path.open("r+", encoding="utf-8") as file:
        file.write(text)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def parsed(text: str | bytes) -> Any:
    """The content of JSON that nobody vouches for. Raises ValueError for whatever is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder so that it is kept for inspection and never read."""
    number = 1
    while (target := path.with_name(f"bad-{path.name}.{number}")).exists():
        number += 1
    os.rename(path, target)
    return target


def read_json(path: Path, *keys: str) -> dict[str, Any] | None:
    """The JSON object in a file that a run can do without; None where there is none.

    A damaged one (not UTF-8, no JSON, no object, or without one of `keys`) is set aside, with one line, and counts as
    missing: whoever needs it makes it again.
    """
    try:
        content = parsed(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"has no {missing[0]}")
        return content
    except FileNotFoundError:
        return None
    except ValueError as error:
        print(f"{path}: damaged ({' '.join(str(error).split())[:80]}); set aside as {set_aside(path).name}", flush=True)
        return None


def seeds(condition: Path) -> list[Path]:
    """The folders `seed<k>` of a condition, by k; another one, such as a seed0_old, is no run of it."""
    found = [path for path in condition.glob("seed*") if SEED.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[4:]))
