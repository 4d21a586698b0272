"""Random translation, scale and shear."""

from typing import Annotated

import numpy as np

from graft.augment._boxes import check_range
from graft.augment._warp import inverse_affine, warp
from graft.keyed import Draw
from graft.outputs import View


def apply(view: View, draw: Draw, *,
          translate: Annotated[float, "[0, 1]", "largest shift, as a part of the image's width and height"] = 0.1,
          scale: Annotated[list[float], "> 0", "range of the scale factor"] = (1.0, 1.0),
          shear: Annotated[float, "[0, 90)", "largest shear along x, degrees"] = 0.0,
          interpolation: Annotated[str, "nearest | bilinear", "resampling"] = "nearest") -> View:
    """Scale and shear each image about its centre and shift it by whole pixels, each uniformly.

    Raises `UserError` if `scale` is not a range.
    """
    check_range("affine.scale", scale)
    height, width = view.inputs.shape[-2:]
    signed = 2 * draw("affine", 4) - 1
    factor = scale[0] + (scale[1] - scale[0]) * (signed[:, 2] + 1) / 2
    inverse = inverse_affine(translate_x=np.round(signed[:, 0] * translate * width),
                             translate_y=np.round(signed[:, 1] * translate * height),
                             scale=factor, shear_x=signed[:, 3] * shear)
    return warp(view, inverse, interpolation=interpolation)
