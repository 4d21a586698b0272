"""Parameter groups, optimizers, the learning rate as a function of the step, and averaged weights."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from graft.config.options import Optim, Train
from graft.config.schema import to_steps
from graft.errors import UserError


def parameter_groups(modules: Iterable[nn.Module], optim: Optim) -> list[dict]:
    """Trainable parameters in two groups: with and without weight decay.

    With `decay: matrices` only weights of linear layers (2-d) and convolutions (4-d) decay; norms, biases,
    tokens and position embeddings (0, 1 and 3-d) do not. `decay: all` is what the original study did.
    """
    params = [p for module in modules for p in module.parameters() if p.requires_grad]
    decays = [optim.decay == "all" or p.ndim in (2, 4) for p in params]
    groups = [{"params": [p for p, d in zip(params, decays) if d], "weight_decay": optim.weight_decay},
              {"params": [p for p, d in zip(params, decays) if not d], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(modules: Iterable[nn.Module], optim: Optim) -> torch.optim.Optimizer:
    """The optimizer of a run, fused where torch has a fused kernel."""
    groups = parameter_groups(modules, optim)
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=tuple(optim.betas), fused=True)
    if optim.name == "adam":
        return torch.optim.Adam(groups, lr=optim.lr, betas=tuple(optim.betas), fused=True)
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.momentum > 0, fused=True)
    return torch.optim.RMSprop(groups, lr=optim.lr, momentum=optim.momentum)


def lr_at(step: int, optim: Optim, train: Train, steps_per_epoch: int, total_steps: int,
          plateau_factor: float = 1.0) -> float:
    """Learning rate of optimizer step `step` (from 0), the same on any number of processes.

    Linear warm-up `lr·(step+1)/warmup`, then the schedule; `cosine` reaches `min_lr` exactly at the last
    step. `plateau_factor` is the one part that depends on the past; other schedules ignore it. An SWA run
    with `swa_lr` keeps that rate from `swa_start` on.

    An accelerate-prepared scheduler would advance once per process and step, so that the schedule would
    depend on the number of GPUs; this one is never prepared.
    """
    warmup = to_steps(optim.warmup, steps_per_epoch, total_steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if train.average == "swa" and train.swa_lr and step >= to_steps(train.swa_start, steps_per_epoch, total_steps):
        return train.swa_lr
    since = step - warmup
    period = max(1, to_steps(optim.period, steps_per_epoch))  # the schedules that use it have at least one step
    if optim.schedule == "cosine":
        done = since / max(1, total_steps - 1 - warmup)
        return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2
    if optim.schedule == "step":
        return optim.lr * optim.gamma ** (since // period)
    if optim.schedule == "exponential":
        return optim.lr * optim.gamma ** (since / period)
    if optim.schedule == "cyclic":
        phase = since % period / period
        return optim.lr - (optim.lr - optim.min_lr) * (1 - abs(1 - 2 * phase))
    if optim.schedule == "plateau":
        return max(optim.min_lr, optim.lr * plateau_factor)
    return optim.lr


class Average:
    """Averaged weights that are evaluated and exported, not only kept.

    `ema`: w̄ ← d·w̄ + (1-d)·w after every step with d = min(decay, (1+t)/(10+t)), so that the random
    initialisation is forgotten early. `swa`: the equal average of the weights at the end of every epoch
    from `swa_start` on (Izmailov et al. 2018, arXiv:1803.05407). BatchNorm statistics do not average:
    `recompute_batchnorm` measures them for the averaged weights before these are scored. Raises UserError for a run
    that ends before anything is averaged: what is exported would be the initial weights.
    """

    def __init__(self, model: nn.Module, train: Train, steps_per_epoch: int, total_steps: int):
        self.kind, self.decay = train.average, train.ema_decay
        self.start = to_steps(train.swa_start, steps_per_epoch, total_steps) if self.kind == "swa" else 0
        self.every = steps_per_epoch if self.kind == "swa" else 1
        self.first = max(self.every, -(-self.start // self.every) * self.every)
        if self.first > total_steps:
            raise UserError(f"train.swa_start: {train.swa_start}: the first weights would be averaged at the end of an "
                            f"epoch, at step {self.first} of {total_steps}; expected an earlier start or a longer run")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def ready(self, step: int) -> bool:
        """Whether `step` steps were enough for the average to mean something."""
        return step >= self.first

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step number `step` (from 1)."""
        ours, theirs = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        if not self.ready(step):  # early stopping may end here: what is exported is then not the initial weights
            torch._foreach_copy_([*ours, *self.model.buffers()], [*theirs, *model.buffers()])
            return
        if step % self.every:
            return
        if self.kind == "swa":
            taken = step // self.every - -(-max(self.start, 1) // self.every)
            torch._foreach_lerp_(ours, theirs, 1 / (taken + 1))
        else:
            torch._foreach_lerp_(ours, theirs, 1 - min(self.decay, (1 + step) / (10 + step)))


@torch.no_grad()
def recompute_batchnorm(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm by the mean over `images` (float batches).

    A model without BatchNorm is left alone and `images` is not touched.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the cumulative mean over all batches
        layer.train()
    seen = 0
    for batch in images:
        model(batch)
        seen += len(batch)
    assert seen, "no images: the statistics would stay at 0 and 1"
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
        layer.eval()
