"""TrivialAugment (wide): one random operation of random strength (Müller and Hutter 2021, arXiv:2103.10158)."""

import numpy as np

from graft.augment._ops import SIGNED, apply_ops, magnitudes
from graft.augment.randaugment import OPERATIONS
from graft.keyed import Draw
from graft.outputs import View

BINS = 31


def apply(view: View, draw: Draw) -> View:
    """Each image takes one of 14 operations, one of 31 strengths and, where there is one, a random sign."""
    return apply_ops(view, *plan(draw, *view.inputs.shape[-2:]))


def plan(draw: Draw, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The operation (B,) and signed magnitude (B,) of each image."""
    space = magnitudes(BINS, height, width, wide=True)
    uniform = draw("trivialaugment", 3)
    chosen = (uniform[:, 0] * len(OPERATIONS)).astype(np.int64)
    level = (uniform[:, 1] * BINS).astype(np.int64)
    strength = np.array([space[name] for name in OPERATIONS])[chosen, level]
    minus = np.isin(OPERATIONS, SIGNED)[chosen] & (uniform[:, 2] < 0.5)
    return OPERATIONS[chosen], np.where(minus, -strength, strength)
