"""Random rotation about the image centre."""

from typing import Annotated

from graft.augment._warp import inverse_affine, warp
from graft.keyed import Draw
from graft.outputs import View


def apply(view: View, draw: Draw, *,
          degrees: Annotated[float, "[0, 180]", "angles lie between -degrees and degrees"] = 10.0,
          interpolation: Annotated[str, "nearest | bilinear", "resampling"] = "nearest") -> View:
    """Rotate each image by a uniform angle; corners that come from outside are black."""
    angle = (2 * draw("rotation")[:, 0] - 1) * degrees
    return warp(view, inverse_affine(angle=angle), interpolation=interpolation)
