"""Runs beyond top-1: all metrics of `graft.probes.classification`, under corruptions and with averaged views."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from graft.errors import UserError
from graft.evaluation import kept, rebuild
from graft.evaluation.scoring import score
from graft.probes import _images, classification
from graft.probes.corruptions import CORRUPTIONS, SEVERITIES, AveragedViews, corrupt
from graft.probes.hypotheses import of_seeds
from graft.reporting import stats
from graft.runtime import sources
from graft.runtime.place import set_kernels
from graft.tasks._task import Split, Task

SUMMARISED = {"accuracy": stats.SHARE, "nll": stats.POSITIVE, "brier": (0.0, 2.0), "ece": stats.SHARE}


class Corrupted:
    """A split behind a corruption."""

    def __init__(self, split: Split, name: str, severity: int):
        self.split, self.name, self.severity = split, name, severity

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, order: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As the split's own."""
        for index, (images, labels) in zip(order, self.split.batches(order), strict=True):
            yield corrupt(images, self.name, self.severity, index), labels


class Some:
    """Those images of a split that are at `index`."""

    def __init__(self, split: Split | Corrupted, index: Tensor):
        self.split, self.index = split, index

    def __len__(self) -> int:
        return len(self.index)

    def batches(self, order: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As the split's own."""
        return self.split.batches([self.index[part] for part in order])


class Evaluator:
    """Evaluates runs; data sets are built once."""

    def __init__(self, options: argparse.Namespace):
        self.split, self.weights, self.images = options.split, options.weights, options.images
        set_kernels()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.task = rebuild.Tasks(self.device, options.task_root, options.allow_other_data)
        self.data: Task | None = None  # of the first run

    def run(self, run_dir: Path) -> dict[str, Any]:
        """The entry of one run, as it was kept where that is still true."""
        run = rebuild.trained(run_dir)
        cfg = run.config
        rebuild.refuse_text(cfg, run_dir)
        task, different = self.task.of(run, [self.split])
        split = task.splits[self.split]
        if not len(split):
            raise UserError(f"{run_dir}: --split {self.split}: its data have no such images")
        student, info = rebuild.classifier(run, self.weights, self.device)
        self.data = self.data or task
        if task.fingerprints[self.split] != (known := self.data.fingerprints[self.split]):
            raise UserError(f"{run_dir}: has other {self.split} data than the runs before it "
                            f"({task.fingerprints[self.split][:12]} and {known[:12]})")
        teacher = self.teacher(run, task)
        entry = {"seed": cfg.seed, "step": info["step"], "weights": info["weights"], "split": self.split,
                 "checkpoint_sha256": info["sha256"], "other_data": different[self.split]}
        wanted = {**entry, "images": self.images, "data_fingerprint": known, "device": self.device.type,
                  "teacher": run.teacher if teacher else None, "code": sources.of_measurement(__file__, cfg)}
        found = kept.measured(run_dir / "eval" / f"robustness-{self.split}-{info['step']}.json", wanted,
                              lambda: self.measure(run, split, task.classes, student, teacher))
        return {**entry, **found}

    def measure(self, run: rebuild.Trained, split: Split, classes: Any, student: nn.Module,
                teacher: nn.Module | None) -> dict[str, Any]:
        """All metrics of one student."""
        cfg, labels = run.config, split.labels.numpy()
        index = _images.fixed_index(split, self.images or len(split)).sort().values
        theirs = labels[index.numpy()]

        def log_probs(model: nn.Module, split: Any):
            return score(model, split, self.device, cfg.evaluate.batch_size, log_probs=True)["log_probs"]

        clean = log_probs(student, split)
        averaged = AveragedViews(student, rebuild.mirrors(cfg))
        corruptions = {name: {str(severity): classification.probabilistic(
            theirs, log_probs(student, Some(Corrupted(split, name, severity), index))) for severity in SEVERITIES}
            for name in tqdm(CORRUPTIONS, desc=str(run.folder), leave=False)}
        levels = [level["accuracy"] for levels in corruptions.values() for level in levels.values()]
        return {"clean": classification.evaluate(labels, clean, classes),
                "tta": {**classification.probabilistic(theirs, log_probs(averaged, Some(split, index))),
                        "views": 10 if averaged.flip else 5},
                "teacher": classification.agreement(clean, log_probs(teacher, split)) if teacher else None,
                "corruptions": corruptions, "corrupted_accuracy": sum(levels) / len(levels)}

    def teacher(self, run: rebuild.Trained, task: Task) -> nn.Module | None:
        """The run's own teacher, to agree with; None without one that classifies."""
        if run.config.teacher.name == "none":
            return None
        try:
            teacher = rebuild.teacher(run, task, self.task.allow_other).to(self.device)
        except UserError as error:
            tqdm.write(f"note: {run.folder}: no agreement with the teacher: {error}")
            return None
        return teacher if teacher.num_classes else None


def to_baseline(runs: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> dict[str, Any]:
    """Differences to the baseline's runs on these same images, for new seeds (`hypotheses.of_seeds`)."""
    sides = [{run["seed"]: _main_numbers(run) for run in side} for side in (runs, baseline)]
    return {key: of_seeds(*({seed: numbers[key] for seed, numbers in side.items()} for side in sides))
            for key in ("corrupted_accuracy", "ece", "tta_accuracy")}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and 95% interval over seeds of the main numbers."""
    numbers = [_main_numbers(run) for run in runs]
    within = {key: SUMMARISED.get(key.removeprefix("tta_"), stats.SHARE) for key in numbers[0]}
    return {key: stats.seed_summary([one[key] for one in numbers], within[key]) for key in within}


def _main_numbers(run: dict[str, Any]) -> dict[str, float]:
    """Those of one run; shares where `SUMMARISED` does not say otherwise."""
    found = {f"{prefix}{name}": run[views][name] for prefix, views in (("", "clean"), ("tta_", "tta"))
             for name in SUMMARISED}
    return found | {"macro_f1": run["clean"]["macro"]["f1"], "corrupted_accuracy": run["corrupted_accuracy"]}
