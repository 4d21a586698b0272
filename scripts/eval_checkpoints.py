"""Score the finished runs of a study on validation and test, and write results.json.

    python scripts/eval_checkpoints.py --base_dir experiments/demo --conditions baseline distill \\
        --output experiments/demo/results.json

Every `<base_dir>/<condition>/seed<k>` is scored at its final step, with its averaged weights where the run
has them. Rows, one an example, and the score itself are kept beside the checkpoint, so running this again
computes only what is missing; `accelerate launch` spreads the examples over several processes. Every condition is
compared with the baseline; `--contrasts distill:kd_only` compares two others. p is adjusted for all conditions, and
for all contrasts; for those that `--primary` names, which are to be fixed before any score is seen, among themselves.

Language models answer the questions themselves. Every checkpoint is scored on validation (`--steps`), which is the
curve; one of them, the final one or the best on validation (`--choose`), on test.
"""

import argparse
from pathlib import Path
from typing import Any

from graft.config import script_options
from graft.errors import UserError, exit_cleanly


def contrast(word: str) -> tuple[str, str]:
    """The two conditions of `a:b`."""
    a, _, b = word.partition(":")
    if not a or not b or a == b or ":" in b:
        raise argparse.ArgumentTypeError(f"expected two conditions as a:b, got {word!r}")
    return a, b


def main_comparison(word: str) -> tuple[str, str]:
    """The two conditions of `a:b`; "" for the baseline of a condition alone."""
    return contrast(word) if ":" in word else (word, "")


def label(word: str) -> tuple[str, str]:
    """Name and display name of `name=label`."""
    name, equals, text = word.partition("=")
    if not equals or not name or not text:
        raise argparse.ArgumentTypeError(f"expected name=label, got {word!r}")
    return name, text


def refuse_unknown(contrasts: list[tuple[str, str]], names: list[str]) -> None:
    """Raise UserError for a contrast of a condition that is not among those to score."""
    for pair in contrasts:
        for name in pair:
            if name not in names:
                raise UserError(f"--contrasts {':'.join(pair)}: expected two of {', '.join(names)}, got {name!r}")


def of_those_there(contrasts: list[tuple[str, str]], names: list[str]) -> list[tuple[str, str]]:
    """The contrasts of which both conditions were scored; says which are left out."""
    for pair in contrasts:
        if missing := [name for name in pair if name not in names]:
            print(f"left out contrast {':'.join(pair)}: no {' and no '.join(missing)}")
    return [pair for pair in contrasts if set(pair) <= set(names)]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_options.parser(__doc__)
    parser.add_argument("--base_dir", type=Path, required=True, help="experiments/<study>")
    parser.add_argument("--conditions", nargs="+", required=True)
    parser.add_argument("--references", nargs="+", default=[], help="runs to score and list, not to compare: teachers")
    parser.add_argument("--output", type=Path, required=True, help="results.json")
    parser.add_argument("--baseline", default="baseline", help="the condition the others are compared with")
    parser.add_argument("--contrasts", nargs="+", type=contrast, default=[], metavar="A:B",
                        help="pairs of conditions to compare besides")
    parser.add_argument("--primary", nargs="+", type=main_comparison, default=[], metavar="CONDITION|A:B",
                        help="the main comparisons, with the baseline or as a contrast")
    parser.add_argument("--splits", nargs="+", choices=script_options.SPLITS, default=script_options.SPLITS)
    parser.add_argument("--allow_missing", action="store_true", help="go on without unfinished conditions")
    for what in ("condition", "metric"):
        parser.add_argument(f"--{what}_labels", nargs="+", type=label, default=[], metavar="NAME=LABEL",
                            help=f"display names of {what}s, for tables and figures")
    script_options.add_weights(parser)
    script_options.add_data(parser)
    text = parser.add_argument_group("language models")
    text.add_argument("--steps", choices=["all", "final"], default="all", help="checkpoints scored on validation")
    text.add_argument("--choose", choices=["final", "best_val"], default="final", help="the one scored on test")
    text.add_argument("--icl", type=Path, help="what eval_icl.py wrote; its conditions become references")
    script_options.add_engine(text)
    options = parser.parse_args()
    script_options.at_least(options, limit=0, batch_size=1, tensor_parallel=1)
    if options.icl and options.limit:
        raise UserError("--limit: a share of the gap is one of all questions; leave out --icl")
    options.contrasts = list(dict.fromkeys(options.contrasts))
    options.primary = [(a, b or options.baseline) for a, b in options.primary]
    known = [*options.contrasts, *((name, options.baseline) for name in options.conditions if name != options.baseline)]
    for pair in options.primary:
        if pair not in known:
            raise UserError(f"--primary: {':'.join(pair)} is no comparison of these --conditions and --contrasts")
    return options


def main() -> None:
    """Score, assemble, write."""
    options = arguments()  # before torch is imported
    from graft.evaluation import engines, language
    from graft.evaluation.scores import Scorer
    from graft.reporting import results, tables

    engines.enter_environment(options.engine)
    untrained = language.untrained(options.icl, options.base_dir, options.splits) if options.icl else []
    references = [*options.references, *dict.fromkeys(entry["condition"] for entry in untrained)]
    if not options.allow_missing:
        refuse_unknown(options.contrasts, [*options.conditions, *references])
    scorer = Scorer(options)
    entries, conditions = scorer.all()
    if not scorer.accelerator.is_main_process:
        return
    assembled = assemble(options, scorer, [*entries, *untrained], conditions, references)
    results.write_json(options.output, assembled)
    print(tables.shown(assembled), end="")
    print(f"wrote {options.output}")


def assemble(options: argparse.Namespace, scorer: Any, entries: list[dict[str, Any]],
             conditions: dict[str, list[Path]], references: list[str]) -> dict[str, Any]:
    """The content of results.json; says what a reader should know of its comparisons."""
    from graft.evaluation import rebuild
    from graft.evaluation.scores import about
    from graft.reporting import results
    from graft.runtime.provenance import code_sha

    reference = conditions.get(options.baseline) or next(iter(conditions.values()))
    task = scorer.task(rebuild.trained(reference[0]).config)
    there = list(dict.fromkeys(entry["condition"] for entry in entries))
    contrasts = of_those_there(options.contrasts, there)
    primary = [pair for pair in options.primary if {*pair} <= {*there}]
    assembled = results.assemble(options.base_dir.resolve().name, task.about, entries, options.base_dir,
                                 options.baseline, references=references, curve=scorer.language.curve,
                                 contrasts=contrasts, primary=primary, code_sha=code_sha())
    for name, notes in about(conditions, options.baseline).items():
        assembled["conditions"][name] |= notes
        if notes["recipe_differs"] and name not in options.references:
            keys = ", ".join(change[0] for change in notes["recipe_differs"])
            print(f"note: {name} differs from {options.baseline} also in {keys}; the comparison is one of recipes too")
        if not notes["same_training_data"]:
            print(f"note: {name} was trained on other items than {options.baseline}; both are scored on the same")
    for name, text in options.condition_labels:
        if name in assembled["conditions"]:
            assembled["conditions"][name]["label"] = text
    if models := {name: note for own in conditions.values() for name, note in rebuild.trained(own[0]).models.items()}:
        assembled["models"] = models
    for entry in entries:
        if "readout" in entry:
            assembled["conditions"][entry["condition"]].setdefault("label", f"{entry['condition']} (kNN)")
    assembled |= {"metric_labels": dict(options.metric_labels)} if options.metric_labels else {}
    if options.limit:
        assembled["limit"] = options.limit
        print(f"note: --limit {options.limit}: no full score of the study")
    return assembled


if __name__ == "__main__":
    exit_cleanly(main)
