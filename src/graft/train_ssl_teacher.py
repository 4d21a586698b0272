"""Train a ViT without labels by self-distillation (DINO), to serve as a teacher matched in data.

    L = mean over pairs (global view g, other view v) of  H( softmax((t_g - c)/τ_t), softmax(s_v/τ_s) )

The teacher t is the running average of the student s; c is the running mean of its outputs (Caron et al.
2021, arXiv:2104.14294). All crops are resized to the image size. What is scored, by k nearest neighbours,
and exported is the averaged teacher; labels are used for that score alone.

    accelerate launch --config_file configs/accelerate/1gpu.yaml src/graft/train_ssl_teacher.py \\
        --base_config configs/base/cifar10_ssl.yaml --output_dir experiments/cifar10/ssl_teacher --seed 0
"""

from graft.config.command_line import command_line
from graft.runtime.signals import follow_launcher

if __name__ == "__main__":
    follow_launcher()
    CONFIG = command_line(__doc__, "ssl_teacher")  # bad input ends here, before torch is imported

import copy
import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from graft import keyed
from graft.augment import Augment
from graft.config import parts
from graft.config.options import Config, Part, Ssl
from graft.errors import exit_cleanly
from graft.evaluation.neighbours import Neighbours
from graft.evaluation.scoring import score, summary
from graft.losses._dino import DinoHead, dino_loss
from graft.outputs import Outputs
from graft.training.run import Run

CLS = ("cls.final",)


class Dino(nn.Module):
    """The projection heads of student and averaged teacher, and the centre of the teacher's outputs."""

    def __init__(self, dim: int, ssl: Ssl):
        super().__init__()
        self.ssl = ssl
        self.head = DinoHead(dim, ssl.prototypes, ssl.hidden, ssl.bottleneck)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(ssl.prototypes))
        self.mean, self.share = 0.0, 0.0  # of the teacher's outputs in this step so far, times the share of it

    def forward(self, student: Outputs, teacher_GBD: Tensor, window: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the student's views against the teacher's G; the centre takes in the teacher's mean output of a step
        at its end, so that the loss does not depend on how the step is divided into micro-batches."""
        student_VBD = student.features[CLS[0]][:, 0].unflatten(0, (-1, teacher_GBD.shape[1]))
        with torch.no_grad():
            target = self.teacher_head(teacher_GBD)
        per_image = dino_loss(self.head(student_VBD), target, self.center, self.ssl.student_temp, self.ssl.teacher_temp)
        mean = target.float().mean((0, 1))
        loss = per_image.sum() / window
        # log K is the entropy of a collapsed, uniform teacher; 0 that of one that always gives the same answer.
        log_p = ((target.float() - self.center) / self.ssl.teacher_temp).log_softmax(-1)
        share = per_image.numel() / window
        entropy = -(log_p.exp() * log_p).sum(-1).mean() * share
        self.mean, self.share = self.mean + share * mean, self.share + share
        if self.share > 1 - 1e-6:
            if dist.is_initialized():
                dist.all_reduce(self.mean)
                self.mean /= dist.get_world_size()
            self.center.lerp_(self.mean, 1 - self.ssl.center_momentum)
            self.mean, self.share = 0.0, 0.0
        return loss, {"dino": loss.detach(), "teacher_entropy": entropy}


@torch.no_grad()
def follow(average: list[nn.Module], model: list[nn.Module], momentum: float) -> None:
    """w̄ ← m·w̄ + (1-m)·w for every parameter; buffers, such as BatchNorm's statistics, are averages already."""
    ours = [p for module in average for p in module.parameters()]
    torch._foreach_lerp_(ours, [p.detach() for module in model for p in module.parameters()], 1 - momentum)
    for theirs, module in zip(average, model, strict=True):
        for buffer, own in zip(theirs.buffers(), module.buffers(), strict=True):
            buffer.copy_(own)


def knn_accuracy(module: nn.Module, task, k: int, batch_size: int) -> dict[str, float]:
    """Accuracy on the validation split of a vote among the k nearest training images."""
    was_training, device = module.training, next(module.parameters()).device
    rows = score(Neighbours(module, task, k, batch_size), task.splits["val"], device, batch_size)
    module.train(was_training)
    return {"accuracy": summary(rows)["accuracy"]}


def main(cfg: Config) -> None:
    """Train until the configured step; resumes by itself."""
    ssl = cfg.ssl
    with Run(cfg) as run:
        task = parts.build("tasks", cfg.task)
        student = run.seeded("student", lambda: parts.build("students", cfg.student, task))
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        dino = run.seeded("head", lambda: Dino(student.feature_dim(CLS[0]), ssl))
        crops = [Augment((Part("resized_crop", {"scale": scale, "ratio": [0.75, 1.3333]}), *cfg.augment),
                         keyed.key(cfg.seed, "view", number))
                 for number, scale in enumerate([ssl.global_scale] * 2 + [ssl.local_scale] * ssl.local_crops)]
        run.start(task, student, dino, average=teacher,
                  evaluate=lambda module: knn_accuracy(module, task, ssl.knn, cfg.evaluate.batch_size))

        followed = -1
        for batch in run.loop():
            # The teacher follows at the top of a step, so that a checkpoint, made at its end, holds both as they were.
            if batch.step != followed:
                followed = batch.step
                rise = (1 - math.cos(math.pi * batch.step / run.total_steps)) / 2
                follow([teacher, dino.teacher_head], [run.module, dino.head], ssl.momentum + (1 - ssl.momentum) * rise)
            views = [crop(batch.inputs, batch.labels, batch.index, batch.epoch, num_classes=task.num_classes).inputs
                     for crop in crops]
            with torch.no_grad(), run.autocast():
                seen = teacher(torch.cat(views[:2]), features=CLS).features[CLS[0]].unflatten(0, (2, -1))
            loss, values = run.learner(torch.cat(views), CLS, seen[:, :, 0], batch.window)
            run.step(loss, values)
        run.finish()


if __name__ == "__main__":
    exit_cleanly(lambda: main(CONFIG))
