"""What the teacher says about the image the student sees, lined up token by token."""

import torch
from torch import Tensor, nn

from graft.augment import to_float
from graft.augment._warp import move_tokens
from graft.config.options import Config
from graft.outputs import Batch, Outputs, View
from graft.tasks._task import Task
from graft.teachers._cache import TeacherCache
from graft.training.objective import Objective, pool_tokens
from graft.training.run import Run


class TeacherView:
    """A frozen teacher behind `teacher.view` and `teacher.shuffle`.

    augmented: it sees the student's image. aligned and unaligned: it sees the stored image, so its outputs
    are computed once (`teacher.cache`); aligned moves its token maps to where the student's view shows
    the same content and says which tokens that is possible for, unaligned compares place by place.
    """

    def __init__(self, teacher: nn.Module, cfg: Config, task: Task, objective: Objective, run: Run):
        self.teacher, self.config, self.run, self.task = teacher.to(run.device), cfg.teacher, run, task
        self.features = objective.teacher_features
        self.grid = objective.student_grid
        self.moves = cfg.teacher.view == "aligned"
        self.cache = None
        if cfg.teacher.view != "augmented" and cfg.teacher.cache == "auto" and not cfg.dry_run:
            self.cache = TeacherCache(self.teacher, cfg.teacher, task, "train", self.features, run.device,
                                      autocast=run.autocast)

    @torch.no_grad()
    def __call__(self, batch: Batch, view: View) -> tuple[Outputs, Tensor | None]:
        """The teacher's outputs for this view, and which of the (B, T) tokens may be compared (None: all)."""
        if self.config.view == "augmented":
            with self.run.autocast():
                out = self.teacher(view.inputs, features=self.features)
        elif self.cache:
            out = self.cache.fetch(batch.index, batch.ahead)
        else:
            with self.run.autocast():
                out = self.teacher(to_float(batch.inputs), features=self.features)
        maps = {name: pool_tokens(tokens, self.grid) if name.startswith("patch") else tokens
                for name, tokens in out.features.items()}
        seen, visible = Outputs(out.logits, out.logits, maps), None
        if self.config.shuffle:
            seen = seen.of_neighbours()
        maps = seen.features
        if self.moves:
            for name in [name for name in maps if name.startswith(("patch", "attention"))]:
                maps[name], visible = self._moved(maps[name], view)
                if name.startswith("attention"):  # its columns are places too
                    maps[name] = self._moved(maps[name].mT, view)[0].mT
        return seen, visible

    def _moved(self, tokens: Tensor, view: View) -> tuple[Tensor, Tensor]:
        return move_tokens(tokens, view.matrix, view.visible, self.grid, (self.task.size, self.task.size))
