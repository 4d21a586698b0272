"""Knowledge distillation from the teacher's logits, soft or hard."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from graft.losses._tokens import fp32


@fp32
def loss(distill_logits: Tensor, teacher_logits: Tensor, *,
         mode: Annotated[str, "soft | hard", "soft: the teacher's distribution; hard: its most likely class"] = "soft",
         tau: Annotated[float, "> 0", "temperature of both distributions (soft)"] = 1.0) -> Tensor:
    """soft: tau^2 * KL(p || q), p = softmax(teacher / tau), q = softmax(student / tau); hard: -log q[argmax p].

    Both logits (N, K) -> (N,), nats (at temperature 1 for hard). tau^2 keeps the size of the gradient,
    which is tau * (q - p). soft is a distance: 0 where the logits agree up to a constant.
    Hinton et al. 2015 (arXiv:1503.02531); hard: Touvron et al. 2021 (arXiv:2012.12877).
    """
    teacher_logits = teacher_logits.detach()
    if mode == "hard":
        return F.cross_entropy(distill_logits, teacher_logits.argmax(-1), reduction="none")
    log_p = F.log_softmax(teacher_logits / tau, -1)
    log_q = F.log_softmax(distill_logits / tau, -1)
    return tau**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
