"""Rows of the student's cosine correlation matrix match the teacher's, between tokens or between images."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from graft.losses._tokens import cosine_gram, everywhere, fp32, image_means, masked_mean, pairs

MIN_TOKENS = 3  # a row without its diagonal needs two entries to be a distribution that can differ


@fp32
def loss(student_tokens: Tensor, teacher_tokens: Tensor, visible: Tensor | None = None, *,
         over: Annotated[str, "tokens | batch", "tokens of one image, or the mean tokens of a batch (of one process "
                                                "and micro-batch); batch: as published"] = "tokens",
         temperature: Annotated[float, "> 0", "of the row softmax, both sides"] = 0.1,
         diagonal: Annotated[bool, "", "keep each token's cosine with itself, 1, which dominates its row; "
                                       "true: as published"] = False) -> Tensor:
    """Mean over rows i of KL(p_i || q_i), p_i = softmax_j(cos(t_i, t_j) / temperature), q_i the student's, in nats.

    student_tokens (B, T, D), teacher_tokens (B, T, D'), visible (B, T) -> (B,) over tokens, 0-d over the
    batch. Rows and columns of invisible tokens (of images without a visible one) are left out; fewer
    than two rows give 0, and so do two without the diagonal. A distance between correlations: zero where
    they agree. Batch-wise: Peng et al. 2019 (arXiv:1904.01802); row softmax: Fang et al. 2021
    (arXiv:2101.04731).
    """
    teacher_tokens = teacher_tokens.detach()
    mask = rows = everywhere(student_tokens, visible)
    if over == "batch":
        student_tokens, rows = image_means(student_tokens, mask)
        teacher_tokens, _ = image_means(teacher_tokens, mask)
    outside = ~pairs(rows, diagonal)
    # Finite, since 0 * (-inf - -inf) would be NaN; far below any cosine / temperature.
    log_q, log_p = (F.log_softmax((cosine_gram(x) / temperature).masked_fill(outside, -1e30), -1)
                    for x in (student_tokens, teacher_tokens))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    value = masked_mean(kl, rows, (1,))
    return value[0] if over == "batch" else value
