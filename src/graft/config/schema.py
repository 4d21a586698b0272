"""What a configuration value may be: its type, its allowed range and one line of help.

A field is declared once, where it is used, as `Annotated[type, rule, help]`: in the dataclasses of
`options.py` and in the keyword-only arguments of every part (`def build(task, *, patch: Annotated[int,
"> 0", "pixels"] = 4)`). Parts are read with `ast`, not imported, so that a typo in a loss's argument
is reported before torch, which takes seconds to import.

Rules: `"> 0"`, `">= 2"`, `"[0, 1]"`, `"[0, 1)"`, `"soft | hard"` (one of), `"duration"`, `"name"`.
For a list the rule holds for each element.

A fourth text, `Annotated[type, rule, help, why]`, says why the value has no influence on the result. Such a key is no
part of what the run is: it may change when a run is resumed, and is no difference between two recipes.

A fifth text, `Annotated[type, rule, help, "", since]`, says when a key came that earlier runs did not have. At its
default it is left out of what a run is, so that those runs, their caches and references are still what is asked for.
"""

import ast
import dataclasses
import difflib
import functools
import math
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from graft.errors import UserError

ROOT = Path(__file__).parent.parent  # the package
REQUIRED = object()
LARGEST = 2**53  # integers up to here are exact wherever JSON is read
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NAME_RULE = "a name of 1 to 64 of a-z, 0-9, '.', '_', '-', the first a letter or digit"
# What an untrained model reads, beside its numbers of worked examples: base_4shot and base_kshot are theirs.
CONTEXT = re.compile(rf"(?!(?:k|\d+)shot$){NAME.pattern}")
CONTEXT_RULE = f"{NAME_RULE}, and not such as 4shot"
DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(ep|st|%)", re.ASCII)
# The function of a part's file whose keyword-only arguments are its configuration.
ENTRY = {"tasks": "build", "students": "build", "teachers": "build", "losses": "loss", "augment": "apply"}


@dataclasses.dataclass(frozen=True)
class Field:
    """One configurable value: its name, type, default (`REQUIRED` if none), rule and help.

    `same` says why it has no influence on the result; empty: it has one. `since` says when it came; empty: it was there
    from the first.
    """

    name: str
    type: Any
    default: Any
    rule: str = ""
    help: str = ""
    same: str = ""
    since: str = ""

    def tells(self, value: Any) -> bool:
        """Whether a run with this value is another run for it."""
        return not self.same and not (self.since and value == self.default)


def _field(name: str, annotation: Any, default: Any) -> Field:
    notes: list[str] = []
    if get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
    return Field(name, annotation, default, *notes)


def dataclass_fields(cls: type) -> dict[str, Field]:
    """The fields of a config dataclass, in order."""
    hints = get_type_hints(cls, include_extras=True)
    fields = {}
    for item in dataclasses.fields(cls):
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        fields[item.name] = _field(item.name, hints[item.name],
                                   REQUIRED if default is dataclasses.MISSING else default)
    return fields


def part_names(kind: str) -> list[str]:
    """The names that a part of `kind` may have: the files in its folder."""
    folder = ROOT / kind
    return sorted(path.stem for path in folder.glob("*.py")
                  if not path.stem.startswith("_") and _entry(kind, path.stem) is not None)


@functools.cache
def _tree(kind: str, name: str) -> ast.Module:
    return ast.parse((ROOT / kind / f"{name}.py").read_text())


def _entry(kind: str, name: str) -> ast.FunctionDef | None:
    for node in _tree(kind, name).body:
        if isinstance(node, ast.FunctionDef) and node.name == ENTRY[kind]:
            return node
    return None


@functools.cache
def part_fields(kind: str, name: str) -> dict[str, Field]:
    """The keyword-only arguments of a part's entry function, read without importing it."""
    arguments = _entry(kind, name).args
    scope = {"Annotated": Annotated, "__builtins__": {}, "list": list, "dict": dict,
             "bool": bool, "int": int, "float": float, "str": str}
    fields = {}
    for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        annotation = eval(compile(ast.Expression(arg.annotation), f"{kind}/{name}.py", "eval"), scope)
        value = REQUIRED if default is None else ast.literal_eval(default)
        fields[arg.arg] = _field(arg.arg, annotation, list(value) if isinstance(value, tuple) else value)
    return fields


def part_tensors(kind: str, name: str) -> list[str]:
    """The positional arguments of a part's entry function: what the caller must hand it."""
    return [arg.arg for arg in _entry(kind, name).args.args]


def part_help(kind: str, name: str) -> str:
    """The first line of a part's file docstring."""
    return (ast.get_docstring(_tree(kind, name)) or "").split("\n")[0]


def part_constant(kind: str, name: str, constant: str) -> Any:
    """A literal assigned at the top of a part's file (such as `CLASSES = 10`), or None."""
    for node in _tree(kind, name).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == constant:
            return ast.literal_eval(node.value)
    return None


def nearest(key: str, valid: list[str]) -> str:
    """`"; did you mean …?"`, or the valid keys where nothing is near."""
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; one of: {', '.join(sorted(valid))}"


def check(value: Any, field: Field) -> Any:
    """`value` as `field` wants it (an int where a float is wanted becomes one).

    Raises `UserError` with what was expected and what was got; the caller adds file and key.
    """
    if get_origin(field.type) is list:
        if not isinstance(value, list):
            raise UserError(f"expected a list, got {shown(value)}")
        (element,) = get_args(field.type)
        return [check(item, dataclasses.replace(field, type=element)) for item in value]
    if get_origin(field.type) is dict or field.type is dict:
        if not isinstance(value, dict):
            raise UserError(f"expected a mapping, got {shown(value)}")
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
        raise UserError(f"expected a number of at most {LARGEST}, got one of {len(f'{abs(value):x}')} hex digits")
    if field.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if field.rule == "duration" and (value == "0" or (value == 0 and not isinstance(value, bool))):
        value = "0st"
    if not isinstance(value, field.type) or (field.type is int and isinstance(value, bool)):
        names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
        raise UserError(f"expected {names[field.type]}, got {shown(value)}")
    if field.type is float and not math.isfinite(value):
        raise UserError(f"expected a finite number, got {value!r}")
    if field.type is str and any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
        raise UserError(f"expected text in UTF-8 without control characters, got {shown(value)}")
    if not _obeys(value, field.rule):
        wanted = {"duration": "a duration such as 10ep, 500st or 5%", "name": NAME_RULE}.get(field.rule, field.rule)
        raise UserError(f"must be {'one of ' if '|' in field.rule else ''}{wanted}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value as it stands in a message, cut short."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}…"


def _obeys(value: Any, rule: str) -> bool:
    if not rule:
        return True
    if rule == "duration":
        return bool(DURATION.fullmatch(value))
    if rule == "name":
        return bool(NAME.fullmatch(value))
    if "|" in rule:
        return value in [choice.strip() for choice in rule.split("|")]
    if rule[0] in "[(":
        low, high = (float(end) for end in rule[1:-1].split(","))
        above = value >= low if rule[0] == "[" else value > low
        below = value <= high if rule[-1] == "]" else value < high
        return above and below
    operator, bound = rule.split()
    return value > float(bound) if operator == ">" else value >= float(bound)


def amount(duration: str) -> tuple[float, str]:
    """A duration's number and unit: `ep` epochs, `st` optimizer steps, `%` of the whole run."""
    number, unit = DURATION.fullmatch(duration).groups()
    return float(number), unit


def to_steps(duration: str, steps_per_epoch: int, total_steps: int | None = None) -> int:
    """Optimizer steps in a duration, to the nearest: `"10ep"` epochs, `"500st"` steps, `"5%"` of the whole run."""
    number, unit = amount(duration)
    return round(number * {"ep": steps_per_epoch, "st": 1, "%": (total_steps or 0) / 100}[unit])
