"""Distil a teacher's logits into a student: does a CNN's view harm a ViT? Can a context move into weights?

    images:  L = (1-α)·ce(cls logits, y) + α·kd(distillation-token logits, teacher logits)
    text:    L = ce(answer tokens) + λ·topk(student's logits, teacher's largest logits)

An image teacher sees exactly the student's augmented and mixed image (`teacher.view: augmented`), as in DeiT
(Touvron et al. 2021, arXiv:2012.12877). A language teacher is the same model with worked examples before the
question, which the student gets bare (context distillation: Snell et al. 2022, arXiv:2209.15189).

    accelerate launch --config_file configs/accelerate/1gpu.yaml src/graft/train_distill.py \\
        --base_config configs/base/cifar10_deit.yaml --config configs/distill/resnet18.yaml \\
        --output_dir experiments/cifar10/resnet18 --seed 0
    accelerate launch --config_file configs/accelerate/1gpu.yaml src/graft/train_distill.py \\
        --base_config configs/base/gsm8k_qwen1b7.yaml --config configs/distill/fewshot.yaml \\
        --output_dir experiments/gsm8k_qwen1b7/distill --seed 0
"""

from graft.config.command_line import command_line
from graft.runtime.signals import follow_launcher

if __name__ == "__main__":
    follow_launcher()
    CONFIG = command_line(__doc__, "distill")  # bad input ends here, before torch is imported

from graft.augment import Augment
from graft.config import parts
from graft.config.options import Config
from graft.errors import exit_cleanly
from graft.training.objective import Objective
from graft.training.run import Run
from graft.training.terms import needs_teacher


def main(cfg: Config) -> None:
    """Train until the configured step; resumes by itself."""
    with Run(cfg) as run:
        task = parts.build("tasks", cfg.task)
        if cfg.reads_text:
            from graft.teachers._targets import task_for  # peft, which images do without, takes seconds
            task = task_for(cfg, task)
        student = run.seeded("student", lambda: parts.build("students", cfg.student, task))
        teacher = None
        if needs_teacher(cfg.objective):
            teacher = run.placed(parts.build("teachers", cfg.teacher, task, student))
        objective = Objective(cfg.objective, student, teacher, seed=cfg.seed)
        augment = Augment(cfg.augment, cfg.seed)
        run.print(objective.formula())
        run.start(task, student, objective, teacher=teacher)
        for note in getattr(teacher, "notes", ()):
            run.print(note)

        for batch in run.loop():
            view = augment(batch.inputs, batch.labels, batch.index, batch.epoch, num_classes=task.num_classes)
            weights = objective.weights(batch.step, run.total_steps, run.steps_per_epoch)
            seen = None
            if objective.asks_teacher(weights):
                with run.autocast():
                    seen = teacher(view.inputs, features=objective.teacher_features)
                    seen = seen.of_neighbours() if cfg.teacher.shuffle else seen  # a negative control
            loss, values = run.learner(view.inputs, objective.student_features, seen, view.targets, None, weights,
                                       window=batch.window, micro_share=batch.micro_share)
            run.step(loss, values)
        run.finish()


if __name__ == "__main__":
    exit_cleanly(lambda: main(CONFIG))
