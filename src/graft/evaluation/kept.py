"""Scores that were made before: used again only while they are of the same checkpoint, data, prompts and precision."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from graft.errors import UserError
from graft.reporting import reading, results


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
