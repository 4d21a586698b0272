"""Which samples a process sees when: steps, the order of an epoch, batches, each process's micro-batches."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from graft import keyed
from graft.augment import Augment
from graft.config.options import Config, Train
from graft.config.schema import amount, to_steps
from graft.errors import UserError
from graft.outputs import Batch
from graft.students import _language
from graft.tasks._task import Task
from graft.tasks._text import TextTask


def plan(config: Config, task: Task | TextTask, world: int) -> tuple[int, int]:
    """Steps of an epoch and of the run. Raises UserError for what only the data can tell is impossible."""
    train, size = config.train, len(task.splits["train"])
    steps_per_epoch = size // train.batch_size
    if steps_per_epoch == 0:
        raise UserError(f"train.batch_size: {train.batch_size} is more than the {size} training {task.unit}")
    total_steps = to_steps(train.duration, steps_per_epoch)
    _refuse_nothing(config, steps_per_epoch, total_steps)
    if train.batch_size % (world * train.accumulate):
        raise UserError(f"train.batch_size: {train.batch_size} {task.unit} do not divide into {world} processes × "
                        f"train.accumulate {train.accumulate}")
    if config.teacher.shuffle and train.batch_size < 2 * world * train.accumulate:
        raise UserError("teacher.shuffle: needs at least 2 images in a micro-batch, which has train.batch_size / "
                        f"(processes × train.accumulate) = {train.batch_size // (world * train.accumulate)}")
    if to_steps(config.optim.warmup, steps_per_epoch, total_steps) >= total_steps:
        raise UserError(f"optim.warmup: {config.optim.warmup} is not shorter than the {total_steps} steps of the run")
    for i, term in enumerate(config.objective):
        if term.used and not term.before and to_steps(term.warmup, steps_per_epoch, total_steps) >= total_steps:
            raise UserError(f"objective.{i}.warmup: {term.warmup} is not shorter than the {total_steps} steps of the "
                            f"run; {term.name} would never count")
    if not len(task.splits["val"]) and (train.stop_after or config.optim.schedule == "plateau"):
        raise UserError("task.val_fraction: 0 leaves nothing to decide early stopping or schedule plateau by")
    return steps_per_epoch, total_steps


def try_out(config: Config, task: Task, student: nn.Module, micro_size: int) -> None:
    """Raise UserError for a micro-batch of `micro_size` images that the augmentation or a BatchNorm cannot take."""
    black = torch.zeros(micro_size, task.channels, task.size, task.size, dtype=torch.uint8)
    index = torch.arange(micro_size)
    Augment(config.augment, config.seed)(black, torch.zeros_like(index), index, 0, num_classes=task.num_classes)
    # one over several processes (SyncBatchNorm) sees more
    alone = [m for m in student.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    if alone and micro_size < 2:
        raise UserError(f"train.batch_size: BatchNorm needs at least 2 images in a micro-batch, got {micro_size}")


def room_for_answers(config: Config, task: TextTask, student: nn.Module) -> None:
    """Raise UserError for a language model that could be trained, but later not answer any question of the task."""
    _language.refuse_no_room(student.model.config, task.longest_prompt, config.evaluate.max_new_tokens)


def _refuse_nothing(config: Config, steps_per_epoch: int, total_steps: int) -> None:
    """Raise UserError for an interval that is not 0 and yet less than half a step: it would mean never."""
    train, optim = config.train, config.optim
    intervals = {f"train.{name}": getattr(train, name) for name in ("duration", "eval_every", "checkpoint_every")}
    if optim.schedule in ("step", "exponential", "cyclic"):
        intervals["optim.period"] = optim.period
    for key, value in intervals.items():
        if amount(value)[0] > 0 and not to_steps(value, steps_per_epoch, total_steps):
            never = ", or 0: at the end only" if key.endswith("_every") else ""
            raise UserError(f"{key}: {value} is less than half a step, where an epoch has {steps_per_epoch} and the "
                            f"run {total_steps}; expected at least 1st{never}")


def order(split, seed: int, epoch: int) -> torch.Tensor:
    """The items of an epoch in their order, a permutation keyed by (seed, epoch)."""
    return keyed.permutation(keyed.key(seed, "order", epoch), len(split))


def micro_batches(split, train: Train, seed: int, epoch: int, steps: range, rank: int,
                  world: int) -> Iterator[tuple[int, Batch]]:
    """`(number within its step, micro-batch)` of this process for `steps` of `epoch`, counted from the epoch's start.

    Each epoch is a permutation keyed by (seed, epoch), cut into global batches; a remainder smaller than a batch is
    dropped.
    """
    items = order(split, seed, epoch)
    windows = [items[step * train.batch_size:][:train.batch_size] for step in steps]
    own = train.batch_size // world
    shares = [split.arrange(window, world, train.accumulate)[rank * own:][:own] for window in windows]
    micros = [micro for share in shares for micro in share.split(own // train.accumulate)]
    before = epoch * (len(split) // train.batch_size)
    for number, (inputs, labels) in enumerate(split.batches(micros)):
        window, micro = divmod(number, train.accumulate)
        yield micro, Batch(micros[number], inputs, labels, epoch, before + steps[window],
                           split.positions(windows[window]) / world, 1 / train.accumulate,
                           micros[number + 1] if number + 1 < len(micros) else None)
