"""Centred kernel alignment between the student's and the teacher's tokens."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graft.losses._tokens import everywhere, fp32, image_means, make_projector, pairs, projected

MIN_TOKENS = 4  # the unbiased estimator divides by n - 3
SAME = 1e-5  # tokens that differ by less, relative to their length, differ by rounding
FLOOR = 1e-24  # of a self-HSIC of tokens in units of their length; below what SAME lets through
PUBLISHED_EPS = 1e-8


def projector(student_dim: int, teacher_dim: int, *, project: str) -> nn.Module | None:
    """What `loss` compares through; none is needed."""
    return make_projector(project, student_dim, teacher_dim)


@fp32
def loss(student_tokens: Tensor, teacher_tokens: Tensor, visible: Tensor | None = None,
         projector: nn.Module | None = None, *,
         over: Annotated[str, "tokens | batch", "tokens of one image, or the mean tokens of a batch (of one process "
                                                "and micro-batch), as for class tokens"] = "tokens",
         kernel: Annotated[str, "linear | rbf", "rbf: exp(-d^2 / (2 m)), m the median d^2 of the pairs"] = "linear",
         estimator: Annotated[str, "unbiased | biased", "of HSIC; biased: 0.8 for unrelated tokens, "
                                                        "as published"] = "unbiased",
         normalize: Annotated[bool, "", "tokens to unit length first, as published"] = False,
         eps_inside: Annotated[bool, "", "1e-8 under the square root, which swamps similar tokens, "
                                         "as published"] = False,
         project: Annotated[str, "none | student | both",
                            "which side goes through a trained projector; both: as published"] = "none") -> Tensor:
    """1 - HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K and L the kernel matrices of student and teacher tokens.

    student_tokens (B, T, D), teacher_tokens (B, T, D'), visible (B, T) -> (B,) over the n visible tokens
    of each image, 0-d over the images of the batch; fewer than 4 give 0. Unbiased: HSIC = <A, B> / (n (n - 3))
    of the U-centred matrices, so self-HSIC is a squared norm and CKA is in [-1, 1]: the loss is 0 for
    tokens equal up to rotation, scale and translation, about 1 for unrelated ones and at most 2.
    Tokens that are all the same have no structure to align: self-HSIC is held at a small positive number,
    so that their loss is 1 and its gradient finite. Kornblith et al. 2019 (arXiv:1905.00414); unbiased HSIC:
    Song et al. 2012 (JMLR 13), Nguyen et al. 2021 (arXiv:2010.15327); U-centring: Székely, Rizzo 2014
    (Ann. Statist. 42).
    """
    assert (projector is None) == (project == "none"), f"project={project} with projector {projector}"
    student, teacher = projected(projector, student_tokens, teacher_tokens)
    mask = rows = everywhere(student, visible)
    if over == "batch":
        student, rows = image_means(student, mask)
        teacher, _ = image_means(teacher, mask)
    unbiased = estimator == "unbiased"
    n = rows.sum(1).clamp_min(MIN_TOKENS)
    kernels = [_kernel(_standard(x, rows, normalize), rows, kernel) for x in (student, teacher)]
    a, b = (_centre(k, rows, n, unbiased) for k in kernels)
    pairs_counted = n * (n - 3) if unbiased else (n - 1).square()
    st, ss, tt = ((x * y).sum((1, 2)) / pairs_counted for x, y in ((a, b), (a, a), (b, b)))
    if eps_inside:
        cka = st / (ss * tt + PUBLISHED_EPS).sqrt()
    else:
        cka = st / (ss.clamp_min(FLOOR).sqrt() * tt.clamp_min(FLOOR).sqrt())
    value = (1 - cka).masked_fill(rows.sum(1) < MIN_TOKENS, 0)
    return value[0] if over == "batch" else value


def _standard(x: Tensor, rows: Tensor, normalize: bool) -> Tensor:
    """Tokens (B, n, D) with mean zero, in units of their root-mean-square norm before that; 0 where invisible.

    HSIC does not change under translation and CKA not under scale; both are taken out before the
    matrix product, where the common part of similar tokens would cost the digits that matter.
    """
    if normalize:
        x = F.normalize(x, dim=-1)
    outside, n = ~rows[..., None], rows.sum(1).clamp_min(1)[:, None, None]
    rms = lambda x: (x.detach().square().sum((1, 2), keepdim=True) / n).sqrt()  # noqa: E731
    x = x.masked_fill(outside, 0)
    length = rms(x).clamp_min(torch.finfo(x.dtype).tiny)
    x = ((x - x.sum(1, keepdim=True) / n) / length).masked_fill(outside, 0)
    return x.masked_fill(rms(x) < SAME, 0)


def _kernel(x: Tensor, rows: Tensor, kernel: str) -> Tensor:
    gram = x @ x.mT
    if kernel == "linear":
        return gram
    squares = x.square().sum(-1)
    distance = (squares[:, :, None] + squares[:, None, :] - 2 * gram).clamp_min(0)
    # Sorted, not torch.median: no host sync, a mask, and deterministic on the GPU.
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    ordered = distance[:, i, j].masked_fill(~(rows[:, i] & rows[:, j]), torch.inf).sort(1).values
    count = rows.sum(1) * (rows.sum(1) - 1) // 2
    median = ordered.gather(1, ((count - 1) // 2).clamp_min(0)[:, None])
    median = median.masked_fill(count[:, None] == 0, 1).clamp_min(FLOOR**0.5)
    # exp - 1: centring takes the 1 out again, without the rounding it would leave where distances are small
    return torch.expm1(-distance / (2 * median[:, :, None]))


def _centre(kernel: Tensor, rows: Tensor, n: Tensor, unbiased: bool) -> Tensor:
    """H K H over the visible tokens; unbiased: U-centred, whose diagonal is 0 and off-diagonal row sums are 0."""
    outside = ~pairs(rows, diagonal=not unbiased)
    kernel = kernel.masked_fill(outside, 0)
    n = n[:, None, None]
    each, whole = (n - 2, (n - 1) * (n - 2)) if unbiased else (n, n.square())
    row = kernel.sum(2, keepdim=True) / each
    return (kernel - row - row.mT + kernel.sum((1, 2), keepdim=True) / whole).masked_fill(outside, 0)
