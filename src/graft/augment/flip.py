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
    rows = np.flatnonzero(draw("flip")[:, 0] < p)
    chosen = on_device(rows, view.inputs.device, torch.int64)
    mirrored = lambda maps: maps.index_copy(0, chosen, maps.index_select(0, chosen).flip(-1))  # noqa: E731
    images = mirrored(view.inputs)
    if view.matrix is None:
        return replace(view, inputs=images)
    return replace(view, inputs=images, visible=mirrored(view.visible), matrix=composed(view.matrix, MIRROR, rows))
