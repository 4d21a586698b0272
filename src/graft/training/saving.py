"""What of a run is on disk: its checkpoints, written and read by all its processes together, and its metadata."""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from graft import __version__
from graft.config.options import Config
from graft.errors import DiskProblem
from graft.runtime import checkpoint, digests, sources
from graft.runtime.files import read_json, write_text
from graft.runtime.place import Place
from graft.runtime.provenance import code_sha, provenance
from graft.runtime.status import write_status
from graft.students._language import origins, tokenizer_files
from graft.tasks._task import Task
from graft.tasks._text import TextTask
from graft.training.resume import code_changes, find, refuse_other_run
from graft.training.sharding import gathered, parted, parted_optimizer

FAILURES = 3  # saves in a row that fail before the run ends


class Saver:
    """Saves and resumes `student`, `average`, `objective` and `others` by name (those that have a state), with their
    optimizer."""

    def __init__(self, config: Config, task: Task | TextTask, student: nn.Module, average: nn.Module | None,
                 objective: nn.Module, optimizer: torch.optim.Optimizer, place: Place,
                 teacher: nn.Module | None = None, others: Mapping[str, Any] = MappingProxyType({})):
        self.config, self.task, self.student, self.optimizer, self.place = config, task, student, optimizer, place
        # A language model that teaches knows what it is: some have 16 GB of weights, others none of their own.
        self.teacher = teacher and (getattr(teacher, "identity", "") or digests.of_state(teacher))
        self.models = origins(config) if isinstance(task, TextTask) else {}
        self.failures = 0
        self.tokenizer: dict[str, bytes] = {}
        self.code_changes: list[dict[str, Any]] = []  # with --code_changed: at which steps which files had changed
        own = getattr(student, "stem", "model")  # adapters have another name than a whole model
        modules = {own: student, "average": average, "objective": objective, **others}
        self.modules = {stem: module for stem, module in modules.items() if module is not None and module.state_dict()}

    def resume(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """Load the newest intact checkpoint and return its trainer.json; None for a new run.

        Raises UserError if it is another run's.
        """
        found = self.place.on_main(lambda: find(self.config.run_dir, self.config.resume))
        if found is None:
            return None
        # Of a model in parts each process needs only its own, and all of them may share one host's memory.
        tensors, optimizer, info = checkpoint.load(found, mapped=self.place.sharded)
        for note in refuse_other_run(found, info, self.config, self.place.world, self._origin()):
            say(note)
        self.code_changes = info.get("code_changes", [])
        if changed := code_changes(info, self.config):
            self.code_changes = [*self.code_changes, {"step": info["step"], "files": changed}]
        for stem, module in self.modules.items():
            module.load_state_dict(parted(tensors[stem], module.state_dict()))
        if not info["final"]:  # a run that is done may be without
            self.optimizer.load_state_dict(parted_optimizer(optimizer, self.optimizer))
        return info

    def _origin(self) -> dict[str, Any]:
        """What a checkpoint of this run says of its origin, beside its configuration."""
        base = {"base": self.student.base} if isinstance(self.task, TextTask) else {}
        sharding = {"sharding": "fsdp"} if self.place.sharded else {}  # sums are added in another order
        teacher = {"teacher": self.teacher} if self.teacher else {}
        models = {"models": self.models} if self.models else {}
        answered = self.task.answered if isinstance(self.task, TextTask) else ""
        targets = {"targets": answered} if answered else {}
        return {"data": self.task.about, **base, **sharding, **teacher, **models, **targets}

    def _files(self) -> dict[str, str | bytes]:
        """What makes a checkpoint of a language model a model for other tools."""
        if not isinstance(self.task, TextTask):
            return {}
        self.tokenizer = self.tokenizer or tokenizer_files(self.task.prompt.tokenizer)
        return {**self.student.export_files(), **self.tokenizer}

    def save(self, step: int, final: bool, best_step: int | None, progress: dict[str, Any],
             say: Callable[[str], None]) -> None:
        """Write a checkpoint on the main process; `progress` joins trainer.json.

        Raises DiskProblem after three failures in a row, or if the last checkpoint of the run fails, and NonFinite,
        on all processes, for weights or optimizer state that are not finite.
        """
        main = self.place.main
        if main or self.place.sharded:
            tensors = {stem: gathered(module.state_dict(), main) for stem, module in self.modules.items()}
            needed = not final or self.config.train.keep_optimizer
            optimizer = gathered(self.optimizer.state_dict(), main) if needed else {}

        def write() -> str:
            info = {**progress, "final": final, "world_size": self.place.world, "config_sha256": self.config.sha256,
                    "config": self.config.to_dict(), "code_sha": code_sha(), "graft_version": __version__,
                    "sources": sources.of_run(self.config), "code_changes": self.code_changes, **self._origin()}
            try:
                checkpoint.save(self.config.run_dir, step, tensors, optimizer, info, self.config.train.keep,
                                best_step, self._files())
                write_status(self.config.run_dir, "running", step)
            except OSError as error:
                return str(error)
            return ""

        failure = self.place.on_main(write)
        self.failures = self.failures + 1 if failure else 0
        if failure:
            say(f"warning: {failure}; trying again at the next interval")
            if self.failures >= FAILURES or final:
                error = DiskProblem(f"{failure} ({self.failures} failures in a row)")
                error.told = not main
                raise error

    def write_metadata(self, step: int, total_steps: int) -> None:
        """metadata.json, with one more attempt that began at `step`, and config.yaml."""
        path = self.config.run_dir / "metadata.json"
        before = read_json(path, "attempts")
        attempts = before["attempts"] if before and isinstance(before["attempts"], list) else []
        entry = {**provenance(), "resumed_at": step, "total_steps": total_steps, "world_size": self.place.world,
                 "config_sha256": self.config.sha256, "sources": sources.of_run(self.config),
                 "code_changes": self.code_changes}
        write_text(path, json.dumps({
            "schema_version": 1, "data": self.task.about,
            "parameters": sum(p.numel() for p in self.student.parameters()),
            "attempts": [*attempts, entry]}, indent=1) + "\n")
        write_text(self.config.run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config.to_dict())))
