"""What forensics measures of one run: attention, similarity of layers, curvature of the loss."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graft import keyed
from graft.config.options import Config
from graft.errors import UserError
from graft.evaluation import rebuild
from graft.probes import _images, attention, receptive_field, similarity
from graft.runtime import sources
from graft.runtime.place import set_kernels

SCHEMA_VERSION = 1
FIELD_IMAGES = 64  # of the effective receptive field, which needs a backward pass a layer


@dataclass(frozen=True)
class Settings:
    """What is measured on which images."""

    metrics: tuple[str, ...]
    split: str
    images: int
    cka_images: int
    hessian_images: int
    kernel: str
    batch_size: int
    device: torch.device
    task_root: str = ""
    allow_other_data: bool = False


class Runs:
    """Rebuilds the models of runs; data sets and teachers are built once."""

    def __init__(self, settings: Settings, weights: str):
        self.settings, self.weights = settings, weights
        self.task = rebuild.Tasks(settings.device, settings.task_root, settings.allow_other_data)
        self.teachers: dict[str, nn.Module] = {}
        self.seen: dict[str, rebuild.Trained] = {}  # the first run with each teacher

    def student(self, run_dir: Path) -> tuple[Config, nn.Module, dict[str, Any]]:
        """A finished run's configuration, student and checkpoint facts.

        Raises UserError if its data are not what they were.
        """
        run = rebuild.trained(run_dir)
        rebuild.refuse_text(run.config, run_dir)
        _, different = self.task.of(run, [self.settings.split])
        self.seen.setdefault(_teacher_key(run.config), run)
        if not len(self.task(run.config).splits[self.settings.split]):
            raise UserError(f"{run_dir}: --split {self.settings.split}: its data have no such images")
        student, info = rebuild.student(run, self.weights)
        return run.config, student.to(self.settings.device), {
            **info, "other_data": different[self.settings.split], "teacher": run.teacher}

    def identity(self, cfg: Config, info: dict[str, Any]) -> dict[str, Any]:
        """What any measurement of a run that `student` has rebuilt depends on, whatever it measures on how many images.
        """
        settings = self.settings
        return {"step": info["step"], "weights": info["weights"], "checkpoint_sha256": info["sha256"],
                "other_data": info["other_data"], "teacher": info["teacher"], "split": settings.split,
                "data_fingerprint": self.task(cfg).fingerprints[settings.split], "batch_size": settings.batch_size,
                "device": settings.device.type, "code": sources.of_measurement(__file__, cfg)}

    def untrained(self, cfg: Config) -> nn.Module:
        """The student as the run's seed initialised it (without published weights, if it started from some)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed.key(cfg.seed, "student"))
            return rebuild.architecture(cfg.student, self.task(cfg)).to(self.settings.device)

    def teacher(self, cfg: Config) -> nn.Module | None:
        """The teacher of a run that `student` has rebuilt, if it has one."""
        if cfg.teacher.name == "none":
            return None
        key = _teacher_key(cfg)
        if key not in self.teachers:
            found = rebuild.teacher(self.seen[key], self.task(cfg), self.settings.allow_other_data)
            self.teachers[key] = found.to(self.settings.device)
        return self.teachers[key]

    def images(self, cfg: Config, count: int):
        """Batches of the first `count` fixed images."""
        split = self.task(cfg).splits[self.settings.split]
        return _images.batches(split, _images.fixed_index(split, count), self.settings.batch_size)

    def labelled(self, cfg: Config, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same images in one piece (N, C, H, W), with their labels (N,)."""
        split = self.task(cfg).splits[self.settings.split]
        images, labels = next(split.batches([_images.fixed_index(split, count)]))
        return images, labels


def _teacher_key(cfg: Config) -> str:
    return json.dumps([cfg.teacher.name, cfg.teacher.args, cfg.task.name, cfg.task.args], sort_keys=True)


def look(runs: Runs, cfg: Config, student: nn.Module) -> tuple[dict[str, Any], attention.Heads]:
    """Attention statistics and effective receptive field of a student."""
    heads = attention.head_statistics(student, runs.images(cfg, runs.settings.images))
    names = [f"patch.{i}" for i in range(student.depth)]
    fields = receptive_field.receptive_field(student, runs.images(cfg, min(FIELD_IMAGES, runs.settings.images)), names)
    for field in fields.values():
        del field["map"]
    return {**attention.summary(heads), "receptive_field": {"unit": "pixels", "layers": fields}}, heads


def compare(runs: Runs, cfg: Config, first: nn.Module, second: nn.Module) -> dict[str, Any]:
    """CKA between the blocks of two models; also of one with itself."""
    return similarity.cka(first, second, runs.images(cfg, runs.settings.cka_images), kernel=runs.settings.kernel)


def curve(runs: Runs, cfg: Config, student: nn.Module, spectrum: bool = True) -> dict[str, Any]:
    """Curvature of the loss at a student; its trace alone, a third of the work, without the `spectrum`."""
    from graft.probes import curvature  # its library takes seconds to import
    images, labels = runs.labelled(cfg, runs.settings.hessian_images)
    more = {} if spectrum else {"top": 0, "steps": 0}
    return curvature.analyse(student, images, labels, batch_size=runs.settings.batch_size, **more)


def entry(runs: Runs, cfg: Config, student: nn.Module, info: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """All that is asked for of one run but curvature, and each image's attention distance (n,) or None."""
    metrics = runs.settings.metrics
    found: dict[str, Any] = {"seed": cfg.seed, "step": info["step"], "weights": info["weights"],
                             "checkpoint_sha256": info["sha256"], "other_data": info["other_data"]}
    distance = None
    if "attention" in metrics:
        seen, heads = look(runs, cfg, student)
        found |= seen
        distance = heads.image_distance.numpy()
    if "cka" in metrics:
        teacher = runs.teacher(cfg)
        found["cka"] = {"self": compare(runs, cfg, student, student),
                        "teacher": None if teacher is None else compare(runs, cfg, student, teacher)}
    return found, distance


def describe(runs: Runs, cfg: Config) -> dict[str, Any]:
    """The images everything was measured on."""
    task, settings = runs.task(cfg), runs.settings
    size = len(task.splits[settings.split])
    sizes = {"attention": settings.images, "cka": settings.cka_images, "hessian": settings.hessian_images}
    return {"id": task.data_id, "fingerprint": task.fingerprint, "fingerprints": task.fingerprints,
            "split": settings.split,
            "n": {name: min(sizes[name], size) for name in settings.metrics}}


def device(name: str) -> torch.device:
    """The device of that name; "" for the GPU, or the CPU without one. Raises UserError if it is not here."""
    try:
        found = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=found).cpu()  # no numbers come back from `meta`
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device: {name}: not here ({str(error).splitlines()[0][:120]})") from None
    return found


def make_runs(options: argparse.Namespace, metrics: list[str], hessian_images: int) -> Runs:
    """From the command line."""
    set_kernels()
    return Runs(Settings(tuple(metrics), options.split, options.images, options.cka_images, hessian_images,
                         options.kernel, options.batch_size, device(options.device), options.task_root,
                         options.allow_other_data), options.weights)
