"""Mixing each image and label with its neighbour's."""

from dataclasses import replace

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from graft.augment import to_float
from graft.augment._boxes import around, inside
from graft.errors import UserError
from graft.outputs import View, on_device


def beta(uniform: np.ndarray, alpha: float) -> np.ndarray:
    """Uniform draws as draws of Beta(alpha, alpha)."""
    return betaincinv(alpha, alpha, uniform)


def mixed(view: View, own: Tensor, share: np.ndarray, num_classes: int) -> View:
    """Images `own·x + (1 - own)·partner` and labels `share·y + (1 - share)·partner's`, float32 (B, K).

    `own` (B, H, W), in [0, 1], is each pixel's part of its own image, and `share` (B,) its mean.
    Sample j's partner is j XOR 1: the order is already random, a pair never straddles micro-batches, and so
    the result is the same for any accumulation or number of processes. Pixels that are not wholly an image's
    own are not visible. Raises `UserError` for an odd batch.
    """
    if len(view.inputs) % 2:
        raise UserError(f"augment: mixing needs an even number of images per micro-batch, got {len(view.inputs)}")
    images = to_float(view.inputs)
    share = on_device(share[:, None], images.device, torch.float32)
    labels = torch.zeros(len(images), num_classes, device=images.device).scatter_(1, view.targets[:, None], 1.0)
    view = replace(view, inputs=_sum(images, own[:, None]), targets=_sum(labels, share))
    return view if view.visible is None else replace(view, visible=view.visible & (own == 1))


def _sum(x: Tensor, own: Tensor) -> Tensor:
    partner = x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return own * x + (1 - own) * partner


def cut(share: np.ndarray, uniform: np.ndarray, images: Tensor) -> tuple[Tensor, np.ndarray]:
    """`own` and `share` of CutMix: 0 inside a box that covers `1 - share` (B,) of the image, 1 outside.

    The centre is uniform over the pixels, by `uniform` (B, 2); what sticks out is cut off, and the share
    that is returned is that of the pixels.
    """
    height, width = images.shape[-2:]
    side = np.sqrt(1 - share) / 2
    boxes = around(np.floor(uniform[:, 0] * height), np.floor(uniform[:, 1] * width),
                   np.floor(side * height), np.floor(side * width), height, width)
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    return 1 - inside(boxes, height, width, images.device).float(), 1 - area / (height * width)


def blend(share: np.ndarray, images: Tensor) -> tuple[Tensor, np.ndarray]:
    """`own` and `share` of MixUp: `share` (B,) of every pixel."""
    own = on_device(share[:, None, None], images.device, torch.float32)
    return own.expand(-1, *images.shape[-2:]), share
