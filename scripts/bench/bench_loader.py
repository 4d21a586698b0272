"""Images that do not fit into memory: images/s of this project's streaming against timm's loader and torchvision's.

    python scripts/bench/bench_loader.py [--images 2000] [--pixels 256] [--workers 2] [--reps 3] [--device cuda]

JPEGs are made on the spot (quality 90, smooth with some noise, of the bytes that a photograph has). All three
read the same folder with the same number of worker processes, in batches of the same size, shuffled, through a random
resized crop of `--size` pixels and a flip, to a float batch on the device, over one whole epoch:

    ours         task imagefolder, streamed; decoded in workers, augmented as a batch on the device
    timm         timm.data.create_loader with its prefetcher where there is a GPU, as its training script has it
    torchvision  RandomResizedCrop, RandomHorizontalFlip, ToTensor in a DataLoader

The last line is one JSON object:

    against_timm, against_torchvision   images/s, ours / theirs: medians of repetitions in which the three alternate
    loading_against_torchvision         ours without its augmentation / torchvision with it
    images_per_second                   the medians themselves, of each; `loading`: ours without augmentation

On a CPU give it one thread (OMP_NUM_THREADS=1): torch's threads wait busily on the cores that the workers need. Half
of the augmentation is then the system's zeroing of 60 MB of floats for every batch; with
MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 the process keeps its memory and that half is gone.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms as tv
from PIL import Image
from timm.data import ImageDataset, create_loader
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from graft import keyed
from graft.augment import Augment
from graft.config.options import Part
from graft.tasks import imagefolder

CLASSES = 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_images(folder: Path, count: int, pixels: int) -> None:
    """A folder of training images in ten classes, with a few for validation and test."""
    random = np.random.default_rng(0)
    for split, number in (("train", count), ("val", CLASSES), ("test", CLASSES)):
        for i in range(number):
            path = folder / split / f"class{i % CLASSES}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).resize((pixels, pixels))
            noisy = np.asarray(coarse) + random.normal(0, 8, (pixels, pixels, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


class Loaders:
    """An epoch of each of the three, as float batches on the device."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.device = options, folder, torch.device(options.device)
        self.epoch = 0
        task = imagefolder.build(root=str(folder), size=options.size)
        self.split = task.splits["train"].to(self.device, options.workers)
        self.augment = Augment((Part("resized_crop", {"scale": [0.08, 1.0], "ratio": [0.75, 1.3333]}),
                                Part("flip", {"p": 0.5})), 0)

    def loading(self) -> Iterator[tuple]:
        """Ours before it is augmented."""
        self.epoch += 1
        order = keyed.permutation(keyed.key(0, "order", self.epoch), len(self.split)).split(self.options.batch_size)
        order = [index for index in order if len(index) == self.options.batch_size]
        return zip(order, self.split.batches(order))

    def ours(self) -> Iterator[Any]:
        """Decoded by workers, augmented as a batch on the device."""
        for index, (images, labels) in self.loading():
            yield self.augment(images, labels, index, self.epoch, num_classes=CLASSES).inputs

    def timm(self) -> Iterator[Any]:
        """timm's training loader."""
        cuda = self.device.type == "cuda"
        loader = create_loader(ImageDataset(str(self.folder / "train")), self.options.size, self.options.batch_size,
                               is_training=True, use_prefetcher=cuda, scale=(0.08, 1.0), hflip=0.5, color_jitter=None,
                               interpolation="bicubic", mean=MEAN, std=STD, num_workers=self.options.workers,
                               pin_memory=cuda, device=self.device, persistent_workers=False)
        return (images.to(self.device) for images, _ in loader)

    def torchvision(self) -> Iterator[Any]:
        """The usual pipeline."""
        cuda = self.device.type == "cuda"
        transform = tv.Compose([tv.RandomResizedCrop(self.options.size, interpolation=tv.InterpolationMode.BICUBIC),
                                tv.RandomHorizontalFlip(), tv.ToTensor()])
        loader = DataLoader(ImageFolder(str(self.folder / "train"), transform), self.options.batch_size, shuffle=True,
                            num_workers=self.options.workers, pin_memory=cuda, drop_last=True)
        return (images.to(self.device, non_blocking=cuda) for images, _ in loader)

    def rate(self, name: str) -> float:
        """Images a second of one epoch, the start of its workers included."""
        started, batches = time.perf_counter(), 0
        for _ in getattr(self, name)():
            batches += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return batches * self.options.batch_size / (time.perf_counter() - started)


def main() -> None:
    """Alternate, collect medians, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--pixels", type=int, default=256, help="of the files")
    parser.add_argument("--size", type=int, default=224, help="of the batches")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    names = ("ours", "timm", "torchvision", "loading")
    found: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), options.images, options.pixels)
        loaders = Loaders(options, Path(folder))
        loaders.rate("loading")  # the files are in the system's cache for everybody
        for rep in range(options.reps):
            for name in names:
                found[name].append(loaders.rate(name))
            print(f"repetition {rep + 1}: " + " ".join(f"{name}={found[name][-1]:.0f}" for name in names), flush=True)
    ratio = lambda ours, theirs: round(statistics.median(  # noqa: E731
        a / b for a, b in zip(found[ours], found[theirs])), 3)
    print(json.dumps({
        "against_timm": ratio("ours", "timm"), "against_torchvision": ratio("ours", "torchvision"),
        "loading_against_torchvision": ratio("loading", "torchvision"),
        "images_per_second": {name: round(statistics.median(values), 1) for name, values in found.items()},
        "workers": options.workers, "images": options.images, "pixels": options.pixels, "size": options.size,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(), "torch": torch.__version__, "repetitions": options.reps}))


if __name__ == "__main__":
    main()
