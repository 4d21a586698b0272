"""The student's token-by-token cosines match the teacher's (Gram anchoring)."""

from typing import Annotated

import torch
from torch import Tensor, nn

from graft.losses._tokens import cosine_gram, everywhere, fp32, make_projector, masked_mean, pairs, projected

MIN_TOKENS = 2


def projector(student_dim: int, teacher_dim: int, *, project: str) -> nn.Module | None:
    """What `loss` compares through; none is needed."""
    return make_projector(project, student_dim, teacher_dim)


@fp32
def loss(student_tokens: Tensor, teacher_tokens: Tensor, visible: Tensor | None = None,
         projector: nn.Module | None = None, *,
         scale: Annotated[str, "mean | frobenius", "mean: squared difference per pair; frobenius: norm of the "
                                                   "difference / n^2, at most 2 / n, as published"] = "mean",
         project: Annotated[str, "none | student | both",
                            "which side goes through a trained projector; both: as published"] = "none") -> Tensor:
    """Mean over pairs i != j of visible tokens of (cos(s_i, s_j) - cos(t_i, t_j))^2, or ||G_s - G_t||_F / n^2.

    student_tokens (B, T, D), teacher_tokens (B, T, D'), visible (B, T) -> (B,), n visible tokens; fewer
    than 2 give 0. A distance between the cosines. DINOv3: Siméoni et al. 2025 (arXiv:2508.10104), with
    the mean instead of the sum.
    """
    assert (projector is None) == (project == "none"), f"project={project} with projector {projector}"
    student, teacher = projected(projector, student_tokens, teacher_tokens)
    mask = everywhere(student, visible)
    both = pairs(mask, diagonal=False)
    difference = cosine_gram(student) - cosine_gram(teacher)
    if scale == "mean":
        return masked_mean(difference.square(), both, (1, 2))
    norm = torch.linalg.vector_norm(difference.masked_fill(~both, 0), dim=(1, 2))
    return norm / mask.sum(1).clamp_min(1).square()
