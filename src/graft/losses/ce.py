"""Cross-entropy with label smoothing, for hard and mixed labels."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from graft.losses._tokens import fp32


@fp32
def loss(logits: Tensor, targets: Tensor, *,
         smoothing: Annotated[float, "[0, 1)", "share of the label spread evenly over all classes"] = 0.0,
         smooth_soft: Annotated[bool, "", "smooth mixed labels too; false: only hard ones, as published"] = True,
         ) -> Tensor:
    """-sum_k y_k log softmax(logits)_k with y = (1 - smoothing) * target + smoothing / K, in nats.

    logits (N, K); targets (N,) int64 or (N, K) probabilities -> (N,). Label smoothing: Szegedy et al.
    2016 (arXiv:1512.00567). Not zero at its minimum, which is the entropy of y.
    """
    if targets.is_floating_point() and not smooth_soft:
        smoothing = 0.0
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
