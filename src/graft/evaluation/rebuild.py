"""A finished run's data set and student, from its config.yaml and its weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graft.config import parts
from graft.config.options import Config, Part
from graft.errors import UserError
from graft.runtime import checkpoint
from graft.tasks._task import Task


def runs_of(base_dir: Path, condition: str) -> list[Path]:
    """The run folders of a condition by seed. Raises UserError if there are none."""
    found = sorted(base_dir.glob(f"{condition}/seed*/config.yaml"), key=lambda f: int(f.parent.name[4:]))
    if not found:
        have = ", ".join(sorted({f.parent.parent.name for f in base_dir.glob("*/seed*/config.yaml")})) or "none"
        raise UserError(f"{base_dir}/{condition}: no finished run; conditions there: {have}")
    return [file.parent for file in found]


class Tasks:
    """The data sets of runs, on the device; runs that have the same one share it."""

    def __init__(self, device: torch.device):
        self.device, self.built = device, {}

    def __call__(self, cfg: Config) -> Task:
        """The run's data set, built the first time it is asked for."""
        key = json.dumps([cfg.task.name, cfg.task.args], sort_keys=True)
        if key not in self.built:
            self.built[key] = parts.build("tasks", cfg.task)
            for split in self.built[key].splits.values():
                split.to(self.device, cfg.train.workers)
        return self.built[key]


def refuse_text(cfg: Config, run_dir: Path) -> None:
    """Raise UserError for a language run where only images can be looked at."""
    if cfg.reads_text:
        raise UserError(f"{run_dir}: a language run (task {cfg.task.name}); this script looks at images; language "
                        "models are scored by scripts/eval_checkpoints.py")


def architecture(student: Part, task: Task) -> nn.Module:
    """The student untrained; the published weights it may have started from need not be at hand any more."""
    started = {key: off for key, off in (("pretrained", False), ("checkpoint", "")) if key in student.args}
    return parts.build("students", replace(student, args={**student.args, **started}), task)


def student(cfg: Config, run_dir: Path, task: Task, weights: str = "auto") -> tuple[nn.Module, dict[str, Any]]:
    """The trained student in evaluation mode, and what its checkpoint says (see `checkpoint.load_model`)."""
    state, info = checkpoint.load_model(run_dir, weights)
    module = architecture(cfg.student, task)
    module.load_state_dict(state)
    return module.eval(), info


def classifier(cfg: Config, task: Task, weights: str, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """A finished run's student and what its checkpoint says. Raises UserError if it has no classifier."""
    if cfg.method == "ssl_teacher":
        raise UserError(f"{cfg.run_dir}: a self-supervised run has no classifier to score")
    module, info = student(cfg, cfg.run_dir, task, weights)
    return module.to(device), info


def mirrors(cfg: Config) -> bool:
    """Whether the run was trained to see an image and its mirror image as the same."""
    return any(part.name == "flip" and part.args["p"] > 0 for part in cfg.augment)
