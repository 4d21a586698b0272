"""From merged values to the frozen configuration."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from graft.config import schema
from graft.config.checks import check_together
from graft.config.interpolation import resolve
from graft.config.merging import Merge, checked, common_fields
from graft.config.options import PART_LISTS, PARTS, SCALARS, SECTIONS, Config, Part
from graft.config.reading import COMMAND_LINE, dotlist, read
from graft.config.schema import REQUIRED
from graft.errors import UserError


def load(files: Iterable[str | Path], overrides: Iterable[str] = (), **scalars: Any) -> Config:
    """The configuration from `files` laid over each other, then `key=value` overrides, then `scalars`.

    Raises `UserError`, one line with file, key, value and what was expected.
    """
    return merge(files, overrides, scalars)[0]


def restored(values: dict[str, Any], source: str) -> Config:
    """The configuration that a checkpoint holds (`Config.to_dict`); `source` is named by errors."""
    merged = Merge()
    merged.add(source, values)
    return _complete(merged)


def merge(files: Iterable[str | Path | tuple[str, dict]], overrides: Iterable[str],
          scalars: dict) -> tuple[Config, dict[str, str]]:
    """As `load`, with the source of every value that is not a default, by key.

    In a file's place may stand what it would hold, with the name that errors give it.
    """
    merged = Merge()
    for file in files:
        merged.add(*(file if isinstance(file, tuple) else (str(file), _of_a_run(file))))
    merged.add(COMMAND_LINE, dotlist(overrides))
    merged.add(COMMAND_LINE, scalars)
    return _complete(merged), merged.origin


def _of_a_run(file: str | Path) -> dict[str, Any]:
    """What a file holds. Raises UserError for a study's, beside which configurations lie."""
    data = read(file)
    if "study" in data or "conditions" in data:
        raise UserError(f"{file}: is a study, not a configuration of one run; bash scripts/study.sh {file}")
    return data


def _complete(merge: Merge) -> Config:
    """Fill in defaults, resolve interpolations, check across keys, freeze."""
    values = dict(merge.values)
    for key in PARTS:
        if key not in values:
            raise UserError(f"{key}: missing; give a --base_config that has one")
    for key, cls in SECTIONS.items():  # with their defaults, so that ${train.precision} finds one
        defaults = {name: rule.default for name, rule in schema.dataclass_fields(cls).items()}
        values[key] = {**defaults, **values.get(key, {})}

    def who(path: str) -> str:
        # an element of a list, such as optim.betas.1, comes from where the list does
        return merge.origin.get(path) or merge.origin.get(path.rpartition(".")[0], "default")

    resolved = resolve(values, who)

    def part(path: str, kind: str, cls: type, data: dict[str, Any]) -> Part:
        name = data["name"]
        args = {}
        for key, rule in schema.part_fields(kind, name).items():
            value = data.get(key, rule.default)
            if value is REQUIRED:
                raise UserError(f"{who(path + '.name')}: {path}.{key}: missing, and {name} needs it ({rule.help})")
            args[key] = checked(who(f"{path}.{key}"), f"{path}.{key}", value, rule)
        own = {key: checked(who(f"{path}.{key}"), f"{path}.{key}", data[key], rule)
               for key, rule in common_fields(cls).items() if key in data}
        return cls(name=name, args=args, **own)

    built = {key: part(key, kind, cls, resolved[key]) for key, (kind, cls) in PARTS.items()}
    built |= {key: tuple(part(f"{key}.{i}", kind, cls, item) for i, item in enumerate(resolved[key]))
              for key, (kind, cls) in PART_LISTS.items()}
    for key, cls in SECTIONS.items():
        rules = schema.dataclass_fields(cls)
        given = {name: checked(who(f"{key}.{name}"), f"{key}.{name}", value, rules[name])
                 for name, value in resolved[key].items()}
        built[key] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
    built |= {key: checked(who(key), key, resolved[key], rule) for key, rule in SCALARS.items()}
    config = Config(**built)
    check_together(config, who, ["default", *dict.fromkeys(merge.sources)])
    return config


def difference(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """`(key, old value, new value)` of every leaf that differs; a missing one is `-`."""
    before, after = (_leaves(config.identity()) for config in (old, new))
    return [(key, before.get(key, "-"), after.get(key, "-"))
            for key in dict.fromkeys([*before, *after]) if before.get(key, "-") != after.get(key, "-")]


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _leaves(item, f"{path}.{key}".lstrip(".")).items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        # Terms are compared by name, so that removing one does not shift the others.
        names = [item["name"] for item in value]
        return {k: v for i, item in enumerate(value) for k, v in
                _leaves(item, f"{path}.{item['name'] if names.count(item['name']) == 1 else i}").items()}
    return {path: value}
