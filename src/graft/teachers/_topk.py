"""The largest logits at answer positions: computing them piece by piece, joining and dividing them."""

from collections.abc import Callable

import torch
from torch import Tensor

from graft.outputs import LOGITS_AT_ONCE, TopK

FIELDS = ("values", "indices", "logsumexp")


def top_k(hidden: Tensor, head: Callable[[Tensor], Tensor], k: int) -> TopK:
    """The k largest logits of each hidden state (N, D); all logits of all positions are never held at once."""
    parts = []
    for piece in hidden.split(max(1, LOGITS_AT_ONCE // head.vocabulary)):
        logits = head(piece).float()
        values, indices = logits.topk(k, dim=-1)
        parts.append(TopK(values, indices, logits.logsumexp(-1)))
    return join(parts)


def join(parts: list[TopK]) -> TopK:
    """One after the other."""
    return TopK(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS))


def divide(top: TopK, counts: Tensor) -> list[TopK]:
    """One for each sequence of `counts` (B,) positions."""
    sizes = counts.tolist()
    return [TopK(*three) for three in zip(*(getattr(top, name).split(sizes) for name in FIELDS))]


def within(lengths: Tensor, budget: int) -> list[Tensor]:
    """Places of sequences with `lengths` (B,), longest first, in groups of at most `budget` tokens with padding."""
    order = torch.argsort(lengths, descending=True, stable=True)
    groups, start = [], 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        groups.append(order[start:start + size])
        start += size
    return groups
