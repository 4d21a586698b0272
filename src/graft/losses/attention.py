"""The student's attention between patches follows a given pattern: local, uniform, or the teacher's."""

import functools
from typing import Annotated

import torch
from torch import Tensor

from graft.losses._tokens import everywhere, fp32, masked_mean
from graft.outputs import grid_of


@fp32
def loss(student_attention: Tensor, teacher_attention: Tensor | None, visible: Tensor | None = None, *,
         target: Annotated[str, "local | uniform | teacher", "what a patch should look at: its surroundings, all "
                                                             "patches alike, what the teacher's does"] = "teacher",
         radius: Annotated[float, "> 0", "local: standard deviation of the Gaussian, in patches"] = 1.0,
         heads: Annotated[str, "each | mean", "each: every head alone; mean: the heads' average"] = "each") -> Tensor:
    """Mean over visible queries (and heads) of KL(target row || attention row) over the keys, in nats.

    student_attention (B, H, T, T), rows over T patch keys that sum to 1; teacher_attention (B, T, T), the mean of the
    teacher's heads; visible (B, T) -> (B,). Rows are taken over visible keys alone; images without any give 0. `local`
    is q(j | i) ∝ exp(-d(i, j)² / (2 radius²)), d in patches on the grid. A distance from the target. Attention
    transfer: Li et al. 2024 (arXiv:2411.09702); imposing a pattern is this project's causal test.
    """
    attention = student_attention if heads == "each" else student_attention.mean(1, keepdim=True)
    seen = everywhere(attention[:, 0], visible)
    if target == "teacher":
        wanted = teacher_attention.detach()[:, None]
    else:
        wanted = _placed(attention.shape[-1], target, radius, attention.device, attention.dtype)[None, None]
    keys = seen[:, None, None]
    goal, own = (rows / rows.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
                 for rows in (wanted * keys, attention * keys))
    apart = torch.special.xlogy(goal, goal) - goal * own.clamp_min(torch.finfo(torch.float32).tiny).log()
    return masked_mean(apart.sum(-1).mean(1), seen, (1,))


@functools.cache
def _placed(tokens: int, target: str, radius: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Made once and kept where it is needed: a copy to the GPU in every step would wait for it."""
    return pattern(tokens, target, radius).to(device, dtype)


def pattern(tokens: int, target: str, radius: float) -> Tensor:
    """The rows (T, T) of a `local` or `uniform` target on a square grid, float64; each sums to 1."""
    height, width = grid_of(tokens)
    if target == "uniform":
        return torch.full((tokens, tokens), 1 / tokens, dtype=torch.float64)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    return (-torch.cdist(places, places).square() / (2 * radius**2)).softmax(-1)
