"""Cutout: square holes of one colour (DeVries and Taylor 2017, arXiv:1708.04552)."""

from dataclasses import replace
from typing import Annotated

import numpy as np

from graft.augment._boxes import around, filled, inside
from graft.keyed import Draw
from graft.outputs import View


def apply(view: View, draw: Draw, *,
          size: Annotated[int, "> 0", "side of a hole, pixels (an odd one is rounded down)"] = 16,
          holes: Annotated[int, "> 0", "number of holes"] = 1,
          fill: Annotated[list[float], "[0, 1]", "colour, one number or one per channel; give the data set's mean "
                                                 "for holes that are zero once normalised"] = (0.5,)) -> View:
    """Fill `holes` squares whose centres are uniform over the image; what sticks out is cut off."""
    height, width = view.inputs.shape[-2:]
    at = draw("cutout", 2 * holes)
    images = view.inputs
    for hole in range(holes):
        boxes = around(np.floor(at[:, 2 * hole] * height), np.floor(at[:, 2 * hole + 1] * width),
                       size // 2, size // 2, height, width)
        images = filled(images, inside(boxes, height, width, images.device), fill, "cutout.fill")
    return replace(view, inputs=images)
