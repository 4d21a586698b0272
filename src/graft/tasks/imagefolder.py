"""Any image classification data set: root/train/<class>/*.png, with optional root/val and root/test."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image, ImageOps

from graft.errors import UserError
from graft.keyed import key
from graft.tasks._files import data_root
from graft.tasks._images import open_image
from graft.tasks._task import (
    ResidentSplit,
    Split,
    StreamedSplit,
    Task,
    fingerprint,
    stratified_pick,
    stratified_split,
    training_subset,
)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
TEST_FRACTION = 0.2  # of root/train, where there is no root/test


def build(*, root: Annotated[str, "", "folder of the data; empty: $GRAFT_DATA/imagefolder, or data/imagefolder",
                               "where a copy lies; the items' fingerprint is compared"] = "",
          size: Annotated[int, "> 0", "pixels: the shorter side is resized to it, the centre cropped"] = 224,
          channels: Annotated[int, "[1, 3]", "3: colour, 1: grey"] = 3,
          resident: Annotated[bool, "", "decode everything into memory instead of streaming it",
                               "the same pixels either way"] = False,
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training images held out for validation, where "
                                                     "there is no root/val"] = 0.1,
          split_seed: Annotated[int, ">= 0", "which images those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many images only, stratified; 0: all"] = 0) -> Task:
    """Classes are the names of the folders in root/train, sorted."""
    if channels not in (1, 3):
        raise UserError(f"task.channels: must be 1 or 3, got {channels}")
    folder = data_root(root, "imagefolder")
    classes = _class_folders(folder)
    found = {split: _list(folder / split, classes) for split in ("train", "val", "test")
             if split == "train" or (folder / split).is_dir()}
    paths, labels = found["train"]
    train, notes = np.arange(len(paths)), []
    if "test" not in found:
        test = stratified_pick(labels, round(TEST_FRACTION * len(paths)), key("imagefolder test"))
        found["test"] = [paths[i] for i in test], labels[test]
        train = np.setdiff1d(train, test)
        notes.append(f"test: {TEST_FRACTION:.0%} of train/")
    if "val" not in found:
        kept, val = stratified_split(labels[train], val_fraction, split_seed)
        found["val"] = [paths[i] for i in train[val]], labels[train[val]]
        train = train[kept]
    train = training_subset("imagefolder", labels, train, subset, split_seed)
    found["train"] = [paths[i] for i in train], labels[train]

    splits = {split: _split(Decode(f"imagefolder {split} image", paths, size, channels), labels, resident)
              for split, (paths, labels) in found.items()}
    digests = {split: _fingerprint(folder, paths, labels, size, channels) for split, (paths, labels) in found.items()}
    # ImageNet's statistics; for grey images their mean over the channels.
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if channels == 3 else ([0.449], [0.226])
    data_id = f"imagefolder ({', '.join([folder.resolve().name, f'{len(classes)} classes', *notes])})"
    return Task("imagefolder", data_id, digests, classes, channels, size, mean, std, splits)


@dataclass(frozen=True)
class Decode:
    """Image i of a list of files, as uint8 `(C, size, size)`."""

    what: str
    paths: list[Path]
    size: int
    channels: int

    def __call__(self, i: int) -> np.ndarray:
        image, _ = open_image(self.paths[i], "L" if self.channels == 1 else "RGB", f"{self.what} {i} ({self.paths[i]})")
        # fit() resizes the largest centred square; Pillow's bicubic is antialiased when it shrinks.
        image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image).reshape(self.size, self.size, self.channels).transpose(2, 0, 1)


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
        raise UserError(f"imagefolder: no data in {folder}: expected train/<class>/*.png (or jpg, webp, bmp); "
                        f"set task.root or GRAFT_DATA (the folder above)")
    classes = sorted(path.name for path in train.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise UserError(f"{train}: expected a folder for each of at least 2 classes, got {len(classes)}")
    return classes


def _list(folder: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """The image files of a split, sorted by class and name, and their labels."""
    unknown = sorted({path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."} - {*classes})
    if unknown:
        raise UserError(f"{folder}: class {unknown[0]} is not in train/")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).glob("*")
                       if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        if not files and folder.name == "train":
            raise UserError(f"{folder / name}: no images ({', '.join(sorted(SUFFIXES))})")
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"{folder}: no images in its class folders")
    return paths, np.array(labels, np.int64)


def _fingerprint(folder: Path, paths: list[Path], labels: np.ndarray, size: int, channels: int) -> str:
    """Of names, sizes in bytes, labels and the shape decoded to; the pixels are not read."""
    names = [f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in paths]
    return fingerprint(np.frombuffer("\n".join([f"{channels}x{size}x{size}", *names]).encode(), np.uint8), labels)
