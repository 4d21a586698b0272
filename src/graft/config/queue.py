"""What the jobs of a study ask a queue for: `configs/queue/slurm.yaml`, a study's `queue`, QUEUE_*. No torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from graft.config import schema
from graft.config.reading import Word, read
from graft.errors import UserError

FILE = Path("configs/queue/slurm.yaml")
KINDS = ("run", "work", "eval", "none")  # whose share of the devices a job gets
TIME = re.compile(r"(?:(\d{1,3})-)?(\d{1,3}):(\d\d):(\d\d)", re.ASCII)
MEMORY = re.compile(r"(\d{1,9}[KMGT]?)?", re.ASCII)


@dataclass(frozen=True)
class Resources:
    """What a job of one kind gets; the comments in the file say more."""

    partition: Annotated[str, "", "empty: the cluster's own"] = ""
    account: Annotated[str, "", "who pays"] = ""
    qos: Annotated[str, "", "quality of service"] = ""
    time: Annotated[str, "", "limit of a job"] = "24:00:00"
    signal: Annotated[int, ">= 1", "seconds before the limit at which a job is told to save"] = 180
    nodes: Annotated[int, ">= 1", "of a training run"] = 1
    gpus: Annotated[int, ">= 0", "on each node"] = 1
    processes: Annotated[int, ">= 0", "on each node; 0: as many as GPUs, or one"] = 0
    launch: Annotated[str, "ddp | fsdp", "how several processes train"] = "ddp"
    cpus: Annotated[int, ">= 1", "on each node"] = 8
    memory: Annotated[str, "", "on each node; empty: the cluster's own"] = ""
    options: Annotated[list[str], "", "more options of sbatch"] = field(default_factory=list)

    @property
    def on_a_node(self) -> int:
        """Processes of a training run on each node."""
        return self.processes or max(self.gpus, 1)


RULES = schema.dataclass_fields(Resources)


def resources(study: dict[str, Any], file: str, environment: Mapping[str, str]) -> dict[str, Resources]:
    """What each kind of job gets: the file's, over it the `study`'s (of its `file`), over it the variables QUEUE_*.

    Raises UserError, one line with source and key.
    """
    layers = [layer(str(FILE), "", read(FILE)), layer(file, "queue.", study)]
    for variable, value in environment.items():
        kind, _, key = variable.removeprefix("QUEUE_").lower().partition("_")
        if variable.startswith("QUEUE_"):
            told = {kind: {key: Word(value)}} if kind in KINDS and key else {f"{kind}_{key}".rstrip("_"): Word(value)}
            layers.append(layer(variable, "", told))
    found = {}
    for kind in KINDS:
        values = {key: value for one in layers for key, value in one.items() if key not in KINDS}
        found[kind] = got = Resources(**{**values, **{k: v for one in layers for k, v in one.get(kind, {}).items()}})
        if seconds(got.time) <= got.signal:
            raise UserError(f"{FILE}: {kind}: signal: {got.signal} seconds before a limit of {got.time} is never")
    return found


def layer(source: str, at: str, data: dict[str, Any], inside: bool = False) -> dict[str, Any]:
    """The keys that one `source` gives, checked; those of a kind of job are a mapping below it."""
    found = {}
    for key, value in data.items():
        path = f"{source}: {at}{key}"
        if key in KINDS and not inside:
            if not isinstance(value, dict):
                raise UserError(f"{path}: expected a mapping, got {schema.shown(value)}")
            found[key] = layer(source, f"{at}{key}.", value, inside=True)
        elif key in RULES:
            found[key] = _value(path, key, value)
        else:
            raise UserError(f"{path}: unknown key{schema.nearest(str(key), [*RULES, *KINDS])}")
    return found


def _value(path: str, key: str, value: Any) -> Any:
    try:
        value = schema.check(value.read(RULES[key]) if isinstance(value, Word) else value, RULES[key])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if key == "time" and not TIME.fullmatch(value):
        raise UserError(f"{path}: expected a time such as 4:00:00 or 1-12:00:00, got {value!r}")
    if key == "memory" and not MEMORY.fullmatch(value):
        raise UserError(f"{path}: expected an amount such as 64G, got {value!r}")
    if key == "options" and (bad := [word for word in value if not word.startswith("-")]):
        raise UserError(f"{path}: expected options of sbatch such as --constraint=h100, got {bad[0]!r}")
    return value


def seconds(time: str) -> int:
    """Of a time limit."""
    days, hours, minutes, rest = (int(part or 0) for part in TIME.fullmatch(time).groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest
