"""A finished run from its checkpoint: its configuration, its student, and whether its data are still what they were.

Nothing beside the checkpoint is believed: `config.yaml` is a copy for people.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from graft import config
from graft.config import parts
from graft.config.options import Config, Part
from graft.errors import UserError
from graft.runtime import checkpoint, digests, files, identity
from graft.tasks._task import Task
from graft.tasks._text import TextTask

FIXED = ("channels", "size")  # a student is built for them


@dataclass(frozen=True)
class Trained:
    """A run as its newest checkpoint tells it; `data` is what it was trained on (see `graft.runtime.identity`)."""

    folder: Path
    config: Config
    data: dict[str, Any]
    teacher: str  # digest of its teacher's weights; empty without one
    models: dict[str, Any]  # what is noted of the origin of the models it started from

    @property
    def task(self) -> Task:
        """The image task it was trained on, without its images: all that building its student takes."""
        facts = {name: self.data[name] for name in ("fingerprints", "classes", "channels", "size", "mean", "std")}
        return Task(name=self.config.task.name, data_id=self.data["id"], splits={}, **facts)


def trained(run_dir: Path) -> Trained:
    """The run in a folder, finished or not.

    Raises UserError if it is no run's folder, has no checkpoint, or its newest one was changed or says too little.
    """
    if not checkpoint.is_run(run_dir):
        raise UserError(f"{run_dir}: is no run's folder; expected <condition>/seed<k> with checkpoint-<step> in it")
    path = checkpoint.newest(run_dir)
    info = checkpoint.info_of(path)
    data = identity.of_checkpoint(path, info)
    cfg = config.restored(info["config"], f"{path}/trainer.json")
    # where it lies now, under any name: it may have been moved since
    return Trained(run_dir, replace(cfg, output_dir=str(run_dir.parent)), data, info.get("teacher", ""),
                   info.get("models", {}))


def run_folder(path: Path) -> Path:
    """`path` if it is a run's folder, else its only `seed<k>`. Raises UserError if there is none or several."""
    if checkpoint.is_run(path):
        return path
    seeds = files.seeds(path)
    if len(seeds) == 1:
        return seeds[0]
    found = f"has {', '.join(seed.name for seed in seeds)}; name one" if seeds else "has no checkpoint"
    raise UserError(f"teacher.path: {path} {found if path.is_dir() else 'does not exist'}; expected a run's folder")


def runs_of(base_dir: Path, condition: str) -> list[Path]:
    """The run folders of a condition by seed, `seed<k>` and no other. Raises UserError if there are none."""
    def there(name: str) -> list[Path]:
        return [path for path in files.seeds(base_dir / name) if checkpoint.is_run(path)]

    if not (found := there(condition)):
        have = [path.name for path in sorted(base_dir.glob("*")) if path.is_dir() and there(path.name)]
        raise UserError(f"{base_dir}/{condition}: no finished run; conditions there: {', '.join(have) or 'none'}")
    return found


class Tasks:
    """The data sets of runs as they are now, on the device; runs that have the same one share it.

    `root`: where the data lie now, if they were moved. `allow_other`: other data than a run was trained on are no
    error.
    """

    def __init__(self, device: torch.device, root: str = "", allow_other: bool = False):
        self.device, self.root, self.allow_other, self.built = device, root, allow_other, {}

    def __call__(self, cfg: Config) -> Task | TextTask:
        """The run's data set, built the first time it is asked for."""
        if self.root and "root" not in cfg.task.args:
            raise UserError(f"--task_root: task {cfg.task.name} of {cfg.run_dir} reads no folder; leave it out")
        part = replace(cfg.task, args={**cfg.task.args, "root": self.root}) if self.root else cfg.task
        key = json.dumps([part.name, part.args], sort_keys=True)
        if key not in self.built:
            self.built[key] = parts.build("tasks", part)
            for split in self.built[key].splits.values():
                split.to(self.device, cfg.train.workers)
        return self.built[key]

    def of(self, run: Trained, splits: Sequence[str]) -> tuple[Task | TextTask, dict[str, list[str]]]:
        """The run's data set, and in what each of `splits` differs from the one it was trained with.

        Raises UserError, one line that names what differs, unless nothing does or that is allowed.
        """
        task = self(run.config)
        found = {split: identity.differences(run.data, task.about, [split]) for split in splits}
        different = list(dict.fromkeys(text for texts in found.values() for text in texts))
        impossible = [name for name in FIXED if run.data.get(name) != task.about.get(name)]
        impossible += ["number of classes"] * (len(run.data.get("classes", ())) != len(task.classes))
        if different and (impossible or not self.allow_other):
            advice = f"its student cannot read data with another {impossible[0]}" if impossible else \
                "what is scored may have been trained on; --allow_other_data scores it all the same and says so"
            raise UserError(f"{run.folder}: was trained on other data ({'; '.join(different)}); {advice}")
        if different:
            tqdm.write(f"note: {run.folder}: was trained on other data ({'; '.join(different)})")
        return task, found


def origin(run: Trained, task: Task | TextTask, split: str, different: list[str]) -> dict[str, Any]:
    """What a score says of the data it was made on, and of those that were trained on."""
    return {"data_fingerprint": task.fingerprints[split], "train_fingerprint": run.data["fingerprints"]["train"],
            "other_data": different}


def refuse_text(cfg: Config, run_dir: Path) -> None:
    """Raise UserError for a language run where only images can be looked at."""
    if cfg.reads_text:
        raise UserError(f"{run_dir}: a language run (task {cfg.task.name}); this script looks at images; language "
                        "models are scored by scripts/eval_checkpoints.py")


def architecture(student: Part, task: Task) -> nn.Module:
    """The student untrained; the published weights it may have started from need not be at hand any more."""
    started = {key: off for key, off in (("pretrained", False), ("checkpoint", "")) if key in student.args}
    return parts.build("students", replace(student, args={**student.args, **started}), task)


def student(run: Trained, weights: str = "auto") -> tuple[nn.Module, dict[str, Any]]:
    """The trained student in evaluation mode, and what its checkpoint says (see `checkpoint.load_model`)."""
    state, info = checkpoint.load_model(run.folder, weights)
    module = architecture(run.config.student, run.task)
    module.load_state_dict(state)
    return module.eval(), info


def classifier(run: Trained, weights: str, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """A finished run's student and what its checkpoint says. Raises UserError if it has no classifier."""
    if run.config.method == "ssl_teacher":
        raise UserError(f"{run.folder}: a self-supervised run has no classifier to score")
    module, info = student(run, weights)
    return module.to(device), info


def teacher(run: Trained, task: Task, allow_other: bool) -> nn.Module:
    """The run's own teacher again; `allow_other` as in `Tasks`. Raises UserError if it is another one by now."""
    part = run.config.teacher
    excuse = {"other_data": True} if allow_other and part.name == "run" else {}
    found = parts.build("teachers", replace(part, args={**part.args, **excuse}), task)
    if run.teacher and (now := digests.of_state(found)) != run.teacher:
        raise UserError(f"{run.folder}: learned from another teacher than {part.name} "
                        f"{part.args.get('path', '')} is now (weights sha256 {run.teacher[:12]}, now {now[:12]})")
    return found


def mirrors(cfg: Config) -> bool:
    """Whether the run was trained to see an image and its mirror image as the same."""
    return any(part.name == "flip" and part.args["p"] > 0 for part in cfg.augment)
