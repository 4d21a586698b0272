"""What the losses share: full precision, masked means, cosine Gram matrices, projectors."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graft.errors import UserError

PUBLISHED_WIDTH = 256  # of the space both sides are projected into with project="both"


def fp32(loss: Callable) -> Callable:
    """Run `loss` with autocast off, its half-precision tensors as float32, and no TF32 in its matrix products.

    A bf16 Gram matrix loses what is left after centring: for tokens whose noise is a fifth of their
    mean, the centred entries are off by 40 %. TF32 keeps three bits more. Gradients are products without such
    cancellation; they follow `train.tf32`.
    """

    @functools.wraps(loss)
    def in_full(*args, **kwargs):
        values = [*args, *kwargs.values()]
        device = next(value.device.type for value in values if isinstance(value, Tensor))
        widen = lambda x: x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.half) else x  # noqa: E731
        matmul = torch.backends.cuda.matmul
        tf32, matmul.allow_tf32 = matmul.allow_tf32, False
        try:
            with torch.autocast(device, enabled=False):
                return loss(*map(widen, args), **{key: widen(value) for key, value in kwargs.items()})
        finally:
            matmul.allow_tf32 = tf32

    return in_full


def everywhere(tokens: Tensor, visible: Tensor | None) -> Tensor:
    """`visible` (B, T), or all true where nobody masks the tokens (B, T, D)."""
    if visible is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    assert visible.shape == tokens.shape[:2], f"visible {tuple(visible.shape)} for tokens {tuple(tokens.shape)}"
    return visible


def masked_mean(values: Tensor, mask: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean over `dims` of the `values` where `mask`; 0 where the mask is empty."""
    return values.masked_fill(~mask, 0).sum(dims) / mask.sum(dims).clamp_min(1)


def pairs(mask: Tensor, diagonal: bool) -> Tensor:
    """(B, n) -> (B, n, n): which pairs of entries are both unmasked, without or with i = j."""
    both = mask[:, :, None] & mask[:, None, :]
    return both if diagonal else both & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)


def image_means(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, D) -> (1, B, D): the mean token of each image as the rows of one set, and which rows have one."""
    return masked_mean(tokens, mask[..., None], (1,))[None], mask.any(1)[None]


def cosine_gram(tokens: Tensor) -> Tensor:
    """(B, n, D) -> (B, n, n): cosines between the tokens of each set."""
    unit = F.normalize(tokens, dim=-1)
    return unit @ unit.mT


class Projector(nn.Module):
    """Maps student and teacher tokens into the space where they are compared."""

    def __init__(self, student: nn.Module, teacher: nn.Module):
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, student_tokens: Tensor, teacher_tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(student_tokens), self.teacher(teacher_tokens)


def make_projector(project: str, student_dim: int, teacher_dim: int) -> Projector | None:
    """The projector of a loss: `none`, on the `student` side to the teacher's width, or on `both` sides.

    `both` is as published and unsound: the two projectors can agree with each other whatever the
    tokens are, so that the loss falls without the student learning anything.
    """
    if project == "none":
        return None
    if project == "student":
        return Projector(_mlp(student_dim, teacher_dim), nn.Identity())
    return Projector(_mlp(student_dim, PUBLISHED_WIDTH), _mlp(teacher_dim, PUBLISHED_WIDTH))


def _mlp(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 2 * out), nn.LayerNorm(2 * out), nn.GELU(),
                         nn.Linear(2 * out, out), nn.LayerNorm(out))


def projected(projector: nn.Module | None, student_tokens: Tensor, teacher_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Student and teacher tokens as they are compared; no gradient reaches the teacher."""
    teacher_tokens = teacher_tokens.detach()
    return (student_tokens, teacher_tokens) if projector is None else projector(student_tokens, teacher_tokens)


def need_equal_widths(student_dim: int, teacher_dim: int) -> None:
    """Raises `UserError` if tokens of these widths cannot be compared without a projector."""
    if student_dim != teacher_dim:
        raise UserError(f"project: none needs equal widths, got student {student_dim}, teacher {teacher_dim}; "
                        "use project: student")
