"""Reading the JSON files of a study: whole, of the shape that is expected, every number finite; or one line that says
where it is not so."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from graft.errors import UserError

LARGEST = 2**63  # no count is beyond it, and a float holds it
DEEPEST = 100


class Share(NamedTuple):
    """A number in [0, 1], as a shape."""


class Count(NamedTuple):
    """A whole number from `least` on, as a shape."""

    least: int = 0


class Optional(NamedTuple):
    """A value of `shape`, or null, as a shape."""

    shape: Any


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises UserError naming the file, and the key of what is no finite number or text."""
    try:
        content = json.loads(Path(path).read_bytes().decode("utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    _finite(content, str(path), "")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r:.60} is there twice")
    return found


def _finite(value: Any, path: str, key: str, depth: int = 0) -> None:
    """Raise UserError at the first number that is none, or text that is not Unicode."""
    if depth > DEEPEST:
        raise UserError(f"{path}: {key[:60]}…: nested more than {DEEPEST} times")
    if isinstance(value, dict):
        for name, inner in value.items():
            _text(name, path, key)
            _finite(inner, path, f"{key}.{name}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _finite(inner, path, f"{key}[{i}]", depth + 1)
    elif isinstance(value, str):
        _text(value, path, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: {key}: expected a finite number, got {value}")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{path}: {key}: expected a number up to 2**63, got one of {value.bit_length()} bits")


def _text(value: str, path: str, key: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{path}: {key}: expected Unicode text, got {ascii(value)[:60]}") from None


def check(value: Any, shape: Any, path: str, key: str = "") -> None:
    """Raise UserError at the first place where `value` is not of `shape`.

    A shape is a type or several, `Share`, `Count` or `Optional`, a list of one shape (any length) or of several (that
    many), or a dict of them. There "*" stands for every key that has no shape of its own, and "key?" for one that may
    be missing.
    """
    def refuse(expected: str) -> None:
        raise UserError(f"{path}: {key}: expected {expected}, got {str(value)[:60]!r}")

    if isinstance(shape, Optional):
        return None if value is None else check(value, shape.shape, path, key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(shape, Share):
        return None if number and 0 <= value <= 1 else refuse("a number in [0, 1]")
    if isinstance(shape, Count):
        whole = number and isinstance(value, int) and value >= shape.least
        return None if whole else refuse(f"int from {shape.least} on")
    kind = shape if isinstance(shape, type | tuple) else type(shape)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kinds):
        refuse(" or ".join(one.__name__ for one in kinds))
    if kind is list:
        if len(shape) > 1 and len(value) != len(shape):
            raise UserError(f"{path}: {key}: expected {len(shape)} values, got {len(value)}")
        for i, inner in enumerate(value):
            check(inner, shape[i if len(shape) > 1 else 0], path, f"{key}[{i}]")
    if kind is dict:
        _keys(value, shape, path, key)
    return None


def _keys(value: dict[str, Any], shape: dict[str, Any], path: str, key: str) -> None:
    own = {name.rstrip("?"): (inner, name.endswith("?")) for name, inner in shape.items() if name != "*"}
    for name, (inner, may_miss) in own.items():
        if name in value:
            check(value[name], inner, path, f"{key}.{name}".lstrip("."))
        elif not may_miss:
            raise UserError(f"{path}: {f'{key}.{name}'.lstrip('.')}: missing")
    for name in [name for name in value if "*" in shape and name not in own]:
        check(value[name], shape["*"], path, f"{key}.{name}".lstrip("."))
