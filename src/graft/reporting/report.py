"""A study as one page for a reader: what came out, whether to believe it, and what it looks like.

Only the JSON files of a study and the rows beside them are read; what is not there is named in the report, never an
error. Names and answers are text, whatever they hold: the template escapes, and the page may load nothing.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from graft.config.study.options import Study
from graft.errors import UserError
from graft.reporting import claims, figures, reading, tables
from graft.reporting.page import sections

PAGE = resources.files("graft.reporting.page")
LARGEST = 15 * 2**20  # bytes: what can be sent to a colleague
FILES = {"results": ("scores", reading.read_results), "forensics": ("forensics", reading.read_forensics),
         "robustness": ("robustness", reading.read_robustness), "retention": ("retention", reading.read_retention)}


@dataclass
class Sources:
    """What there is of a study: its file if it has one, the JSON files by name, logs by condition and seed, the runs'
    metadata by condition and seed, and, in words, what is `missing`."""

    name: str
    folder: Path
    split: str
    study: Study | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, dict[int, list[dict[str, float]]]] = field(default_factory=dict)
    attempts: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)  # what it does -> command line
    missing: list[str] = field(default_factory=list)

    @property
    def results(self) -> dict[str, Any]:
        """results.json, or what it would be without any score."""
        return self.files.get("results", {"conditions": {}, "data": {}, "baseline": ""})

    def label(self, name: str) -> str:
        """The display name of a condition."""
        own = self.study.conditions.get(name) if self.study else None
        return reading.labels(self.results).get(name) or (own.label if own and own.label else name)

    def asks(self, name: str) -> str:
        """The question for which a condition is there; empty where the study's file has none."""
        own = self.study.conditions.get(name) if self.study else None
        return own.asks if own else ""

    def names(self) -> list[str]:
        """All conditions, scored or planned, in the order of the results, then of the study."""
        planned = self.study.conditions if self.study else {}
        return list(dict.fromkeys([*self.results["conditions"], *planned, *self.logs]))

    def number(self, name: str) -> int:
        """Which colour is a condition's."""
        return self.names().index(name)


def read(name: str, folder: Path, split: str, study: Study | None) -> Sources:
    """The JSON files of a study's folder. Raises UserError for a damaged results.json; other files that are damaged or
    speak of other checkpoints are named as missing."""
    found = Sources(name, folder, split, study)
    for stem, (step, reader) in FILES.items():
        path = folder / f"{stem}.json"
        if not path.is_file():
            wanted = study is None or step in study.then
            found.missing += [f"{path.name}: not made"] if wanted else []
            continue
        try:
            content = reader(path)
            if stem != "results" and "results" in found.files:
                reading.check_same(found.results, content, path)
        except UserError as error:
            if stem == "results":
                raise
            found.missing.append(f"left out: {error}")
            continue
        found.files[stem] = content
    _planned(found)
    return found


def _planned(found: Sources) -> None:
    """Name conditions and seeds that the study plans and results.json does not have."""
    for name, condition in (found.study.conditions if found.study else {}).items():
        seeds = set(condition.seeds or found.study.seeds)
        runs = found.results["conditions"].get(name, {"runs": []})["runs"]
        if not (scored := {run["seed"] for run in runs if run["split"] == found.split}):
            found.missing.append(f"{name}: not scored on {found.split}")
        elif seeds - scored:
            found.missing.append(f"{name}: seeds {', '.join(map(str, sorted(seeds - scored)))} not scored on "
                                 f"{found.split}")


def render(sources: Sources, examples: dict[str, Any]) -> str:
    """The page. `examples`: `cards` (`disagreements.cards`, with `image`, `maps` or `question` where there are),
    `filters` and `note`. Raises UserError if it is larger than `LARGEST`."""
    results, style, script = sources.results, _asset("style.css"), _asset("script.js")
    style = style.replace("/* colours */", _colours())
    cards = claims.of_results(results, sources.split, sources.label)
    told = claims.of_forensics(sources.files.get("forensics", {}), sources.label)
    environment = jinja2.Environment(loader=jinja2.FunctionLoader(_asset), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"label": sources.label, "colour": sources.number}
    page = environment.get_template("page.html.j2").render(
        sources=sources, results=results, data=results["data"], warnings=sections.warnings(results), cards=cards,
        told=told, style=style, script=script, sha=_sha(script), style_sha=_sha(style), tables=_tables(sources),
        accuracy=sections.accuracy(sources), conditions=sections.conditions(sources), curves=sections.curves(sources),
        forensics=sections.forensics(sources), robustness=sections.robustness(sources),
        per_class=sections.per_class(sources), retention=sections.retention(sources),
        provenance=sections.provenance(sources), examples=examples)
    if (size := len(page.encode())) > LARGEST:
        raise UserError(f"report: {size / 2**20:.1f} MB, more than {LARGEST >> 20}; show fewer --examples")
    return page


def _tables(sources: Sources) -> list[dict[str, Any]]:
    """The tables of the split as text, each with a caption."""
    if "results" not in sources.files:
        return []
    found = []
    for caption, frame in (("Conditions", tables.table(sources.results)),
                           ("Contrasts", tables.contrasts(sources.results))):
        own = frame[frame["split"] == sources.split] if len(frame) else frame
        if len(own):
            own.attrs = frame.attrs
            shown = tables.display(own)
            found.append({"caption": f"{caption}, {sources.split} split", "head": list(shown),
                          "rows": shown.to_numpy().tolist()})
    return found


def _asset(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _sha(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _colours() -> str:
    """The figures' colours as classes."""
    return "\n".join(f".c{i} {{ --c: {colour}; }}" for i, colour in enumerate(figures.colours()))
