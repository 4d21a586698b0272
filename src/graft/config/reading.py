"""Where a configuration comes from: YAML files and `key=value` words, each as a mapping."""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import OmegaConf

from graft.config.schema import Field, shown
from graft.errors import UserError

COMMAND_LINE = "command line"
MAX_CONFIG_BYTES = 1 << 18
MAX_NODES = 10_000  # values of a file, each alias counted with everything that it repeats
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # as YAML 1.1 has them


def read(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; every failure is a line that starts with the file's name."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: is a folder, expected a config file" if path.is_dir() else
                        f"{path}: no such config file")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; this is no config file")
    try:
        data = _parsed(path.read_text(encoding="utf-8"))
    except (UserError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: {one_line(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping at the top, got {shown(data)}")
    return data


def _parsed(text: str) -> Any:
    """The value of YAML text. Raises UserError if it is none, or if its aliases would make a huge one of it."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if _size(node, {}) > MAX_NODES:
            raise UserError(f"has more than {MAX_NODES} values; this is no config file")
        # OmegaConf's loader refuses a key given twice, and reads 1e-3 as a number. It wants a mapping or a list.
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False) if node else None
    except UserError:
        raise
    except RecursionError:
        raise UserError("not valid YAML: too many brackets inside each other") from None
    except Exception as error:  # PyYAML and OmegaConf have no common base
        raise UserError(f"not valid YAML: {one_line(error)}") from None


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values a node stands for. Raises UserError if it holds itself."""
    if id(node) not in known:
        known[id(node)] = 0  # until it is known
        inside = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else (
            node.value if isinstance(node, yaml.SequenceNode) else [])
        known[id(node)] = 1 + sum(_size(child, known) for child in inside)
    elif not known[id(node)]:
        raise UserError("not valid YAML: a value holds itself by an alias")
    return known[id(node)]


def one_line(error: Exception) -> str:
    """An error's text on one line."""
    return re.sub(r"\s+", " ", str(error)).strip()


class Word(str):
    """The text of a `key=value` word; what it means is up to the key's type."""

    def mapping(self) -> dict[str, Any] | None:
        """The mapping that it is in YAML, or None."""
        data = self.data() if self.strip().startswith("{") else None
        return data if isinstance(data, dict) else None

    def data(self) -> Any:
        """Its value in YAML where that is a mapping or a list, else the text. Raises UserError for broken YAML."""
        if self.strip()[:1] not in ("{", "["):
            return str(self)
        try:
            return _parsed(self)
        except UserError as error:
            raise UserError(f"cannot read {shown(str(self))}: {error}") from None

    def read(self, field: Field) -> Any:
        """Its value for a field: text as it stands, numbers, booleans and lists by the field's type.

        What cannot be read stays text, for the check to complain of.
        """
        if "${" in self and not self.strip().startswith("["):
            return str(self)
        if get_origin(field.type) is list:
            if get_args(field.type) == (str,) and isinstance(self.data(), list):
                return yaml.BaseLoader(self).get_single_data()  # [off, 8] are two texts
            return self.data()
        if field.type is bool:
            return WORDS.get(self.lower(), str(self))
        if field.type is int and re.fullmatch(r"[+-]?[0-9]{1,4000}", self):
            return int(self)
        if field.type is float:
            try:
                return float(self)
            except ValueError:
                return str(self)
        return str(self)


def dotlist(overrides: Iterable[str]) -> dict[str, Any]:
    """`["optim.lr=1e-3", …]` as a nested mapping, its values `Word`."""
    nested: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key or key.startswith("-"):
            raise UserError(f"{COMMAND_LINE}: {item}: expected key=value")
        if seen.setdefault(key, text) != text:
            raise UserError(f"{COMMAND_LINE}: {key}: given twice, as {seen[key]} and as {text}")
        try:
            _put(nested, key, Word(text))
        except UserError as error:
            raise UserError(f"{COMMAND_LINE}: {key}: {error}") from None
    return nested


def _put(level: dict[str, Any], key: str, word: Word) -> None:
    """Set the value at a dotted key. Raises UserError where it stands beside a value that is not a mapping."""
    *parents, leaf = key.split(".")
    for parent in parents:
        below = level.setdefault(parent, {})
        if isinstance(below, Word):
            below = level[parent] = below.mapping()
        if not isinstance(below, dict):
            raise UserError(f"conflicts with {parent}=…, given as a value")
        level = below
    before = level.get(leaf)
    if leaf in level and not isinstance(before, Word | dict):  # it was in a mapping given as one word
        raise UserError(f"given twice, as {shown(before)} and as {word}")
    if isinstance(before, dict) and word.mapping() is None:  # a mapping replaces the keys given before it
        raise UserError(f"conflicts with {key}.{next(iter(before))}=…")
    level[leaf] = word
