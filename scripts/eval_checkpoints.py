"""Score the finished runs of a study on validation and test, and write results.json.

    python scripts/eval_checkpoints.py --base_dir experiments/demo --conditions baseline distill \\
        --output experiments/demo/results.json

Every `<base_dir>/<condition>/seed<k>` is scored at its final step, with its averaged weights where the run
has them. Rows, one an example, and the score itself are kept beside the checkpoint, so running this again
computes only what is missing; `accelerate launch` spreads the examples over several processes. Every condition is
compared with the baseline; `--contrasts distill:kd_only` compares two others.

Language models answer the questions themselves. Every checkpoint is scored on validation (`--steps`), which is the
curve; one of them, the final one or the best on validation (`--choose`), on test.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from graft import config
from graft.errors import UserError, exit_cleanly
from graft.evaluation import engines, kept, language, rebuild
from graft.evaluation.scoring import score
from graft.reporting import results, tables
from graft.runtime.place import accelerator
from graft.runtime.provenance import code_sha
from graft.tasks._task import Task
from graft.tasks._text import TextTask

SPLITS = ("val", "test")
# What a condition may change without its comparison with the baseline becoming one of recipes.
SUBJECT = ("method", "teacher", "objective")


def contrast(word: str) -> tuple[str, str]:
    """The two conditions of `a:b`."""
    a, _, b = word.partition(":")
    if not a or not b or a == b or ":" in b:
        raise argparse.ArgumentTypeError(f"expected two conditions as a:b, got {word!r}")
    return a, b


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


class Scorer:
    """Scores runs; data sets are built once."""

    def __init__(self, options: argparse.Namespace):
        self.base_dir, self.weights, self.splits = options.base_dir, options.weights, options.splits
        self.accelerator = accelerator()
        self.task = rebuild.Tasks(self.accelerator.device, options.task_root, options.allow_other_data)
        self.language = language.Scorer(options, self.accelerator)

    def score(self, condition: str, run_dir: Path) -> list[dict[str, Any]]:
        """The entries of `conditions.*.runs` for one run, from its kept scores where they are still true."""
        run = rebuild.trained(run_dir)
        if run.config.method == "ssl_teacher":
            raise UserError(f"{run_dir}: a self-supervised run has no classifier to score")
        task, different = self.task.of(run, self.splits)
        if isinstance(task, TextTask):
            return self.language.score(condition, run, task, different)
        student, info = rebuild.classifier(run, self.weights, self.accelerator.device)
        return [self._one(condition, run, task, split, different[split], student, info) for split in self.splits
                if len(task.splits[split])]

    def _one(self, condition: str, run: rebuild.Trained, task: Task, split: str, different: list[str],
             student: nn.Module, info: dict[str, Any]) -> dict[str, Any]:
        """The entry of one split."""
        wanted = {"schema_version": results.SCHEMA_VERSION, "condition": condition, "seed": run.config.seed,
                  "split": split, "n": len(task.splits[split]), "step": info["step"], "weights": info["weights"],
                  "checkpoint_sha256": info["sha256"], "precision": "fp32",
                  **rebuild.origin(run, task, split, different)}
        file, topk = run.folder / "eval" / f"{split}-{info['step']}.json", run.config.evaluate.topk
        if entry := kept.score(file, wanted, range(wanted["n"]), lambda rows: (rows, results.metrics(rows, topk))):
            return entry
        rows = score(student, task.splits[split], self.accelerator.device, run.config.evaluate.batch_size,
                     self.accelerator.process_index, self.accelerator.num_processes)
        rows_file = file.with_suffix(".parquet")
        entry = {**wanted, "metrics": results.metrics(rows, topk), "code_sha": code_sha(),
                 "examples": str(rows_file.relative_to(self.base_dir))}
        if self.accelerator.is_main_process:
            results.write_examples(rows_file, rows, wanted["data_fingerprint"])
            results.write_json(file, entry)
        return entry


def about(conditions: dict[str, list[Path]], baseline: str) -> dict[str, dict[str, Any]]:
    """Per condition, in what its configuration differs from the baseline's, subject and recipe apart, and whether it
    was trained on other items."""
    first = {name: rebuild.trained(runs[0]) for name, runs in conditions.items()}
    seeds_apart = {name: replace(run.config, seed=first[baseline].config.seed) for name, run in
                   first.items()} if baseline in first else {}
    found = {}
    for name, cfg in seeds_apart.items():
        changes = [[key, old, new] for key, old, new in config.difference(first[baseline].config, cfg)]
        subject = [c for c in changes if c[0].split(".")[0] in SUBJECT]
        trained = [one.data["fingerprints"]["train"] for one in (first[baseline], first[name])]
        found[name] = {"differs": subject, "recipe_differs": [c for c in changes if c not in subject],
                       "same_training_data": trained[0] == trained[1]}
    return found


def main() -> None:
    """Score, assemble, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--base_dir", type=Path, required=True, help="experiments/<study>")
    parser.add_argument("--conditions", nargs="+", required=True)
    parser.add_argument("--references", nargs="+", default=[], help="runs to score and list, not to compare: teachers")
    parser.add_argument("--output", type=Path, required=True, help="results.json")
    parser.add_argument("--baseline", default="baseline", help="the condition the others are compared with")
    parser.add_argument("--contrasts", nargs="+", type=contrast, default=[], metavar="A:B",
                        help="pairs of conditions to compare besides")
    parser.add_argument("--weights", choices=["auto", "last", "average"], default="auto",
                        help="auto: the averaged weights where a run has them")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--allow_missing", action="store_true", help="go on without unfinished conditions")
    for what in ("condition", "metric"):
        parser.add_argument(f"--{what}_labels", nargs="+", type=label, default=[], metavar="NAME=LABEL",
                            help=f"display names of {what}s, for tables and figures")
    rebuild.add_data_options(parser)
    text = parser.add_argument_group("language models")
    text.add_argument("--steps", choices=["all", "final"], default="all", help="checkpoints scored on validation")
    text.add_argument("--choose", choices=["final", "best_val"], default="final", help="the one scored on test")
    text.add_argument("--engine", choices=engines.ENGINES, default="transformers")
    text.add_argument("--batch_size", type=int, help="prompts answered together; default: evaluate.batch_size")
    text.add_argument("--tensor_parallel", type=int, default=1, help="vllm: GPUs that share one model")
    text.add_argument("--icl", type=Path, help="what eval_icl.py wrote; its conditions become references")
    options = parser.parse_args()
    engines.enter_environment(options.engine)
    options.contrasts = list(dict.fromkeys(options.contrasts))
    names = [*options.conditions, *options.references]
    untrained = language.untrained(options.icl, options.base_dir, options.splits) if options.icl else []
    references = [*options.references, *dict.fromkeys(entry["condition"] for entry in untrained)]
    if not options.allow_missing:
        refuse_unknown(options.contrasts, [*options.conditions, *references])
    scorer = Scorer(options)
    main_process = scorer.accelerator.is_main_process
    entries: list[dict[str, Any]] = []
    conditions: dict[str, list[Path]] = {}
    for name in tqdm(names, desc="scoring", disable=None if main_process else True):
        try:
            runs = rebuild.runs_of(options.base_dir, name)
            entries += [entry for run in runs for entry in scorer.score(name, run)]
            conditions[name] = runs
        except UserError as error:
            if not options.allow_missing or name == options.baseline:
                raise
            if main_process:
                tqdm.write(f"left out {name}: {error}")
    if not main_process:
        return
    reference = conditions.get(options.baseline) or next(iter(conditions.values()))
    task = scorer.task(rebuild.trained(reference[0]).config)
    entries += untrained
    contrasts = of_those_there(options.contrasts, list(dict.fromkeys(entry["condition"] for entry in entries)))
    assembled = results.assemble(options.base_dir.resolve().name, task.about, entries, options.base_dir,
                                 options.baseline, references=references, curve=scorer.language.curve,
                                 contrasts=contrasts, code_sha=code_sha())
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
    assembled |= {"metric_labels": dict(options.metric_labels)} if options.metric_labels else {}
    results.write_json(options.output, assembled)
    print(tables.shown(assembled), end="")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    exit_cleanly(main)
