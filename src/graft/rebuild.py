"""A finished run's student, from its config.yaml and its weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from graft import checkpoint, parts
from graft.options import Config, Part
from graft.tasks._task import Task


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
