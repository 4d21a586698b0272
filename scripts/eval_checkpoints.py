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
from pathlib import Path
from typing import Any

from tqdm import tqdm

from graft import config
from graft.errors import UserError, exit_cleanly
from graft.evaluation import language, rebuild
from graft.evaluation.engines import ENGINES
from graft.evaluation.scoring import score
from graft.reporting import results, tables
from graft.runtime.place import accelerator
from graft.runtime.provenance import code_sha
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
        self.task = rebuild.Tasks(self.accelerator.device)
        self.language = language.Scorer(options, self.accelerator)

    def score(self, condition: str, run_dir: Path) -> list[dict[str, Any]]:
        """The entries of `conditions.*.runs` for one run, from its kept scores where they are still true."""
        cfg = config.load([run_dir / "config.yaml"])
        if cfg.method == "ssl_teacher":
            raise UserError(f"{run_dir}: a self-supervised run has no classifier to score")
        task = self.task(cfg)
        if isinstance(task, TextTask):
            return self.language.score(condition, run_dir, cfg, task)
        student, info = rebuild.student(cfg, run_dir, task, self.weights)
        student.to(self.accelerator.device)
        wanted = {"schema_version": results.SCHEMA_VERSION, "condition": condition, "seed": cfg.seed,
                  "step": info["step"], "weights": info["weights"], "checkpoint_sha256": info["sha256"],
                  "data_fingerprint": task.fingerprint, "precision": "fp32"}
        entries = []
        for split in [name for name in self.splits if len(task.splits[name])]:
            kept = run_dir / "eval" / f"{split}-{info['step']}.json"
            rows_file = kept.with_suffix(".parquet")
            entry = results.kept(kept, wanted)
            if not entry:
                rows = score(student, task.splits[split], self.accelerator.device, cfg.evaluate.batch_size,
                             self.accelerator.process_index, self.accelerator.num_processes)
                entry = {**wanted, "split": split, "n": len(rows["index"]),
                         "metrics": results.metrics(rows, cfg.evaluate.topk),
                         "examples": str(rows_file.relative_to(self.base_dir)), "code_sha": code_sha()}
                if self.accelerator.is_main_process:
                    results.write_examples(rows_file, rows, task.fingerprint)
                    results.write_json(kept, entry)
            entries.append(entry)
        return entries


def about(base_dir: Path, conditions: dict[str, list[Path]], baseline: str) -> dict[str, dict[str, Any]]:
    """Per condition, in what its configuration differs from the baseline's, subject and recipe apart."""
    first = {name: config.load([runs[0] / "config.yaml"]) for name, runs in conditions.items()}
    seeds_apart = {name: config.load([runs[0] / "config.yaml"], seed=first[baseline].seed) for name, runs in
                   conditions.items()} if baseline in first else {}
    found = {}
    for name, cfg in seeds_apart.items():
        changes = [[key, old, new] for key, old, new in config.difference(first[baseline], cfg)]
        subject = [c for c in changes if c[0].split(".")[0] in SUBJECT]
        found[name] = {"differs": subject, "recipe_differs": [c for c in changes if c not in subject]}
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
    text = parser.add_argument_group("language models")
    text.add_argument("--steps", choices=["all", "final"], default="all", help="checkpoints scored on validation")
    text.add_argument("--choose", choices=["final", "best_val"], default="final", help="the one scored on test")
    text.add_argument("--engine", choices=ENGINES, default="transformers")
    text.add_argument("--batch_size", type=int, help="prompts answered together; default: evaluate.batch_size")
    text.add_argument("--tensor_parallel", type=int, default=1, help="vllm: GPUs that share one model")
    text.add_argument("--icl", type=Path, help="what eval_icl.py wrote; its conditions become references")
    options = parser.parse_args()
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
    task = next(iter(scorer.task.built.values()))
    entries += untrained
    contrasts = of_those_there(options.contrasts, list(dict.fromkeys(entry["condition"] for entry in entries)))
    data = {**task.about, **({"classes": task.classes} if task.classes else {}),
            "sizes": {name: len(split) for name, split in task.splits.items()}}
    assembled = results.assemble(options.base_dir.resolve().name, data, entries, options.base_dir, options.baseline,
                                 references=references, curve=scorer.language.curve, contrasts=contrasts,
                                 code_sha=code_sha())
    for name, notes in about(options.base_dir, conditions, options.baseline).items():
        assembled["conditions"][name] |= notes
        if notes["recipe_differs"] and name not in options.references:
            keys = ", ".join(change[0] for change in notes["recipe_differs"])
            print(f"note: {name} differs from {options.baseline} also in {keys}; the comparison is one of recipes too")
    results.write_json(options.output, assembled)
    print(tables.shown(assembled), end="")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    exit_cleanly(main)
