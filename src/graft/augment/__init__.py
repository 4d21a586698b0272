"""Batched augmentation on the device: every sample its own draw, whatever batch it is in.

An operation is a file with `apply(view, draw, *, arguments) -> View`; one that mixes labels also takes
`num_classes`. It draws its parameters on the CPU, changes `view.inputs` and, where `view.matrix` is not
None, keeps `matrix` and `visible` true. Images are uint8 until the end or until they are mixed.
"""

import functools

import torch
from torch import Tensor

from graft.config import parts
from graft.config.options import Part
from graft.config.schema import part_tensors
from graft.errors import UserError
from graft.keyed import Draw, key
from graft.outputs import Tokens, View, on_device


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]; float images as they are."""
    if images.is_floating_point():
        return images
    # A CPU divides integers one by one, in more time than a second pass over the floats takes.
    return images.float().div_(255) if images.device.type == "cpu" else torch.div(images, 255)


class Augment:
    """The augmentations of a run, applied in order.

    A sample's augmentation is a function of (seed, place in the list, epoch, sample index) alone, apart
    from its partner in mixing. Raises `UserError` for an operation after one that mixes images.
    """

    def __init__(self, augmentations: tuple[Part, ...], seed: int):
        self.names = [part.name for part in augmentations]
        self.mixes = ["num_classes" in part_tensors("augment", name) for name in self.names]
        self.operations = [functools.partial(parts.get("augment", part.name), **part.args) for part in augmentations]
        # the place in the list is part of the key: an operation listed twice draws twice
        self.keys = [key(seed, "augment", place) for place in range(len(augmentations))]

    def __call__(self, images: Tensor | Tokens, labels: Tensor, index: Tensor, epoch: int, *, num_classes: int,
                 geometry: bool = False) -> View:
        """Augment images uint8 (B, C, H, W) with labels (B,); `index` (B,), on the CPU, is the key of the draws.

        With `geometry` the view also carries `matrix` and `visible`. Sequences stay as they are.
        """
        view = View(images, labels)
        if isinstance(images, Tokens):
            return view
        if geometry:
            # on the CPU and in float64 while it is composed, so that no small product runs on the device
            view.matrix = torch.eye(3, dtype=torch.float64).repeat(len(images), 1, 1)
            view.visible = torch.ones((len(images), *images.shape[-2:]), dtype=torch.bool, device=images.device)
        for name, operation, mixes, seed in zip(self.names, self.operations, self.mixes, self.keys, strict=True):
            if view.inputs.is_floating_point():
                raise UserError(f"augment: {name} comes after an operation that mixes images; mix last")
            view = operation(view, Draw(seed, epoch, index), *[num_classes] * mixes)
        if geometry:
            view.matrix = on_device(view.matrix, images.device, torch.float32)
        view.inputs = to_float(view.inputs)
        return view
