"""Your own images in parquet files, by their columns: root/train.parquet (or shards), optional validation and test."""

from typing import Annotated

import numpy as np

from graft.errors import UserError
from graft.keyed import key
from graft.tasks import _parquet
from graft.tasks._files import data_root
from graft.tasks._images import shown
from graft.tasks._task import TEST_FRACTION, Task, resident_task, stratified_pick

SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}  # how their files are called


def build(*, root: Annotated[str, "", "folder of the files; empty: $GRAFT_DATA/parquet_images, or data/parquet_images",
                               "where a copy lies; the items' fingerprint is compared"] = "",
          image: Annotated[str, "", "column of the encoded images: bytes, or a struct with a field bytes"] = "image",
          label: Annotated[str, "", "column of the labels: integers from 0, or text"] = "label",
          channels: Annotated[int, "[1, 3]", "3: colour, 1: grey"] = 3,
          size: Annotated[int, "[0, 4096]", "pixels: the shorter side is resized to it, the centre cropped; 0: images "
                                            "stay as they are, and all have the size of the first"] = 0,
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training images held out for validation, where "
                                                     "there is no validation file"] = 0.1,
          split_seed: Annotated[int, ">= 0", "which images those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many images only, stratified; 0: all"] = 0) -> Task:
    """All images are kept in memory, decoded. Normalised by the statistics of the training split.

    Classes are what the files declare, else the labels of the training files; without a test file a fifth of the
    training images is the test split, for good.
    """
    if channels not in (1, 3):
        raise UserError(f"task.channels: must be 1 or 3, got {channels}")
    folder = data_root(root, "parquet_images")
    files = {split: _files(folder, names) for split, names in SPLITS.items()}
    if not files["train"]:
        raise UserError(f"parquet_images: no data in {folder}: expected train.parquet or its shards "
                        "train-00000-of-… there or one folder down; set task.root or GRAFT_DATA (the folder above)")
    columns = _parquet.Columns("parquet_images", (image,), label, channels, size, resize=size > 0)
    classes = _parquet.class_names(columns, files["train"])
    if len(classes) < 2:
        raise UserError(f"{files['train'][0]}: column {label}: expected at least 2 classes, got {len(classes)}")
    if not size:
        columns = _parquet.Columns("parquet_images", (image,), label, channels,
                                   _parquet.first_size(columns, files["train"][0]), resize=False)
    arrays, notes = {}, [shown(folder.resolve().name), f"{len(classes)} classes"]
    for split, own in files.items():
        if own:
            images, labels, encoding = _parquet.read(columns, split, own, classes)
            arrays[split] = images, labels
            notes.append(encoding)
    if "test" not in arrays:
        images, labels = arrays["train"]
        test = stratified_pick(labels, round(TEST_FRACTION * len(labels)), key("parquet_images test"))
        rest = np.setdiff1d(np.arange(len(labels)), test)
        arrays |= {"test": (images[test], labels[test]), "train": (images[rest], labels[rest])}
        notes.append(f"test: {TEST_FRACTION:.0%} of train")
    return resident_task("parquet_images", f"parquet_images ({', '.join(dict.fromkeys(notes))})", classes,
                         arrays["train"], arrays["test"], val_fraction, split_seed, subset, val=arrays.get("val"))


def _files(folder, names: tuple[str, ...]) -> list:
    found = {name: files for name in names if (files := _parquet.files_of(folder, name))}
    if len(found) > 1:
        raise UserError(f"{folder}: {' and '.join(found)} are one split; keep one of them")
    return next(iter(found.values()), [])
