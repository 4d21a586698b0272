"""CutMix: a rectangle of another image, labels by area (Yun et al. 2019, arXiv:1905.04899)."""

from typing import Annotated

from graft.augment._mixing import beta, cut, mixed
from graft.keyed import Draw
from graft.outputs import View


def apply(view: View, draw: Draw, num_classes: int, *,
          alpha: Annotated[float, "> 0", "the part of the own image is Beta(alpha, alpha)"] = 1.0) -> View:
    """Paste a rectangle of the neighbour's image, in place, with the image's shape; targets become (B, K)."""
    uniform = draw("cutmix", 3)
    return mixed(view, *cut(beta(uniform[:, 0], alpha), uniform[:, 1:], view.inputs), num_classes)
