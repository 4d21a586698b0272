"""What is wrapped for several processes: the student and the objective as one module."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graft.outputs import Tokens


class Learner(nn.Module):
    """Student and objective as one module, so that what DDP or FSDP wraps returns the loss.

    DDP finds the parameters that a step does not use by walking back from what the module returns. A student
    alone returns outputs that a loss may leave aside (a distillation head without `kd`), and DDP would wait
    for their gradients forever.
    """

    def __init__(self, student: nn.Module, objective: nn.Module, autocast: Callable):
        super().__init__()
        self.student, self.objective, self.autocast = student, objective, autocast

    def forward(self, inputs: Tensor | Tokens, features: Sequence[str], *rest,
                **options) -> tuple[Tensor, dict[str, Tensor]]:
        """`objective(student(inputs, features), *rest, **options)`: the loss, 0-d, and its terms, detached.

        The losses are fp32 by themselves; the objective is under autocast for a language model's head.
        """
        with self.autocast():
            return self.objective(self.student(inputs, features=features), *rest, **options)

    def lend(self, function: Callable[..., Any], *given: Any) -> Any:
        """`function(*given)`, which may call the student alone: its weights are at hand, also where FSDP has parts."""
        return function(*given)


def synchronised(student: nn.Module) -> nn.Module:
    """The student with BatchNorm's statistics over all processes: otherwise they, and so the condition, would depend
    on the number of GPUs.

    torch's own conversion would replace timm's fused norm + activation layers by the norm alone.
    """
    from timm.layers import convert_sync_batchnorm  # language models do without timm
    return convert_sync_batchnorm(student)


def placed(module: nn.Module, device: torch.device, memory_format: str) -> nn.Module:
    """The module on the device, the weights of its convolutions in `train.memory_format`."""
    module = module.to(device)
    return module.to(memory_format=torch.channels_last) if channels_last(module, device, memory_format) else module


def channels_last(module: nn.Module, device: torch.device, memory_format: str) -> bool:
    """Whether convolutions keep the channels of a pixel together, as tensor cores want them.

    One with such a weight returns such a map whatever it is given, so images need nothing. auto leaves alone what has
    one convolution at most: it makes a transformer's patches, and its map is a list of tokens at once.
    """
    if memory_format != "auto":
        return memory_format == "channels_last"
    return device.type == "cuda" and sum(isinstance(layer, nn.Conv2d) for layer in module.modules()) > 1
