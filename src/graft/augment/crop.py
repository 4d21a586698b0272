"""Random crop of the zero-padded image, at its own size."""

from typing import Annotated

import numpy as np

from graft.augment._warp import inverse_affine, warp
from graft.keyed import Draw
from graft.outputs import View


def apply(view: View, draw: Draw, *,
          padding: Annotated[int, ">= 0", "pixels of black border; the largest shift"] = 4) -> View:
    """Shift each image by up to `padding` whole pixels in x and in y, every shift equally likely."""
    shift = np.floor(draw("crop", 2) * (2 * padding + 1)) - padding
    return warp(view, inverse_affine(translate_x=shift[:, 0], translate_y=shift[:, 1]))
