"""The examples on which a study's conditions disagree most, from the per-example rows beside results.json."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graft.errors import UserError
from graft.reporting.results import example_rows

CLIPPED = 1500  # characters of an answer; what is longer is cut and says so

Rows = dict[str, dict[int, pd.DataFrame]]  # by condition and seed


def rows_of(content: dict[str, Any], base_dir: Path, split: str) -> tuple[Rows, list[str]]:
    """The rows of a split's runs, and a line for each that is not there or is not what results.json was made from."""
    found: Rows = {}
    missing = []
    for name, condition in content["conditions"].items():
        for run in (run for run in condition["runs"] if run["split"] == split):
            path = base_dir / run["examples"]
            if not path.is_file():
                missing.append(f"{path}: no rows")
                continue
            try:
                frame = example_rows(path)
            except UserError as error:
                missing.append(str(error))
                continue
            there = (len(frame), int(frame["correct"].sum()), frame.attrs["fingerprint"])
            said = (run["n"], run["metrics"]["accuracy"]["n_correct"], run.get("data_fingerprint", there[2]))
            if there != said:
                missing.append(f"{path}: other rows than results.json was made from")
                continue
            found.setdefault(name, {})[run["seed"]] = frame
    return found, missing


def most(rows: Rows, arms: list[str], limit: int) -> list[int]:
    """Places in the rows of the examples with the largest spread, over `arms`, of the share of seeds that are right.

    Ties go to the larger variance over arms, then to the first. Examples on which the arms agree are none.
    """
    present = [name for name in arms if name in rows]
    if len(present) < 2:
        return []
    right = np.stack([np.stack([frame["correct"] for frame in rows[name].values()]).mean(0) for name in present])
    spread = np.ptp(right, axis=0)
    order = np.lexsort((np.arange(right.shape[1]), -right.var(0), -spread))
    return [int(i) for i in order[:limit] if spread[i] > 0]


def cards(rows: Rows, places: list[int], classes: list[str]) -> list[dict[str, Any]]:
    """One example each: its truth, and what every condition's seeds said."""
    first = next(iter(next(iter(rows.values())).values()))
    text = "gold" in first
    found = []
    for place in places:
        truth = first.iloc[place]
        found.append({"place": place, "index": int(truth["index"]), "id": int(truth["id"]) if text else None,
                      "truth": str(truth["gold"]) if text else classes[int(truth["label"])],
                      "arms": [{"name": name, "said": [_said(seed, frame.iloc[place], classes)
                                                       for seed, frame in sorted(seeds.items())]}
                               for name, seeds in rows.items()]})
    return found


def _said(seed: int, row: pd.Series, classes: list[str]) -> dict[str, Any]:
    """What one seed said of an example."""
    if "gold" not in row:
        return {"seed": seed, "correct": bool(row["correct"]), "answer": classes[int(row["prediction"])],
                "confidence": f"{100 * row['confidence']:.0f} %", "class": int(row["prediction"])}
    whole = str(row["text"])
    return {"seed": seed, "correct": bool(row["correct"]), "flexible": bool(row["correct_flexible"]),
            "answer": str(row["prediction"]), "text": whole[:CLIPPED], "cut": max(len(whole) - CLIPPED, 0),
            "ended": bool(row["ended"])}
