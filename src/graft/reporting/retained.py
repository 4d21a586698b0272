"""From a study's runs to retention.json: what each condition kept, with intervals over seeds and items."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graft.errors import UserError
from graft.reporting import results, stats, tables
from graft.reporting.reading import SCHEMA_VERSION

Asked = tuple[str, str]  # a probe, with so many worked examples
Runs = Sequence[dict[str, Any]]  # of one condition, a seed each, as evaluation.retention makes them


def assemble(study: str, data: dict[str, Any], conditions: dict[str, Runs], untrained: dict[str, Any], base_dir: Path,
             others: Sequence[str], code_sha: str = "unknown") -> dict[str, Any]:
    """The content of retention.json.

    `others` are the probes that no condition was trained on. `retention` of a condition sums up: `accuracy`, its
    difference to the untrained model over all questions of `others` with the most worked examples, and `kl`, on the
    plain text.
    """
    before = _frames([untrained], base_dir)
    after = {name: _frames(runs, base_dir) for name, runs in conditions.items()}
    for (name, theirs), (probe, shots) in itertools.product(after.items(), before):
        if not results.same_items([*before[probe, shots], *theirs[probe, shots]]):
            raise UserError(f"{base_dir}: {name}: {probe}, {shots} shots: asks other questions than the untrained "
                            f"model of {next(iter(conditions))}; expected conditions of one task")
    reference, found = _right(before), {}
    for name, runs in conditions.items():
        rows = _right(after[name])
        probes = {probe: {"shots": {shots: _of_shots(runs, probe, shots, rows, reference)
                                    for shots in runs[0]["probes"][probe]},
                          "kl": _mean([run["kl"][probe] for run in runs])} for probe in runs[0]["probes"]}
        most = max(runs[0]["probes"]["trained"], key=int)
        pooled = [np.concatenate([side[probe, most] for probe in others], axis=1) for side in (rows, reference)
                  ] if others else []
        text = _mean([run["kl"]["text"] for run in runs])
        found[name] = {
            "runs": [{key: run[key] for key in ("seed", "step", "weights", "checkpoint_sha256")} for run in runs],
            "probes": probes, "text": {"kl": text},
            "retention": {**({"accuracy": {**_versus(*pooled), "shots": int(most)}} if pooled else {}),
                          "kl": text}}
    own = {probe: {"shots": {shots: _of_shots([untrained], probe, shots, reference) for shots in asked}}
           for probe, asked in untrained["probes"].items()}
    return {"schema_version": SCHEMA_VERSION, "study": study, "data": dict(data), "code_sha": code_sha,
            "others": list(others), "order": list(found), "conditions": found, "untrained": {"probes": own}}


def _frames(runs: Runs, base_dir: Path) -> dict[Asked, list[pd.DataFrame]]:
    """The rows of each run."""
    return {(probe, shots): [results.example_rows(base_dir / run["probes"][probe][shots]["examples"]) for run in runs]
            for probe, asked in runs[0]["probes"].items() for shots in asked}


def _right(frames: dict[Asked, list[pd.DataFrame]]) -> dict[Asked, np.ndarray]:
    """Right or wrong, (S, N) bool."""
    return {asked: np.stack([frame["correct"].to_numpy() for frame in own]) for asked, own in frames.items()}


def _of_shots(runs: Runs, probe: str, shots: str, rows: dict[Asked, np.ndarray],
              reference: dict[Asked, np.ndarray] | None = None) -> dict[str, Any]:
    """Accuracy, length and end of the answers; with a `reference` the difference to the untrained model."""
    entries = [run["probes"][probe][shots] for run in runs]
    right = rows[probe, shots]
    versus = {"vs_untrained": _versus(right, reference[probe, shots])} if reference else {}
    return {"n": right.shape[1], "accuracy": _mean(right), **versus,
            "tokens": stats.seed_summary([one["metrics"]["tokens"]["value"] for one in entries], stats.POSITIVE),
            "cut_off": stats.seed_summary([1 - one["metrics"]["ended"]["value"] for one in entries], stats.SHARE)}


def _versus(right: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """The difference to the untrained model, whose one run stands against every seed."""
    found = stats.paired_difference(right, np.repeat(before, len(right), 0), draws=1)
    return {key: found[key] for key in ("difference", "ci95", "p", "scope", "cut") if key in found} | {
        "seeds": len(right), "n": right.shape[1]}


def _mean(values: Any) -> dict[str, Any]:
    """The mean of (S, N) with a 95% interval for new seeds and new items."""
    values = np.asarray(values)
    counts = values.dtype == bool
    found = stats.paired_difference(values, np.zeros_like(values), draws=1)
    low, high = found["ci95"]
    if low is not None:  # a share or a divergence is not below 0
        low, high = max(low, 0.0), min(high, 1.0) if counts else high
    return {"mean": found["difference"], "ci95": [low, high], "seeds": len(values), "n": values.shape[1],
            "scope": found["scope"]}


def shown(content: dict[str, Any]) -> str:
    """The summary as a table in Markdown."""
    lines = []
    for name, condition in content["conditions"].items():
        most = max(condition["probes"]["trained"]["shots"], key=int)
        own, kept = condition["probes"]["trained"]["shots"][most]["accuracy"], condition["retention"]
        versus = kept.get("accuracy")
        other = _interval(versus["difference"], versus["ci95"], 100, "+") if versus else ""
        lines.append({"condition": name, "own rule with examples %": _interval(own["mean"], own["ci95"], 100),
                      "other rules, to untrained, points": other,
                      "KL on plain text, nats": _interval(kept["kl"]["mean"], kept["kl"]["ci95"], 1)})
    return tables.cells_to_markdown(pd.DataFrame(lines))


def _interval(middle: float, ends: Sequence[float | None], scale: float, sign: str = "") -> str:
    between = "" if ends[0] is None else f" [{scale * ends[0]:{sign}.2f}, {scale * ends[1]:{sign}.2f}]"
    return f"{scale * middle:{sign}.2f}{between}"
