"""What flows between the parts: a batch, the view of it that a model sees, what a model returns."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Batch:
    """One micro-batch of one process. B images, or B sequences."""

    index: Tensor  # (B,) int64 on the CPU: positions in the split, the key of all randomness
    images: Tensor  # (B, C, H, W) uint8 on the device, as stored
    labels: Tensor  # (B,) int64 on the device
    epoch: int
    step: int  # optimizer steps done before this one
    window: float  # scored positions of the whole accumulation window over all ranks, / ranks
    micro_share: float  # this micro-batch's share of the window, for terms that are one number a batch


@dataclass
class View:
    """A batch as an augmentation left it.

    `matrix` maps homogeneous pixel coordinates of the view to those of the stored image. The origin is
    the image centre, the unit a pixel, x to the right and y down: pixel column j is at x = j - (W-1)/2.
    `visible` says which pixels of the view show the image's own content at that place (not padding,
    not another image's CutMix box); None when nobody asked for geometry.
    """

    images: Tensor  # (B, C, H, W): uint8 inside the pipeline, float32 in [0, 1] at its end
    targets: Tensor  # (B,) int64, or (B, K) float32 once labels are mixed
    matrix: Tensor | None = None  # (B, 3, 3) float32, view pixel -> stored pixel
    visible: Tensor | None = None  # (B, H, W) bool


@dataclass
class Outputs:
    """What every student and teacher returns. N is the images of a batch, or its answer tokens in order.

    `features` holds only what was asked for, by name, each `(B, T, D)`: `patch.3` is the token map (or
    the flattened feature map, row by row) after block 3, counted from 0; `cls.3` its class token
    (for a CNN the spatial mean), T = 1; `patch.final` and `cls.final` come after the final norm.
    """

    logits: Tensor | None  # (N, K) at scored positions; None for a teacher without a classifier
    distill_logits: Tensor | None = None  # (N, K) the distillation token's; the same as logits without one
    features: dict[str, Tensor] = field(default_factory=dict)

    def detach(self) -> "Outputs":
        """The same values outside the graph."""
        cut = lambda x: None if x is None else x.detach()  # noqa: E731
        return Outputs(cut(self.logits), cut(self.distill_logits),
                       {name: cut(value) for name, value in self.features.items()})


def grid_of(tokens: int) -> tuple[int, int]:
    """The (height, width) of a square token map with that many tokens.

    Raises ValueError if the number is not a square.
    """
    side = int(tokens**0.5 + 0.5)
    if side * side != tokens:
        raise ValueError(f"{tokens} tokens do not form a square grid")
    return side, side


def on_device(array, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A small host array on the device without waiting for it."""
    tensor = torch.as_tensor(array).to(dtype)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
