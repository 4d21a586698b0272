"""CIFAR-100: 60,000 colour 32x32 photographs of a hundred kinds, 500 of each to train on (Krizhevsky 2009)."""

from pathlib import Path
from typing import Annotated

import numpy as np
from torchvision.datasets import CIFAR100

from graft.tasks import _sources
from graft.tasks._parquet import Arrays, Columns
from graft.tasks._task import Task, resident_task

CLASSES = 100
SIZE = 32
CHANNELS = 3
ROWS = {"train": 50_000, "test": 10_000}
NAMES = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
]


def build(*, source: Annotated[str, "auto | parquet | torchvision | hub",
                               "where from; auto: parquet files in root, else torchvision's folder there"] = "auto",
          root: Annotated[str, "", "folder of the data; empty: $GRAFT_DATA/cifar100, or data/cifar100",
                               "where a copy lies; the items' fingerprint is compared"] = "",
          revision: Annotated[str, "", "source hub: the commit of uoft-cs/cifar100, 40 hex digits"] = "",
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training images held out for validation"] = 0.1,
          split_seed: Annotated[int, ">= 0", "which images those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many images only, stratified; 0: all"] = 0) -> Task:
    """CIFAR-100 with its official test split and fine labels; normalised by the statistics of the training split."""
    published = _sources.Source(
        columns=Columns("cifar100", ("img", "image"), "fine_label", 3, SIZE, resize=False), classes=NAMES,
        rows=ROWS,
        hub="uoft-cs/cifar100", torchvision=CIFAR100.base_folder, read=_read_torchvision,
        files=[*map(tuple, CIFAR100.train_list + CIFAR100.test_list),
               (CIFAR100.meta["filename"], CIFAR100.meta["md5"])])
    arrays, data_id = _sources.load(published, source, root, revision)
    return resident_task("cifar100", data_id, NAMES, arrays["train"], arrays["test"], val_fraction, split_seed, subset)


def _read_torchvision(root: Path, split: str) -> Arrays:
    data = CIFAR100(root, train=split == "train")
    return data.data.transpose(0, 3, 1, 2), np.array(data.targets, np.int64)
