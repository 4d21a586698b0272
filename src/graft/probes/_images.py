"""The images that probes look at: the same ones for every model of a study."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from graft import keyed
from graft.augment import to_float
from graft.errors import UserError
from graft.tasks._task import Split


def fixed_index(split: Split, count: int) -> Tensor:
    """Indices of `count` examples of a split (all, if it has fewer): the head of one constant random order.

    Raises UserError if there would be none.
    """
    if min(count, len(split)) < 1:
        raise UserError(f"nothing to look at: {count} images of a split of {len(split)} were asked for")
    return keyed.permutation(keyed.key("probe images"), len(split))[:count]


def batches(split: Split, index: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Those images, float32 (B, C, H, W) in [0, 1] on the split's device."""
    for images, _ in split.batches(list(index.split(batch_size))):
        yield to_float(images)


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """The models in evaluation mode, then as they were."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def require_images(n: int, least: int, probe: str) -> None:
    """Raise UserError if there are too few images."""
    if n < least:
        raise UserError(f"{probe}: needs at least {least} images, got {n}")
