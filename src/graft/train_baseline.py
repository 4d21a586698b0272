"""Train a model on labels alone: the students' baseline, and the CNN teachers.

    L = ce(logits, y)

    accelerate launch --config_file configs/accelerate/1gpu.yaml src/graft/train_baseline.py \\
        --base_config configs/base/cifar10_deit.yaml --output_dir experiments/cifar10/baseline --seed 0
"""

from graft.config.command_line import command_line
from graft.runtime.signals import follow_launcher

if __name__ == "__main__":
    follow_launcher()
    CONFIG = command_line(__doc__, "baseline")  # bad input ends here, before torch is imported

from graft.augment import Augment
from graft.config import parts
from graft.config.options import Config
from graft.errors import exit_cleanly
from graft.training.objective import Objective
from graft.training.run import Run


def main(cfg: Config) -> None:
    """Train until the configured step; resumes by itself."""
    with Run(cfg) as run:
        task = parts.build("tasks", cfg.task)
        student = run.seeded("student", lambda: parts.build("students", cfg.student, task))
        objective = Objective(cfg.objective, student, None, seed=cfg.seed)
        augment = Augment(cfg.augment, cfg.seed)
        run.print(objective.formula())
        run.start(task, student, objective)

        for batch in run.loop():
            view = augment(batch.inputs, batch.labels, batch.index, batch.epoch, num_classes=task.num_classes)
            loss, values = run.learner(view.inputs, objective.student_features, None, view.targets, None,
                                       objective.weights(batch.step, run.total_steps, run.steps_per_epoch),
                                       window=batch.window, micro_share=batch.micro_share)
            run.step(loss, values)
        run.finish()


if __name__ == "__main__":
    exit_cleanly(lambda: main(CONFIG))
