"""Any image classification data set: root/train/<class>/*.png, with optional root/val and root/test."""

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from graft.errors import UserError
from graft.keyed import key
from graft.runtime import digests
from graft.tasks import _cache
from graft.tasks._files import data_root
from graft.tasks._images import DECODER, SUFFIXES, image_files, read_square, shown
from graft.tasks._task import (
    TEST_FRACTION,
    ResidentSplit,
    Split,
    StreamedSplit,
    Task,
    missing_classes,
    stratified_pick,
    stratified_split,
    training_subset,
)


def build(*, root: Annotated[str, "", "folder of the data; empty: $GRAFT_DATA/imagefolder, or data/imagefolder",
                               "where a copy lies; the items' fingerprint is compared"] = "",
          size: Annotated[int, "[1, 4096]", "pixels: the shorter side is resized to it, the centre cropped"] = 224,
          channels: Annotated[int, "[1, 3]", "3: colour, 1: grey"] = 3,
          resident: Annotated[bool, "", "decode everything into memory instead of streaming it",
                               "the same pixels either way"] = False,
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training images held out for validation, where "
                                                     "there is no root/val"] = 0.1,
          split_seed: Annotated[int, ">= 0", "which images those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many images only, stratified; 0: all"] = 0) -> Task:
    """Classes are the names of the folders in root/train, sorted; images in folders below those are theirs too."""
    if channels not in (1, 3):
        raise UserError(f"task.channels: must be 1 or 3, got {channels}")
    folder = data_root(root, "imagefolder")
    classes = _class_folders(folder)
    listed = {split: _list(folder / split, classes) for split in ("train", "val", "test")
              if split == "train" or (folder / split).is_dir()}
    found = {split: (paths, labels) for split, (paths, labels, _) in listed.items()}
    paths, labels = found["train"]
    train, made = np.arange(len(paths)), []
    if "test" not in found:
        test = stratified_pick(labels, round(TEST_FRACTION * len(paths)), key("imagefolder test"))
        found["test"] = [paths[i] for i in test], labels[test]
        train = np.setdiff1d(train, test)
        made.append(f"test: {TEST_FRACTION:.0%} of train/")
    if "val" not in found:
        kept, val = stratified_split(labels[train], val_fraction, split_seed)
        found["val"] = [paths[i] for i in train[val]], labels[train[val]]
        train = train[kept]
    train = training_subset("imagefolder", labels, train, subset, split_seed)
    found["train"] = [paths[i] for i in train], labels[train]

    splits, prints = {}, {}
    for split, (paths, labels) in found.items():
        decode = Decode(f"imagefolder {split} image", paths, size, channels)
        prints[split] = _fingerprint(decode, labels)
        if not resident and split != "train":  # training images are met at once, these after hours
            _cache.once(f"decodes-{prints[split][:32]}", lambda decode=decode: _decode_all(decode))
        splits[split] = _split(decode, labels, resident)
    # ImageNet's statistics; for grey images their mean over the channels.
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if channels == 3 else ([0.449], [0.226])
    data_id = f"imagefolder ({', '.join([shown(folder.resolve().name), f'{len(classes)} classes', *made])})"
    notes = [line for *_, lines in listed.values() for line in lines]
    notes += missing_classes({split: labels for split, (_, labels) in found.items()}, classes)
    return Task("imagefolder", data_id, prints, classes, channels, size, mean, std, splits, tuple(notes))


@dataclass(frozen=True)
class Decode:
    """Image i of a list of files, as uint8 `(C, size, size)`."""

    what: str
    paths: list[Path]
    size: int
    channels: int

    def __call__(self, i: int) -> np.ndarray:
        return read_square(self.paths[i], self.channels, self.size, f"{self.what} {i} ({shown(self.paths[i])})")


def _decode_all(decode: Decode) -> None:
    """Raises `UserError` for the first image that cannot be decoded."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        for _ in pool.map(decode, range(len(decode.paths))):
            pass


def _split(decode: Decode, labels: np.ndarray, resident: bool) -> Split:
    labels = torch.from_numpy(labels)
    if not resident:
        return StreamedSplit(decode, labels)
    images = np.empty((len(labels), decode.channels, decode.size, decode.size), np.uint8)
    for i in range(len(labels)):
        images[i] = decode(i)
    return ResidentSplit(torch.from_numpy(images), labels)


def _class_folders(folder: Path) -> list[str]:
    train = folder / "train"
    if not train.is_dir():
        raise UserError(f"imagefolder: no data in {folder}: expected train/<class>/*.png (or jpg, webp, bmp, gif, "
                        f"tif); set task.root or GRAFT_DATA (the folder above)")
    classes = sorted(path.name for path in train.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise UserError(f"{train}: expected a folder for each of at least 2 classes, got {len(classes)}")
    for name in classes:
        if shown(name) != name:
            raise UserError(f"{train}: the name of class {shown(name)} is not UTF-8; rename its folder")
    return classes


def _list(folder: Path, classes: list[str]) -> tuple[list[Path], np.ndarray, list[str]]:
    """The image files of a split, sorted by class and name, their labels, and what should be known about them."""
    unknown = sorted({path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."} - {*classes})
    if unknown:
        raise UserError(f"{folder}: class {shown(unknown[0])} is not in train/")
    paths, labels, deeper = [], [], 0
    others = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    outside = len(others)
    for label, name in enumerate(classes):
        images, rest = image_files(folder / name)
        if not images and folder.name == "train":
            raise UserError(f"{folder / name}: no images ({', '.join(sorted(SUFFIXES))})")
        paths += images
        labels += [label] * len(images)
        deeper += sum(path.parent != folder / name for path in images)
        others += rest
    if not paths:
        raise UserError(f"{folder}: no images in its class folders")
    notes = [f"{folder.name}/: {deeper:,} of {len(paths):,} images lie in subfolders of their class"] if deeper else []
    if others:
        kinds = Counter(path.suffix.lower() or "no suffix" for path in others).most_common(5)
        notes.append(f"{folder.name}/: left out {len(others):,} files ({outside:,} in no class folder): "
                     + ", ".join(f"{n:,} {shown(kind)}" for kind, n in kinds))
    return paths, np.array(labels, np.int64), notes


def _fingerprint(decode: Decode, labels: np.ndarray) -> str:
    """Of the files' contents in their order, the labels, and what the files are decoded to."""
    about = [DECODER, decode.channels, decode.size, digests.of_files(decode.paths), labels.tolist()]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
