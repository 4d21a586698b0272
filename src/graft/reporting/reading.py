"""Reading the JSON files of a study: whole, of the shape that is expected, every number finite; or one line that says
where it is not so."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graft.errors import UserError
from graft.reporting.shapes import FORENSICS, MEAN, RESULTS, RETENTION, ROBUSTNESS, Count, Optional, Share

SCHEMA_VERSION = 1
LARGEST = 2**63  # no count is beyond it, and a float holds it
DEEPEST = 100


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises UserError naming the file, and the key of what is no finite number or text."""
    try:
        content = json.loads(Path(path).read_bytes().decode("utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    _finite(content, str(path), "")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r:.60} is there twice")
    return found


def _finite(value: Any, path: str, key: str, depth: int = 0) -> None:
    """Raise UserError at the first number that is none, or text that is not Unicode."""
    if depth > DEEPEST:
        raise UserError(f"{path}: {key[:60]}…: nested more than {DEEPEST} times")
    if isinstance(value, dict):
        for name, inner in value.items():
            _text(name, path, key)
            _finite(inner, path, f"{key}.{name}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _finite(inner, path, f"{key}[{i}]", depth + 1)
    elif isinstance(value, str):
        _text(value, path, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: {key}: expected a finite number, got {value}")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{path}: {key}: expected a number up to 2**63, got one of {value.bit_length()} bits")


def _text(value: str, path: str, key: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{path}: {key}: expected Unicode text, got {ascii(value)[:60]}") from None


def check(value: Any, shape: Any, path: str, key: str = "") -> None:
    """Raise UserError at the first place where `value` is not of `shape` (see `graft.reporting.shapes`)."""
    def refuse(expected: str) -> None:
        raise UserError(f"{path}: {key}: expected {expected}, got {str(value)[:60]!r}")

    if isinstance(shape, Optional):
        return None if value is None else check(value, shape.shape, path, key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(shape, Share):
        return None if number and 0 <= value <= 1 else refuse("a number in [0, 1]")
    if isinstance(shape, Count):
        if not number or not isinstance(value, int):
            return refuse("int")
        return None if value >= shape.least else refuse(f"at least {shape.least}")
    kind = shape if isinstance(shape, type | tuple) else type(shape)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kind) or (isinstance(value, bool) and not {bool, object} & set(kinds)):
        refuse(" or ".join(one.__name__ for one in kinds))
    if kind is list:
        if len(shape) > 1 and len(value) != len(shape):
            raise UserError(f"{path}: {key}: expected {len(shape)} values, got {len(value)}")
        for i, inner in enumerate(value):
            check(inner, shape[i if len(shape) > 1 else 0], path, f"{key}[{i}]")
    if isinstance(shape, dict):
        _keys(value, shape, path, key)
    return None


def _keys(value: dict[str, Any], shape: dict[str, Any], path: str, key: str) -> None:
    own = {name.rstrip("?"): (inner, name.endswith("?")) for name, inner in shape.items() if name != "*"}
    for name, (inner, may_miss) in own.items():
        if name in value:
            check(value[name], inner, path, f"{key}.{name}".lstrip("."))
        elif not may_miss:
            raise UserError(f"{path}: {f'{key}.{name}'.lstrip('.')}: missing")
    for name in [name for name in value if "*" in shape and name not in own]:
        check(value[name], shape["*"], path, f"{key}.{name}".lstrip("."))
    if shape is MEAN and None not in value["ci95"] and sorted(found := [*value["ci95"], value["mean"]])[1] != found[2]:
        raise UserError(f"{path}: {key}.ci95: expected an interval around the mean {found[2]}, got {found[:2]}")


def read_results(path: str | Path) -> dict[str, Any]:
    """A checked results.json. Raises UserError naming the file and the first key that is not as it should be."""
    content = _read(path, RESULTS)
    for name, condition in content["conditions"].items():
        scored = {run["split"] for run in condition["runs"]}
        for split in condition["summary"].keys() ^ scored:
            why = "no run was scored on it" if split not in scored else "missing, and runs were scored on it"
            raise UserError(f"{path}: conditions.{name}.summary.{split}: {why}")
    classes = content["data"].get("classes", 1)
    if not classes or (isinstance(classes, int) and classes < 1):
        raise UserError(f"{path}: data.classes: expected some, got {classes!r}")
    return content


def condition_labels(content: dict[str, Any]) -> dict[str, str]:
    """The display names of a results.json's conditions; those that have none are missing."""
    return {name: condition["label"] for name, condition in content["conditions"].items() if "label" in condition}


def labels(content: dict[str, Any]) -> dict[str, str]:
    """The display names of a results.json, by condition and metric; those that have none are missing."""
    return condition_labels(content) | content.get("metric_labels", {})


def contrasts(content: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """The contrasts of a results.json in accuracy on a split."""
    return [one for one in content.get("contrasts", []) if (one["split"], one["metric"]) == (split, "accuracy")]


def primary(content: dict[str, Any]) -> set[tuple[str, str]]:
    """The comparisons of a results.json that were fixed beforehand as the main ones, as (condition, other)."""
    return {(a, b) for a, b in content.get("primary", ())}


def corrupted_of(robustness: dict[str, Any]) -> tuple[int, int] | None:
    """How many images were corrupted, of how many that were scored; None where it was all of them."""
    sizes = robustness["data"].get("n", {})
    some = sizes.get("corrupted"), sizes.get("clean")
    return None if some[0] == some[1] else some


def read_robustness(path: str | Path) -> dict[str, Any]:
    """A checked robustness.json, as scripts/eval_robustness.py writes it; otherwise as `read_results`."""
    content = _read(path, ROBUSTNESS)
    size = len(content["data"]["classes"])
    for name, condition in content["conditions"].items():
        for i, run in enumerate(condition["runs"]):
            where, clean = f"{path}: conditions.{name}.runs[{i}].clean", run["clean"]
            if len(clean["per_class"]) != size:
                raise UserError(f"{where}.per_class: expected {size}, as data.classes")
            if [len(row) for row in clean["confusion"]] != [size] * size:
                raise UserError(f"{where}.confusion: expected {size} rows of {size} numbers, as data.classes")
            for key, curve in clean["roc"].items():
                if not len(curve["fpr"]) == len(curve["tpr"]) > 0:
                    raise UserError(f"{where}.roc.{key}: expected as many fpr as tpr, and some")
    return content


def read_retention(path: str | Path) -> dict[str, Any]:
    """A checked retention.json, as scripts/eval_retention.py writes it; otherwise as `read_results`."""
    return _read(path, RETENTION)


def read_forensics(path: str | Path) -> dict[str, Any]:
    """A checked forensics.json, as scripts/analyze_locality.py writes it; otherwise as `read_results`."""
    content = _read(path, FORENSICS)
    groups = {name: condition["runs"] for name, condition in content["conditions"].items()}
    for name, runs in {**groups, "random_init": content["references"]["random_init"]["runs"]}.items():
        if not runs:
            raise UserError(f"{path}: {name}: runs: expected some, got none")
        for key, length in _FORENSICS_LENGTHS.items():
            if len(found := {length(run) for run in runs}) > 1:
                raise UserError(f"{path}: {name}: {key}: expected as many values in every run, got {sorted(found)}")
    _matrices(content, str(path), "")
    return content


_FORENSICS_LENGTHS: dict[str, Callable[[dict[str, Any]], int]] = {
    "layer_distance": lambda run: len(run["layer_distance"]),
    "per_layer_stats": lambda run: sum(len(layer["mean_distance"]) for layer in run["per_layer_stats"].values()),
    "cka.self": lambda run: len(run["cka"]["self"]["layers_1"])}


def _matrices(value: Any, path: str, key: str) -> None:
    """Raise UserError unless every CKA matrix has a row for each of `layers_1` and a column for each of `layers_2`."""
    if isinstance(value, dict):
        if "layers_1" in value:
            rows, columns = len(value["layers_1"]), len(value["layers_2"])
            if not rows or not columns or [len(row) for row in value["cka"]] != [columns] * rows:
                raise UserError(f"{path}: {key}.cka: expected {rows} rows of {columns} numbers, as its layers")
        for name, inner in value.items():
            _matrices(inner, path, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _matrices(inner, path, f"{key}[{i}]")


def _read(path: str | Path, shape: dict) -> dict[str, Any]:
    content = read_json(path)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version: expected {SCHEMA_VERSION}, got {str(version)[:60]}")
    check(content, shape, str(path))
    # the files' keys are sorted; tables and figures keep the order in which the conditions were given
    order = content.get("order", list(content["conditions"]))
    if sorted(order) != sorted(content["conditions"]):
        raise UserError(f"{path}: order: expected each of {', '.join(content['conditions']) or 'no conditions'} once, "
                        f"got {', '.join(order) or 'none'}")
    return {**content, "conditions": {name: content["conditions"][name] for name in order}}


def check_same(content: dict[str, Any], other: dict[str, Any], path: Path) -> None:
    """Raise UserError if a file speaks of other data or other checkpoints than results.json."""
    if other["data"]["fingerprint"] != content["data"]["fingerprint"]:
        raise UserError(f"{path}: is of other data than results.json; make both anew")
    known = {(name, run["seed"]): run["checkpoint_sha256"] for name, condition in content["conditions"].items()
             for run in condition["runs"]}
    for name, condition in other["conditions"].items():
        for run in condition["runs"]:
            if known.get((name, run["seed"]), run["checkpoint_sha256"]) != run["checkpoint_sha256"]:
                raise UserError(f"{path}: {name}, seed {run['seed']}: another checkpoint than that of results.json; "
                                "make both anew")
