"""How many items a task has, and how large they are, from its declaration; from the data where that says too little."""

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from graft import keyed
from graft.config import parts
from graft.config.options import Config
from graft.config.schema import part_constant
from graft.errors import UserError
from graft.tasks import _context
from graft.tasks._task import Task
from graft.tasks._text import TextTask
from graft.teachers import context_lm

WINDOWS = 32  # steps of the first epoch whose lengths are looked at


@dataclass(frozen=True)
class Lengths:
    """Of a text task, in tokens: a padded micro-batch's width, on average and at most, and means of an item's."""

    width: int
    widest: int
    answer: float
    item: float  # prompt and answer
    context: float = 0.0  # what the teacher reads, prompt and answer included
    context_width: float = 0.0  # of a padded micro-batch of that
    longest_context: int = 0


@dataclass(frozen=True)
class Data:
    """What is known of a task; `task` is as much of one as students and `plan` look at."""

    task: Any
    sizes: dict[str, int]
    lengths: Lengths | None = None
    note: str = ""  # what is assumed, one line


@dataclass(frozen=True)
class Told:
    """What the command line says of data that are not here."""

    items: tuple[int, int] | None = None  # training (validation included) and test
    classes: int = 0
    tokens: tuple[int, int] | None = None  # mean tokens of a prompt and of an answer


@dataclass(frozen=True)
class _Text:
    """A text task without its texts."""

    name: str
    splits: dict[str, range]
    num_classes: int = 0
    unit: str = "items"


def data_of(cfg: Config, told: Told) -> Data:
    """What is known of the task of a run. Raises UserError, one line, for what nobody says."""
    return _text(cfg, told) if cfg.reads_text else _images(cfg, told)


def _divided(cfg: Config, train: int, test: int) -> dict[str, int]:
    val = round(cfg.task.args.get("val_fraction", 0.0) * train)
    return {"train": cfg.task.args.get("subset") or train - val, "val": val, "test": test}


def _images(cfg: Config, told: Told) -> Data:
    name, args = cfg.task.name, cfg.task.args
    rows, classes = part_constant("tasks", name, "ROWS"), part_constant("tasks", name, "CLASSES")
    if rows is None and told.items is None:
        task = parts.build("tasks", cfg.task)
        return Data(task, {split: len(items) for split, items in task.splits.items()})
    if not (classes := classes or told.classes):
        raise UserError(f"task {name}: its data say how many classes there are; --classes gives their number")
    sizes = _divided(cfg, *(told.items or (rows["train"], rows["test"])))
    channels = part_constant("tasks", name, "CHANNELS") or args.get("channels", 3)
    size = part_constant("tasks", name, "SIZE") or args["size"]
    half = [0.5] * channels
    task = Task(name, name, {}, [str(i) for i in range(classes)], channels, size, half, half,
                {split: range(count) for split, count in sizes.items()})
    return Data(task, sizes)


def _text(cfg: Config, told: Told) -> Data:
    published = getattr(importlib.import_module(f"graft.tasks.{cfg.task.name}"), "PUBLISHED", None)
    if Path(cfg.task.args["tokenizer"]).is_dir() and told.items is None:
        try:
            return _read(cfg)
        except UserError:
            if published is None:
                raise
    if told.items is None and published is None:
        raise UserError(f"task {cfg.task.name}: the tokenizer {cfg.task.args['tokenizer']} is not here, so nothing is "
                        "known of its items; --items TRAIN TEST gives their number")
    counts = told.items or tuple(published.files[split][1] for split in ("train", "test"))
    return _assumed(cfg, _divided(cfg, *counts), told)


def _assumed(cfg: Config, sizes: dict[str, int], told: Told) -> Data:
    longest, teacher = cfg.task.args["max_length"], cfg.teacher.args
    prompt, answer = told.tokens or (longest // 4, longest // 4)
    item = min(prompt + answer, longest)
    context = min((_shots(cfg) + 1) * item, teacher.get("max_length", item))
    note = "" if told.tokens else (f"task {cfg.task.name}: its texts are not here; assumed: items of {item} tokens, "
                                   f"half of task.max_length, half of them the answer (--tokens PROMPT ANSWER)")
    task = _Text(cfg.task.name, {split: range(count) for split, count in sizes.items()})
    return Data(task, sizes, Lengths(item, longest, min(answer, item), item, context, context,
                                teacher.get("max_length", 0)),
                note)


def _shots(cfg: Config) -> int:
    args = cfg.teacher.args
    return 0 if args.get("context") == "zeroshot" else args.get("shots", 0)


def _read(cfg: Config) -> Data:
    """From the task itself, as a run of one process sees it."""
    task: TextTask = parts.build("tasks", cfg.task)
    split, train = task.splits["train"], cfg.train
    order = keyed.permutation(keyed.key(cfg.seed, "order", 0), len(split)).split(train.batch_size)
    windows = [window for window in order if len(window) == train.batch_size][:WINDOWS] or [order[0]]
    micros = [micro for window in windows for micro in
              split.arrange(window, 1, train.accumulate).split(max(1, len(window) // train.accumulate))]
    widths = torch.tensor([int(split.lengths[micro].max()) for micro in micros], dtype=torch.float64)
    means = [lengths.double().mean().item() for lengths in (split.answers.lengths, split.lengths)]
    lengths = Lengths(round(widths.mean().item()), int(split.lengths.max()), *means)
    if cfg.teacher.name == "context_lm":
        lengths = _with_context(cfg, task, lengths)
    return Data(task, {name: len(items) for name, items in task.splits.items()}, lengths)


def _with_context(cfg: Config, task: TextTask, lengths: Lengths) -> Lengths:
    args, train = cfg.teacher.args, task.splits["train"]
    some = range(min(len(train), 200))
    read = context_lm.context_of(task, args)
    prompts, _ = _context.encode(task, "train", some, read)
    whole = prompts.lengths + train.answers.lengths[:len(some)]
    micro = max(1, cfg.train.batch_size // cfg.train.accumulate)
    widths = torch.stack([some.max() for some in whole.split(micro)]).double()
    return replace(lengths, context=whole.double().mean().item(), context_width=widths.mean().item(),
                   longest_context=int(whole.max()))
