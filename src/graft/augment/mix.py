"""MixUp or CutMix, chosen for each image."""

from typing import Annotated

import numpy as np
import torch

from graft.augment._mixing import beta, blend, cut, mixed
from graft.keyed import Draw
from graft.outputs import View, on_device


def apply(view: View, draw: Draw, num_classes: int, *,
          alpha_mixup: Annotated[float, "> 0", "MixUp: the own image's weight is Beta(alpha, alpha)"] = 0.8,
          alpha_cutmix: Annotated[float, "> 0", "CutMix: the part of the own image is Beta(alpha, alpha)"] = 1.0,
          switch_prob: Annotated[float, "[0, 1]", "probability of CutMix"] = 0.5) -> View:
    """Mix each image with its neighbour in the batch, one way or the other; targets become (B, K)."""
    uniform = draw("mix", 4)
    is_cut = uniform[:, 0] < switch_prob
    outside, area = cut(beta(uniform[:, 1], alpha_cutmix), uniform[:, 2:], view.inputs)
    weight, share = blend(beta(uniform[:, 1], alpha_mixup), view.inputs)
    own = torch.where(on_device(is_cut, view.inputs.device, torch.bool)[:, None, None], outside, weight)
    return mixed(view, own, np.where(is_cut, area, share), num_classes)
