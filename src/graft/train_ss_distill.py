"""Distil a self-supervised teacher's structure: does the geometry of its tokens help a ViT?

    L = ce(logits, y) + λ_token·token(P(student tokens), teacher tokens) + λ_cka·cka(student tokens, teacher tokens)

The teacher sees the stored image, so its tokens are computed once and kept; what the student sees is a
flipped, shifted, erased view of it, so the teacher's token map is moved by the same geometry and tokens
without a counterpart are left out (`teacher.view: aligned`). Only the student has a projector.

    accelerate launch --config_file configs/accelerate/1gpu.yaml src/graft/train_ss_distill.py \\
        --base_config configs/base/cifar10_deit.yaml --config configs/ss_distill/dinov2_cka.yaml \\
        --output_dir experiments/cifar10/dinov2_cka --seed 0
"""

from graft.config.command_line import command_line
from graft.runtime.signals import follow_launcher

if __name__ == "__main__":
    follow_launcher()
    CONFIG = command_line(__doc__, "ss_distill")  # bad input ends here, before torch is imported

from graft.augment import Augment
from graft.config import parts
from graft.config.options import Config
from graft.errors import exit_cleanly
from graft.teachers._view import TeacherView
from graft.training.objective import Objective
from graft.training.run import Run
from graft.training.terms import needs_teacher


def main(cfg: Config) -> None:
    """Train until the configured step; resumes by itself."""
    with Run(cfg) as run:
        task = parts.build("tasks", cfg.task)
        student = run.seeded("student", lambda: parts.build("students", cfg.student, task))
        teacher = run.placed(parts.build("teachers", cfg.teacher, task)) if needs_teacher(cfg.objective) else None
        objective = Objective(cfg.objective, student, teacher, seed=cfg.seed)
        augment = Augment(cfg.augment, cfg.seed)
        run.print(objective.formula())
        run.start(task, student, objective, teacher=teacher)
        look = TeacherView(teacher, cfg, task, objective, run) if teacher else None

        for batch in run.loop():
            view = augment(batch.inputs, batch.labels, batch.index, batch.epoch, num_classes=task.num_classes,
                           geometry=look is not None and look.moves)
            seen, visible = look(batch, view) if look else (None, None)
            loss, values = run.learner(view.inputs, objective.student_features, seen, view.targets, visible,
                                       objective.weights(batch.step, run.total_steps, run.steps_per_epoch),
                                       window=batch.window, micro_share=batch.micro_share)
            run.step(loss, values)
        run.finish()


if __name__ == "__main__":
    exit_cleanly(lambda: main(CONFIG))
