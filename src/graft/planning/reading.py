"""What it costs to read with a language model: its largest logits for a cache, its answers behind a context."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from torch import nn

from graft.config.options import Config
from graft.config.study.job import Job
from graft.errors import UserError
from graft.evaluation import icl
from graft.outputs import LOGITS_AT_ONCE
from graft.planning import models as made
from graft.planning import steps
from graft.planning.answering import ANSWERS, answers
from graft.planning.costs import Costs, deep
from graft.planning.data import Data, Lengths, asked, context_of
from graft.planning.measure import Cost, cost, emptied, size_of, state_of, without_data
from graft.students.causal_lm import CausalLM
from graft.tasks._context import Context
from graft.teachers._topk_files import layout


def of_cache(cfg: Config, data: Data, jobs: Mapping[str, Job]) -> Costs:
    """Of scripts/cache_teacher.py: a forward pass over all training items, the largest logits on disk."""
    whole, cfg = _teachers(cfg), replace(cfg, train=replace(cfg.train, precision=cfg.teacher.args["precision"]))
    return deep(whole, jobs, lambda layers: _cache(cfg, data, made.language_model(**whole, jobs=jobs, layers=layers)))


def _own(cfg: Config) -> dict[str, str]:
    """The student's model."""
    return {key: cfg.student.args[key] for key in ("model", "revision", "dtype")}


def _teachers(cfg: Config) -> dict[str, str]:
    """The teacher's, which is the student's where it names no other."""
    return {key: cfg.teacher.args[key] for key in _own(cfg)} if cfg.teacher.args["model"] else _own(cfg)


def _cache(cfg: Config, data: Data, lm: nn.Module) -> Costs:
    args, lengths, count, k = cfg.teacher.args, data.lengths, data.sizes["train"], steps.logits_kept(cfg)
    named = {term.args["position"] for term in cfg.objective if term.name == "topk" and term.used}
    with without_data():
        emptied(lm)
        before = [*state_of(lm)]
        one = _reads(cfg, lm, lengths, 1, lengths.context, k, len(named), before)
        group = max(1, args["batch_tokens"] // max(lengths.longest_context, 1))
        widest = _reads(cfg, lm, lengths, group, lengths.longest_context, k, len(named), before)
    tokens = round(count * lengths.answer)
    arrays = layout(tokens, k or steps.width(lm), args["cache_dtype"], not k)
    size = len(named) * sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in arrays.values())
    vocabulary, parameters = lm.head.vocabulary, sum(p.numel() for p in lm.parameters())
    return Costs(parameters, 0, 0, one.flops, one.flops * count,
                 {"weights": size_of(before), "activations": widest.bytes},
                 4 * min(max(LOGITS_AT_ONCE, vocabulary), vocabulary * math.ceil(group * lengths.answer)) if k else 0,
                 size, 0, cfg.train.precision == "bf16", (data.note,) if data.note else ())


def _reads(cfg: Config, lm: nn.Module, lengths: Lengths, size: int, context: float, k: int, positions: int,
           before: list) -> Cost:
    tokens = steps.sequences(size, math.ceil(context), max(1, math.ceil(size * lengths.answer)))
    return cost(steps.language_pass(cfg, lm, tokens, k, positions), before)


def of_samples(cfg: Config, data: Data, jobs: Mapping[str, Job]) -> Costs:
    """Of scripts/sample_teacher.py: every training question answered once, behind what the teacher reads."""
    return _answering(cfg, data, jobs, _teachers(cfg), [context_of(data, cfg.teacher.args)], ["train"])


def of_icl(cfg: Config, data: Data, jobs: Mapping[str, Job], shots: Iterable[int], others: Iterable[Config],
           splits: Sequence[str]) -> Costs:
    """Of scripts/eval_icl.py: every question of `splits` answered behind each number of worked examples, and behind
    what the teacher of each of `others` reads."""
    contexts = [*(icl.context(cfg, number) for number in sorted(set(shots))),
                *(context_of(data, other.teacher.args) for other in others)]
    if not contexts:
        raise UserError("icl.shots: is empty, and icl.contexts, too; expected numbers of worked examples")
    return _answering(cfg, data, jobs, _own(cfg), contexts, splits)


def _answering(cfg: Config, data: Data, jobs: Mapping[str, Job], model: dict[str, str], contexts: Sequence[Context],
               splits: Sequence[str]) -> Costs:
    prompts = [asked(cfg, data, context) for context in contexts]
    dtype = "bf16" if "bf16" in (model["dtype"], cfg.train.precision) else "fp32"  # as evaluation/generation.py
    model, count = {**model, "dtype": dtype}, sum(data.sizes[split] for split in splits)
    return deep(model, jobs, lambda layers: _answered(
        cfg, data, made.language_model(**model, jobs=jobs, layers=layers), prompts, count, dtype == "bf16"))


def _answered(cfg: Config, data: Data, lm: CausalLM, prompts: Sequence[tuple[float, float]], count: int,
              half: bool) -> Costs:
    new = cfg.evaluate.max_new_tokens
    with without_data():
        emptied(lm)
        before = [*state_of(lm)]
        means = {math.ceil(mean) for mean, _ in prompts}
        flops = {mean: answers(lm, nullcontext, 1, mean, new, before).flops for mean in means}
        worst = answers(lm, nullcontext, cfg.evaluate.batch_size, max(most for _, most in prompts), new, before).bytes
    each = sum(flops[math.ceil(mean)] for mean, _ in prompts)  # of one question
    return Costs(sum(p.numel() for p in lm.parameters()), 0, 0, each / len(prompts), each * count,
                 {"weights": size_of(before), "activations": worst}, 0, 0, 0, half,
                 (ANSWERS, *((data.note,) if data.note else ())))
