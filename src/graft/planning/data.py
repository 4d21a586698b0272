"""How many items a task has, and how large they are, from its declaration; from the data where that says too little."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graft import keyed
from graft.config import parts
from graft.config.options import Config
from graft.config.schema import part_constant
from graft.errors import UserError
from graft.tasks import _context, _gguf
from graft.tasks._context import Context
from graft.tasks._task import Task
from graft.tasks._text import TextTask
from graft.teachers import context_lm

WINDOWS = 32  # steps of the first epoch whose lengths are looked at
SOME = 200  # training items whose contexts are looked at


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
    trained: Lengths | None = None  # of training items, where their answers are the student's own: as long as allowed
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
    here = Path(cfg.task.args["tokenizer"])
    if (here.is_dir() or (here.suffix == _gguf.SUFFIX and here.is_file())) and told.items is None:
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
    longest = cfg.task.args["max_length"]
    prompt, answer = told.tokens or (longest // 4, longest // 4)
    item = min(prompt + answer, longest)
    note = "" if told.tokens else (f"task {cfg.task.name}: its texts are not here; assumed: items of {item} tokens, "
                                   f"half of task.max_length, half of them the answer (--tokens PROMPT ANSWER)")
    task = _Text(cfg.task.name, {split: range(count) for split, count in sizes.items()})
    lengths = Lengths(item, longest, min(answer, item), item)
    trained = None
    if answers_itself(cfg):
        own, asked = cfg.evaluate.max_new_tokens, round(longest * prompt / (prompt + answer))
        trained = _assumed_context(cfg, Lengths(prompt + own, asked + own, own, prompt + own), item)
    return Data(task, sizes, _assumed_context(cfg, lengths, item), trained, note)


def _assumed_context(cfg: Config, lengths: Lengths, item: int) -> Lengths:
    """With a teacher that reads as many examples of `item` tokens as its context shows."""
    if cfg.teacher.name != "context_lm":
        return lengths
    most, examples = cfg.teacher.args["max_length"], _as_told(cfg.teacher.args).examples
    context = min(examples * item + lengths.item, most)
    open_ended = examples or cfg.teacher.args["context"] in _context.DOCUMENTED
    return replace(lengths, context=context, context_width=context,
                   longest_context=most if open_ended else min(lengths.widest, most))


def _as_told(args: Mapping[str, Any]) -> Context:
    """What a teacher reads, not held against any data."""
    return Context(*(args[key] for key in ("context", "shots", "fewshot_seed", "max_length", "instruction")))


def context_of(data: Data, args: Mapping[str, Any]) -> Context:
    """What a teacher with these arguments reads. Raises UserError where the task, if it is here, has no such thing."""
    return context_lm.context_of(data.task, args) if isinstance(data.task, TextTask) else _as_told(args)


def answers_itself(cfg: Config) -> bool:
    """Whether a run is trained on what the student answers while it trains."""
    return cfg.teacher.name == "context_lm" and cfg.teacher.args["targets"] == "student"


def asked(cfg: Config, data: Data, context: Context) -> tuple[float, float]:
    """Tokens of a prompt behind a context when it is to be answered, on average and at most."""
    lengths, reserve = data.lengths, cfg.evaluate.max_new_tokens
    if isinstance(data.task, TextTask):
        some = range(min(len(data.task.splits["train"]), SOME))
        prompts, _ = _context.encode(data.task, "train", some, context, reserve)
        return prompts.lengths.double().mean().item(), int(prompts.lengths.max())
    before, room = context.examples * lengths.item, max(1, context.max_length - reserve)
    share = 1 - lengths.answer / lengths.item
    return min(before + lengths.item * share, room), min(before + lengths.widest * share, room)


def _read(cfg: Config) -> Data:
    """From the task itself, as a run of one process sees it."""
    task: TextTask = parts.build("tasks", cfg.task)
    own = torch.full_like(task.splits["train"].answers.lengths, cfg.evaluate.max_new_tokens)
    return Data(task, {name: len(items) for name, items in task.splits.items()},
                _lengths(cfg, task, task.splits["train"].answers.lengths),
                _lengths(cfg, task, own) if answers_itself(cfg) else None)


def _lengths(cfg: Config, task: TextTask, answers: Tensor) -> Lengths:
    """With answers (N,) of so many tokens."""
    split, train = task.splits["train"], cfg.train
    order = keyed.permutation(keyed.key(cfg.seed, "order", 0), len(split)).split(train.batch_size)
    windows = [window for window in order if len(window) == train.batch_size][:WINDOWS] or [order[0]]
    micros = [micro for window in windows for micro in
              split.arrange(window, 1, train.accumulate).split(max(1, len(window) // train.accumulate))]
    whole = split.prompts.lengths + answers
    widths = torch.tensor([int(whole[micro].max()) for micro in micros], dtype=torch.float64)
    means = [lengths.double().mean().item() for lengths in (answers, whole)]
    lengths = Lengths(round(widths.mean().item()), int(whole.max()), *means)
    return _with_context(cfg, task, lengths, answers) if cfg.teacher.name == "context_lm" else lengths


def _with_context(cfg: Config, task: TextTask, lengths: Lengths, answers: Tensor) -> Lengths:
    some = range(min(len(answers), SOME))
    reserve = cfg.evaluate.max_new_tokens if answers_itself(cfg) else None
    prompts, _ = _context.encode(task, "train", some, context_lm.context_of(task, cfg.teacher.args), reserve)
    whole = prompts.lengths + answers[:len(some)]
    micro = max(1, cfg.train.batch_size // cfg.train.accumulate)
    widths = torch.stack([some.max() for some in whole.split(micro)]).double()
    return replace(lengths, context=whole.double().mean().item(), context_width=widths.mean().item(),
                   longest_context=int(whole.max()))
