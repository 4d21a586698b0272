"""Tokens match the teacher's tokens at the same place."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from graft.losses._tokens import everywhere, fp32, make_projector, masked_mean, need_equal_widths, projected


def projector(student_dim: int, teacher_dim: int, *, project: str) -> nn.Module | None:
    """What `loss` compares through; raises `UserError` without one where the widths differ."""
    if project == "none":
        need_equal_widths(student_dim, teacher_dim)
    return make_projector(project, student_dim, teacher_dim)


@fp32
def loss(student_tokens: Tensor, teacher_tokens: Tensor, visible: Tensor | None = None,
         projector: nn.Module | None = None, *,
         distance: Annotated[str, "cosine | mse", "cosine: 1 - cos; mse: mean squared difference"] = "cosine",
         project: Annotated[str, "student | none | both",
                            "which side goes through a trained projector; both: as published"] = "student") -> Tensor:
    """Mean over the visible tokens of 1 - cos(P(s_t), t_t), or of mean_d (P(s_t) - t_t)_d^2.

    student_tokens (B, T, D), teacher_tokens (B, T, D'), visible (B, T) -> (B,); an image without a
    visible token gives 0. P is Linear-LayerNorm-GELU-Linear-LayerNorm to the teacher's width; the
    teacher's side is fixed unless project is `both`. Zero where P(s) equals t. FitNets: Romero et al.
    2015 (arXiv:1412.6550).
    """
    assert (projector is None) == (project == "none"), f"project={project} with projector {projector}"
    student, teacher = projected(projector, student_tokens, teacher_tokens)
    if distance == "cosine":
        values = 1 - F.cosine_similarity(student, teacher, dim=-1)
    else:
        values = (student - teacher).square().mean(-1)
    return masked_mean(values, everywhere(student, visible), (1,))
