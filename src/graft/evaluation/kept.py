"""What was measured before: used again only while it is of the same checkpoint, data, prompts, precision and code."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from graft.errors import UserError
from graft.reporting import reading, results
from graft.runtime.files import write_text


def score(path: Path, wanted: dict[str, Any], index: Sequence[int],
          again: Callable[[pd.DataFrame], tuple[pd.DataFrame, dict[str, Any]]]) -> dict[str, Any]:
    """The score at `path` if it agrees with all of `wanted` and its rows are those of the items `index`; else empty,
    also where one of its two files is missing or damaged.

    `again(rows)` judges the rows anew and computes their metrics. Where the score says something else, its rows are
    believed, and both files are written again.
    """
    try:
        entry = reading.read_json(path)
        rows = results.example_rows(path.with_suffix(".parquet"))
    except UserError:
        return {}
    if not isinstance(entry, dict) or any(key not in entry or entry[key] != value for key, value in wanted.items()):
        return {}
    if rows.attrs["fingerprint"] != wanted["data_fingerprint"] or rows["index"].tolist() != list(index):
        return {}
    judged, found = again(rows)
    if found != entry.get("metrics") or not judged.equals(rows):
        print(f"note: {path}: disagrees with its rows; judged again from them")
        entry["metrics"] = found
        results.write_examples(path.with_suffix(".parquet"), judged, wanted["data_fingerprint"])
        results.write_json(path, entry)
    return entry


def measured(path: Path, wanted: dict[str, Any], measure: Callable[[], dict[str, Any]], *,
             write: bool = True) -> dict[str, Any]:
    """What `measure()` finds, as JSON has it: what the file at `path` holds, if it says the same of all that is
    `wanted`; else measured now and, of several processes by the one that is to `write`, kept there, so that a study's
    hours of it can be interrupted."""
    try:
        there = reading.read_json(path)
    except UserError:
        there = None
    if isinstance(there, dict) and there.get("of") == wanted and isinstance(there.get("found"), dict):
        return there["found"]
    # Not sorted: the order of layers is that of a model's.
    text = json.dumps({"of": wanted, "found": measure()}, default=lambda x: x.item())
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text + "\n")
    return json.loads(text)["found"]
