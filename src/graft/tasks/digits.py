"""Digits: 1,797 grey 8x8 images of handwritten digits that come with scikit-learn; seconds on a CPU."""

from typing import Annotated

import numpy as np
from sklearn.datasets import load_digits

from graft.keyed import key
from graft.tasks._task import Task, resident_task, stratified_pick

CLASSES = 10
SIZE = 8
TEST = 360  # images; the data set has no official test split, so this one is fixed for good


def build(*, val_fraction: Annotated[float, "[0, 0.5]", "part of the training images held out for validation"] = 0.1,
          split_seed: Annotated[int, ">= 0", "which images those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many images only, stratified; 0: all"] = 0) -> Task:
    """The UCI optical digits (test set of Alpaydin, Kaynak 1998), 0 to 16 rescaled to 0 to 255."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    test = stratified_pick(labels, TEST, key("digits test"))
    rest = np.setdiff1d(np.arange(len(labels)), test)
    return resident_task("digits", "digits (scikit-learn)", [str(digit) for digit in range(CLASSES)],
                         (images[rest], labels[rest]), (images[test], labels[test]),
                         val_fraction, split_seed, subset)
