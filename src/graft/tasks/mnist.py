"""MNIST: 70,000 grey 28x28 images of handwritten digits (LeCun et al. 1998)."""

import gzip
from pathlib import Path
from typing import Annotated

import numpy as np
from torchvision.datasets import MNIST

from graft.tasks import _sources
from graft.tasks._parquet import Arrays, Columns
from graft.tasks._task import Task, resident_task

CLASSES = 10
SIZE = 28
CHANNELS = 1
ROWS = {"train": 60_000, "test": 10_000}
NAMES = [str(digit) for digit in range(CLASSES)]


def build(*, source: Annotated[str, "auto | parquet | torchvision | hub",
                               "where from; auto: parquet files in root, else torchvision's folder there"] = "auto",
          root: Annotated[str, "", "folder of the data; empty: $GRAFT_DATA/mnist, or data/mnist",
                               "where a copy lies; the items' fingerprint is compared"] = "",
          revision: Annotated[str, "", "source hub: the commit of ylecun/mnist, 40 hex digits"] = "",
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training images held out for validation"] = 0.1,
          split_seed: Annotated[int, ">= 0", "which images those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many images only, stratified; 0: all"] = 0) -> Task:
    """MNIST with its official test split."""
    published = _sources.Source(
        columns=Columns("mnist", ("img", "image"), "label", 1, SIZE, resize=False), classes=NAMES,
        rows=ROWS,
        hub="ylecun/mnist", torchvision="MNIST/raw", read=_read_torchvision, files=MNIST.resources)
    arrays, data_id = _sources.load(published, source, root, revision)
    return resident_task("mnist", data_id, NAMES, arrays["train"], arrays["test"],
                         val_fraction, split_seed, subset, mean=[0.1307], std=[0.3081])


def _read_torchvision(root: Path, split: str) -> Arrays:
    """The archives, which have published digests; torchvision itself reads their unpacked copies unverified."""
    def values(what: str, header: int) -> np.ndarray:
        packed = root / "MNIST" / "raw" / f"{'train' if split == 'train' else 't10k'}-{what}-ubyte.gz"
        return np.frombuffer(gzip.decompress(packed.read_bytes()), np.uint8, offset=header)

    return values("images-idx3", 16).reshape(-1, 1, SIZE, SIZE), values("labels-idx1", 8).astype(np.int64)
