"""What the report takes from a study's runs: their logs, and the examples on which conditions disagree, with pictures
or questions."""

import json
from pathlib import Path
from typing import Any

from graft.errors import UserError
from graft.evaluation import gallery
from graft.reporting import disagreements
from graft.reporting.report import Sources
from graft.runtime import files, runs

Logs = dict[str, dict[int, list[dict[str, float]]]]


def logs(folder: Path, names: list[str], missing: list[str]) -> tuple[Logs, dict[str, dict[int, dict[str, Any]]]]:
    """The lines of metrics.jsonl and the last attempt in metadata.json, by condition and seed; a run that did not
    finish or cannot be read is named in `missing`."""
    found: Logs = {}
    attempts: dict[str, dict[int, dict[str, Any]]] = {}
    for name in names:
        for run in files.seeds(folder / name):
            seed = int(run.name.removeprefix("seed"))
            if not runs.ended(run):
                missing.append(f"{run}: did not finish")
            if lines := _lines(run / "metrics.jsonl"):
                found.setdefault(name, {})[seed] = lines
            if attempt := runs.attempt(run):
                seconds = runs.look(run)[1]
                attempts.setdefault(name, {})[seed] = attempt | ({"hours": seconds / 3600} if seconds else {})
    return found, attempts


def _lines(path: Path) -> list[dict[str, float]]:
    """The records of a log by step; damaged lines are none. Values of one step are merged."""
    if not path.is_file():
        return []
    merged: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line, parse_constant=lambda _: None)
            merged.setdefault(record["step"], {}).update(record)
        except (ValueError, KeyError, TypeError):
            continue
    return [merged[step] for step in sorted(merged)]


def chosen(sources: Sources, limit: int, root: str, pictures: bool) -> dict[str, Any]:
    """The examples for `report.render`, with what is missing of them in words."""
    content = sources.results
    rows, missing = disagreements.rows_of(content, sources.folder, sources.split)
    arms = [name for name, condition in content["conditions"].items()
            if name == content.get("baseline") or condition["vs_baseline"]]
    places = disagreements.most(rows, arms, limit)
    notes = []
    if missing:
        notes.append(f"{len(missing)} runs have no rows here that belong to results.json; the first: {missing[0]}")
    if rows and not places:
        notes.append("On no example do the conditions disagree.")
    if not places:
        return {"cards": [], "notes": notes, "filters": [], "maps": False, "large": False}
    classes = content["data"].get("classes", [])
    cards = disagreements.cards(rows, places, classes if isinstance(classes, list) else list(map(str, range(classes))))
    for card in cards:
        card["wrong"] = [arm["name"] for arm in card["arms"] if not all(said["correct"] for said in arm["said"])]
    large = False
    if pictures:
        try:
            large = _illustrate(cards, sources, root, notes)
        except UserError as error:
            notes.append(f"No pictures or questions: {error}")
    return {"cards": cards, "notes": notes, "large": large, "filters": _filters(cards, sources),
            "maps": any("map" in arm for card in cards for arm in card["arms"])}


def _illustrate(cards: list[dict[str, Any]], sources: Sources, root: str, notes: list[str]) -> bool:
    """Add questions, or images and Grad-CAM, to the cards. Returns whether images are larger than they are shown."""
    first = {name: (sources.folder / name / f"seed{run['seed']}", run)
             for name, condition in sources.results["conditions"].items()
             for run in reversed(condition["runs"]) if run["split"] == sources.split}
    first = {name: first[name] for name in first if first[name][0].is_dir()}
    if not first:
        raise UserError(f"{sources.folder}: no run's folder")
    run_dir, places = next(iter(first.values()))[0], [card["place"] for card in cards]
    if cards[0]["id"] is not None:
        for card, more in zip(cards, gallery.questions(run_dir, sources.split, places, root), strict=True):
            card |= more
        return False
    uris, pixels = gallery.images(run_dir, sources.split, places, root)
    said = {arm["name"]: [one["arms"][k]["said"][0]["class"] for one in cards]
            for k, arm in enumerate(cards[0]["arms"])}
    maps, missing = gallery.maps({name: run for name, run in first.items() if name in said}, pixels, said)
    notes += missing
    for k, card in enumerate(cards):
        card["image"] = uris[k]
        for arm in card["arms"]:
            arm |= {"map": maps[arm["name"]][k]} if arm["name"] in maps else {}
    return max(pixels.shape[2:]) > gallery.LARGEST // 2


def _filters(cards: list[dict[str, Any]], sources: Sources) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """What the examples can be filtered by: name, title, and values with what is shown of them."""
    found = []
    for key, name, title in (("truth", "class", "class" if cards[0]["id"] is None else "answer"),
                             ("group", "group", "group")):
        values = sorted({card.get(key) or "" for card in cards} - {""})
        if len(values) > 1:
            found.append((name, title, [(value, value) for value in values]))
    wrong = sorted({name for card in cards for name in card["wrong"]})
    return [*found, ("wrong", "wrong in a seed of", [(name, sources.label(name)) for name in wrong])]
