"""AdaptiveCNN: residual blocks with squeeze-and-excitation, and the small CNN of the demo."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Channel gates from the global average (arXiv:1709.01507), reduction 16, no biases."""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(channels, channels // 16, bias=False), nn.ReLU(),
                                  nn.Linear(channels // 16, channels, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with squeeze-and-excitation beside a shortcut (1x1 convolution where shapes change)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), SqueezeExcite(outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class StagedCnn(nn.Module):
    """Stem, stages, head on the mean of the last map; with the methods of a timm model that a backbone needs."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], hidden: nn.Module, head: nn.Linear):
        super().__init__()
        self.stem, self.stages, self.hidden, self.head = stem, nn.ModuleList(stages), hidden, head
        self.num_classes = head.out_features
        self.feature_info = [{"module": f"stages.{i}"} for i in range(len(stages))]

    def forward_intermediates(self, x: Tensor, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return x, [maps[i] for i in indices]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.head(self.hidden(pooled))


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def adaptive_cnn(variant: str, channels: int, classes: int) -> StagedCnn:
    """`mnist`: stages of 2, 2, 2 blocks, 32 to 128 wide, after max-pooling; `cifar`: 2, 3, 3, 3 blocks, 64 to 512."""
    widths, depths = {"mnist": ((32, 64, 128), (2, 2, 2)), "cifar": ((64, 128, 256, 512), (2, 3, 3, 3))}[variant]
    stages, inputs = [], widths[0]
    for i, (width, depth) in enumerate(zip(widths, depths)):
        strides = [1 if i == 0 else 2] + [1] * (depth - 1)
        stages.append(nn.Sequential(*(ResidualBlock(width if j else inputs, width, stride)
                                      for j, stride in enumerate(strides))))
        inputs = width
    stem = nn.Sequential(*_conv(channels, widths[0]), *([nn.MaxPool2d(2)] if variant == "mnist" else []))
    middle = inputs // 2
    hidden = nn.Sequential(nn.Linear(inputs, middle), nn.ReLU(), nn.Dropout(0.3))
    return StagedCnn(stem, stages, hidden, nn.Linear(middle, classes))


def small_cnn(channels: int, classes: int) -> StagedCnn:
    """Three 3x3 convolutions, 16, 32 and 64 wide, halving the map twice: for images of 8 pixels."""
    stages = [nn.Sequential(*_conv(channels, 16)), nn.Sequential(*_conv(16, 32, 2)), nn.Sequential(*_conv(32, 64, 2))]
    return StagedCnn(nn.Identity(), stages, nn.Identity(), nn.Linear(64, classes))
