"""Freezing a teacher: no gradients, evaluation mode for good."""

from collections.abc import Callable
from types import MethodType

import torch
from torch import nn


def freeze(teacher: nn.Module) -> nn.Module:
    """The same module, frozen: `train()`, called on it, a part of it or a module around it, changes nothing."""
    teacher.eval().requires_grad_(False)
    for module in teacher.modules():
        module.train = MethodType(_stay, module)
    return teacher


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def isolated(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """`make()` under its own seed: building a teacher draws nothing from the generator that makes the student."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
