"""Forensics of a study: attention, similarity and curvature of several runs, each from its own config, with verdicts.

    python scripts/analyze_locality.py --base_dir experiments/demo --conditions baseline distill ss_distill \\
        --cnn distill --ssl ss_distill --output experiments/demo/forensics.json

Every model sees the same images. References stand beside the numbers: uniform attention, and the students as their
seeds initialised them. `--hessian N` adds the curvature on N images, `--results` the accuracies; the original's claims
come out as supported, contradicted or undecided. A minute on two CPU cores for the demo without `--hessian`.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from graft.config.options import Config
from graft.errors import UserError, exit_cleanly
from graft.evaluation.forensics import (
    SCHEMA_VERSION,
    Runs,
    add_options,
    compare,
    describe,
    entry,
    look,
    make_runs,
)
from graft.evaluation.rebuild import runs_of
from graft.probes import attention, hypotheses
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
        if self.configs[0].student != reference.student:
            found.append("its student is another than that of the random_init reference")
        return found


def measure(runs: Runs, folders: list[Path]) -> Condition:
    """All runs of a condition."""
    condition = Condition()
    for folder in folders:
        cfg, student, info = runs.student(folder)
        found, distance = entry(runs, cfg, student, info)
        condition.configs.append(cfg)
        condition.entries.append(found)
        condition.distance[cfg.seed] = distance
    return condition


def summarise(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and 95% t-interval over seeds of every average, and of the attention distance by layer."""
    found: dict[str, Any] = {name: stats.seed_summary([e[name] for e in entries], within)
                             for names, within in ((SHARES, stats.SHARE), (LENGTHS, stats.POSITIVE)) for name in names
                             if all(e[name] is not None for e in entries)}
    found["layer_distance"] = [stats.seed_summary(layer, stats.POSITIVE)
                               for layer in zip(*(e["layer_distance"] for e in entries))]
    if all("hessian" in e for e in entries):
        found["hessian_trace"] = stats.seed_summary([e["hessian"]["trace"]["value"] for e in entries])
    return found


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
             results_file: Path | None, margin: float) -> dict[str, Any]:
    """The content of forensics.json."""
    reference = conditions.get(roles.get("baseline", ""), next(iter(conditions.values())))
    cfg = reference.configs[0]
    first = next(runs.images(cfg, 1))
    tokens = attention.geometry(runs.untrained(cfg), first)
    correct = {}
    if results_file:
        measured = {"data": describe(runs, cfg), "conditions": {name: {"runs": condition.entries}
                                                                for name, condition in conditions.items()}}
        reading.check_same(results.read_results(results_file), measured, base_dir)
        correct = hypotheses.correctness(results_file, runs.settings.split)
    return {
        "schema_version": SCHEMA_VERSION, "study": base_dir.resolve().name, "code_sha": code_sha(),
        "data": describe(runs, cfg), "roles": roles, "order": list(conditions),
        "thresholds": {**attention.collapse_thresholds(tokens), "cls_collapse_warning": attention.CLS_WARNING},
        "references": {"uniform": attention.uniform(tokens), "random_init": untrained(runs, reference.configs),
                       "teacher_cka": teacher_references(runs, conditions, base_dir, roles.get("baseline", ""))},
        "conditions": {name: {"role": next((role for role, of in roles.items() if of == name), None),
                              "runs": condition.entries, "summary": summarise(condition.entries),
                              "warnings": condition.warnings(cfg)} for name, condition in conditions.items()},
        "hypotheses": hypotheses.of_the_original(
            roles, {name: condition.distance for name, condition in conditions.items()},
            {name: condition.trace for name, condition in conditions.items()}, correct, margin)}


def table(forensics: dict[str, Any]) -> str:
    """What a person wants to see first."""
    def cell(summary: dict[str, Any]) -> str:
        low, high = summary["ci95"]
        return f"{summary['mean']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")

    rows = {**{name: (len(c["runs"]), c["summary"]) for name, c in forensics["conditions"].items()},
            "(random init)": (len(forensics["references"]["random_init"]["runs"]),
                              forensics["references"]["random_init"]["summary"])}
    lines = ["| condition | seeds | attention distance | relative to uniform | entropy, nats | collapsed heads |",
             "| --- | --- | --- | --- | --- | --- |"]
    for name, (seeds, summary) in rows.items():
        cells = [cell(summary[key]) for key in ("avg_attention_distance", "avg_relative_distance", "avg_entropy",
                                                "collapsed_heads_ratio_relative")]
        lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + " |")
    uniform = forensics["references"]["uniform"]
    lines.append(f"| (uniform) | | {uniform['mean_distance']:.3f} | 1 | {uniform['entropy']:.3f} | 0.000 |")
    lines += ["", *(f"{h['name']}: {h['claim']} in {h['statistic']}: {h['verdict']} ({h['reason']})"
                    for h in forensics["hypotheses"])]
    return "\n".join(lines)


def main() -> None:
    """Load, measure, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--base_dir", type=Path, required=True, help="experiments/<study>")
    parser.add_argument("--conditions", nargs="+", required=True)
    for role, what in (("cnn", "distilled from a CNN"), ("ssl", "distilled from a self-supervised teacher")):
        parser.add_argument(f"--{role}", default="", help=f"the condition that was {what}")
    parser.add_argument("--baseline", default="baseline", help="the condition without a teacher")
    parser.add_argument("--hessian", type=int, default=0, metavar="N", help="curvature on N images; 0: none")
    parser.add_argument("--results", type=Path, help="results.json of the same study, for the claim about accuracy")
    parser.add_argument("--margin", type=float, default=0.01, help="accuracies this close count as equal")
    parser.add_argument("--allow_missing", action="store_true", help="go on without unfinished conditions")
    add_options(parser)
    options = parser.parse_args()
    runs = make_runs(options, ["attention", "cka", *(["hessian"] if options.hessian else [])], options.hessian)
    for role in ("cnn", "ssl"):
        if getattr(options, role) not in ("", *options.conditions):
            raise UserError(f"--{role}: {getattr(options, role)} is not among --conditions")
    conditions: dict[str, Condition] = {}
    for name in tqdm(options.conditions, desc="analysing", disable=None):
        try:
            conditions[name] = measure(runs, runs_of(options.base_dir, name))
        except UserError as error:
            if not options.allow_missing:
                raise
            print(f"left out {name}: {error}")
    if not conditions:
        raise UserError(f"{options.base_dir}: none of the conditions could be analysed")
    check_same_data(runs, conditions)
    named = {"cnn": options.cnn, "baseline": options.baseline, "ssl": options.ssl}
    roles = {role: name for role, name in named.items() if name in conditions}
    forensics = assemble(runs, conditions, options.base_dir, roles, options.results, options.margin)
    results.write_json(options.output, forensics)
    print(table(forensics))
    for name, condition in forensics["conditions"].items():
        for warning in condition["warnings"]:
            print(f"warning: {name}: {warning}")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    exit_cleanly(main)
