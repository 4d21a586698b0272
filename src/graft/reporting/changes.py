"""Studies, or versions of one, side by side: which conditions are of another accuracy, beyond what seeds and items do.

Every study is compared with the first. Over the same items, row by row (`stats.paired_difference`); where the items
differ, or rows are not there, the two are independent and the interval is the longer (`unpaired_difference`).
"""

import math
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graft.errors import UserError
from graft.reporting import components, disagreements, reading, results, stats, tables


@dataclass(frozen=True)
class Side:
    """A results.json, the letter it is called by, and, by condition and seed, the rows of the split that are there."""

    path: Path
    name: str
    content: dict[str, Any]
    rows: disagreements.Rows

    def runs(self, condition: str, split: str) -> list[dict[str, Any]]:
        """The runs of a condition on the split, in the order of their seeds."""
        return sorted((run for run in self.content["conditions"].get(condition, {"runs": ()})["runs"]
                       if run["split"] == split), key=lambda run: run["seed"])

    def conditions(self, split: str) -> list[str]:
        """Those that were scored on the split, in the order of the study."""
        names = self.content.get("order") or list(self.content["conditions"])
        return [name for name in names if self.runs(name, split)]


def read(paths: list[Path], split: str) -> list[Side]:
    """The studies to compare. Raises UserError for what is no results.json and for one without scores on the split."""
    if len(paths) > len(string.ascii_uppercase):
        raise UserError(f"expected up to {len(string.ascii_uppercase)} files, got {len(paths)}")
    sides = []
    for path, name in zip(paths, string.ascii_uppercase):
        if path.resolve() in [side.path.resolve() for side in sides]:
            raise UserError(f"{path}: is there twice; expected different files")
        content = reading.read_results(path)
        rows, _ = disagreements.rows_of(content, path.parent, split)
        sides.append(Side(path, name, content, rows))
        if not sides[-1].conditions(split):
            raise UserError(f"{path}: no condition is scored on {split}")
    return sides


def compare(sides: list[Side], split: str) -> dict[str, Any]:
    """What `tables_of` shows and `--json` writes: `files`, `comparisons` and, by file, the conditions that `only` it
    has. Raises UserError if the first shares no condition with any other."""
    first, *others = sides
    found = []
    for other in others:
        common = [name for name in first.conditions(split) if name in other.conditions(split)]
        own = [{"condition": name, "a": first.name, "b": other.name, "split": split,
                **_compare(first, other, name, split)} for name in common]
        found += [{**one, "p_holm": p, "verdict": _verdict(one, p)}
                  for one, p in zip(own, stats.holm([one["p"] for one in own]))]
    if not found:
        there = "; ".join(f"{side.name}: {', '.join(side.conditions(split))}" for side in sides)
        raise UserError(f"{first.path}: no condition is scored on {split} in another file too ({there})")
    only = {side.name: [name for name in side.conditions(split)
                        if not any(name in other.conditions(split) for other in sides if other is not side)]
            for side in sides}
    return {"schema_version": reading.SCHEMA_VERSION, "split": split, "comparisons": found, "only": only,
            "files": [{"path": str(side.path), "name": side.name, "study": side.content["study"],
                       "code_sha": side.content["code_sha"], "graft_version": side.content.get("graft_version", ""),
                       "data": side.content["data"]["id"], "fingerprint": _fingerprint(side, split)} for side in sides],
            "effects": [{"condition": name, "file": side.name, "baseline": side.content["baseline"],
                         **side.content["conditions"][name]["vs_baseline"][split]["accuracy"]}
                        for side in sides for name in side.conditions(split)
                        if split in side.content["conditions"][name]["vs_baseline"]]}


def unpaired_difference(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of the runs `b` minus that of `a`, each on items of its own; as `stats.paired_difference` otherwise.

    The variance over seeds is the sum of both sides'; that of the items is the binomial one of a single run, which
    the mean of several seeds on the same items does not exceed. With one seed on a side it speaks of these checkpoints.
    """
    seed_var, item_var, sizes = [], 0.0, [len(a), len(b)]
    for runs in (a, b):
        n, values = runs[0]["n"], np.array([run["metrics"]["accuracy"]["value"] for run in runs])
        item_var += values.mean() * (1 - values.mean()) / n + 1 / n**2  # no interval of width zero
        seed_var.append(max(values.var(ddof=1), 1 / n**2) / len(values) if len(values) > 1 else 0.0)
    between = sum(seed_var) if all(seed_var) else 0.0
    difference = float(np.mean([run["metrics"]["accuracy"]["value"] for run in b])
                       - np.mean([run["metrics"]["accuracy"]["value"] for run in a]))
    half = float(components.half_width(between, item_var, min(sizes)))
    return {"difference": difference, "ci95": [max(difference - half, -1.0), min(difference + half, 1.0)],
            "p": components.p_value(difference, between, item_var, min(sizes)), "seeds": sizes[::-1],
            "detectable": components.detectable(between, item_var, min(sizes), 0.8),
            "scope": "seeds and examples" if between else "examples"}


def _compare(first: Side, other: Side, name: str, split: str) -> dict[str, Any]:
    """The change from `first` to `other` in a condition, and why it is paired or not."""
    runs = [side.runs(name, split) for side in (first, other)]
    frames = [side.rows.get(name, {}) for side in (first, other)]
    why = ""
    if _fingerprint(first, split) != _fingerprint(other, split):
        why = f"another {split} split"
    elif any(len(rows) < len(own) for rows, own in zip(frames, runs)):
        why = "rows are missing"
    elif not results.same_items([*frames[0].values(), *frames[1].values()]):
        why = "other items"
    if why:
        found = unpaired_difference(*runs)
    else:
        *sides, same_seeds = stats.matched(*frames)
        values = [np.stack([rows["correct"].to_numpy(bool) for rows in side.values()]) for side in sides]
        found = stats.paired_difference(values[1], values[0], paired_seeds=same_seeds, draws=1)
    keys = ("difference", "ci95", "cut", "p", "detectable", "scope", "seeds")
    means = {f"accuracy_{key}": side.content["conditions"][name]["summary"][split]["accuracy"]
             for key, side in zip("ab", (first, other))}
    shas = [[run["checkpoint_sha256"] for run in own] for own in runs]
    return {**{key: found[key] for key in keys if key in found}, **means, "paired": not why, "why_not": why,
            "same_checkpoints": shas[0] == shas[1]}


def _fingerprint(side: Side, split: str) -> str:
    return side.content["data"].get("fingerprints", {}).get(split, side.content["data"]["fingerprint"])


def _verdict(one: dict[str, Any], p_holm: float) -> str:
    if one["scope"] == "examples" and not one["same_checkpoints"]:
        return "undecided (1 seed)"  # another seed of the same method may be as far away
    if not stats.decided(one["ci95"], p_holm):
        return "no change found"
    return "higher" if one["ci95"][0] > 0 else "lower"


def tables_of(found: dict[str, Any]) -> list[pd.DataFrame]:
    """For people: the changes, then each condition's difference to its own baseline side by side, as text."""
    changes = [{"condition": one["condition"], "": f"{one['b']} − {one['a']}",
                "A, accuracy %": _mean(one["accuracy_a"]), "the other": _mean(one["accuracy_b"]),
                "difference, points": _difference(one), "p (Holm)": tables.p_value(one["p_holm"]),
                "detectable, points": tables.detectable(one["detectable"]), "found": one["verdict"],
                "items": "paired" if one["paired"] else f"unpaired: {one['why_not']}",
                "checkpoints": "same" if one["same_checkpoints"] else "other"} for one in found["comparisons"]]
    effects: dict[str, dict[str, str]] = {}
    for one in found["effects"]:
        head = f"{one['file']}, to {one['baseline']}"
        effects.setdefault(one["condition"], {"condition": one["condition"]})[head] = _difference(one)
    return [pd.DataFrame(changes), pd.DataFrame(list(effects.values())).fillna("–")]


def files_of(found: dict[str, Any]) -> str:
    """Which letter is which file, and what only one of them has."""
    lines = [f"{one['name']}: {one['study']} ({one['path']}; {one['data']}; commit {one['code_sha'][:12]}"
             f"{', graft ' + one['graft_version'] if one['graft_version'] else ''})" for one in found["files"]]
    return "\n".join([*lines, *(f"only in {name}: {', '.join(own)}" for name, own in found["only"].items() if own)])


def _mean(summary: dict[str, Any]) -> str:
    low, high = summary["ci95"]
    between = "" if low is None else f" {tables.ends(low, high, cut=summary.get('cut', ()))}"
    return f"{100 * summary['mean']:.2f}{between}" + (" (1 seed)" if summary["seeds"] == 1 else "")


def _difference(one: dict[str, Any]) -> str:
    low, high = one["ci95"]
    between = "" if low is None or math.isnan(low) else f" {tables.ends(low, high, '+', one.get('cut', ()))}"
    return f"{100 * one['difference']:+.2f}{between}" + (" (1 seed)" if one["scope"] == "examples" else "")
