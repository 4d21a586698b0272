"""Sources laid over each other, each value checked where it enters."""

import copy
from typing import Any

from graft.config import schema
from graft.config.interpolation import interpolates
from graft.config.options import DEFAULTS, PART_LISTS, PARTS, SCALARS, SECTIONS
from graft.config.reading import Word
from graft.config.schema import Field, shown
from graft.errors import UserError

_KINDS = {"tasks": "task", "students": "student", "teachers": "teacher", "losses": "loss", "augment": "augment"}


class Merge:
    """Lays sources over each other, checks each value where it enters and remembers who set it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = copy.deepcopy(DEFAULTS)
        self.origin: dict[str, str] = {}
        self.sources: list[str] = []

    def add(self, source: str, data: dict[str, Any]) -> None:
        self.sources.append(source)
        for key, value in data.items():
            if key in SECTIONS:
                self._section(source, key, value)
            elif key in PARTS:
                self._part(source, key, value)
            elif key in PART_LISTS:
                self._part_list(source, key, value)
            elif key in SCALARS:
                self._set(source, key, value, SCALARS[key], self.values, key)
            else:
                valid = [*SECTIONS, *PARTS, *PART_LISTS, *SCALARS]
                raise UserError(f"{source}: {key}: unknown key{schema.nearest(str(key), valid)}")

    def _set(self, source: str, path: str, value: Any, rule: Field, into: dict[str, Any], key: str) -> None:
        into[key] = checked(source, path, value, rule)
        self.origin[path] = source

    def _section(self, source: str, section: str, data: Any) -> None:
        known = schema.dataclass_fields(SECTIONS[section])
        values = self.values.setdefault(section, {})
        for key, value in _mapping(source, section, data).items():
            if key not in known:
                raise UserError(f"{source}: {section}.{key}: unknown key{schema.nearest(str(key), list(known))}")
            self._set(source, f"{section}.{key}", value, known[key], values, key)

    def _part(self, source: str, key: str, data: Any) -> None:
        kind, cls = PARTS[key]
        old = self.values.get(key, {})
        data = _mapping(source, key, data)
        if data.get("name", old.get("name")) != old.get("name"):
            old = {}
            self.origin = {path: who for path, who in self.origin.items() if not path.startswith(key + ".")}
        self.values[key] = self._merge_part(source, key, kind, cls, old, data)

    def _part_list(self, source: str, key: str, data: Any) -> None:
        kind, cls = PART_LISTS[key]
        data = _read(source, key, data)
        if isinstance(data, dict):
            for name, change in data.items():
                places = [i for i, part in enumerate(self.values[key]) if part["name"] == name]
                if len(places) != 1:
                    have = ", ".join(part["name"] for part in self.values[key]) or "none"
                    many = "is there more than once" if places else "is not there"
                    raise UserError(f"{source}: {key}.{name}: {many} to be changed; the list has: {have}")
                self.values[key][places[0]] = self._merge_part(
                    source, f"{key}.{places[0]}", kind, cls, self.values[key][places[0]],
                    _mapping(source, f"{key}.{name}", change))
            return
        if not isinstance(data, list):
            raise UserError(f"{source}: {key}: expected a list of parts or a mapping by name, got {shown(data)}")
        self.origin = {path: who for path, who in self.origin.items() if not path.startswith(key + ".")}
        self.values[key] = [self._merge_part(source, f"{key}.{i}", kind, cls, {},
                                             _mapping(source, f"{key}.{i}", part)) for i, part in enumerate(data)]
        self.origin[key] = source

    def _merge_part(self, source: str, path: str, kind: str, cls: type, old: dict, data: dict) -> dict[str, Any]:
        name = data.get("name", old.get("name"))
        name = str(name) if isinstance(name, Word) else name
        if name is None:
            raise UserError(f"{source}: {path}.name: missing; one of: {', '.join(schema.part_names(kind))}")
        if name not in schema.part_names(kind):
            raise UserError(f"{source}: {path}.name: unknown: {shown(name)}"
                            f"{schema.nearest(str(name), schema.part_names(kind))}")
        known = {**schema.part_fields(kind, name), **common_fields(cls)}
        merged = {**old, "name": name}
        self.origin[f"{path}.name"] = source if "name" in data else self.origin.get(f"{path}.name", source)
        for key, value in data.items():
            if key == "name":
                continue
            if key not in known:
                raise UserError(f"{source}: {path}.{key}: unknown key for {_KINDS[kind]} {name}"
                                f"{schema.nearest(str(key), list(known))}")
            self._set(source, f"{path}.{key}", value, known[key], merged, key)
        return merged


def _mapping(source: str, path: str, data: Any) -> dict[str, Any]:
    data = _read(source, path, data)
    if not isinstance(data, dict):
        raise UserError(f"{source}: {path}: expected a mapping, got {shown(data)}")
    return data


def _read(source: str, path: str, data: Any) -> Any:
    """A mapping or a list from the command line."""
    try:
        return data.data() if isinstance(data, Word) else data
    except UserError as error:
        raise UserError(f"{source}: {path}: {error}") from None


def common_fields(cls: type) -> dict[str, Field]:
    """The fields a part has besides its own arguments (a term's weight, a teacher's view)."""
    return {key: item for key, item in schema.dataclass_fields(cls).items() if key not in ("name", "args")}


def checked(source: str, path: str, value: Any, rule: Field) -> Any:
    """The value as the rule wants it; one with `${key}` as it is. Raises UserError, one line with source and key."""
    try:
        value = value.read(rule) if isinstance(value, Word) else value
        return value if interpolates(value) else schema.check(value, rule)  # those are checked again once resolved
    except UserError as error:
        raise UserError(f"{source}: {path}: {error}") from None
