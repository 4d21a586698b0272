"""Where a configuration comes from: YAML files and `key=value` words, each as a mapping."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from graft.errors import UserError

COMMAND_LINE = "command line"
MAX_CONFIG_BYTES = 1 << 20


def read(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; every failure is a line that starts with the file's name."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; this is no config file")
    try:
        data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except UserError:
        raise
    except Exception as error:  # PyYAML, OmegaConf and decoding errors have no common base
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping at the top, got a {type(data).__name__}")
    return data


def one_line(error: Exception) -> str:
    """An error's text on one line."""
    return re.sub(r"\s+", " ", str(error)).strip()


def dotlist(overrides: Iterable[str]) -> dict[str, Any]:
    """`["optim.lr=1e-3", …]` as a nested mapping."""
    nested: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key or key.startswith("-"):
            raise UserError(f"{COMMAND_LINE}: {item}: expected key=value")
        if seen.setdefault(key, text) != text:
            raise UserError(f"{COMMAND_LINE}: {key}: given twice, as {seen[key]} and as {text}")
        try:
            parsed = OmegaConf.from_dotlist([f"value={text}"])
            value = OmegaConf.to_container(parsed, resolve=False)["value"] if text else ""  # `key=` empties a text
        except Exception as error:
            raise UserError(f"{COMMAND_LINE}: {key}: cannot read {text!r}: {one_line(error)}") from None
        *parents, leaf = key.split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise UserError(f"{COMMAND_LINE}: {key}: conflicts with {parent}=…, given as a value")
        if isinstance(level.get(leaf), dict) and not isinstance(value, dict):
            raise UserError(f"{COMMAND_LINE}: {key}: conflicts with {key}.{next(iter(level[leaf]))}=…")
        level[leaf] = value
    return nested
