"""What it costs to read with a language model: its largest logits for a cache, its answers after worked examples."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from graft.config.options import Config
from graft.config.study.job import Job
from graft.outputs import LOGITS_AT_ONCE
from graft.planning import models as made
from graft.planning import steps
from graft.planning.costs import Costs, deep
from graft.planning.data import Data, Lengths
from graft.planning.measure import Cost, cost, emptied, size_of, state_of, without_data
from graft.teachers._topk_files import layout


def of_cache(cfg: Config, data: Data, jobs: Mapping[str, Job]) -> Costs:
    """Of scripts/cache_teacher.py: a forward pass over all training items, the largest logits on disk."""
    args = cfg.teacher.args
    whole = {"model": args["model"] or cfg.student.args["model"], "revision": args["revision"] or
             cfg.student.args["revision"], "dtype": args["dtype"] if args["model"] else cfg.student.args["dtype"]}
    return deep(whole, jobs, lambda layers: _cache(cfg, data, made.language_model(**whole, jobs=jobs, layers=layers)))


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
                 size, 0, args["precision"] == "bf16", (data.note,) if data.note else ())


def _reads(cfg: Config, lm: nn.Module, lengths: Lengths, size: int, context: float, k: int, positions: int,
           before: list) -> Cost:
    tokens = steps.sequences(size, math.ceil(context), max(1, math.ceil(size * lengths.answer)))
    return cost(steps.language_pass(cfg, lm, tokens, k, positions), before)


def of_answers(cfg: Config, data: Data, jobs: Mapping[str, Job], shots: list[int], splits: list[str]) -> Costs:
    """Of scripts/eval_icl.py: every question of `splits` answered after each number of worked examples."""
    whole = {key: cfg.student.args[key] for key in ("model", "revision", "dtype")}
    return deep(whole, jobs, lambda layers: _answering(
        cfg, data, made.language_model(**whole, jobs=jobs, layers=layers), shots, splits))


def _answering(cfg: Config, data: Data, lm: nn.Module, shots: list[int], splits: list[str]) -> Costs:
    lengths, count = data.lengths, sum(data.sizes[split] for split in splits)
    flops, worst = 0, 0
    with without_data():
        emptied(lm)
        before = [*state_of(lm)]
        for number in shots:
            context = min((number + 1) * lengths.item, cfg.teacher.args.get("max_length", math.inf))
            flops += _reads(cfg, lm, lengths, 1, context, 1, 1, before).flops
            wide = replace(lengths, answer=1.0)  # one token at a time
            worst = max(worst, _reads(cfg, lm, wide, cfg.evaluate.batch_size, context, 1, 1, before).bytes)
    note = "icl: decoding is bound by memory, so its hours are a lower bound"
    return Costs(sum(p.numel() for p in lm.parameters()), 0, 0, flops / max(len(shots), 1), flops * count,
                 {"weights": size_of(before), "activations": worst}, 0, 0, 0, cfg.train.precision == "bf16",
                 (note, *((data.note,) if data.note else ())))
