"""What one job of a study costs: parameters, FLOPs, the most memory it holds at once, what it leaves on disk."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from graft.config.options import Config
from graft.config.schema import to_steps
from graft.config.study.job import Job
from graft.outputs import LOGITS_AT_ONCE
from graft.planning import models as made
from graft.planning import steps
from graft.planning.answering import ANSWERS, answers
from graft.planning.data import Data, Lengths, answers_itself
from graft.planning.measure import Cost, cost, emptied, size_of, state_of, without_data
from graft.planning.models import Models
from graft.training.batches import plan
from graft.training.terms import needs_teacher

DEPTHS = 4, 6  # layers of a deep language model that are gone through
STATES = {"adamw": 2, "adam": 2}  # of an optimizer, for each weight; of others one for momentum


@dataclass(frozen=True)
class Costs:
    """Of one job on one device; `memory` sums to the most that it holds at once, in bytes."""

    parameters: int
    trained: int
    steps: int
    flops_step: float  # mean over the steps; of a job without steps: of one item
    flops: float  # in all: steps, evaluations, and what is computed once
    memory: dict[str, int]
    logits: int  # of the activations: the largest piece of a language model's logits, in bytes
    cache: int  # bytes of a teacher's outputs on disk
    checkpoints: int  # bytes of those that are kept
    half: bool  # whether it computes in bf16
    notes: tuple[str, ...] = ()
    cache_of: str = ""  # what an image teacher's kept outputs are of: runs of one share them

    @property
    def peak(self) -> int:
        """Bytes held at once, at most."""
        return sum(self.memory.values())


def of_run(cfg: Config, data: Data, jobs: Mapping[str, Job], world: int = 1) -> Costs:
    """Of a training run on one of `world` processes. Raises UserError, one line, for what is not known."""
    args = cfg.student.args
    if not cfg.reads_text:
        return _of(cfg, data, made.images(cfg, data, jobs), world)
    if cfg.teacher.args.get("serve") == "copy" and cfg.teacher.args["model"]:  # it need not be as deep
        return _of(cfg, data, made.text(cfg, data, jobs), world)
    return deep(args, jobs, lambda layers: _of(cfg, data, made.text(cfg, data, jobs, layers), world))


def deep(model: Mapping[str, Any], jobs: Mapping[str, Job], of: Callable[[int], Costs]) -> Costs:
    """The costs of a language model from those of its first layers, each of which costs the same."""
    depth = made.depth_of(made.sizes_of(model["model"], model["revision"], jobs))
    if depth <= DEPTHS[1]:
        return of(0)
    few, more = (vars(of(layers)) for layers in DEPTHS)

    def beyond(low: Any, high: Any) -> Any:
        if isinstance(low, dict):
            return {key: beyond(low[key], high[key]) for key in low}
        if isinstance(low, bool | str | tuple):
            return low
        return low + (high - low) * (depth - DEPTHS[0]) // (DEPTHS[1] - DEPTHS[0])

    return Costs(**{key: beyond(few[key], more[key]) for key in few})


def _of(cfg: Config, data: Data, models: Models, world: int) -> Costs:
    per_epoch, total = plan(cfg, data.task, world)
    with without_data():
        for part in (models.student, models.teacher, models.objective):
            if part is not None:
                emptied(part)
        return _run(cfg, data, models, per_epoch, total, world)


def _run(cfg: Config, data: Data, models: Models, per_epoch: int, total: int, world: int) -> Costs:
    train, trained = cfg.train, _trained(models)
    micro = train.batch_size // (world * train.accumulate)
    before = [*state_of(models.student, models.teacher, models.objective)]
    models.student.train()
    step, worst = 0.0, 0
    for weights, count in steps.patterns(models, total, per_epoch).items():
        for mean in (True, False):
            _clear(trained, train.accumulate > 1)
            held = [*before, *(p.grad for p in trained if p.grad is not None)]
            found = _micro(cfg, data, models, micro, weights, mean, held)
            step += found.flops * train.accumulate * world * count / total * mean
            worst = max(worst, found.bytes)
            if data.lengths is None:
                break
    _clear(trained, False)
    models.student.eval()
    check = _check(cfg, data, models, before)
    own = _own_answers(cfg, data, models, micro * train.accumulate, before)
    step += own.flops * world
    times = _times(train.eval_every, per_epoch, total)
    once, cache = _teacher_once(cfg, data, models, before)
    return _costs(cfg, data, models, trained, {
        "steps": total, "step": step, "flops": step * total + times * check.flops + once, "worst": worst,
        "check": max(check.bytes, own.bytes), "cache": cache, "micro": micro,
        "saved": _times(train.checkpoint_every, per_epoch, total)})


def _costs(cfg: Config, data: Data, models: Models, trained: list[nn.Parameter], got: dict[str, Any]) -> Costs:
    weights = size_of([*state_of(models.student, models.teacher, models.objective)])
    gradients, optimizer = size_of(trained), _states(cfg) * size_of(trained)
    average = size_of(state_of(models.student)) if cfg.train.average != "none" else 0
    followed = size_of(trained) if cfg.teacher.args.get("serve") == "ema" and needs_teacher(cfg.objective) else 0
    accumulated = gradients if cfg.train.accumulate > 1 else 0  # of the micro-batches before
    dynamic = max(got["worst"] + accumulated, got["check"], gradients)
    resident = 0 if data.lengths or not _resident(cfg) else sum(data.sizes.values()) * data.task.channels * (
        data.task.size**2)
    memory = {"weights": weights + average + followed, "gradients": min(gradients, dynamic), "optimizer": optimizer,
              "activations": dynamic - min(gradients, dynamic), "data": resident,
              "cache": 0 if data.lengths else got["cache"]}
    own = size_of(trained) if data.lengths else size_of(state_of(models.student))
    one = own + average + followed + optimizer + (0 if data.lengths else size_of(state_of(models.objective)))
    kept = min(cfg.train.keep, max(got["saved"], 1)) + (got["saved"] > cfg.train.keep)
    saved = one * kept - (0 if cfg.train.keep_optimizer else optimizer)
    logits = 0 if not data.lengths else 4 * min(
        max(LOGITS_AT_ONCE, models.student.head.vocabulary),
        math.ceil(got["micro"] * (data.trained or data.lengths).answer) * models.student.head.vocabulary)
    notes = [ANSWERS] * answers_itself(cfg) + [data.note] * bool(data.note)
    return Costs(sum(p.numel() for p in models.student.parameters()), sum(p.numel() for p in trained), got["steps"],
                 got["step"], got["flops"], memory, logits, got["cache"], saved, cfg.train.precision == "bf16",
                 tuple(notes), _cache_of(cfg, models) if got["cache"] else "")


def _cache_of(cfg: Config, models: Models) -> str:
    return json.dumps([cfg.teacher.name, cfg.teacher.args, sorted(models.objective.teacher_features)])


def _trained(models: Models) -> list[nn.Parameter]:
    return [p for module in (models.student, models.objective) for p in module.parameters() if p.requires_grad]


def _clear(trained: list[nn.Parameter], accumulated: bool) -> None:
    """No gradients, or those of the micro-batches before."""
    for p in trained:
        p.grad = p.detach().clone() if accumulated else None


def _states(cfg: Config) -> int:
    return STATES.get(cfg.optim.name, int(cfg.optim.momentum > 0) + int(cfg.optim.name == "rmsprop"))


def _resident(cfg: Config) -> bool:
    return cfg.task.args.get("resident", cfg.task.name != "imagefolder")


def _times(every: str, per_epoch: int, total: int) -> int:
    """How often something is due, the end of the run included."""
    interval = to_steps(every, per_epoch, total)
    return math.ceil(total / interval) if interval else 1


def _micro(cfg: Config, data: Data, models: Models, size: int, weights: tuple[float, ...], mean: bool,
           before: list) -> Cost:
    lengths = data.trained or data.lengths
    if lengths is None:
        return cost(steps.image_micro(cfg, data, models, size, weights), before)
    width = lengths.width if mean else lengths.widest
    context = math.ceil(lengths.context_width) if mean else lengths.longest_context
    said = math.ceil(size * lengths.answer) if data.trained else _answers(lengths, size, width)
    return cost(steps.text_micro(cfg, models, size, width, context, said, weights), before)


def _answers(lengths: Lengths, size: int, width: int) -> int:
    """Answer tokens of `size` sequences of that width: the longest have the more."""
    return max(1, round(size * lengths.answer * (width / lengths.width if width > lengths.width else 1)))


def _own_answers(cfg: Config, data: Data, models: Models, count: int, before: list) -> Cost:
    """What a process answers for a step's `count` items to be trained on: FLOPs of all, bytes of the largest batch."""
    if not answers_itself(cfg):
        return Cost()
    lengths, new = data.trained, cfg.evaluate.max_new_tokens
    one = answers(models.student, partial(made.autocast, cfg), 1, lengths.item - lengths.answer, new, before)
    worst = answers(models.student, partial(made.autocast, cfg), min(cfg.evaluate.batch_size, count),
                    lengths.widest - new, new, before)
    return Cost(one.flops * count, worst.bytes)


def _check(cfg: Config, data: Data, models: Models, before: list) -> Cost:
    """One evaluation: FLOPs of all of it, bytes of its largest batch."""
    ssl = cfg.method == "ssl_teacher"
    count, averaged = data.sizes["val"], 1 + (ssl or cfg.train.average != "none")
    count += data.sizes["train"] if ssl else 0  # the bank of its neighbours
    if not count:
        return Cost()
    size = min(cfg.evaluate.batch_size, count)
    if data.lengths:
        lengths = data.lengths
        mean = steps.language_pass(cfg, models.student, steps.sequences(size, lengths.width,
                                                                        _answers(lengths, size, lengths.width)))
        worst = steps.language_pass(cfg, models.student, steps.sequences(size, lengths.widest,
                                                                         _answers(lengths, size, lengths.widest)))
        found = Cost(cost(mean, before).flops, cost(worst, before).bytes)
    else:
        found = cost(steps.image_pass(cfg, data, models.student, size), before)
    return Cost(round(found.flops * count / size * averaged), found.bytes)


def _teacher_once(cfg: Config, data: Data, models: Models, before: list) -> tuple[float, int]:
    """FLOPs and bytes of an image teacher's kept outputs; the first run that reads them computes them."""
    if data.lengths or models.teacher is None or not steps.kept(cfg):
        return 0.0, 0
    count, size = data.sizes["train"], min(256, data.sizes["train"])
    found = cost(steps.image_pass(cfg, data, models.teacher, size, models.objective.teacher_features), before)
    shapes = steps.rows_kept(models)
    return found.flops * count / size, 2 * count * sum(math.prod(shape) for shape in shapes.values())
