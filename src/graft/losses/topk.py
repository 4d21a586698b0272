"""A language model's distribution matches the teacher's, of which the K largest logits are known."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from graft.losses._tokens import fp32
from graft.outputs import TopK


@fp32
def loss(logits: Tensor, teacher_topk: TopK, *,
         form: Annotated[str, "mse | centred_mse | kl | reverse_kl | jsd", "mse: of the raw logits, as published; "
                         "centred_mse: of logits without their mean; kl: teacher to student; reverse_kl: student to "
                         "teacher; jsd: Jensen-Shannon"] = "kl",
         tau: Annotated[float, "> 0", "temperature of both distributions (kl, reverse_kl, jsd)"] = 1.0,
         tail: Annotated[str, "bucket | renormalise | ignore", "the tokens outside the K (kl, reverse_kl, jsd). "
                         "bucket: one more outcome, needs tau 1; renormalise: both given the K; ignore: teacher given "
                         "the K, student over all, not zero at equality"] = "bucket",
         clip: Annotated[float, ">= 0", "the most that one token may count; what is above has no gradient; 0: no "
                         "limit", "", "2026-11"] = 0.0,
         position: Annotated[str, "predicting | published", "outputs compared. predicting: those that predict the "
                             "answer tokens; published: those one later, which leave out the prediction of the "
                             "first token and end with what follows the last"] = "predicting") -> Tensor:
    """Distance of the student's logits S (N, V) from the teacher's T, known at its K largest, at N positions -> (N,).

    mse: mean_k (T_k - S_k)^2, and centred_mse: mean_k (D_k - mean D)^2, D = T - S; in squared logits. For p, q
    = softmax(T / tau), softmax(S / tau), in nats: kl: tau^2 KL(p || q); reverse_kl: tau^2 KL(q || p);
    jsd: tau^2 (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, at most tau^2 ln 2. All are 0 where S = T, but for
    tail=ignore, which is at least -tau^2 ln(q's mass on the K) for kl, and infinite for reverse_kl, so that it is
    refused there; all but mse ignore a constant added to S. Teacher logits without indices are those of all V tokens
    in order: there are no others, and tail does not matter.

    clip: min(l, clip) for each token's l. Where l > clip the gradient is 0: tokens on which both are far apart, often
    of style, teach nothing until others have brought them nearer. So does verl (`loss_max_clamp`); OPSD's clip is of
    each vocabulary entry's share instead.

    mse is no stand-in for kl: near equality kl = Var_p(D) / 2, weighted by p and blind to a common shift, while
    mse also fits the shift, weights all K alike and is ruled by the improbable ones. tau^2 KL over the K
    tends to centred_mse / 2 as tau grows.

    `position` is for the caller, who chooses the rows of both sides; nothing here depends on it.
    Hinton et al. 2015 (arXiv:1503.02531): kl, its limit for large tau; Ba & Caruana 2014 (arXiv:1312.6184): mse
    of logits; Gu et al. 2024 (arXiv:2306.08543): reverse_kl, and Agarwal et al. 2024 (arXiv:2306.13649): jsd, for
    language models.
    """
    del position
    each = _distance(logits, teacher_topk, form, tau, tail)
    return each.clamp_max(clip) if clip else each


def _distance(logits: Tensor, topk: TopK, form: str, tau: float, tail: str) -> Tensor:
    if form in ("mse", "centred_mse"):
        gap = topk.values.detach() - _of_the_same(logits, topk)
        if form == "centred_mse":
            gap = gap - gap.mean(-1, keepdim=True)
        return gap.square().mean(-1)
    log_p, log_q = _outcomes(logits, topk, tau, tail)
    if form == "kl":
        return tau**2 * _kl(log_p, log_q)
    if form == "reverse_kl":
        assert tail != "ignore" or log_p.shape == topk.values.shape, "the teacher has no mass where the student has"
        return tau**2 * _kl(log_q, log_p)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return tau**2 * (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


def _of_the_same(logits: Tensor, topk: TopK) -> Tensor:
    """The student's logits (N, K) of the teacher's tokens."""
    return logits if topk.indices is None else logits.gather(1, topk.indices)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _outcomes(logits: Tensor, topk: TopK, tau: float, tail: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student: of the K tokens (N, K), and of all others as a last column."""
    theirs = topk.values.detach() / tau
    ours = _of_the_same(logits, topk) / tau
    if tail == "renormalise" or ours.shape == logits.shape:  # or there are no others
        return F.log_softmax(theirs, -1), F.log_softmax(ours, -1)
    # Summed over the others themselves: 1 - (mass of the K) has no digits left, nor has its gradient, once they
    # are improbable.
    others = torch.logsumexp(logits.scatter(1, topk.indices, -math.inf) / tau, -1, keepdim=True)
    log_q = F.log_softmax(torch.cat([ours, others], -1), -1)
    if tail == "ignore":
        log_p = F.log_softmax(theirs, -1)
        return F.pad(log_p, (0, 1), value=-1e30), log_q  # finite, since 0 * -inf is NaN
    assert tau == 1, "the teacher's logsumexp is that of temperature 1"
    log_p = theirs - topk.logsumexp.detach()[:, None]
    # The mass can be rounded to 1 or above; exp(-tiny) leaves the others a probability of `tiny`.
    mass = log_p.logsumexp(-1, keepdim=True).clamp_max(-torch.finfo(log_p.dtype).tiny)
    return F.log_softmax(torch.cat([log_p, torch.log(-torch.expm1(mass))], -1), -1), log_q
