"""What a task is: images and labels in three splits, and what is known about them."""

import hashlib
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from graft import keyed
from graft.errors import UserError
from graft.outputs import on_device

TEST_FRACTION = 0.2  # of the training images, where there is no test split
Batches = Iterator[tuple[Tensor, Tensor]]


class _Images:
    """What every split of images does alike."""

    def positions(self, index: Tensor) -> int:
        """Scored positions of the images at `index`: one each."""
        return len(index)

    def arrange(self, index: Tensor, world: int, accumulate: int) -> Tensor:
        """The order in which a batch is dealt to processes and micro-batches: as it comes."""
        return index


class ResidentSplit(_Images):
    """A split that is one tensor: images uint8 `(N, C, H, W)`, labels int64 `(N,)` (always on the CPU)."""

    resident = True

    def __init__(self, images: Tensor, labels: Tensor):
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64 and len(images) == len(labels)
        self.images, self.labels = images, labels
        self._labels_on_device = labels.to(images.device)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, workers: int | None = None) -> "ResidentSplit":
        """Move the images to `device`; there is nothing for `workers` to do. Returns the split itself."""
        self.images, self._labels_on_device = self.images.to(device), self.labels.to(device)
        return self

    def batches(self, order: Iterable[Tensor]) -> Batches:
        """Images uint8 `(B, C, H, W)` and labels int64 `(B,)` on the device, for each index tensor `(B,)`."""
        for index_B in order:
            index_B = on_device(index_B, self.images.device, torch.int64)
            yield self.images.index_select(0, index_B), self._labels_on_device.index_select(0, index_B)


class StreamedSplit(_Images):
    """A split whose images are decoded when asked for, by `workers` processes (0: by this one).

    `decode(i)` gives image i as a uint8 array `(C, H, W)` of one shape; it is pickled to the workers.
    """

    resident = False

    def __init__(self, decode: Callable[[int], np.ndarray], labels: Tensor, workers: int = 0):
        self.decode, self.labels, self.workers, self.device = decode, labels, workers, torch.device("cpu")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, workers: int | None = None) -> "StreamedSplit":
        """Deliver to `device` from now on, decoded by `workers` processes (None: as many as before)."""
        self.device = torch.device(device)
        self.workers = self.workers if workers is None else workers
        return self

    def batches(self, order: Iterable[Tensor]) -> Batches:
        """As `ResidentSplit.batches`.

        Raises `UserError` naming the image if one cannot be decoded.
        """
        order, cuda = [torch.as_tensor(index_B) for index_B in order], self.device.type == "cuda"
        # Its own generator: by default a loader draws from the global one at every pass. And workers of its
        # own: a pass may start while another one over the same split is under way.
        loader = DataLoader(_Decoded(self.decode), batch_sampler=[index_B.tolist() for index_B in order],
                            collate_fn=_as_is, num_workers=self.workers, pin_memory=cuda, generator=torch.Generator(),
                            worker_init_fn=_outlive_signals)
        for index_B, images in zip(order, loader, strict=True):
            if isinstance(images, UserError):
                raise images
            labels = on_device(self.labels[index_B], self.device, torch.int64)
            yield images.to(self.device, non_blocking=cuda), labels


@dataclass
class _Decoded:
    decode: Callable[[int], np.ndarray]

    def __getitems__(self, indices: list[int]) -> Tensor | UserError:
        # An exception that leaves a worker comes back with the worker's traceback in its message.
        try:
            return torch.from_numpy(np.stack([self.decode(i) for i in indices]))
        except UserError as error:
            return error


def _outlive_signals(worker: int) -> None:
    """A scheduler signals every process of a job; the run still needs its batches to reach the step's edge and save.

    Workers end with the run: it tells them to, and they look whether it is still there.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _as_is(batch: Tensor | UserError) -> Tensor | UserError:
    return batch


Split = ResidentSplit | StreamedSplit


@dataclass(frozen=True)
class Task:
    """An image classification data set, split; `mean` and `std` per channel are for images in [0, 1].

    `data_id` says which copy of the data was read; `fingerprints` digest what each split holds, in its order.
    """

    name: str
    data_id: str
    fingerprints: dict[str, str]  # split -> SHA-256 (hex)
    classes: list[str]
    channels: int
    size: int  # pixels, height and width
    mean: list[float]
    std: list[float]
    splits: dict[str, Split]  # train, val, test
    notes: tuple[str, ...] = ()  # what a user should know about them, a line each

    unit = "images"

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def fingerprint(self) -> str:
        """One digest for all splits."""
        return joint_fingerprint(self.fingerprints)

    @property
    def about(self) -> dict[str, Any]:
        """What checkpoints and results say about the data; `graft.runtime.identity` compares it."""
        return {"id": self.data_id, "fingerprint": self.fingerprint, "fingerprints": self.fingerprints,
                "sizes": {name: len(split) for name, split in self.splits.items()}, "classes": self.classes,
                "channels": self.channels, "size": self.size, "mean": self.mean, "std": self.std}


def stratified_pick(labels: np.ndarray, count: int, base: int) -> np.ndarray:
    """Indices of `count` samples, sorted; each class gives its share, rounded by largest remainder.

    Which ones depends on `base`, the class and the sample's rank within its class alone.
    """
    assert 0 <= count <= len(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    shares, remainders = np.divmod(count * sizes, max(len(labels), 1))
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    picked = [np.empty(0, np.int64)]
    for label, size, share in zip(classes, sizes, shares, strict=True):
        rank = np.argsort(keyed.uniform(keyed.key(base, int(label)), np.arange(size), 1)[:, 0])
        picked.append(np.flatnonzero(labels == label)[rank[:share]])
    return np.sort(np.concatenate(picked))


def stratified_split(labels: np.ndarray, val_fraction: float, split_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and validation, both sorted: disjoint, all of them, stratified by class.

    A fraction above 0 holds out one at least, of more than one.
    """
    count = max(round(val_fraction * len(labels)), int(len(labels) > 1)) if val_fraction else 0
    val = stratified_pick(labels, count, keyed.key(split_seed, "val"))
    return np.setdiff1d(np.arange(len(labels)), val, assume_unique=True), val


def training_subset(name: str, labels: np.ndarray, train: np.ndarray, subset: int, split_seed: int) -> np.ndarray:
    """`subset` of the indices in `train`, stratified (0: all of them).

    Raises `UserError` if there are fewer.
    """
    if subset > len(train):
        raise UserError(f"task.subset: {name} has {len(train)} training images, got {subset}")
    return train[stratified_pick(labels[train], subset, keyed.key(split_seed, "subset"))] if subset else train


def missing_classes(labels: dict[str, np.ndarray], classes: list[str]) -> list[str]:
    """A line for each split, by name, that has images but none of some classes."""
    lines = []
    for split, own in labels.items():
        absent = np.flatnonzero(np.bincount(own, minlength=len(classes)) == 0)
        if len(own) and len(absent):
            names = ", ".join(classes[k] for k in absent[:5]) + (", …" if len(absent) > 5 else "")
            kind = {"train": "training", "val": "validation"}.get(split, split)
            lines.append(f"no {kind} images of {len(absent)} of {len(classes)} classes: {names}")
    return lines


def fingerprint(images: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> str:
    """SHA-256 (hex) of the contents: shape, type and bytes of the images, then the labels."""
    images, labels = np.ascontiguousarray(images), np.ascontiguousarray(labels, dtype="<i8")
    digest = hashlib.sha256(f"{images.shape} {images.dtype.str} ".encode())
    digest.update(images.data)
    digest.update(labels.data)
    return digest.hexdigest()


def joint_fingerprint(of_split: dict[str, str]) -> str:
    """One SHA-256 (hex) for the fingerprints of all splits, by name."""
    return hashlib.sha256(repr(sorted(of_split.items())).encode()).hexdigest()


def _statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0, 1], without a copy of the images in floating point."""
    level, mean, std = np.arange(256) / 255, [], []
    for channel in range(images.shape[1]):
        share = np.bincount(images[:, channel].ravel(), minlength=256) / images[:, channel].size
        mean.append(float(share @ level))
        std.append(float(np.sqrt(share @ (level - mean[-1]) ** 2)))
    return mean, std


def resident_task(name: str, data_id: str, classes: list[str], train: tuple[np.ndarray, np.ndarray],
                  test: tuple[np.ndarray, np.ndarray], val_fraction: float, split_seed: int, subset: int,
                  mean: list[float] | None = None, std: list[float] | None = None,
                  val: tuple[np.ndarray, np.ndarray] | None = None) -> Task:
    """A task from (images uint8 NCHW, labels) for train, test and perhaps `val`, which else is a part of train.

    No `mean` and `std`: those of its train split.
    """
    train_index, val_index = stratified_split(train[1], val_fraction if val is None else 0.0, split_seed)
    train_index = training_subset(name, train[1], train_index, subset, split_seed)
    arrays = {"train": (train[0][train_index], train[1][train_index]),
              "val": (train[0][val_index], train[1][val_index]) if val is None else (np.array(val[0]), val[1]),
              "test": (np.array(test[0]), test[1])}  # a copy, for torch cannot share a read-only memory map
    if mean is None:
        mean, std = _statistics(arrays["train"][0])
    splits = {key: ResidentSplit(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
              for key, (images, labels) in arrays.items()}
    return Task(name, data_id, {key: fingerprint(*pair) for key, pair in arrays.items()}, list(classes),
                train[0].shape[1], train[0].shape[2], mean, std, splits,
                tuple(missing_classes({key: labels for key, (_, labels) in arrays.items()}, classes)))
