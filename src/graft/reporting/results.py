"""The file that figures, tables and the paper read: results.json, and the per-example rows beside it.

`assemble` makes it from scored runs, `read_results` checks it, `graft.reporting.tables` shows it. Intervals are 95%.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graft import __version__
from graft.errors import UserError
from graft.reporting import stats
from graft.reporting.comparisons import GAP, Rows, differences, gaps_closed, seed_summary
from graft.reporting.reading import SCHEMA_VERSION, read_forensics, read_results, read_robustness
from graft.reporting.traits import by_trait
from graft.runtime.files import whole, write_text

__all__ = ["assemble", "example_rows", "metrics", "read_forensics", "read_results", "read_robustness", "share",
           "write_examples", "write_json"]
READINGS = ("accuracy_cls", "accuracy_dist", "accuracy_avg")  # columns and metrics
COLUMNS = ("index", "label", "prediction", "correct", "confidence", "nll", "label_rank")
TEXT_COLUMNS = ("index", "id", "gold", "prediction", "correct", "prediction_flexible", "correct_flexible", "text",
                "tokens", "ended")

# A list of numbers in indented JSON, one a line; no string has a line break in it.
NUMBERS = re.compile(r"\[\n *-?\d[\d.e+-]*(,\n *-?\d[\d.e+-]*)*\n *\]")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys, lists of numbers each in a line, in one step: readers see the old file or the new.

    Raises UserError for a value that is not finite.
    """
    path = Path(path)
    try:
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False,
                          default=lambda x: x.item())
        text = NUMBERS.sub(lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text)
        text.encode("utf-8")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")


def write_examples(path: str | Path, rows: dict[str, np.ndarray] | pd.DataFrame, fingerprint: str) -> None:
    """Write scored rows (`scoring.score`, `answers.judge`), one an example, with the fingerprint of their data."""
    frame = pd.DataFrame({**rows})
    if "label" in frame:
        frame = frame.assign(correct=frame["label"] == frame["prediction"])
        frame = frame[[*COLUMNS, *(name for name in READINGS if name in frame)]]
    frame.attrs["fingerprint"] = fingerprint
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        frame.to_parquet(temporary, index=False, write_page_checksum=True)


def example_rows(path: str | Path) -> pd.DataFrame:
    """The rows of a scored split sorted by index; `attrs["fingerprint"]` names the data."""
    try:
        frame = pd.read_parquet(path, page_checksum_verification=True)
    except Exception as error:  # of a damaged footer pyarrow and pandas read whatever it may say
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    columns = TEXT_COLUMNS if "gold" in frame else COLUMNS
    missing = [name for name in columns if name not in frame]
    if missing or "fingerprint" not in frame.attrs or not frame["index"].is_unique:
        raise UserError(f"{path}: expected columns {', '.join(columns)}, unique indices and a data fingerprint; "
                        f"{'missing ' + ', '.join(missing) if missing else 'not so'}")
    return frame.sort_values("index", ignore_index=True)


def same_items(frames: list[pd.DataFrame]) -> bool:
    """Whether rows of runs are of the same items with the same right answers, in one order."""
    truth = ["index", "gold" if "gold" in frames[0] else "label"]
    return all(set(truth) <= set(frame) and len(frame) == len(frames[0]) and frame[truth].equals(frames[0][truth])
               for frame in frames)


def share(hits: np.ndarray | pd.Series) -> dict[str, Any]:
    """The share of `hits` (N,) bool that are true, with count and Wilson interval."""
    count, n = int(hits.sum()), len(hits)
    return {"value": count / n, "n_correct": count, "ci95": list(stats.wilson(count, n))}


def metrics(rows: dict[str, np.ndarray] | pd.DataFrame, topk: Sequence[int] = ()) -> dict[str, dict[str, Any]]:
    """The metrics of one run from its rows: accuracy and top-k with count and Wilson interval, mean nll in nats.

    A student with a distillation token has the accuracy of each of its three readings besides (`READINGS`).
    """
    hits = {"accuracy": rows["label"] == rows["prediction"]}
    hits |= {f"top{k}": rows["label_rank"] < k for k in topk if k > 1}
    hits |= {name: np.asarray(rows[name], bool) for name in READINGS if name in rows}
    nll = float(np.mean(np.asarray(rows["nll"])))  # pandas would add them up in another order than numpy
    return {**{name: share(hit) for name, hit in hits.items()}, "nll": {"value": nll}}


def assemble(study: str, data: dict[str, Any], runs: list[dict[str, Any]], base_dir: str | Path,
             baseline: str = "baseline", *, references: Sequence[str] = (), curve: Sequence[dict[str, Any]] = (),
             contrasts: Sequence[tuple[str, str]] = (), primary: Sequence[tuple[str, str]] = (),
             code_sha: str = "unknown") -> dict[str, Any]:
    """The content of results.json from scored runs.

    A run is an entry of `conditions.*.runs` with its `condition` added; `examples` is relative to `base_dir`. Each
    condition is compared with `baseline` ("" for no comparison) on every split both have (`comparisons.differences`:
    of the seeds that both have, p-values Holm-adjusted over the conditions, within one split and metric), and as
    `vs_untrained` with the untrained model where it is there. `references`, such as the teachers, are listed and not
    compared: they are no arm of the experiment. `contrasts` are pairs (a, b) of any conditions, a family of their own.
    `primary`: those of all these pairs that were fixed as the main ones, adjusted among themselves.
    `curve` are scores of further checkpoints, as `runs`, summed up by step in `curve_summary`. Where `GAP` is there,
    `gap_closed` says how much of it each condition closes (`stats.gap_closed`), by split and metric. `traits` is the
    accuracy by the traits of questions, where rows hold any. Raises UserError where runs must not be compared: other
    data, other examples, two runs for one seed, rows that contradict their run.
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
        found = {split: by_trait(rows[name, split]) for split in dict.fromkeys(run["split"] for run in own)}
        if found := {split: traits for split, traits in found.items() if traits}:
            conditions[name]["traits"] = found
        if points := [one for one in curve if one["condition"] == name]:
            conditions[name]["curve"] = [{key: one[key] for key in ("seed", "step", "split", "n", "metrics")}
                                         for one in points]
            conditions[name]["curve_summary"] = _by_step(points, data, Path(base_dir))
    arms = [name for name in names if name not in references]
    if baseline in arms:
        _file(conditions, "vs_baseline", differences(
            rows, [(name, baseline) for name in arms if name != baseline], primary))
    if baseline != GAP[0]:
        _file(conditions, "vs_untrained", differences(rows, [(name, GAP[0]) for name in arms if name not in GAP]))
    _file(conditions, "gap_closed", gaps_closed(rows))
    return {"schema_version": SCHEMA_VERSION, "study": study, "data": dict(data), "code_sha": code_sha,
            "graft_version": __version__,
            "baseline": baseline, "order": names, "conditions": conditions,
            **({"primary": [list(pair) for pair in primary]} if primary else {}),
            **({"contrasts": differences(rows, contrasts, primary)} if contrasts else {})}


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
        if not same_items([other, frame]):
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
