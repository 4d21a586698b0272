"""The configuration of a run: read, merged once, checked, then frozen. The keys are in `graft.config.options`.

Precedence, lowest first: the defaults there and in the parts' signatures, `--base_config`, each
`--config` in order, `key=value` on the command line. Mappings merge key by key; a list replaces the
list below it. Two exceptions make deltas short and safe:

* a part (`task`, `student`, `teacher`) whose `name` changes is replaced, not mixed with the old one's
  arguments;
* a mapping laid over a list of parts changes its elements by name: `objective: {cka: {weight: 0}}` in
  a file, `objective.cka.weight=0` on the command line.

Everything here runs before torch is imported, so a typo costs a second, not a minute.
"""

import copy
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from graft.config import schema
from graft.config.options import DEFAULTS, PART_LISTS, PARTS, SCALARS, SECTIONS, Config, Part
from graft.config.schema import NAME, REQUIRED, Field
from graft.errors import UserError

COMMAND_LINE = "command line"
MAX_CONFIG_BYTES = 1 << 20
COMMIT = re.compile(r"^[0-9a-f]{40}$")
LANGUAGE_TENSORS = {"logits", "targets", "teacher_topk"}  # what the terms of a language model are given


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
            parsed = OmegaConf.from_dotlist([f"value={text}"])
            value = OmegaConf.to_container(parsed, resolve=False)["value"] if text else ""  # `key=` empties a text
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
        known = {**schema.part_fields(kind, name), **common_fields(cls)}
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


def common_fields(cls: type) -> dict[str, Field]:
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
    values = dict(merge.values)
    for key in PARTS:
        if key not in values:
            raise UserError(f"{key}: missing; give a --base_config that has one")
    for key, cls in SECTIONS.items():  # with their defaults, so that ${train.precision} finds one
        defaults = {name: rule.default for name, rule in schema.dataclass_fields(cls).items()}
        values[key] = {**defaults, **values.get(key, {})}
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
               for key, rule in common_fields(cls).items() if key in data}
        return cls(name=name, args=args, **own)

    built = {key: part(key, kind, cls, resolved[key]) for key, (kind, cls) in PARTS.items()}
    built |= {key: tuple(part(f"{key}.{i}", kind, cls, item) for i, item in enumerate(resolved[key]))
              for key, (kind, cls) in PART_LISTS.items()}
    for key, cls in SECTIONS.items():
        rules = schema.dataclass_fields(cls)
        given = {name: _checked(who(f"{key}.{name}"), f"{key}.{name}", value, rules[name])
                 for name, value in resolved[key].items()}
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
    text = {key: schema.part_constant(PARTS[key][0], getattr(config, key).name, "TEXT") or False
            for key in ("task", "student", "teacher")}
    reads = {True: "text", False: "images"}
    for key in ("student", "teacher"):
        part = getattr(config, key)
        need(part.name == "none" or text[key] == text["task"], f"{key}.name", f"{part.name} reads {reads[text[key]]}, "
             f"task {config.task.name} is of {reads[text['task']]}", "task.name")
    if text["task"]:
        _check_text(config, need)
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
        wants = schema.part_tensors("losses", term.name)
        wants_teacher = any("teacher" in name for name in wants)
        need(text["task"] or "teacher_topk" not in wants or not term.used, f"{here}.name",
             f"{term.name} is for language models, task {config.task.name} is of images; use kd", "task.name")
        need(not (wants_teacher and term.used) or config.teacher.name != "none", f"{here}.name",
             f"{term.name} needs a teacher; teacher.name is none", "teacher.name")
        args = term.args
        need(term.name != "topk" or "mse" in args["form"] or args["tail"] != "bucket" or args["tau"] == 1,
             f"{here}.tail", f"bucket needs tau 1, the temperature of the teacher's logsumexp, got {args.get('tau')}; "
             "use tail: renormalise", f"{here}.tau", f"{here}.form")
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


def _check_text(config: Config, need: Callable[..., None]) -> None:
    """What a language model cannot do, or only with something else."""
    need(config.method in ("baseline", "distill"), "method",
         f"{config.method} is for images; text has baseline and distill", "task.name")
    need(not config.augment, "augment", "text is not augmented; remove it", "task.name")
    need(config.train.average == "none", "train.average",
         "averaged weights of a language model are not exported; use none", "task.name")
    teacher, student = config.teacher, config.student.args
    need(not teacher.shuffle and teacher.view == "augmented", "teacher.view", "view and shuffle are for images",
         "teacher.shuffle")
    for i, term in enumerate(config.objective):
        known = set(schema.part_tensors("losses", term.name)) <= LANGUAGE_TENSORS
        need(known or not term.used, f"objective.{i}.name",
             f"{term.name} compares what a language model does not give; use ce and topk", "task.name")
    need(student["lora"] or student["dtype"] == "fp32", "student.dtype",
         f"full fine-tuning needs fp32 master weights, got {student['dtype']}; set student.dtype=fp32 "
         "(train.precision: bf16 computes in bf16)",
         "student.lora")
    need(not student["trust_remote_code"] or bool(COMMIT.match(student["revision"])), "student.revision",
         f"trust_remote_code needs a commit of 40 hex digits, got {student['revision']!r}",
         "student.trust_remote_code")
    precision = teacher.args.get("precision", config.train.precision)
    need(precision == config.train.precision, "teacher.precision",
         f"must be train.precision {config.train.precision}, got {precision}; write ${{train.precision}}",
         "train.precision")


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
    return merge(files, overrides, scalars)[0]


def merge(files: Iterable[str | Path], overrides: Iterable[str], scalars: dict) -> tuple[Config, dict[str, str]]:
    """As `load`, with the source of every value that is not a default, by key."""
    merged = _Merge()
    for file in files:
        merged.add(str(file), _read(file))
    merged.add(COMMAND_LINE, _dotlist(overrides))
    merged.add(COMMAND_LINE, scalars)
    return _complete(merged), merged.origin


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
