"""What flows between the parts: a batch, the view of it that a model sees, what a model returns."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 26  # a language model's logits are made for that many (position, token) pairs at a time


@dataclass
class Tokens:
    """B sequences as a model reads them; N is their answer tokens, sequence by sequence.

    Rows are padded at the end. Attention is causal, so no scored position ever sees the padding, and neither a
    mask nor its value matters.
    """

    ids: Tensor  # (B, T) int64
    rows: Tensor  # (N,) int64: b * T + t of the position whose output *predicts* each answer token
    counts: Tensor  # (B,) int64 on the CPU: answer tokens of each sequence
    index: Tensor  # (B,) int64 on the CPU: positions in the split
    split: str  # the split these are positions of


@dataclass
class TopK:
    """The largest logits of a distribution over V tokens, and what is needed to know their probabilities."""

    values: Tensor  # (N, K) float32, raw logits, descending
    indices: Tensor | None  # (N, K) int64; None: all V tokens in their order
    logsumexp: Tensor  # (N,) float32, over all V logits


@dataclass
class Batch:
    """One micro-batch of one process. B images, or B sequences."""

    index: Tensor  # (B,) int64 on the CPU: positions in the split, the key of all randomness
    inputs: Tensor | Tokens  # (B, C, H, W) uint8 on the device, as stored, or the sequences
    labels: Tensor  # (B,) int64 on the device, or (N,) the answer tokens
    epoch: int
    step: int  # optimizer steps done before this one
    window: float  # scored positions of the whole accumulation window over all ranks, / ranks
    micro_share: float  # this micro-batch's share of the window, for terms that are one number a batch
    ahead: Tensor | None = None  # (B,) int64 on the CPU: `index` of the next one, if that is known


@dataclass
class View:
    """A batch as an augmentation left it.

    `matrix` maps homogeneous pixel coordinates of the view to those of the stored image. The origin is
    the image centre, the unit a pixel, x to the right and y down: pixel column j is at x = j - (W-1)/2.
    `visible` says which pixels of the view show the image's own content at that place (not padding,
    not another image's CutMix box); None when nobody asked for geometry.
    """

    inputs: Tensor | Tokens  # (B, C, H, W): uint8 inside the pipeline, float32 in [0, 1] at its end
    targets: Tensor  # (B,) int64, or (B, K) float32 once labels are mixed; (N,) answer tokens
    matrix: Tensor | None = None  # (B, 3, 3) float32, view pixel -> stored pixel
    visible: Tensor | None = None  # (B, H, W) bool


@dataclass
class Outputs:
    """What every student and teacher returns. N is the images of a batch, or its answer tokens in order.

    `features` holds only what was asked for, by name, each `(B, T, D)`: `patch.3` is the token map (or
    the flattened feature map, row by row) after block 3, counted from 0; `cls.3` its class token
    (for a CNN the spatial mean), T = 1; `patch.final` and `cls.final` come after the final norm. `attention.3`
    (B, T, T) is the attention between the patches in block 3, its rows summing to 1, the mean of the heads;
    `heads.3` (B, H, T, T) has each of them.

    A student with a distillation token can be read in three ways, (N, K) each: `readings` has the class token's logits
    (`cls`), the distillation token's (`dist`) and the mean of both (`avg`).

    A causal LM's logits over its whole vocabulary are too large to keep: it returns the hidden states at the
    positions that predict answer tokens and the `head` that turns them into logits, piece by piece. Its features
    are `next`, (N, D): the hidden states one position later, at the answer tokens themselves. A teacher with a
    context returns its largest logits at those positions in `topk`, by the same two names (`rows` and `next`), or, for
    the student's own head to make all logits of, its hidden states there in `features`.
    """

    logits: Tensor | None  # (N, K) at scored positions; None for a teacher without a classifier
    distill_logits: Tensor | None = None  # (N, K) the distillation token's; the same as logits without one
    features: dict[str, Tensor] = field(default_factory=dict)
    hidden: Tensor | None = None  # (N, D) at scored positions, before `head`
    head: Callable[[Tensor], Tensor] | None = None  # (n, D) -> logits (n, V)
    topk: dict[str, TopK] = field(default_factory=dict)
    readings: dict[str, Tensor] = field(default_factory=dict)  # in evaluation, where there is more than one head

    def of_neighbours(self) -> "Outputs":
        """Each image with its neighbour's outputs: of the same kind and scale, but about something else."""
        other = lambda x: None if x is None else x.roll(1, 0)  # noqa: E731
        return Outputs(other(self.logits), other(self.distill_logits),
                       {name: other(value) for name, value in self.features.items()})

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
