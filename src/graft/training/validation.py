"""Scoring the validation split while a run goes on, with the averaged weights too once there are any."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from graft import keyed
from graft.augment import Augment
from graft.config.options import Config
from graft.evaluation.scoring import score, score_answers, summary
from graft.runtime.place import Place
from graft.tasks._task import Task
from graft.tasks._text import TextTask
from graft.training import pictures
from graft.training.journal import Journal
from graft.training.learner import Learner
from graft.training.optim import Average, recompute_batchnorm

BATCHNORM_BATCHES = 50
PICTURES = 8  # validation images whose attention TensorBoard shows

Evaluate = Callable[[nn.Module], dict[str, float]]


class Validation:
    """Scores of `val`, and of `val_average` where there is an averaged module that means something.

    `average` is who averages it, or None if the caller does. `evaluate(module)` replaces scoring the labels, or the
    answers. `learner` has the student (not what DDP made of it). `pictures` of the scores go to the journal.
    """

    def __init__(self, config: Config, task: Task | TextTask, averaged: nn.Module | None, average: Average | None,
                 evaluate: Evaluate | None, place: Place, learner: Learner):
        self.config, self.task, self.averaged, self.average, self.evaluate = config, task, averaged, average, evaluate
        self.split, self.place = task.splits["val"], place
        self.lend, self.autocast = learner.lend, learner.autocast

    def scores(self, module: nn.Module, step: int, journal: Journal | None) -> dict[str, dict[str, float]]:
        """Metrics by name for each of the splits, the same on every process; `journal` is that of the main process."""
        results = {"val": self._score(module, step, journal)}
        if self.averaged is not None and (self.average is None or self.average.ready(step)):
            if self.average:
                recompute_batchnorm(self.averaged, self._training_views())
            results["val_average"] = self._score(self.averaged, step, journal)
        return self.place.share(results)  # a kNN score may differ in its last digit between GPUs; decisions must not

    def _score(self, module: nn.Module, step: int, journal: Journal | None) -> dict[str, float]:
        if self.evaluate:
            return self.evaluate(module)
        place, batch_size = self.place, self.config.evaluate.batch_size
        if isinstance(self.task, TextTask):
            return self.lend(score_answers, module, self.split, batch_size, place.rank, place.world, self.autocast)
        rows = score(module, self.split, place.device, batch_size, place.rank, place.world, self.autocast)
        if journal and journal.board:
            (images, _), = self.split.batches([torch.arange(min(PICTURES, len(rows["index"])))])
            journal.picture("val/confusion", pictures.confusion(rows, self.task.num_classes), step)
            journal.picture("val/class_attention", pictures.class_attention(module, images), step)
        return summary(rows)

    def _training_views(self) -> Iterator[Tensor]:
        """Augmented training batches for BatchNorm statistics, the same whenever they are asked for."""
        split, size = self.task.splits["train"], self.config.train.batch_size
        order = keyed.permutation(keyed.key(self.config.seed, "batchnorm"), len(split))
        # whole batches only, as in training: a remainder may be a single image, or odd where pairs are mixed
        batches = [order[i * size:][:size] for i in range(min(BATCHNORM_BATCHES, len(split) // size))]
        augment = Augment(self.config.augment, self.config.seed)
        for index, (images, labels) in zip(batches, split.batches(batches)):
            yield augment(images, labels, index, 0, num_classes=self.task.num_classes).inputs
