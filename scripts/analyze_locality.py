"""Forensics of a study: attention, similarity and curvature of several runs, each from its own config, with verdicts.

    python scripts/analyze_locality.py --base_dir experiments/demo --conditions baseline distill ss_distill \\
        --cnn distill --ssl ss_distill --output experiments/demo/forensics.json

Every model sees the same images. References stand beside the numbers: uniform attention, and the students as their
seeds initialised them. `--hessian N` adds the curvature on N images: of each run of the conditions that claims are
about the Hessian's trace, of each one's first run its spectrum too. `--results` adds the accuracies; the original's
claims come out as supported, contradicted or undecided. A minute on two CPU cores for the demo without `--hessian`.
"""

import argparse
from pathlib import Path
from typing import Any

from graft.config import script_options
from graft.config.study.options import claimed
from graft.errors import UserError, exit_cleanly


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


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_options.parser(__doc__)
    parser.add_argument("--base_dir", type=Path, required=True, help="experiments/<study>")
    parser.add_argument("--conditions", nargs="+", required=True)
    for role, what in (("cnn", "distilled from a CNN"), ("ssl", "distilled from a self-supervised teacher")):
        parser.add_argument(f"--{role}", default="", help=f"the condition that was {what}")
    parser.add_argument("--baseline", default="baseline", help="the condition without a teacher")
    parser.add_argument("--doses", nargs="+", default=[], metavar="CONDITION", help="those that impose an attention "
                        "distance, the most local one first: is the CNN's effect what they predict?")
    parser.add_argument("--hessian", type=int, default=0, metavar="N", help="curvature on N images; 0: none")
    parser.add_argument("--hessian_conditions", nargs="+", default=[], metavar="CONDITION",
                        help="of these alone; default: the roles and --doses, of all where there is no role")
    parser.add_argument("--results", type=Path, help="results.json of the same study, for the claim about accuracy")
    parser.add_argument("--margin", type=float, default=0.01, help="accuracies this close count as equal")
    parser.add_argument("--allow_missing", action="store_true", help="go on without unfinished conditions")
    script_options.add_analysis(parser)
    options = parser.parse_args()
    script_options.at_least(options, images=1, cka_images=1, hessian=0, batch_size=1)
    named = [("cnn", options.cnn), ("ssl", options.ssl), *(("doses", name) for name in options.doses),
             *(("hessian_conditions", name) for name in options.hessian_conditions)]
    for flag, name in named:
        if name not in ("", *options.conditions):
            raise UserError(f"--{flag}: {name} is not among --conditions")
    if len(options.doses) == 1 or len({*options.doses}) < len(options.doses):
        raise UserError(f"--doses: expected two different conditions or more, got {' '.join(options.doses)}")
    return options


def main() -> None:
    """Load, measure, judge, write."""
    options = arguments()  # before torch is imported
    from tqdm import tqdm

    from graft.evaluation.forensics import make_runs
    from graft.evaluation.locality import Condition, assemble, check_same_data, measure
    from graft.evaluation.rebuild import runs_of
    from graft.reporting import results

    named = {"cnn": options.cnn, "baseline": options.baseline, "ssl": options.ssl}
    about = claimed(options.conditions, {role: name for role, name in named.items() if name}, options.doses)
    curved = (options.hessian_conditions or about) if options.hessian else []
    runs = make_runs(options, ["attention", "cka", *(["hessian"] if options.hessian else [])], options.hessian)
    conditions: dict[str, Condition] = {}
    for name in tqdm(options.conditions, desc="analysing", disable=None):
        try:
            conditions[name] = measure(runs, runs_of(options.base_dir, name), name in curved)
        except UserError as error:
            if not options.allow_missing:
                raise
            print(f"left out {name}: {error}")
    if not conditions:
        raise UserError(f"{options.base_dir}: none of the conditions could be analysed")
    check_same_data(runs, conditions)
    roles = {role: name for role, name in named.items() if name in conditions}
    doses = [name for name in options.doses if name in conditions]
    forensics = assemble(runs, conditions, options.base_dir, roles, options.results, options.margin, doses)
    results.write_json(options.output, forensics)
    print(table(forensics))
    for name, condition in forensics["conditions"].items():
        for warning in condition["warnings"]:
            print(f"warning: {name}: {warning}")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    exit_cleanly(main)
