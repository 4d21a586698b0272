"""The configuration of a run: typed, merged once, then frozen.

Precedence, lowest first: the defaults below and in the parts' signatures, `--base_config`, each
`--config` in order, `key=value` on the command line. Mappings merge key by key; a list replaces the
list below it. Two exceptions make deltas short and safe:

* a part (`task`, `student`, `teacher`) whose `name` changes is replaced, not mixed with the old one's
  arguments;
* a mapping laid over a list of parts changes its elements by name: `objective: {cka: {weight: 0}}` in
  a file, `objective.cka.weight=0` on the command line.

Everything here runs before torch is imported, so a typo costs a second, not a minute.
"""

import argparse
import copy
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from graft import schema
from graft.errors import UserError
from graft.schema import NAME, REQUIRED, Field

COMMAND_LINE = "command line"
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Part:
    """A named part and the arguments of its entry function, every default filled in."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherPart(Part):
    """A teacher, and how its outputs are lined up with the student's view of the image."""

    view: Annotated[str, "augmented | aligned | unaligned",
                    "augmented: the teacher sees the student's image; aligned: it sees the stored image and its "
                    "token map is moved by the geometry of the student's view (cacheable); unaligned: it sees the "
                    "stored image and tokens are compared index by index, whatever they show"] = "augmented"
    shuffle: Annotated[bool, "", "negative control: give every image the outputs of another image"] = False
    cache: Annotated[str, "auto | none", "keep the outputs for the stored images instead of computing them "
                                        "again every epoch (views aligned and unaligned)"] = "auto"


@dataclass(frozen=True)
class Term(Part):
    """One term of the objective: which loss, on which tokens, with which weight when."""

    weight: Annotated[float, ">= 0", "weight from the end of the warm-up on"] = 1.0
    weight_end: Annotated[float, ">= -1", "weight at the last step; -1: no schedule"] = -1.0
    schedule: Annotated[str, "linear | cosine", "how the weight moves to weight_end"] = "linear"
    warmup: Annotated[str, "duration", "how long `before` holds instead of `weight`"] = "0st"
    before: Annotated[float, ">= 0", "weight during the warm-up"] = 0.0
    layers: Annotated[list[int], ">= 0", "student blocks compared, from 0; empty: the final tokens"] = field(
        default_factory=list)
    teacher_layers: Annotated[list[int], ">= 0", "their partners; empty: the same numbers"] = field(
        default_factory=list)
    tokens: Annotated[str, "patch | cls", "which tokens are compared"] = "patch"

    @property
    def used(self) -> bool:
        """Whether the term ever counts; one that never does is not built at all."""
        return max(self.weight, self.weight_end, self.before if self.warmup[:-2] != "0" else 0.0) > 0


@dataclass(frozen=True)
class Optim:
    """Optimizer and learning rate. The rate is a pure function of the optimizer step."""

    name: Annotated[str, "adamw | adam | sgd | rmsprop", "optimizer (sgd: Nesterov)"] = "adamw"
    lr: Annotated[float, "> 0", "peak learning rate for the batch size as given; never scaled"] = 1e-3
    weight_decay: Annotated[float, ">= 0", "decoupled for adamw, L2 for the others"] = 0.05
    decay: Annotated[str, "matrices | all", "what decays: weight matrices, or every parameter"] = "matrices"
    momentum: Annotated[float, "[0, 1)", "sgd and rmsprop"] = 0.9
    betas: Annotated[list[float], "[0, 1)", "adam and adamw"] = field(default_factory=lambda: [0.9, 0.999])
    clip: Annotated[float, ">= 0", "largest gradient norm; 0: no clipping"] = 1.0
    schedule: Annotated[str, "cosine | step | exponential | cyclic | constant | plateau", "learning rate"] = "cosine"
    warmup: Annotated[str, "duration", "linear rise to lr"] = "5ep"
    min_lr: Annotated[float, ">= 0", "where cosine, cyclic and plateau end"] = 1e-5
    period: Annotated[str, "duration", "step, exponential: once every; cyclic: one cycle"] = "30ep"
    gamma: Annotated[float, "(0, 1]", "factor per period (step, exponential) or per plateau"] = 0.1
    patience: Annotated[int, ">= 1", "plateau: evaluations without improvement before the rate falls"] = 5


@dataclass(frozen=True)
class Train:
    """How long, how large, how precise; what is averaged, evaluated and kept."""

    duration: Annotated[str, "duration", "length of training: 200ep or 5000st"] = "100ep"
    batch_size: Annotated[int, ">= 1", "images per optimizer step over all processes"] = 128
    accumulate: Annotated[int, ">= 1", "micro-batches per optimizer step and process"] = 1
    precision: Annotated[str, "fp32 | bf16", "autocast; losses are fp32 either way"] = "fp32"
    tf32: Annotated[bool, "", "TF32 matrix products on GPUs"] = True
    compile: Annotated[str, "none | default | reduce-overhead | max-autotune", "torch.compile of the student"] = "none"
    deterministic: Annotated[bool, "", "deterministic kernels on the GPU too (slower)"] = False
    average: Annotated[str, "none | ema | swa", "weights that are evaluated beside, and exported instead of, the "
                                                "last ones"] = "none"
    ema_decay: Annotated[float, "(0, 1)", "decay per optimizer step"] = 0.999
    swa_start: Annotated[str, "duration", "swa: equal average of the weights from here on, once an epoch"] = "75%"
    swa_lr: Annotated[float, ">= 0", "swa: constant rate from swa_start on; 0: keep the schedule"] = 0.0
    eval_every: Annotated[str, "duration", "score the validation split; 0: at the end only"] = "5ep"
    checkpoint_every: Annotated[str, "duration", "save; 0: at the end only"] = "5ep"
    keep: Annotated[int, ">= 2", "checkpoints kept (the best on validation is kept besides)"] = 2
    stop_after: Annotated[int, ">= 0", "early stopping: evaluations without a better validation loss; 0: never"] = 0
    min_delta: Annotated[float, ">= 0", "what counts as better"] = 0.0
    log_every: Annotated[int, ">= 1", "optimizer steps between lines of metrics.jsonl"] = 10
    tensorboard: Annotated[bool, "", "write TensorBoard events, a view of metrics.jsonl"] = True
    workers: Annotated[int, ">= 0", "processes that decode images of streamed data sets"] = 2


@dataclass(frozen=True)
class Ssl:
    """Self-supervised training of a teacher with DINO (Caron et al. 2021, arXiv:2104.14294)."""

    prototypes: Annotated[int, ">= 2", "outputs of the projection head"] = 1024
    hidden: Annotated[int, ">= 1", "width of the projection head"] = 512
    bottleneck: Annotated[int, ">= 1", "width before the last layer"] = 128
    momentum: Annotated[float, "[0, 1]", "of the EMA teacher at the start; rises to 1 along a cosine"] = 0.99
    student_temp: Annotated[float, "> 0", "softmax temperature of the student"] = 0.1
    teacher_temp: Annotated[float, "> 0", "softmax temperature of the teacher"] = 0.04
    center_momentum: Annotated[float, "[0, 1]", "of the running centre of the teacher's outputs"] = 0.9
    local_crops: Annotated[int, ">= 0", "small crops beside the two large ones"] = 4
    local_scale: Annotated[list[float], "(0, 1]", "area range of the small crops"] = field(
        default_factory=lambda: [0.2, 0.5])
    global_scale: Annotated[list[float], "(0, 1]", "area range of the large crops"] = field(
        default_factory=lambda: [0.5, 1.0])
    knn: Annotated[int, ">= 1", "neighbours of the kNN evaluation"] = 20


@dataclass(frozen=True)
class Evaluate:
    """How checkpoints are scored."""

    topk: Annotated[list[int], ">= 1", "top-k accuracies"] = field(default_factory=lambda: [1, 3])
    batch_size: Annotated[int, ">= 1", "images per forward pass"] = 500


@dataclass(frozen=True)
class Config:
    """One run, complete. `config.yaml` in the run's folder holds all of it."""

    task: Part
    student: Part
    teacher: TeacherPart
    objective: tuple[Term, ...]
    augment: tuple[Part, ...]
    optim: Optim
    train: Train
    ssl: Ssl
    evaluate: Evaluate
    method: str
    seed: int
    output_dir: str
    resume: str
    files: tuple[str, ...] = ()  # how it was started; no part of what the run is
    overrides: tuple[str, ...] = ()
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values in the layout of the YAML files."""
        flat = asdict(self)
        for key in ("files", "overrides", "dry_run"):
            del flat[key]
        flatten = lambda part: {"name": part.pop("name"), **part.pop("args"), **part}  # noqa: E731
        for key in PARTS:
            flat[key] = flatten(flat[key])
        for key in PART_LISTS:
            flat[key] = [flatten(part) for part in flat[key]]
        return flat

    @property
    def run_dir(self) -> Path:
        """Where this run lives: `<output_dir>/seed<k>`."""
        return Path(self.output_dir) / f"seed{self.seed}"

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: everything but where files lie and how it was started."""
        flat = self.to_dict()
        for key in ("output_dir", "resume"):
            del flat[key]
        flat["task"].pop("root", None)
        return flat

    @property
    def sha256(self) -> str:
        """Digest of `identity()`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


SECTIONS: dict[str, type] = {"optim": Optim, "train": Train, "ssl": Ssl, "evaluate": Evaluate}
PARTS = {"task": ("tasks", Part), "student": ("students", Part), "teacher": ("teachers", TeacherPart)}
PART_LISTS = {"objective": ("losses", Term), "augment": ("augment", Part)}
METHODS = ("baseline", "distill", "ss_distill", "ssl_teacher")
SCALARS = {
    "method": Field("method", str, "baseline", " | ".join(METHODS), "which training script this is for"),
    "seed": Field("seed", int, 0, ">= 0", "initialisation, order, augmentation, drop-path (--seed)"),
    "output_dir": Field("output_dir", str, "", "", "the condition's folder; the run is its seed<k> (--output_dir)"),
    "resume": Field("resume", str, "auto", "auto | never | must", "continue from a checkpoint (--resume)"),
}
DEFAULTS: dict[str, Any] = {"teacher": {"name": "none"}, "objective": [{"name": "ce"}], "augment": [],
                            **{key: item.default for key, item in SCALARS.items()}}


# ------------------------------------------------------------------------------------------- reading

def _read(path: str | Path) -> dict[str, Any]:
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
        raise UserError(f"{path}: not valid YAML: {_one_line(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping at the top, got a {type(data).__name__}")
    return data


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()


def _dotlist(overrides: Iterable[str]) -> dict[str, Any]:
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
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]
        except Exception as error:
            raise UserError(f"{COMMAND_LINE}: {key}: cannot read {text!r}: {_one_line(error)}") from None
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


# ------------------------------------------------------------------------------------------- merging

class _Merge:
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
        into[key] = _checked(source, path, value, rule)
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
            raise UserError(f"{source}: {key}: expected a list of parts or a mapping by name, got {data!r}")
        self.origin = {path: who for path, who in self.origin.items() if not path.startswith(key + ".")}
        self.values[key] = [self._merge_part(source, f"{key}.{i}", kind, cls, {},
                                             _mapping(source, f"{key}.{i}", part)) for i, part in enumerate(data)]
        self.origin[key] = source

    def _merge_part(self, source: str, path: str, kind: str, cls: type, old: dict, data: dict) -> dict[str, Any]:
        name = data.get("name", old.get("name"))
        if name is None:
            raise UserError(f"{source}: {path}.name: missing; one of: {', '.join(schema.part_names(kind))}")
        if name not in schema.part_names(kind):
            raise UserError(f"{source}: {path}.name: unknown: {name!r}"
                            f"{schema.nearest(str(name), schema.part_names(kind))}")
        known = {**schema.part_fields(kind, name), **_common(cls)}
        merged = {**old, "name": name}
        self.origin[f"{path}.name"] = source if "name" in data else self.origin.get(f"{path}.name", source)
        for key, value in data.items():
            if key == "name":
                continue
            if key not in known:
                raise UserError(f"{source}: {path}.{key}: unknown key for {kind[:-1] if kind != 'losses' else 'loss'} "
                                f"{name}{schema.nearest(str(key), list(known))}")
            self._set(source, f"{path}.{key}", value, known[key], merged, key)
        return merged


def _mapping(source: str, path: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise UserError(f"{source}: {path}: expected a mapping, got {data!r}")
    return data


def _common(cls: type) -> dict[str, Field]:
    """The fields a part has besides its own arguments (a term's weight, a teacher's view)."""
    return {key: item for key, item in schema.dataclass_fields(cls).items() if key not in ("name", "args")}


def _checked(source: str, path: str, value: Any, rule: Field) -> Any:
    if isinstance(value, str) and "${" in value:
        if ":" in value.split("${", 1)[1].split("}", 1)[0]:
            # A resolver such as ${oc.env:HF_TOKEN} would copy secrets into the saved config.
            raise UserError(f"{source}: {path}: resolvers are not allowed, got {value!r}; plain ${{key}} is")
        return value  # checked again once resolved
    try:
        return schema.check(value, rule)
    except UserError as error:
        raise UserError(f"{source}: {path}: {error}") from None


# ------------------------------------------------------------------------------------------ building

def _complete(merge: _Merge) -> Config:
    """Fill in defaults, resolve interpolations, check across keys, freeze."""
    values = merge.values
    for key in PARTS:
        if key not in values:
            raise UserError(f"{key}: missing; give a --base_config that has one")
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config: {_one_line(error)}") from None

    def who(path: str) -> str:
        return merge.origin.get(path, "default")

    def part(path: str, kind: str, cls: type, data: dict[str, Any]) -> Part:
        name = data["name"]
        args = {}
        for key, rule in schema.part_fields(kind, name).items():
            value = data.get(key, rule.default)
            if value is REQUIRED:
                raise UserError(f"{who(path + '.name')}: {path}.{key}: missing, and {name} needs it ({rule.help})")
            args[key] = _checked(who(f"{path}.{key}"), f"{path}.{key}", value, rule)
        own = {key: _checked(who(f"{path}.{key}"), f"{path}.{key}", data[key], rule)
               for key, rule in _common(cls).items() if key in data}
        return cls(name=name, args=args, **own)

    built = {key: part(key, kind, cls, resolved[key]) for key, (kind, cls) in PARTS.items()}
    built |= {key: tuple(part(f"{key}.{i}", kind, cls, item) for i, item in enumerate(resolved[key]))
              for key, (kind, cls) in PART_LISTS.items()}
    for key, cls in SECTIONS.items():
        rules = schema.dataclass_fields(cls)
        given = {name: _checked(who(f"{key}.{name}"), f"{key}.{name}", value, rules[name])
                 for name, value in resolved.get(key, {}).items()}
        built[key] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
    built |= {key: _checked(who(key), key, resolved[key], rule) for key, rule in SCALARS.items()}
    config = Config(**built)
    _check_together(config, who, ["default", *dict.fromkeys(merge.sources)])
    return config


def _check_together(config: Config, who: Callable[[str], str], sources: list[str]) -> None:
    """Values that are fine alone and wrong together; each names the key that would be changed."""

    def need(ok: bool, path: str, message: str, *others: str) -> None:
        """`others` are the keys the value clashes with; the source named is the last that set one of them."""
        if not ok:
            source = max((who(key) for key in (path, *others)), key=lambda name: sources.index(name))
            raise UserError(f"{source}: {path}: {message}")

    train, optim = config.train, config.optim
    for path, value in {"train.duration": train.duration, "optim.period": optim.period}.items():
        need(not value.endswith("%") and not value.startswith("0"), path,
             f"must be a positive 10ep or 500st, got {value!r}")
    need(_comparable(optim.warmup, train.duration) is not False, "optim.warmup",
         f"must be shorter than train.duration {train.duration}, got {optim.warmup!r}", "train.duration")
    need(len(optim.betas) == 2, "optim.betas", f"expected two numbers, got {optim.betas}")
    need(optim.min_lr <= optim.lr or optim.schedule not in ("cosine", "cyclic", "plateau"), "optim.min_lr",
         f"must not exceed optim.lr {optim.lr}, got {optim.min_lr}", "optim.lr")
    need(train.batch_size % train.accumulate == 0, "train.accumulate",
         f"must divide train.batch_size {train.batch_size}, got {train.accumulate}", "train.batch_size")
    need(optim.schedule != "plateau" or not train.eval_every.startswith("0"), "train.eval_every",
         "schedule plateau needs evaluations, got 0", "optim.schedule")
    need(not train.stop_after or not train.eval_every.startswith("0"), "train.eval_every",
         "early stopping needs evaluations, got 0", "train.stop_after")
    for key in ("local_scale", "global_scale"):
        low_high = getattr(config.ssl, key)
        need(len(low_high) == 2 and low_high[0] <= low_high[1], f"ssl.{key}", f"expected [low, high], got {low_high}")
    classes = schema.part_constant("tasks", config.task.name, "CLASSES")
    for k in config.evaluate.topk:
        need(classes is None or k <= classes, "evaluate.topk",
             f"top-{k} of {classes} classes: must not exceed the classes of {config.task.name}", "task.name")
    size = config.task.args.get("size") or schema.part_constant("tasks", config.task.name, "SIZE")
    patch = config.student.args.get("patch")
    need(not (size and patch) or size % patch == 0, "student.patch", f"must divide the image size {size}, got {patch}",
         "task.name", "task.size")
    dim, heads = config.student.args.get("dim"), config.student.args.get("heads")
    need(not (dim and heads) or dim % heads == 0, "student.heads", f"must divide student.dim {dim}, got {heads}",
         "student.dim")
    depth = config.student.args.get("depth")
    need(bool(config.objective), "objective", "is empty; give at least one term")
    need(any(term.used for term in config.objective), "objective", "every weight is 0; nothing would be learned")
    for i, term in enumerate(config.objective):
        here = f"objective.{i}"
        need(not term.teacher_layers or len(term.teacher_layers) == len(term.layers), f"{here}.teacher_layers",
             f"expected {len(term.layers)} numbers, one for each of layers {term.layers}, got {term.teacher_layers}")
        need(not depth or max(term.layers, default=0) < depth, f"{here}.layers",
             f"the student has blocks 0 to {(depth or 1) - 1}, got {term.layers}", "student.depth")
        wants_teacher = any("teacher" in name for name in schema.part_tensors("losses", term.name))
        need(not (wants_teacher and term.used) or config.teacher.name != "none", f"{here}.name",
             f"{term.name} needs a teacher; teacher.name is none", "teacher.name")
    teacher = config.teacher
    mixes = {op.name for op in config.augment}
    aligned = teacher.name != "none" and teacher.view == "aligned"
    need(not (aligned and {"mixup", "mix"} & mixes), "teacher.view",
         "aligned is undefined under mixup, where every token shows two images; use cutmix, or view: augmented",
         "augment")
    whole = [t.name for t in config.objective if t.used and (t.tokens == "cls" or t.name == "kd")]
    need(not (aligned and "cutmix" in mixes and whole), "teacher.view",
         f"aligned is undefined for {', '.join(whole)} under cutmix, where an image is two images; use view: augmented",
         "augment", "objective")
    need(config.method != "distill" or (teacher.view == "augmented" and not teacher.shuffle), "teacher.view",
         "train_distill shows the teacher the student's image; aligned, unaligned and shuffle belong to "
         "method: ss_distill", "method", "teacher.shuffle")
    if config.output_dir:
        name = Path(config.output_dir).name
        need(bool(NAME.match(name)), "output_dir",
             f"its last part must be a name of a-z, 0-9, '.', '_', '-', got {name!r}")


def _comparable(short: str, long: str) -> bool | None:
    """Whether `short` is shorter than `long`; None if their units differ and only the data can tell."""
    a, b = schema.DURATION.match(short).groups(), schema.DURATION.match(long).groups()
    if a[1] == "%":
        return float(a[0]) < 100
    return float(a[0]) < float(b[0]) if a[1] == b[1] else None


def load(files: Iterable[str | Path], overrides: Iterable[str] = (), **scalars: Any) -> Config:
    """The configuration from `files` laid over each other, then `key=value` overrides, then `scalars`.

    Raises `UserError`, one line with file, key, value and what was expected.
    """
    return _merge(files, overrides, scalars)[0]


def _merge(files: Iterable[str | Path], overrides: Iterable[str], scalars: dict) -> tuple[Config, dict[str, str]]:
    merge = _Merge()
    for file in files:
        merge.add(str(file), _read(file))
    merge.add(COMMAND_LINE, _dotlist(overrides))
    merge.add(COMMAND_LINE, scalars)
    return _complete(merge), merge.origin


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


# -------------------------------------------------------------------------------------- command line

def command_line(doc: str, method: str | None, argv: list[str] | None = None) -> Config:
    """Parse a training script's arguments; bad ones end the program with one line and exit code 2.

    `--print_config` and `--help` print and exit 0. `method` is what the script trains; None for
    `train_ablation.py`, which takes what its configs say.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, usage="%(prog)s --base_config FILE "
                                     "--config FILE... --output_dir DIR [options] [key=value ...]")
    parser.add_argument("--base_config", required=True, help="a complete run: data, student, recipe")
    parser.add_argument("--config", nargs="+", action="extend", default=[], help="deltas, later ones win")
    parser.add_argument("--output_dir", required=True, help="the condition's folder; the run is its seed<k>")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--resume", help="auto (default): continue if there is a checkpoint; never; must")
    parser.add_argument("--print_config", action="store_true", help="print every value and where it comes from")
    parser.add_argument("--dry_run", action="store_true",
                        help="check config, data, teacher and shapes, print the objective, train nothing")
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(f"{doc.strip()}\n\n{parser.format_help()}\n{describe_keys()}")
        sys.exit(0)
    options, rest = parser.parse_known_args(argv)
    # argparse gives `--config a.yaml optim.lr=1` both words; a config file has no '=' in its name.
    rest += [word for word in options.config if "=" in word]
    files = [options.base_config, *(word for word in options.config if "=" not in word)]
    try:
        if unknown := [word for word in rest if word.startswith("-")]:
            raise UserError(f"{COMMAND_LINE}: {unknown[0]}: unknown option; see --help")
        scalars = {key: getattr(options, key) for key in ("output_dir", "seed", "resume")
                   if getattr(options, key) is not None}
        config, origin = _merge(files, rest, scalars)
        if method is not None and config.method != method:
            raise UserError(f"{origin.get('method', 'default')}: method: this script trains {method}, the configs "
                            f"say {config.method}; use train_{config.method}.py")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if options.print_config:
        print(_with_origins(config, origin))
        sys.exit(0)
    return replace(config, files=tuple(files), overrides=tuple(rest), dry_run=options.dry_run)


def _with_origins(config: Config, origin: dict[str, str]) -> str:
    """The resolved configuration as YAML, each line with the file its value came from."""
    lines: list[str] = []

    def walk(value: Any, path: str, indent: int) -> None:
        items = value.items() if isinstance(value, dict) else [(None, item) for item in value]
        for i, (key, item) in enumerate(items):
            here = f"{path}.{i if key is None else key}".lstrip(".")
            pad = "  " * indent
            head = f"{pad}- " if key is None else f"{pad}{key}: "
            if isinstance(item, dict) and item and key is None:
                lines.append(f"{pad}-")
                walk(item, here, indent + 1)
            elif (isinstance(item, dict) and item) or (isinstance(item, list) and item and isinstance(item[0], dict)):
                lines.append(head.rstrip())
                walk(item, here, indent + 1)
            else:
                lines.append(f"{head + json.dumps(item):<60}  # {origin.get(here, 'default')}")

    walk(config.to_dict(), "", 0)
    return "\n".join(lines)


def describe_keys() -> str:
    """Every key with type, default, range and meaning, from the declarations themselves."""

    def line(path: str, item: Field) -> str:
        kind = getattr(item.type, "__name__", str(item.type)) if not hasattr(item.type, "__args__") else str(item.type)
        default = "required" if item.default is REQUIRED else json.dumps(item.default)
        return f"  {path:<28} {kind:<12} {default:<16} {item.rule:<24} {item.help}".rstrip()

    out = ["configuration keys: name, type, default, range, meaning"]
    out += [line(key, item) for key, item in SCALARS.items()]
    for section, cls in SECTIONS.items():
        out.append(f"\n{section}: {cls.__doc__.splitlines()[0]}")
        out += [line(f"{section}.{key}", item) for key, item in schema.dataclass_fields(cls).items()]
    for key, (kind, cls) in {**PARTS, **PART_LISTS}.items():
        many = " (a list)" if key in PART_LISTS else ""
        out.append(f"\n{key}{many}: name is one of {', '.join(schema.part_names(kind))}")
        out += [line(key, item) for key, item in _common(cls).items()]
        for name in schema.part_names(kind):
            out.append(f"  {key} name: {name}  -  {schema.part_help(kind, name)}")
            out += [line(f"  {key}", item) for key, item in schema.part_fields(kind, name).items()]
    return "\n".join(out)
