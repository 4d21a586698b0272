"""A study in one file: its conditions, what each of them asks, and what is compared. `configs/study/*.yaml`.

    study: mine                              its folder is experiments/mine
    base: configs/base/cifar10_deit.yaml     a run's configuration, or in its place what such a file would hold
    seeds: [0, 1, 2]
    deltas: {soft: {method: distill, …}}     named configurations, files or written here, for `configs` below
    teachers: {cnn_teacher: {base: configs/base/cifar10_resnet18.yaml}}
    conditions:
      baseline: {asks: what the student learns from labels}
      distill: {configs: [soft], teacher: cnn_teacher, asks: does the CNN help?}
    contrasts: [distill:baseline]
    then: [scores, table, figures]

Every key is a field of `graft.config.study.options`. `extends: <study>` takes over another study's keys, one level
deep: `deltas`, `teachers`, `work`, `options`, `queue` and `conditions` are merged by name, and a list of names as
`conditions` selects among the other's. What runs follow from this, with which command lines, is in `graph`. No torch.
"""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin

from graft.config import queue, schema
from graft.config.merging import checked
from graft.config.reading import read
from graft.config.study.options import GIVEN, ROLES, SCRIPTS, STEPS, Condition, Icl, Study, Teacher, Work
from graft.errors import UserError

ROOT = Path("configs/study")
RESERVED = ("cache", "configs", "figures", "icl", "then")  # folders and jobs of every study
MERGED = ("deltas", "teachers", "work", "conditions", "options", "queue")


def names() -> list[str]:
    """The studies that come with the project."""
    return sorted(path.stem for path in ROOT.glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a study by its name or path. Raises UserError if there is none."""
    path = Path(name) if "/" in name or name.endswith(".yaml") else ROOT / f"{name}.yaml"
    if not path.is_file():
        known = [one for one in names() if not one.startswith("example_")]  # those are templates
        hint = schema.nearest(name, known) if path.parent == ROOT else ""
        raise UserError(f"{path}: no such study{hint}")
    return path


def load(name: str) -> Study:
    """The study of that name or file. Raises UserError, one line with file and key."""
    path = find(name)
    return _Reader(str(path)).study(_extended(path))


def _extended(path: Path) -> dict[str, Any]:
    """The file's keys over those of the study that it extends."""
    data = read(path)
    if "study" not in data and not schema.NAME.fullmatch(path.stem):
        raise UserError(f"{path}: a study has its file's name, and {path.stem!r} is not {schema.NAME_RULE}; rename the "
                        "file, or write `study: NAME` into it")
    data = {"study": path.stem, **data}
    if "extends" not in data:
        return data
    parent = find(str(data.pop("extends")))
    below = read(parent)
    if "extends" in below:
        raise UserError(f"{path}: extends: {parent} extends another study itself; one level is allowed")
    for key in MERGED:
        if not isinstance(below.get(key, {}), dict):
            raise UserError(f"{parent}: {key}: expected a mapping, got {schema.shown(below[key])}")
    chosen = data.get("conditions")
    if isinstance(chosen, list):
        known = below.get("conditions", {})
        if other := [name for name in chosen if not isinstance(name, str)]:
            raise UserError(f"{path}: conditions: expected names, as text, got {schema.shown(other[0])}")
        if unknown := [name for name in chosen if name not in known]:
            raise UserError(f"{path}: conditions: {unknown[0]!r} is none of {parent}"
                            f"{schema.nearest(unknown[0], list(known))}")
        data["conditions"] = {name: known[name] for name in chosen}
    elif isinstance(chosen, dict):
        data["conditions"] = {**below.get("conditions", {}), **chosen}
    for key in MERGED:
        if key != "conditions" and isinstance(data.get(key), dict):
            data[key] = {**below.get(key, {}), **data[key]}
    have = data.get("conditions", below.get("conditions", {}))
    if "contrasts" not in data and isinstance(have, dict) and isinstance(pairs := below.get("contrasts"), list):
        below["contrasts"] = [pair for pair in pairs if {*str(pair).split(":")} <= {*have}]  # of what is left
    return {**below, **data}


class _Reader:
    """Checks what a study's file says; every failure is a line that starts with the file's name and the key."""

    def __init__(self, file: str):
        self.file = file

    def fail(self, key: str, message: str) -> UserError:
        return UserError(f"{self.file}: {key}: {message}")

    def study(self, data: dict[str, Any]) -> Study:
        maps = {"teachers": Teacher, "conditions": Condition, "work": Work}
        values = self.fields("", data, Study, {*maps, "icl", "file"})
        for key, cls in maps.items():
            values[key] = {name: self.part(f"{key}.{name}", item, cls)
                           for name, item in self.mapping(key, data.get(key, {})).items()}
        if data.get("icl") is not None:
            values["icl"] = self.part("icl", data["icl"], Icl)
        made = Study(**values, file=self.file)
        self.together(made)
        return made

    def mapping(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(key, f"expected a mapping, got {value!r}")
        return value

    def part(self, key: str, data: Any, cls: type) -> Any:
        return cls(**self.fields(key, self.mapping(key, {} if data is None else data), cls, set()))

    def fields(self, at: str, data: dict[str, Any], cls: type, apart: set[str]) -> dict[str, Any]:
        """The fields of `cls` that `data` has, but for those read `apart`."""
        rules = schema.dataclass_fields(cls)
        found = {}
        for key, value in data.items():
            path = f"{at}.{key}".lstrip(".")
            known = [item.name for item in fields(cls) if item.name != "file"] + ["extends"] * (not at)
            if key not in known:
                raise self.fail(path, f"unknown key{schema.nearest(str(key), known)}")
            if key in apart:
                continue
            if rules[key].type is Any:
                found[key] = self.base(path, value)
            elif path in ("deltas", "options", "icl.contexts"):
                found[key] = self.mapping(path, value)
            elif path == "queue":
                found[key] = queue.layer(self.file, "queue.", self.mapping(path, value))
            else:
                if key == "args" and isinstance(value, list):
                    value = [str(word) for word in value]
                found[key] = checked(self.file, path, value, rules[key])
                if get_origin(rules[key].type) is dict:
                    for name, text in self.mapping(path, value).items():
                        if not isinstance(text, str):
                            raise self.fail(f"{path}.{name}", f"expected text, got {text!r}")
        return found

    def base(self, key: str, value: Any) -> Any:
        """A configuration: a file, or what such a file would hold."""
        if not isinstance(value, str | dict):
            raise self.fail(key, f"expected a config file or what it would hold, got {value!r}")
        if isinstance(value, str) and not Path(value).is_file():
            raise self.fail(key, f"no such config file: {value}")
        return value

    def together(self, study: Study) -> None:
        """What holds between the keys."""
        if not study.base:
            raise self.fail("base", "missing; a config file, or what it would hold")
        if not study.conditions:
            raise self.fail("conditions", "missing; give at least the baseline")
        seen: dict[str, str] = {}
        for kind in ("work", "teachers", "conditions"):
            for name in getattr(study, kind):
                if not schema.NAME.fullmatch(str(name)) or name in RESERVED or name.startswith("cache-"):
                    raise self.fail(f"{kind}.{name}", f"must be {schema.NAME_RULE}, none of "
                                                      f"{', '.join(RESERVED)} and no cache-*, got {name!r}")
                if name in seen:
                    raise self.fail(f"{kind}.{name}", f"is the name of one of {seen[name]} too")
                seen[name] = kind
        self.configurations(study)
        for name, work in study.work.items():
            if not Path(work.script).is_file():
                raise self.fail(f"work.{name}.script", f"no such file: {work.script!r}")
        self.references(study)

    def configurations(self, study: Study) -> None:
        """Files, deltas and scripts."""
        for name, value in study.deltas.items():
            if not schema.NAME.fullmatch(str(name)):
                raise self.fail(f"deltas.{name}", f"must be {schema.NAME_RULE}, got {name!r}")
            self.base(f"deltas.{name}", value)
        users: dict[str, Any] = {f"teachers.{name}": item for name, item in study.teachers.items()}
        users |= {f"conditions.{name}": item for name, item in study.conditions.items()}
        layers = {f"{key}.configs": user.configs for key, user in users.items()}
        if study.icl:
            layers["icl.configs"] = study.icl.configs
            layers |= {f"icl.contexts.{name}": words for name, words in study.icl.contexts.items()}
            for name in study.icl.contexts:
                if not schema.CONTEXT.fullmatch(str(name)):
                    raise self.fail(f"icl.contexts.{name}", f"must be {schema.CONTEXT_RULE}, got {name!r}")
        for key, words in layers.items():
            if not isinstance(words, list):
                raise self.fail(key, f"expected a list of files or names of deltas, got {words!r}")
            for word in words:
                if not isinstance(word, str):
                    raise self.fail(key, f"expected files or names of deltas, as text, got {schema.shown(word)}")
                if word not in study.deltas and not Path(word).is_file():
                    hint = schema.nearest(word, list(study.deltas)) if study.deltas and "/" not in word else ""
                    raise self.fail(key, f"no such config file: {word}{hint}")
        for key, user in users.items():
            if user.script and user.script not in SCRIPTS:
                raise self.fail(f"{key}.script", f"no such script: {user.script!r}"
                                                 f"{schema.nearest(user.script, list(SCRIPTS))}")
            self.settings(f"{key}.set", user.set)
            if "seeds" in vars(user) and len(set(user.seeds)) != len(user.seeds):
                raise self.fail(f"{key}.seeds", f"one is there twice: {user.seeds}")
        self.settings("set", study.set)
        for name, teacher in study.teachers.items():
            if not teacher.base or not teacher.seeds:
                raise self.fail(f"teachers.{name}", "needs a base and a seed")
        if not study.seeds or len(set(study.seeds)) != len(study.seeds):
            raise self.fail("seeds", f"expected different numbers, got {study.seeds}")

    def settings(self, key: str, words: list[str]) -> None:
        """`key=value` words, but for what the study itself says of every run."""
        for word in words:
            if not re.match(r"^[\w.]+=", word):
                raise self.fail(key, f"expected key=value, got {word!r}")
            if (name := word.partition("=")[0]) in GIVEN:
                raise self.fail(key, f"{name} is given to every run by the study; use {GIVEN[name][0]}, got {word!r}")

    def references(self, study: Study) -> None:
        """Names that refer to others of the study."""
        def known(key: str, name: str, those: Any) -> None:
            if name not in those:
                raise self.fail(key, f"unknown: {name!r}{schema.nearest(str(name), list(those))}")

        for name, condition in study.conditions.items():
            if condition.teacher:
                known(f"conditions.{name}.teacher", condition.teacher, study.teachers)
        for name in study.references:
            known("references", name, study.teachers)
        for pair in study.contrasts:
            if len(set(pair.split(":"))) != 2 or pair.count(":") != 1:
                raise self.fail("contrasts", f"expected two conditions as a:b, got {pair!r}")
            for name in pair.split(":"):
                known("contrasts", name, study.conditions)
        for name in study.primary:
            known("primary", name, [*(one for one in study.conditions if one != study.baseline), *study.contrasts])
        for role, name in study.roles.items():
            known("roles", role, ROLES)
            known(f"roles.{role}", name, study.conditions)
        known("roles.baseline", study.baseline, study.conditions)
        for name in study.doses:
            known("doses", name, study.conditions)
        if len(study.doses) == 1 or len({*study.doses}) < len(study.doses):
            raise self.fail("doses", f"expected two different conditions or more, got {study.doses}")
        for step, words in study.options.items():
            known("options", step, STEPS)
            if not isinstance(words, list):
                raise self.fail(f"options.{step}", f"expected a list of words, got {words!r}")
