"""The file that figures, tables and the paper read: results.json, and the per-example rows beside it.

`assemble` makes it from scored runs, `read_results` checks it, `graft.reporting.tables` shows it. Intervals are 95%.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graft.errors import UserError
from graft.reporting import stats
from graft.reporting.comparisons import GAP, Rows, differences, gaps_closed, seed_summary
from graft.runtime.files import write_text

SCHEMA_VERSION = 1
COLUMNS = ("index", "label", "prediction", "correct", "confidence", "nll", "label_rank")
TEXT_COLUMNS = ("index", "id", "gold", "prediction", "correct", "prediction_flexible", "correct_flexible", "text",
                "tokens", "ended")

_NUMBER, _OPTIONAL = (int, float), (int, float, type(None))
_CI95 = [(int, float, type(None))] * 2
_RUN = {"seed": int, "step": int, "split": str, "n": int, "examples": str, "checkpoint_sha256": str, "weights": str,
        "metrics": {"accuracy": {"n_correct": int, "ci95": _CI95}, "*": {"value": _NUMBER}}}
_MEAN = {"mean": _NUMBER, "ci95": _CI95, "seeds": int}
_VERSUS = {"difference": _NUMBER, "ci95": _CI95, "p_holm": _NUMBER, "detectable": _OPTIONAL}
# "*" stands for every key that is there; a list of one shape may have any length.
_SHAPE = {"study": str, "data": {"id": str, "fingerprint": str}, "code_sha": str, "conditions": {"*": {
    "runs": [_RUN], "summary": {"*": {"accuracy": _MEAN, "*": _MEAN}},
    "vs_baseline": {"*": {"accuracy": _VERSUS, "*": _VERSUS}}}}}
# What a condition of text has besides, each where it can be computed.
_TEXT = {"curve_summary": {"*": {"*": {"accuracy": _MEAN, "*": _MEAN}}},
         "curve": [{"seed": int, "step": int, "split": str, "n": int, "metrics": {"accuracy": {"value": _NUMBER}}}],
         "vs_untrained": {"*": {"*": {**_VERSUS, "scope": str}}},
         "gap_closed": {"*": {"*": {"value": _OPTIONAL, "ci95": [_OPTIONAL] * 2, "scope": str}}}}
_CONTRASTS = [{"a": str, "b": str, "split": str, "metric": str, **_VERSUS, "scope": str}]
_CLEAN = {"n": int, "ece": _NUMBER, "ece_calibrated": _NUMBER, "macro": {"auc": (int, float, type(None))},
          "reliability": [{"low": _NUMBER, "high": _NUMBER, "n": int}], "confusion": [[int]],
          "per_class": [{"class": str, "support": int}], "roc": {"*": {"fpr": [_NUMBER], "tpr": [_NUMBER]}}}
_ROBUSTNESS = {"study": str, "data": {"classes": [str]}, "order": [str],
               "conditions": {"*": {"runs": [{"seed": int, "split": str, "clean": _CLEAN}]}}}
_CKA = {"n": int, "layers_1": [str], "layers_2": [str], "cka": [[_OPTIONAL]], "null": {"max_abs": _OPTIONAL}}
_SEEN = {"seed": int, "grid": [int, int], "layer_distance": [_NUMBER], "avg_cls_dispersion": _OPTIONAL,
         "cls_collapse_ratio": _OPTIONAL, "collapsed_heads_ratio_relative": _NUMBER, "cka": {"self": _CKA},
         "per_layer_stats": {"*": {"mean_distance": [_NUMBER]}}}
_FORENSICS = {"study": str, "data": {"n": {"*": int}},
              "thresholds": {"relative": _NUMBER, "cls_collapse_warning": _NUMBER},
              "references": {"uniform": {"mean_distance": _NUMBER, "cls_dispersion": _OPTIONAL},
                             "random_init": {"runs": [_SEEN]}, "teacher_cka": {"*": {"*": _CKA}}},
              "conditions": {"*": {"runs": [_SEEN]}}}


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys in one step: readers see the old file or the whole new one.

    Raises UserError for a value that is not finite.
    """
    path = Path(path)
    try:
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False,
                          default=lambda x: x.item())
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")


def read_results(path: str | Path) -> dict[str, Any]:
    """A checked results.json. Raises UserError naming the file and the first key that is not as it should be."""
    content = _read(path, _SHAPE)
    for name, condition in content["conditions"].items():
        for key in condition.keys() & _TEXT.keys():
            _check(condition[key], _TEXT[key], str(path), f"conditions.{name}.{key}")
    if "contrasts" in content:
        _check(content["contrasts"], _CONTRASTS, str(path), "contrasts")
    return content


def read_robustness(path: str | Path) -> dict[str, Any]:
    """A checked robustness.json, as scripts/eval_robustness.py writes it; otherwise as `read_results`."""
    return _read(path, _ROBUSTNESS)


def read_forensics(path: str | Path) -> dict[str, Any]:
    """A checked forensics.json, as scripts/analyze_locality.py writes it; otherwise as `read_results`."""
    return _read(path, _FORENSICS)


def _read(path: str | Path, shape: dict) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version: expected {SCHEMA_VERSION}, got {version!r}")
    _check(content, shape, str(path), "")
    # the files' keys are sorted; tables and figures keep the order in which the conditions were given
    order = content.get("order", list(content["conditions"]))
    return {**content, "conditions": {name: content["conditions"][name] for name in order}}


def _check(value: Any, shape: Any, path: str, key: str) -> None:
    """Raise UserError at the first place where `value` has not the types that `shape` gives."""
    kind = shape if isinstance(shape, type | tuple) else type(shape)
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = " or ".join(t.__name__ for t in (kind if isinstance(kind, tuple) else (kind,)))
        raise UserError(f"{path}: {key}: expected {expected}, got {str(value)[:60]!r}")
    if kind is list:
        if len(shape) > 1 and len(value) != len(shape):
            raise UserError(f"{path}: {key}: expected {len(shape)} values, got {len(value)}")
        for i, item in enumerate(value):
            _check(item, shape[0], path, f"{key}[{i}]")
    if kind is dict:
        for name in [name for name in shape if name != "*"]:
            if name not in value:
                raise UserError(f"{path}: {f'{key}.{name}'.lstrip('.')}: missing")
            _check(value[name], shape[name], path, f"{key}.{name}".lstrip("."))
        for name in value if "*" in shape else ():
            _check(value[name], shape["*"], path, f"{key}.{name}".lstrip("."))


def write_examples(path: str | Path, rows: dict[str, np.ndarray] | pd.DataFrame, fingerprint: str) -> None:
    """Write scored rows (`scoring.score`, `answers.judge`), one an example, with the fingerprint of their data."""
    frame = pd.DataFrame({**rows})
    if "label" in frame:
        frame = frame.assign(correct=frame["label"] == frame["prediction"])[list(COLUMNS)]
    frame.attrs["fingerprint"] = fingerprint
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    frame.to_parquet(temporary, index=False)
    os.replace(temporary, path)


def example_rows(path: str | Path) -> pd.DataFrame:
    """The rows of a scored split sorted by index; `attrs["fingerprint"]` names the data."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    columns = TEXT_COLUMNS if "gold" in frame else COLUMNS
    missing = [name for name in columns if name not in frame]
    if missing or "fingerprint" not in frame.attrs or not frame["index"].is_unique:
        raise UserError(f"{path}: expected columns {', '.join(columns)}, unique indices and a data fingerprint; "
                        f"{'missing ' + ', '.join(missing) if missing else 'not so'}")
    return frame.sort_values("index", ignore_index=True)


def share(hits: np.ndarray | pd.Series) -> dict[str, Any]:
    """The share of `hits` (N,) bool that are true, with count and Wilson interval."""
    count, n = int(hits.sum()), len(hits)
    return {"value": count / n, "n_correct": count, "ci95": list(stats.wilson(count, n))}


def metrics(rows: dict[str, np.ndarray] | pd.DataFrame, topk: Sequence[int] = ()) -> dict[str, dict[str, Any]]:
    """The metrics of one run from its rows: accuracy and top-k with count and Wilson interval, mean nll in nats."""
    hits = {"accuracy": rows["label"] == rows["prediction"]}
    hits |= {f"top{k}": rows["label_rank"] < k for k in topk if k > 1}
    nll = float(np.mean(np.asarray(rows["nll"])))  # pandas would add them up in another order than numpy
    return {**{name: share(hit) for name, hit in hits.items()}, "nll": {"value": nll}}


def assemble(study: str, data: dict[str, Any], runs: list[dict[str, Any]], base_dir: str | Path,
             baseline: str = "baseline", *, references: Sequence[str] = (), curve: Sequence[dict[str, Any]] = (),
             contrasts: Sequence[tuple[str, str]] = (), code_sha: str = "unknown") -> dict[str, Any]:
    """The content of results.json from scored runs.

    A run is an entry of `conditions.*.runs` with its `condition` added; `examples` is relative to `base_dir`. Each
    condition is compared with `baseline` ("" for no comparison) on every split both have (`comparisons.differences`:
    seeds paired where they agree, p-values Holm-adjusted over the conditions, within one split and metric), and as
    `vs_untrained` with the untrained model where it is there. `references`, such as the teachers, are listed and not
    compared: they are no arm of the experiment. `contrasts` are pairs (a, b) of any conditions, a family of their own.
    `curve` are scores of further checkpoints, as `runs`, summed up by step in `curve_summary`. Where `GAP` is there,
    `gap_closed` says how much of it each condition closes (`stats.gap_closed`), by split and metric. Raises UserError
    where runs must not be compared: other data, other examples, two runs for one seed, rows that contradict their run.
    """
    names = list(dict.fromkeys(run["condition"] for run in runs))
    for key, name in [("baseline", baseline), *(("contrasts", name) for pair in contrasts for name in pair)]:
        if name not in names and (key, name) != ("baseline", ""):
            raise UserError(f"{key}: expected one of {', '.join(names)}, got {name!r}")
    rows = _all_rows(runs, data, Path(base_dir))
    conditions: dict[str, Any] = {}
    for name in names:
        own = [run for run in runs if run["condition"] == name]
        conditions[name] = {"runs": [{k: v for k, v in run.items() if k != "condition"} for run in own],
                            "summary": _summaries(own, rows), "vs_baseline": {}}
        if points := [one for one in curve if one["condition"] == name]:
            conditions[name]["curve"] = [{key: one[key] for key in ("seed", "step", "split", "n", "metrics")}
                                         for one in points]
            conditions[name]["curve_summary"] = _by_step(points, data, Path(base_dir))
    arms = [name for name in names if name not in references]
    if baseline in arms:
        _file(conditions, "vs_baseline", differences(rows, [(name, baseline) for name in arms if name != baseline]))
    if baseline != GAP[0]:
        _file(conditions, "vs_untrained", differences(rows, [(name, GAP[0]) for name in arms if name not in GAP]))
    _file(conditions, "gap_closed", gaps_closed(rows))
    return {"schema_version": SCHEMA_VERSION, "study": study, "data": dict(data), "code_sha": code_sha,
            "baseline": baseline, "order": names, "conditions": conditions,
            **({"contrasts": differences(rows, contrasts)} if contrasts else {})}


def _file(conditions: dict[str, Any], key: str, found: list[dict[str, Any]]) -> None:
    """Put each of `found` where it belongs: `conditions.<a>.<key>.<split>.<metric>`."""
    for one in found:
        own = conditions[one["a"]].setdefault(key, {}).setdefault(one["split"], {})
        own[one["metric"]] = {name: value for name, value in one.items() if name not in ("a", "b", "split", "metric")}


def _all_rows(runs: list[dict], data: dict[str, Any], base_dir: Path) -> Rows:
    """Rows by (condition, split) and seed, checked against their run, the data and each other."""
    rows: Rows = {}
    first: dict[str, tuple[Path, pd.DataFrame]] = {}
    for run in runs:
        path = base_dir / run["examples"]
        frame = example_rows(path)
        if frame.attrs["fingerprint"] != data["fingerprints"][run["split"]]:
            raise UserError(f"{path}: scored on data {frame.attrs['fingerprint']}, expected "
                            f"{data['fingerprints'][run['split']]}")
        for key in ("tokenizer_sha256", "template_sha256"):
            if run.get(key) != data.get(key):
                raise UserError(f"{path}: scored with another {key[:-7]} ({run.get(key)}, expected {data.get(key)})")
        counted = (len(frame), int(frame["correct"].sum()))
        stated = (run["n"], run["metrics"]["accuracy"]["n_correct"])
        if counted != stated:
            raise UserError(f"{path}: (n, n_correct) is {counted}, its run says {stated}")
        other_path, other = first.setdefault(run["split"], (path, frame))
        truth = ["index", "gold" if "gold" in other else "label"]
        if len(frame) != len(other) or truth[1] not in frame or (frame[truth] != other[truth]).any(axis=None):
            raise UserError(f"{path}: other examples or labels than {other_path} ({len(frame)} and {len(other)})")
        seeds = rows.setdefault((run["condition"], run["split"]), {})
        if run["seed"] in seeds:
            raise UserError(f"{path}: a second run of {run['condition']}, seed {run['seed']}, {run['split']}")
        seeds[run["seed"]] = frame
    return rows


def _by_step(points: list[dict], data: dict[str, Any], base_dir: Path) -> dict[str, dict[str, Any]]:
    """The summaries of a curve: `<split>.<step>.<metric>`."""
    found: dict[str, dict[str, Any]] = {}
    for step in sorted({one["step"] for one in points}):
        own = [one for one in points if one["step"] == step]
        for split, summary in _summaries(own, _all_rows(own, data, base_dir)).items():
            found.setdefault(split, {})[str(step)] = summary
    return found


def _summaries(runs: list[dict], rows: Rows) -> dict[str, dict[str, Any]]:
    """Mean and t-interval over seeds of every metric that all runs of a split have."""
    summary: dict[str, dict[str, Any]] = {}
    for split in dict.fromkeys(run["split"] for run in runs):
        own = [run for run in runs if run["split"] == split]
        frames = [rows[run["condition"], split][run["seed"]] for run in own]
        summary[split] = {metric: seed_summary([run["metrics"][metric]["value"] for run in own], metric, frames)
                          for metric in own[0]["metrics"] if all(metric in run["metrics"] for run in own)}
    return summary
