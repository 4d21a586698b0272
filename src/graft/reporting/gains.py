"""What students gain over the baseline, by the accuracy of their teacher."""

import re
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from graft.errors import UserError


def teacher_of(condition: dict[str, Any]) -> str:
    """Name of the condition that trained the teacher; "" without one whose knowledge was passed on."""
    changed = {key: new for key, _, new in condition.get("differs", ())}
    if changed.get("teacher.shuffle") is True or changed.get("teacher.random_weights") is True:
        return ""
    return run_name(str(changed.get("teacher.path", "")))


def run_name(folder: str) -> str:
    """The condition or teacher that a run's folder is of, which may be its seed's."""
    path = PurePosixPath(folder)
    return path.parent.name if re.fullmatch(r"seed\d+", path.name) else path.name


def gains(content: dict[str, Any], split: str) -> pd.DataFrame:
    """One row a condition with a scored teacher: accuracies, gain with its interval, both efficiencies; fractions.

    Without teachers that have no classifier: how often their nearest images agree is no accuracy to compare with.

    `ratio` = student / teacher, which the original calls transfer efficiency and which rewards bad teachers, NaN for
    one that is never right;
    `gap_closed` = (student - baseline) / (teacher - baseline), NaN unless the teacher is better than the baseline.
    """
    conditions, baseline = content["conditions"], content.get("baseline", "")
    if baseline not in conditions:
        raise UserError("no baseline to compare with; score it with eval_checkpoints.py --baseline")
    mean = {name: c["summary"][split]["accuracy"]["mean"] for name, c in conditions.items() if split in c["summary"]}
    rows = []
    for name, condition in conditions.items():
        teacher, versus = teacher_of(condition), condition["vs_baseline"].get(split, {}).get("accuracy")
        if teacher not in mean or versus is None or any("readout" in run for run in conditions[teacher]["runs"]):
            continue
        gap = mean[teacher] - mean[baseline]
        rows.append({"condition": name, "teacher": teacher, "split": split, "seeds": versus["seeds"][0],
                     "teacher_accuracy": mean[teacher], "baseline_accuracy": mean[baseline],
                     "gain": versus["difference"], "low": versus["ci95"][0], "high": versus["ci95"][1],
                     "ratio": mean[name] / mean[teacher] if mean[teacher] else float("nan"),
                     "gap_closed": versus["difference"] / gap if gap > 0 else float("nan")})
    return pd.DataFrame(rows)
