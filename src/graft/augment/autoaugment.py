"""AutoAugment, the policy learned on CIFAR-10 (Cubuk et al. 2019, arXiv:1805.09501)."""

import numpy as np

from graft.augment._ops import SIGNED, apply_ops, magnitudes
from graft.keyed import Draw
from graft.outputs import View

# two steps each: operation, probability, magnitude as one of 10 bins
POLICIES = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
BINS = 10


def apply(view: View, draw: Draw) -> View:
    """Each image takes one of 25 pairs of operations; each of the two happens with its own probability."""
    for names, magnitude in plan(draw, *view.inputs.shape[-2:]):
        view = apply_ops(view, names, magnitude)
    return view


def plan(draw: Draw, height: int, width: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The operations (B,) and signed magnitudes (B,) of the two steps; Identity where a step does not happen."""
    uniform = draw("autoaugment", 5)
    policy = (uniform[:, 0] * len(POLICIES)).astype(np.int64)
    space = magnitudes(BINS, height, width)
    steps = []
    for step in (0, 1):
        table = [policy[step] for policy in POLICIES]
        names = np.array([name for name, _, _ in table])[policy]
        happens = uniform[:, 1 + step] < np.array([p for _, p, _ in table])[policy]
        magnitude = np.array([space[name][level] for name, _, level in table])[policy]
        minus = np.isin(names, SIGNED) & (uniform[:, 3 + step] < 0.5)
        steps.append((np.where(happens, names, "Identity"), np.where(minus, -magnitude, magnitude)))
    return steps
