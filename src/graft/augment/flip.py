"""Random horizontal flip."""

from dataclasses import replace
from typing import Annotated

import numpy as np
import torch

from graft.augment._warp import composed
from graft.keyed import Draw
from graft.outputs import View, on_device

MIRROR = np.diag([-1.0, 1.0, 1.0])


def apply(view: View, draw: Draw, *, p: Annotated[float, "[0, 1]", "probability"] = 0.5) -> View:
    """Mirror each image left to right with probability `p`."""
    flipped = draw("flip")[:, 0] < p
    chosen = on_device(flipped, view.inputs.device, torch.bool)[:, None, None]
    images = torch.where(chosen[:, None], view.inputs.flip(-1), view.inputs)
    if view.matrix is None:
        return replace(view, inputs=images)
    return replace(view, inputs=images, visible=torch.where(chosen, view.visible.flip(-1), view.visible),
                   matrix=composed(view.matrix, MIRROR, np.flatnonzero(flipped)))
