"""The configurations of a study's runs: files and `key=value` words over each other, and what they resolve to."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graft.config import schema
from graft.config.building import merge
from graft.config.merging import common_fields
from graft.config.options import PART_LISTS, PARTS, SCALARS, SECTIONS, Config
from graft.config.reading import read
from graft.config.study.options import Study

SMOKE = "configs/smoke/cpu.yaml"


@dataclass(frozen=True)
class Source:
    """A configuration file, or what is to be written there."""

    file: str
    name: str  # of it in errors
    data: dict[str, Any] | None = None

    @property
    def content(self) -> tuple[str, dict]:
        return self.name, _read(self.file) if self.data is None else self.data

    @property
    def place(self) -> str:
        """The file without the digest of what it holds, for those that know the content by what it resolves to."""
        return self.file if self.data is None else re.sub(r"-[0-9a-f]{8}\.yaml$", ".yaml", self.file)


@functools.cache
def _read(file: str) -> dict[str, Any]:
    return read(file)


@functools.cache
def _smoke_words() -> dict[tuple[str, str], str]:
    return {(part, key): f"{part}.{key}={value}" for part, keys in _read(SMOKE).items() for key, value in keys.items()}


def words_of(sources: list[Source]) -> list[str]:
    """The sources on a command line."""
    base, *deltas = [source.file for source in sources]
    return ["--base_config", base, *(["--config", *deltas] if deltas else [])]


def has_key(cfg: Config, word: str) -> bool:
    """Whether a run has the key of `key=value`."""
    head, *rest = word.partition("=")[0].split(".")
    if head in PARTS and len(rest) == 1:
        part = getattr(cfg, head)
        common = {} if part.name == "none" else common_fields(PARTS[head][1])
        return rest[0] in ("name", *part.args, *common)
    if head in PART_LISTS and rest:
        return rest[0] in [part.name for part in getattr(cfg, head)]
    if head in SECTIONS and len(rest) == 1:
        return rest[0] in schema.dataclass_fields(SECTIONS[head])
    return head in SCALARS and not rest


def last_wins(*groups: Iterable[str]) -> list[str]:
    """`key=value` words without those that a later word for the same key replaces."""
    found = {}
    for word in (word for group in groups for word in group):
        key = word.partition("=")[0]
        found.pop(key, None)
        found[key] = word
    return list(found.values())


class Layers:
    """What the study's file holds of configurations, and how they are laid; `files` are those to be written."""

    def __init__(self, study: Study, at: Path, words: Iterable[str], smoke: bool):
        self.study, self.at, self.set, self.smoke = study, at, tuple(words), smoke
        self.files: dict[str, dict] = {}
        self._resolved: dict[tuple, Config] = {}

    def source(self, value: Any, key: str) -> Source:
        """A file, or what the study's file holds at `key`, which becomes one.

        Its name has a digest of the content: jobs in a queue, or that go on later, read what they were started with.
        """
        if isinstance(value, str):
            return Source(value, value)
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
        file = str(self.at / "configs" / f"{key.replace('.', '/', 1)}-{digest}.yaml")
        self.files[file] = value
        return Source(file, f"{self.study.file}: {key}", value)

    def sources(self, base: Source, configs: list[str]) -> list[Source]:
        """The base and what lies over it, by file or by the name of a delta."""
        deltas = self.study.deltas
        return [base, *(self.source(deltas[word], f"deltas.{word}") if word in deltas else Source(word, word)
                        for word in configs)]

    def smoked(self, sources: list[Source], words: list[str], seed: int) -> tuple[list[Source], list[str], Config]:
        """The sources with the smoke config among them, if that is asked for, the words, and what they resolve to.

        An ablation stays the last, because train_ablation.py prints what the last file changes, unless the smoke
        config has to cut its length too. What words of the study undo of the smoke config, such as a length, or a part
        of another name, which starts from its own defaults, further words lay over them.
        """
        cfg = self.resolve(sources, words, seed)
        if not self.smoke:
            return sources, words, cfg
        smoke = Source(SMOKE, SMOKE)
        after = [*sources, smoke]
        before = [*sources[:-1], smoke, sources[-1]] if len(sources) > 1 else after
        cfg = self.resolve(after, words, seed)
        sources = before if self.resolve(before, words, seed) == cfg else after
        asked = {word.partition("=")[0] for word in self.set}
        shorter = {place: word for place, word in _smoke_words().items()
                   if ".".join(place) not in asked and has_key(cfg, word)}
        now, short = (one.to_dict() for one in (cfg, self.resolve(sources, last_wins(words, shorter.values()), seed)))
        words = last_wins(words, [word for (part, key), word in shorter.items() if now[part][key] != short[part][key]])
        return sources, words, self.resolve(sources, words, seed)

    def resolve(self, sources: list[Source], words: list[str], seed: int = 0) -> Config:
        """The configuration of the sources and `key=value` words. Raises UserError as `config.load` does."""
        contents = [source.content for source in sources]
        # The seeds of a condition differ in nothing else, unless a value is made from it.
        key = (*(name for name, _ in contents), *words, seed if "${seed}" in f"{contents}{words}" else "")
        if key not in self._resolved:
            self._resolved[key] = replace(merge(contents, words, {"seed": seed})[0], overrides=tuple(words))
        return replace(self._resolved[key], seed=seed)

    def over(self, sources: list[Source], *own: Iterable[str]) -> list[str]:
        """The study's `set` and that of the command line, where a run has such a key, over its `own` words."""
        if not (self.study.set or self.set):
            return last_wins(*own)
        cfg = self.resolve(sources, last_wins(*own))
        general = [[word for word in words if has_key(cfg, word)] for words in (self.study.set, self.set)]
        return last_wins(general[0], *own, general[1])
