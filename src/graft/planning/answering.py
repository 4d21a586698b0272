"""What it costs to answer: a prompt is read once, then a token at a time, with the keys and values of all before."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import Cache

from graft.planning.measure import Cost, cost
from graft.students.causal_lm import CausalLM

ANSWERS = ("answers are counted with all of evaluate.max_new_tokens; decoding is bound by memory, not by FLOPs, so its "
           "hours are a lower bound all the same")
Autocast = Callable[[], AbstractContextManager]


def answers(lm: CausalLM, autocast: Autocast, size: int, prompt: float, new: int, before: list[Tensor]) -> Cost:
    """Of `size` prompts of so many tokens with all of `new` tokens each, as transformers generates them.

    No answer is longer and many are shorter, but the shorter ones of a batch wait for its longest. Keys and values are
    those that the model's own cache keeps, of sliding windows no more than these. Call it inside `without_data`.
    """
    width = math.ceil(prompt)
    read = cost(lambda: _read(lm, autocast, size, width), before)
    middle, last = (_next(lm, autocast, size, tokens, before) for tokens in (width + new // 2, width + new - 1))
    return Cost(read.flops + (new - 1) * middle.flops, max(read.bytes, last.bytes))


def _next(lm: CausalLM, autocast: Autocast, size: int, tokens: int, before: list[Tensor]) -> Cost:
    """Of one more token behind so many. A step's keys and values are new tensors that hold all of those before, so
    what is there is counted as what it becomes."""
    behind = _read(lm, autocast, size, tokens)
    return cost(lambda: _read(lm, autocast, size, 1, behind), before)


def _read(lm: CausalLM, autocast: Autocast, size: int, width: int, behind: Cache | None = None) -> Cache:
    """Read so many tokens behind what was read before, and make the logits of the next one."""
    with torch.no_grad(), autocast():
        out = lm.model.get_decoder()(input_ids=torch.zeros(size, width, dtype=torch.int64), use_cache=True,
                                     past_key_values=behind)
        lm.head(out.last_hidden_state[:, -1])
    return out.past_key_values
