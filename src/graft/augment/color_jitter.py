"""Random brightness, contrast, saturation and hue, in random order."""

from typing import Annotated

import numpy as np

from graft.augment._ops import apply_ops
from graft.keyed import Draw
from graft.outputs import View

OPERATIONS = np.array(["Brightness", "Contrast", "Color", "Hue"])


def apply(view: View, draw: Draw, *,
          brightness: Annotated[float, ">= 0", "the factor lies between 1 - this (at least 0) and 1 + this"] = 0.2,
          contrast: Annotated[float, ">= 0", "the same"] = 0.2,
          saturation: Annotated[float, ">= 0", "the same"] = 0.2,
          hue: Annotated[float, "[0, 0.5]", "largest turn, as a part of the colour circle"] = 0.0) -> View:
    """Apply the four to each image, in an order of its own; grey images keep saturation and hue."""
    uniform = draw("color_jitter", 8)
    most = np.array([brightness, contrast, saturation, hue])
    least = np.maximum(-most, [-1.0, -1.0, -1.0, -0.5])
    magnitude = least + (most - least) * uniform[:, :4]
    order = uniform[:, 4:].argsort(axis=1)
    for step in order.T:
        names = np.where(most[step] > 0, OPERATIONS[step], "Identity")
        view = apply_ops(view, names, magnitude[np.arange(len(step)), step])
    return view
