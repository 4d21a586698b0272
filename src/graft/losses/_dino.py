"""Self-distillation with no labels: the DINO loss and projection head (Caron et al. 2021, arXiv:2104.14294)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graft.losses._tokens import fp32


@fp32
def dino_loss(student_logits: Tensor, teacher_logits: Tensor, center: Tensor,
              student_temp: float, teacher_temp: float) -> Tensor:
    """Mean over the G * (V - 1) pairs g != v of -sum_k p_gk log q_vk, in nats.

    p = softmax((teacher - center) / teacher_temp), q = softmax(student / student_temp). student_logits
    (V, B, K), teacher_logits (G, B, K), center (K,) -> (B,). The first G views of the student are the
    teacher's. Not zero at equality: the minimum is the entropy of p.
    """
    views, globals_ = len(student_logits), len(teacher_logits)
    assert views > 1 and views >= globals_, f"{views} student views, {globals_} teacher views"
    log_q = F.log_softmax(student_logits / student_temp, -1)
    p = F.softmax((teacher_logits.detach() - center) / teacher_temp, -1)
    every_pair = torch.einsum("gbk,bk->b", p, log_q.sum(0))
    same_view = torch.einsum("gbk,gbk->b", p, log_q[:globals_])
    return (same_view - every_pair) / (globals_ * (views - 1))


class DinoHead(nn.Module):
    """Three-layer MLP with GELU, L2-normalised bottleneck, last layer with rows of unit length and no gain.

    (…, dim) -> (…, prototypes): cosines, in [-1, 1], in fp32: at a temperature of 0.04 a cosine in bf16 would be
    off by 0.1 nat.
    """

    def __init__(self, dim: int, prototypes: int, hidden: int, bottleneck: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
                                 nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)
        for layer in (*self.mlp[::2], self.prototypes):
            # The paper's 0.02 at its width of 2048; a narrow head with 0.02 would end in vectors near zero, and
            # normalising those makes gradients explode.
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return _cosines(self.mlp(x), self.prototypes.weight)


@fp32
def _cosines(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(F.normalize(x, dim=-1), F.normalize(weight, dim=-1))
