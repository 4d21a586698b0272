"""RandAugment: operations drawn at random, all of one magnitude (Cubuk et al. 2020, arXiv:1909.13719)."""

from typing import Annotated

import numpy as np

from graft.augment._ops import SIGNED, apply_ops, magnitudes
from graft.errors import UserError
from graft.keyed import Draw
from graft.outputs import View

OPERATIONS = np.array(["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color",
                       "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"])
BINS = 31


def apply(view: View, draw: Draw, *,
          n: Annotated[int, ">= 1", "operations per image"] = 2,
          magnitude: Annotated[int, ">= 0", "their common strength, 0 to 30"] = 9) -> View:
    """Each image takes `n` of 14 operations, independently, with random sign where there is one.

    Raises `UserError` for a magnitude above 30.
    """
    if magnitude >= BINS:
        raise UserError(f"augment.randaugment.magnitude: expected 0 to {BINS - 1}, got {magnitude}")
    for names, strength in plan(draw, *view.inputs.shape[-2:], n, magnitude):
        view = apply_ops(view, names, strength)
    return view


def plan(draw: Draw, height: int, width: int, n: int, magnitude: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The operations (B,) and signed magnitudes (B,) of the `n` steps."""
    space = magnitudes(BINS, height, width)
    strength = np.array([space[name][magnitude] for name in OPERATIONS])
    uniform = draw("randaugment", 2 * n)
    steps = []
    for step in range(n):
        chosen = (uniform[:, 2 * step] * len(OPERATIONS)).astype(np.int64)
        minus = np.isin(OPERATIONS, SIGNED)[chosen] & (uniform[:, 2 * step + 1] < 0.5)
        steps.append((OPERATIONS[chosen], np.where(minus, -strength[chosen], strength[chosen])))
    return steps
