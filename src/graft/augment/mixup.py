"""MixUp: a weighted mean of two images and labels (Zhang et al. 2018, arXiv:1710.09412)."""

from typing import Annotated

from graft.augment._mixing import beta, blend, mixed
from graft.keyed import Draw
from graft.outputs import View


def apply(view: View, draw: Draw, num_classes: int, *,
          alpha: Annotated[float, "> 0", "the own image's weight is Beta(alpha, alpha)"] = 0.8) -> View:
    """Mix each image with its neighbour in the batch, with a weight of its own; targets become (B, K)."""
    return mixed(view, *blend(beta(draw("mixup")[:, 0], alpha), view.inputs), num_classes)
