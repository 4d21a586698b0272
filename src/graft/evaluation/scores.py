"""Scores of a study's runs: images here, language models in `graft.evaluation.language`; and what their recipes differ
in."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from graft import config
from graft.errors import UserError
from graft.evaluation import kept, language, rebuild
from graft.evaluation.neighbours import Neighbours
from graft.evaluation.scoring import score
from graft.reporting import results
from graft.runtime import checkpoint
from graft.runtime.place import accelerator, set_kernels
from graft.runtime.provenance import code_sha
from graft.tasks._task import Task
from graft.tasks._text import TextTask

# What a condition may change without its comparison with the baseline becoming one of recipes.
SUBJECT = ("method", "teacher", "objective")


class Scorer:
    """Scores runs; data sets are built once."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.base_dir, self.weights, self.splits = options.base_dir, options.weights, options.splits
        self.accelerator = accelerator()
        set_kernels()
        self.task = rebuild.Tasks(self.accelerator.device, options.task_root, options.allow_other_data)
        self.language = language.Scorer(options, self.accelerator)
        self.teachers: set[str] = set()  # those that are what their students learned from

    def all(self) -> tuple[list[dict[str, Any]], dict[str, list[Path]]]:
        """The entries of all conditions and references, and their runs; unfinished ones are left out if they may be."""
        options, main_process = self.options, self.accelerator.is_main_process
        entries: list[dict[str, Any]] = []
        conditions: dict[str, list[Path]] = {}
        for name in tqdm([*options.conditions, *options.references], desc="scoring",
                         disable=None if main_process else True):
            try:
                runs = rebuild.runs_of(options.base_dir, name)
                entries += [entry for run in runs for entry in self.score(name, run)]
                conditions[name] = runs
            except UserError as error:
                if not options.allow_missing or name == options.baseline:
                    raise
                if main_process:
                    tqdm.write(f"left out {name}: {error}")
        if not entries:
            raise UserError(f"{options.base_dir}: nothing to score in --splits {' '.join(options.splits)}: "
                            "no finished condition, or no items")
        return entries, conditions

    def score(self, condition: str, run_dir: Path) -> list[dict[str, Any]]:
        """The entries of `conditions.*.runs` for one run, from its kept scores where they are still true."""
        run = rebuild.trained(run_dir)
        unlabelled = run.config.method == "ssl_teacher"
        task, different = self.task.of(run, [*self.splits, *["train"] * unlabelled])
        if isinstance(task, TextTask):
            return self.language.score(condition, run, task, different)
        self._refuse_other_teacher(run, task)
        if self.options.limit:
            raise UserError(f"--limit: {run_dir} was trained on images, which are scored whole")
        student, info = rebuild.student(run, self.weights)
        student = student.to(self.accelerator.device)
        if unlabelled:  # without a classifier: read by the labels of its training images
            student = Neighbours(student, task, run.config.ssl.knn, run.config.evaluate.batch_size)
        return [self._one(condition, run, task, split, different[split], student, info) for split in self.splits
                if len(task.splits[split])]

    def _refuse_other_teacher(self, run: rebuild.Trained, task: Task) -> None:
        """A student whose teacher was trained anew since is another condition than those of the new one."""
        part = run.config.teacher
        key = json.dumps([run.teacher, part.args], sort_keys=True)
        if part.name != "run" or key in self.teachers:
            return
        try:
            checkpoint.finished(rebuild.run_folder(Path(part.args["path"])))
        except UserError:  # gone, or being trained: there is nothing to compare with
            return
        rebuild.teacher(run, task, self.task.allow_other)
        self.teachers.add(key)

    def _one(self, condition: str, run: rebuild.Trained, task: Task, split: str, different: list[str],
             student: nn.Module, info: dict[str, Any]) -> dict[str, Any]:
        """The entry of one split."""
        file, topk = run.folder / "eval" / f"{split}-{info['step']}.json", run.config.evaluate.topk
        wanted = {"schema_version": results.SCHEMA_VERSION, "condition": condition, "seed": run.config.seed,
                  "split": split, "n": len(task.splits[split]), "step": info["step"], "weights": info["weights"],
                  "checkpoint_sha256": info["sha256"], "precision": "fp32",
                  "examples": str(file.with_suffix(".parquet").relative_to(self.base_dir)),
                  **rebuild.origin(run, task, split, different)}
        if isinstance(student, Neighbours):
            wanted["readout"] = f"{student.k} nearest of {len(student.labels)} training images"
        if entry := kept.score(file, wanted, range(wanted["n"]), lambda rows: (rows, results.metrics(rows, topk))):
            return entry
        rows = score(student, task.splits[split], self.accelerator.device, run.config.evaluate.batch_size,
                     self.accelerator.process_index, self.accelerator.num_processes)
        entry = {**wanted, "metrics": results.metrics(rows, topk), "code_sha": code_sha()}
        if self.accelerator.is_main_process:
            results.write_examples(file.with_suffix(".parquet"), rows, wanted["data_fingerprint"])
            results.write_json(file, entry)
        return entry


def about(conditions: dict[str, list[Path]], baseline: str) -> dict[str, dict[str, Any]]:
    """Per condition, in what its configuration differs from the baseline's, subject and recipe apart, and whether it
    was trained on other items. Raises UserError for a condition whose seeds differ in more than their seed."""
    first = {name: _one_recipe([rebuild.trained(run) for run in runs]) for name, runs in conditions.items()}
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


def _one_recipe(runs: list[rebuild.Trained]) -> rebuild.Trained:
    """The first of a condition's runs, if the others are the same with another seed, also where it is in a value."""
    first, *others = runs
    for run in others:
        seeds = first.config.seed, run.config.seed
        changes = config.difference(first.config, replace(run.config, seed=seeds[0]))
        if apart := [change for change in changes if not _by_seed(*change[1:], *seeds)]:
            key, old, new = apart[0]
            more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
            raise UserError(f"{run.folder}: was trained with {key} {new}{more}, {first.folder} with {old}; expected "
                            "seeds of one recipe: give the others a condition of their own")
    return first


def _by_seed(old: object, new: object, before: int, after: int) -> bool:
    """Whether two values are the same but for a seed's number in them."""
    return re.sub(rf"(?<!\d){before}(?!\d)", str(after), str(old)) == str(new)
