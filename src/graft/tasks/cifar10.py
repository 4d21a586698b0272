"""CIFAR-10: 60,000 colour 32x32 photographs of ten kinds of animals and vehicles (Krizhevsky 2009)."""

from pathlib import Path
from typing import Annotated

import numpy as np
from torchvision.datasets import CIFAR10

from graft.tasks import _sources
from graft.tasks._parquet import Arrays, Columns
from graft.tasks._task import Task, resident_task

CLASSES = 10
SIZE = 32
CHANNELS = 3
ROWS = {"train": 50_000, "test": 10_000}
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def build(*, source: Annotated[str, "auto | parquet | torchvision | hub",
                               "where from; auto: parquet files in root, else torchvision's folder there"] = "auto",
          root: Annotated[str, "", "folder of the data; empty: $GRAFT_DATA/cifar10, or data/cifar10",
                               "where a copy lies; the items' fingerprint is compared"] = "",
          revision: Annotated[str, "", "source hub: the commit of uoft-cs/cifar10, 40 hex digits"] = "",
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training images held out for validation"] = 0.1,
          split_seed: Annotated[int, ">= 0", "which images those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many images only, stratified; 0: all"] = 0) -> Task:
    """CIFAR-10 with its official test split."""
    published = _sources.Source(
        columns=Columns("cifar10", ("img", "image"), "label", 3, SIZE, resize=False), classes=NAMES,
        rows=ROWS,
        hub="uoft-cs/cifar10", torchvision=CIFAR10.base_folder, read=_read_torchvision,
        files=[*map(tuple, CIFAR10.train_list + CIFAR10.test_list), (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    arrays, data_id = _sources.load(published, source, root, revision)
    return resident_task("cifar10", data_id, NAMES, arrays["train"], arrays["test"], val_fraction, split_seed, subset,
                         mean=[0.4914, 0.4822, 0.4465], std=[0.2470, 0.2435, 0.2616])


def _read_torchvision(root: Path, split: str) -> Arrays:
    data = CIFAR10(root, train=split == "train")
    return data.data.transpose(0, 3, 1, 2), np.array(data.targets, np.int64)
