"""Forensics of a study: what was measured of its runs, their references, and the verdicts on the claims."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graft import __version__
from graft.config.options import Config
from graft.errors import UserError
from graft.evaluation import kept
from graft.evaluation.forensics import SCHEMA_VERSION, Runs, compare, curve, describe, entry, look
from graft.evaluation.rebuild import runs_of
from graft.probes import attention, hypotheses, mediation
from graft.reporting import reading, results, stats
from graft.runtime.provenance import code_sha

SHARES = ("avg_patch_mass", "collapsed_heads_ratio", "collapsed_heads_ratio_relative", "avg_cls_self_attn",
          "cls_collapse_ratio")
LENGTHS = ("avg_attention_distance", "avg_relative_distance", "avg_distance_without_self", "avg_entropy",
           "avg_cls_dispersion")  # what is not below 0


@dataclass
class Condition:
    """What was measured of one condition."""

    configs: list[Config] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    distance: dict[int, Any] = field(default_factory=dict)  # seed -> (n,)

    @property
    def trace(self) -> dict[int, float]:
        """Hessian trace by seed."""
        return {e["seed"]: e["hessian"]["trace"]["value"] for e in self.entries if "hessian" in e}

    def warnings(self, reference: Config) -> list[str]:
        """What a reader of its numbers should know."""
        found = [f"seed {e['seed']}: {warning}" for e in self.entries for warning in e["warnings"]]
        own, known = ({**cfg.student.args, "inference": ""} for cfg in (self.configs[0], reference))  # heads apart
        if (self.configs[0].student.name, own) != (reference.student.name, known):
            found.append("its student is another than that of the random_init reference")
        return found


def measure(runs: Runs, folders: list[Path], curvature: bool) -> Condition:
    """All runs of a condition; with `curvature` the Hessian's trace of each and the spectrum of the first. What was
    measured before is read again where it is still true."""
    condition = Condition()
    for folder in folders:
        cfg, found, distance = _one(runs, folder, curvature, spectrum=not condition.entries)
        condition.configs.append(cfg)
        condition.entries.append(found)
        condition.distance[cfg.seed] = distance
    return condition


def _one(runs: Runs, folder: Path, curvature: bool, spectrum: bool) -> tuple[Config, dict[str, Any], np.ndarray]:
    """A run's configuration, what was measured of it, and each image's attention distance (n,)."""
    cfg, student, info = runs.student(folder)
    settings, of = runs.settings, runs.identity(cfg, info)
    place, end = folder / "eval", f"{settings.split}-{info['step']}.json"

    def look_at() -> dict[str, Any]:
        found, distance = entry(runs, cfg, student, info)
        return {"entry": found, "distance": distance.tolist()}

    seen = kept.measured(place / f"forensics-{end}", {**of, "kernel": settings.kernel, "images": [
        settings.images, settings.cka_images]}, look_at)
    found = seen["entry"]
    if curvature:
        found["hessian"] = kept.measured(
            place / f"curvature-{end}", {**of, "images": settings.hessian_images, "spectrum": spectrum},
            lambda: curve(runs, cfg, student, spectrum))
    return cfg, found, np.asarray(seen["distance"])


def summarise(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and 95% t-interval over seeds of every average, of the attention distance by layer, and of the effective
    receptive field of the last layer."""
    found: dict[str, Any] = {name: stats.seed_summary([e[name] for e in entries], within)
                             for names, within in ((SHARES, stats.SHARE), (LENGTHS, stats.POSITIVE)) for name in names
                             if all(e[name] is not None for e in entries)}
    found["layer_distance"] = [stats.seed_summary(layer, stats.POSITIVE)
                               for layer in zip(*(e["layer_distance"] for e in entries))]
    fields = [_last_field(e) for e in entries]
    if all(field["radius"] is not None for field in fields):
        found["receptive_field_radius"] = stats.seed_summary([field["radius"] for field in fields], stats.POSITIVE)
    if all("hessian" in e for e in entries):
        found["hessian_trace"] = stats.seed_summary([e["hessian"]["trace"]["value"] for e in entries])
    return found


def _last_field(found: dict[str, Any]) -> dict[str, Any]:
    return [*found["receptive_field"]["layers"].values()][-1]


def untrained(runs: Runs, configs: list[Config]) -> dict[str, Any]:
    """The reference of random initialisation: the very weights that runs with these seeds started from."""
    entries = []
    for cfg in configs:
        student = runs.untrained(cfg)
        seen, _ = look(runs, cfg, student)
        entries.append({"seed": cfg.seed, **seen, "cka": {"self": compare(runs, cfg, student, student)}})
    return {"runs": entries, "summary": summarise(entries)}


def teacher_references(runs: Runs, conditions: dict[str, Condition], base_dir: Path, baseline: str) -> dict[str, Any]:
    """CKA with each condition's teacher of students that never met it: untrained, and the baseline's (first seed)."""
    found: dict[str, Any] = {}
    for name, condition in conditions.items():
        cfg = condition.configs[0]
        teacher = runs.teacher(cfg)
        if teacher is None:
            continue
        found[name] = {"random_init": compare(runs, cfg, runs.untrained(cfg), teacher)}
        if baseline in conditions:
            student = runs.student(runs_of(base_dir, baseline)[0])[1]
            found[name]["baseline"] = compare(runs, cfg, student, teacher)
    return found


def check_same_data(runs: Runs, conditions: dict[str, Condition]) -> None:
    """Raise UserError unless all runs are looked at on the same images."""
    split = runs.settings.split
    known = {name: runs.task(cfg).fingerprints[split] for name, condition in conditions.items()
             for cfg in condition.configs}
    first = next(iter(known))
    for name, fingerprint in known.items():
        if fingerprint != known[first]:
            raise UserError(f"{name}: has other {split} data than {first} ({fingerprint[:12]} and {known[first][:12]})")


def assemble(runs: Runs, conditions: dict[str, Condition], base_dir: Path, roles: dict[str, str],
             results_file: Path | None, margin: float, doses: Sequence[str] = ()) -> dict[str, Any]:
    """The content of forensics.json. `doses`: the conditions that impose an attention distance, most local first."""
    reference = conditions.get(roles.get("baseline", ""), next(iter(conditions.values())))
    cfg = reference.configs[0]
    first = next(runs.images(cfg, 1))
    tokens = attention.geometry(runs.untrained(cfg), first)
    correct, distance = {}, {name: condition.distance for name, condition in conditions.items()}
    if results_file:
        measured = {"data": describe(runs, cfg), "conditions": {name: {"runs": condition.entries}
                                                                for name, condition in conditions.items()}}
        reading.check_same(results.read_results(results_file), measured, base_dir)
        correct = hypotheses.correctness(results_file, runs.settings.split)
    return {
        "schema_version": SCHEMA_VERSION, "study": base_dir.resolve().name, "code_sha": code_sha(),
        "graft_version": __version__,
        "data": describe(runs, cfg), "roles": roles, "order": list(conditions),
        "thresholds": {**attention.collapse_thresholds(tokens), "cls_collapse_warning": attention.CLS_WARNING},
        "references": {"uniform": {**attention.uniform(tokens),
                                   "receptive_field_radius": _last_field(reference.entries[0])["uniform"]},
                       "random_init": untrained(runs, reference.configs),
                       "teacher_cka": teacher_references(runs, conditions, base_dir, roles.get("baseline", ""))},
        "conditions": {name: {"role": next((role for role, of in roles.items() if of == name), None),
                              "runs": condition.entries, "summary": summarise(condition.entries),
                              "warnings": condition.warnings(cfg)} for name, condition in conditions.items()},
        **({"imposed": mediation.curve(doses, distance, correct)} if doses else {}),
        "hypotheses": [*hypotheses.of_the_original(
            roles, distance, {name: condition.trace for name, condition in conditions.items()}, correct, margin),
            *mediation.chain(roles, doses, distance, correct, margin)]}
