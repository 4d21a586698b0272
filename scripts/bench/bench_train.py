"""What the training loop costs beyond the arithmetic: ratios within one run, by default of DeiT-Tiny at 32 pixels.

    python scripts/bench/bench_train.py [--reps 5] [--steps 4] [--batch_size 128] [key=value ...]
    python scripts/bench/bench_train.py --device cuda --batch_size 512 train.precision=bf16 train.compile=default
    python scripts/bench/bench_train.py --loop --base_config configs/base/cifar10_small_vit.yaml train.precision=bf16

The last line is one JSON object:

    loop_efficiency      images/s of the real train_baseline loop / of bare forward+backward+AdamW on one batch, in the
                         same precision and compiled in the same way
    augment_share        time of crop+flip+AutoAugment+Cutout / of a step of the real loop
    augment_vs_pil       images/s of crop+flip+AutoAugment+Cutout / of the same in a torchvision PIL pipeline in a
                         DataLoader with two workers
    distill_overhead     step of train_distill (ResNet-18) / (teacher forward + step of train_baseline)
    ss_distill_overhead  step of train_ss_distill (CKA on four layers, cached, aligned tokens) / step of train_baseline
    tflops               floating-point operations of the bare step, in units of 10^12 a second of the real loop

The settings are a user's: overrides as in training (train.precision is the study's, bf16, on a GPU, else fp32), a line
of the log every --log_every steps, which is when the host waits for a GPU. Images are random: speed does not depend on
what they show. `--loop`: the loop alone, without distillation and other pipelines. Every figure is the median over
repetitions in which the compared things alternate, because machines are noisy.
"""

import argparse
import contextlib
import functools
import importlib
import io
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as tv
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from graft import config
from graft.augment import Augment
from graft.config import parts
from graft.training.journal import read
from graft.training.learner import placed

ROOT = Path(__file__).parents[2]
BASE = ROOT / "configs/base/cifar10_deit.yaml"
CLASSES = 10


def make_data(folder: Path, count: int) -> None:
    """Random 32-pixel PNGs in ten classes, as an image folder."""
    random = np.random.default_rng(0)
    for split, number in (("train", count), ("val", CLASSES), ("test", CLASSES)):
        for i in range(number):
            path = folder / split / f"class{i % CLASSES}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(path)


class Bench:
    """The real runs, shortened, and what they are compared with."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, self.base, self.batch, self.count = folder, options.base_config, options.batch_size, 0
        self.steps, self.log_every = options.steps, options.log_every
        os.environ["GRAFT_CACHE"] = str(folder / "cache")
        make_data(folder / "data", 2 * self.batch)
        ours = [f"task={{name: imagefolder, root: {folder / 'data'}, size: 32, resident: true}}",
                f"train.batch_size={self.batch}", f"train.duration={self.steps + self.log_every}st", "optim.warmup=1st",
                "train.eval_every=0", "train.checkpoint_every=0", "train.tensorboard=false",
                f"train.log_every={self.log_every}"]
        ours += [] if torch.cuda.is_available() else ["train.precision=fp32"]  # CPUs have no fast bf16
        self.common = [f"{k}={v}" for k, v in dict(word.split("=", 1) for word in (*ours, *options.overrides)).items()]
        self.cfg = config.load([self.base], self.common)
        self.task = parts.build("tasks", self.cfg.task)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @functools.cached_property
    def teacher_dir(self) -> Path:
        """The folder of a CNN's run."""
        return self.short_run("baseline", "student={name: cnn, arch: resnet18}", name="resnet18")[1]

    def short_run(self, method: str, *overrides: str, name: str = "") -> tuple[list[float], Path]:
        """Seconds of a step between each two lines of the log but for the first, and the real run's folder."""
        self.count += 1
        files = {"ss_distill": [ROOT / "configs/ss_distill/ssl_cka.yaml"],
                 "distill": [ROOT / "configs/distill/resnet18.yaml"]}.get(method, [])
        cfg = config.load([self.base, *files], [*self.common, *overrides],
                          output_dir=str(self.folder / (name or f"run{self.count}")))
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module(f"graft.train_{method}").main(cfg)
        rows = [row for row in read(cfg.run_dir / "metrics.jsonl") if "images_per_second" in row]
        return [self.batch / row["images_per_second"] for row in rows[1:]], cfg.run_dir

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def autocast(self) -> contextlib.AbstractContextManager:
        """As `Run.autocast`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.train.precision == "bf16")

    def timed(self, step: Callable[[], object]) -> float:
        """Seconds of a step, the host waiting for the device as often as the log makes it."""
        for number in range(self.log_every + self.steps):
            if number % self.log_every == 0:
                self.wait()
            if number == self.log_every:
                started = time.perf_counter()
            step()
        self.wait()
        return (time.perf_counter() - started) / self.steps

    def bare(self) -> tuple[float, int]:
        """Seconds and FLOPs of forward+backward+AdamW of the same student on one resident random batch."""
        student = parts.build("students", self.cfg.student, self.task).train()
        student = placed(student, self.device, self.cfg.train.memory_format)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
        images = torch.rand(self.batch, 3, 32, 32, device=self.device)
        labels = torch.randint(CLASSES, (self.batch,), device=self.device)
        mode = self.cfg.train.compile
        model = student if mode == "none" else torch.compile(student, mode=mode)

        def step(model: torch.nn.Module = model) -> None:
            with self.autocast():
                out = model(images)
            torch.nn.functional.cross_entropy(out.logits.float(), labels, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()

        with FlopCounterMode(display=False) as counter:
            step(student)
        return self.timed(step), counter.get_total_flops()

    def teacher_forward(self) -> float:
        """Seconds of the ResNet-18 teacher's forward on a batch."""
        teacher = parts.get("teachers", "run")(self.task, path=str(self.teacher_dir))
        teacher = placed(teacher, self.device, self.cfg.train.memory_format)
        images = torch.rand(self.batch, 3, 32, 32, device=self.device)
        with torch.no_grad(), self.autocast():
            return self.timed(lambda: teacher(images))

    def ours(self, batches: int = 20) -> float:
        """Augmented images a second, on the device."""
        augment = Augment(self.cfg.augment, 0)
        split = self.task.splits["train"].to(self.device)
        index = torch.arange(self.batch)
        (images, labels), = split.batches([index])
        for epoch in range(batches + 2):
            if epoch == 2:
                self.wait()
                started = time.perf_counter()
            augment(images, labels, index, epoch, num_classes=CLASSES)
        self.wait()
        return batches * self.batch / (time.perf_counter() - started)

    def pil(self, batches: int = 20) -> float:
        """Augmented images a second of the usual pipeline: PIL images, two worker processes, started before."""
        images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)) for i in range(256)]
        transform = tv.Compose([tv.RandomCrop(32, 4), tv.RandomHorizontalFlip(),
                                tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10), tv.ToTensor(),
                                tv.RandomErasing(1.0, scale=(0.25, 0.25), ratio=(1, 1))])
        data = [(images[i % 256], 0) for i in range((batches + 6) * self.batch)]
        loader = iter(torch.utils.data.DataLoader(_Transformed(data, transform), self.batch, num_workers=2))
        for _ in range(5):  # as many as the workers may have prepared before the clock starts, and one
            next(loader)
        started = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return batches * self.batch / (time.perf_counter() - started)

    def beside(self, baseline: float) -> dict[str, float]:
        """What distillation and augmentation cost beside a step of `baseline` seconds."""
        distill = statistics.median(self.short_run("distill", f"teacher.path={self.teacher_dir}")[0])
        teacher = self.teacher_forward()
        structural = statistics.median(self.short_run(
            "ss_distill", "teacher={name: timm, arch: vit_tiny_patch16_224, size: 128, random_weights: true, "
                          "classifier: false, view: aligned}")[0])
        augmented = self.ours()
        return {"augment_vs_pil": augmented / self.pil(), "augment_share": self.batch / augmented / baseline,
                "distill_overhead": distill / (teacher + baseline), "ss_distill_overhead": structural / baseline}


class _Transformed(torch.utils.data.Dataset):
    def __init__(self, data, transform):
        self.data, self.transform = data, transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        image, label = self.data[i]
        return self.transform(image), label


def main() -> None:
    """Alternate, collect medians, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--steps", type=int, help="timed steps a repetition; default 4, on a GPU 60")
    parser.add_argument("--log_every", type=int, help="steps between lines of the log; default 1, on a GPU 10")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--base_config", type=Path, default=BASE)
    parser.add_argument("--loop", action="store_true", help="measure the loop alone")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.compile=default")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything asks
    cuda = torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        parser.error("--device cuda: there is no GPU")
    options.steps, options.log_every = options.steps or (60 if cuda else 4), options.log_every or (10 if cuda else 1)
    if options.steps % options.log_every:
        parser.error(f"--steps: must be a multiple of --log_every {options.log_every}, got {options.steps}")
    warnings.filterwarnings("ignore")
    median = statistics.median
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for rep in range(options.reps):
            bare, flops = bench.bare()
            baseline = median(bench.short_run("baseline")[0])
            row = {"loop_efficiency": bare / baseline, "tflops": flops / baseline / 1e12,
                   "baseline_images_per_second": options.batch_size / baseline}
            if not options.loop:
                row |= bench.beside(baseline)
            for name, value in row.items():
                found.setdefault(name, []).append(value)
            print(f"repetition {rep + 1}: " + " ".join(f"{k}={v:.3f}" for k, v in row.items()), flush=True)
    print(json.dumps({**{name: round(median(values), 4) for name, values in found.items()},
                      "device": torch.cuda.get_device_name() if cuda else "cpu",
                      "threads": torch.get_num_threads(), "torch": torch.__version__,
                      "repetitions": options.reps, "batch_size": options.batch_size, "steps": options.steps,
                      "log_every": options.log_every, "precision": bench.cfg.train.precision,
                      "compile": bench.cfg.train.compile}))


if __name__ == "__main__":
    main()
