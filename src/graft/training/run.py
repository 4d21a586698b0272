"""One training run: everything that can be wrong silently, done once.

The `for` loop and the loss stand on the page of each training script; accumulation, clipping, the learning
rate, averaging, logging, evaluation, saving, resuming and stopping are here. Nothing depends on how many
processes share the work: the batch size is global, the learning rate is a function of the optimizer step,
and every random number is a function of (seed, step or epoch, sample).

Longer than most files: what happens when, at a run's start and at a step's edge, is one order and is read in one place.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from graft import keyed
from graft.config.options import Config
from graft.config.schema import to_steps
from graft.errors import DiskProblem, Locked, NonFinite, NoValidCheckpoint, Preempted
from graft.outputs import Batch
from graft.runtime.place import Place, accelerator, set_kernels
from graft.runtime.signals import StopSignal
from graft.tasks._task import Task
from graft.tasks._text import TextTask
from graft.training.batches import micro_batches, plan, room_for_answers, try_out
from graft.training.learner import Learner, placed, synchronised
from graft.training.optim import Average, build_optimizer, lr_at
from graft.training.progress import Progress
from graft.training.record import Record
from graft.training.resume import leaves
from graft.training.saving import Saver
from graft.training.selection import Selection
from graft.training.sharding import shard, wanted
from graft.training.update import Stop, Update
from graft.training.validation import Evaluate, Validation

TOGETHER = (Preempted, NonFinite, Locked, DiskProblem, NoValidCheckpoint)  # errors that all processes raise


class Run:
    """A run from its configuration to its last checkpoint; use as a context manager.

        with Run(cfg) as run:
            run.start(task, student, objective)
            for batch in run.loop():
                loss, values = run.learner(...)
                run.step(loss, values)
    """

    def __init__(self, config: Config):
        self.config, self.train = config, config.train
        self.dir = config.run_dir
        precision_of_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        # Precision belongs to the experiment, so the config decides; autocast() applies it. With images a step may use
        # another set of parameters than the last (a head without its loss, the projector of a term whose weight is 0 as
        # yet), and DDP that does not search would end the run; the search takes a CPU 0.02 ms for a ViT of 12 blocks.
        # A language model uses all.
        self.accelerator = accelerator(DistributedDataParallelKwargs(
            find_unused_parameters=not config.reads_text, gradient_as_bucket_view=True))
        world = self.accelerator.num_processes
        self.place = Place(self.accelerator.device, self.accelerator.process_index, world, wanted(config, world))
        self.device = self.place.device
        if precision_of_launcher != "no" and precision_of_launcher != self.train.precision:
            self.print(f"note: the launcher says {precision_of_launcher}, the config says train.precision: "
                       f"{self.train.precision}; the config decides")
        set_kernels(self.train.tf32, self.train.deterministic)
        self.stop_signal = StopSignal()
        self.record = Record(self.dir, self.place, self.print)
        self.step_done = 0
        self.finished = False

    # ------------------------------------------------------------------------------------- lifetime

    def __enter__(self) -> "Run":
        try:
            if self.config.dry_run:
                self.record.refuse_file()
            else:
                self.record.open(lambda: self.stop_signal.number > 0)
        except BaseException:
            self.stop_signal.restore()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        first = self.record.close(error, self.step_done, self.finished)
        self.stop_signal.restore()
        if dist.is_initialized() and (error is None or isinstance(error, TOGETHER)):
            dist.destroy_process_group()  # all ranks get here together; after other errors they do not
        if error is None and first is not None:
            raise first

    def print(self, text: str) -> None:
        """Print on the main process."""
        if self.place.main:
            tqdm.write(text)

    def seeded(self, purpose: str, build: Callable[[], Any]) -> Any:
        """Build something under its own seed, so that what else is built never shifts its initialisation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed.key(self.config.seed, purpose))
            return build()

    def autocast(self) -> contextlib.AbstractContextManager:
        """bf16 autocast if the config says so. Losses are fp32 either way."""
        # The cache would keep a bf16 copy of every layer, gathered, to the end of the forward pass.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16",
                              cache_enabled=not self.place.sharded)

    def placed(self, module: nn.Module) -> nn.Module:
        """A student or teacher on this run's device, in its memory format."""
        return placed(module, self.device, self.train.memory_format)

    # ---------------------------------------------------------------------------------------- start

    def start(self, task: Task | TextTask, student: nn.Module, objective: nn.Module, *,
              teacher: nn.Module | None = None, average: nn.Module | None = None,
              evaluate: Evaluate | None = None) -> None:
        """Place and wrap the modules, build the optimizer, resume if there is something to resume.

        `student` and `objective` (projectors, heads) are trained and saved; a run may only go on with the `teacher` it
        began with. `average` is a module the caller
        averages itself and that is scored and exported (the EMA teacher of DINO); otherwise `train.average`
        decides. `evaluate(module)` replaces scoring the labels, or the answers, of the validation split.
        """
        config, train = self.config, self.train
        self.task, self.split = task, task.splits["train"]
        self.steps_per_epoch, self.total_steps = plan(config, task, self.place.world)
        self.micro_size = train.batch_size // (self.place.world * train.accumulate)
        for split in task.splits.values():
            split.to(self.device, train.workers)
        if self.place.world > 1 and self.device.type == "cuda" and not config.reads_text:
            student = synchronised(student)
        if isinstance(task, TextTask):
            room_for_answers(config, task, student)
        else:
            try_out(config, task, student, self.micro_size)
        if not self.place.sharded:
            student, objective = self.placed(student), objective.to(self.device)
        self.module, self.objective_module = student, objective
        self.ema, self.rollouts = getattr(teacher, "ema", None), None
        if config.teacher.args.get("targets") == "student":
            from graft.training.rollouts import Rollouts  # peft, which images do without, takes seconds
            self.rollouts = Rollouts(config, task, student, self.place, self.autocast)
        self.average = None
        if average is None and train.average != "none":
            self.average = Average(self.module, train, self.steps_per_epoch, self.total_steps)
        self.averaged_module = self.average.model if self.average else average and self.placed(average)
        compiled = self.module if train.compile == "none" else torch.compile(self.module, mode=train.compile)
        learner = Learner(compiled, self.objective_module, self.autocast)
        self.learner = (shard(learner, self.device, self.train.precision == "bf16") if self.place.sharded
                        else self.accelerator.prepare_model(learner))
        self.optimizer = build_optimizer([self.module, self.objective_module], config.optim)
        self.selection = Selection(train, config.optim)
        self.validation = Validation(config, task, self.averaged_module, self.average, evaluate, self.place,
                                     learner)
        self.update = Update(config, self.optimizer, self.place)
        if config.dry_run:
            self._describe()
            return
        self.saver = Saver(config, task, self.module, self.averaged_module, self.objective_module, self.optimizer,
                           self.place, teacher, {"rollouts": self.rollouts, "ema": self.ema})
        if info := self.saver.resume(self.print):
            self.step_done = info["step"]
            self.selection.restore(info["selection"])
        self._describe()
        self.record.begin(self.step_done, train, leaves(config.to_dict()))
        self.place.on_main(lambda: self.saver.write_metadata(self.step_done, self.total_steps))

    def _describe(self) -> None:
        sizes = [p.numel() for p in self.module.parameters()]
        trained = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        few = f" ({trained:,} trained)" if trained < sum(sizes) else ""
        self.print(f"{self.dir}: {self.task.data_id}, {len(self.split)} training {self.task.unit}; "
                   f"student {self.config.student.name}, {sum(sizes):,} parameters{few}; {self.total_steps} steps = "
                   f"{self.total_steps / self.steps_per_epoch:.4g} epochs of {self.steps_per_epoch} × "
                   f"{self.train.batch_size} {self.task.unit} on {self.place.world} × {self.device.type}"
                   + (", sharded" if self.place.sharded else ""))
        for note in self.task.notes:
            self.print(note)
        if self.step_done:
            self.print(f"resumed at step {self.step_done}")

    # ----------------------------------------------------------------------------------------- loop

    def loop(self) -> Iterator[Batch]:
        """This process's micro-batches from where the run stands to its end.

        The consumer must call `step` once for every micro-batch.
        """
        if self.config.dry_run:
            return
        self.module.train()
        self.objective_module.train()
        with Progress(self.dir.parent.name, self.step_done, self.total_steps, self.place.main) as self.progress:
            yield from self._batches()

    def _batches(self) -> Iterator[Batch]:
        while self.step_done < self.total_steps and not self.selection.stopped:
            epoch, first = divmod(self.step_done, self.steps_per_epoch)
            last = min(self.steps_per_epoch, first + self.total_steps - self.step_done)
            steps = range(first, last)
            for span in self.rollouts.spans(steps) if self.rollouts else (steps,):
                if self.rollouts and not self.selection.stopped:
                    self.rollouts.prepare(epoch, span)
                yield from self._of_span(epoch, span)

    def _of_span(self, epoch: int, steps: range) -> Iterator[Batch]:
        """The micro-batches of some steps of an epoch."""
        for micro, batch in micro_batches(self.split, self.train, self.config.seed, epoch, steps, self.place.rank,
                                          self.place.world):
            if self.selection.stopped:
                break
            self._last_micro = micro == self.train.accumulate - 1
            self.learner.require_backward_grad_sync = self._last_micro  # DDP reduces at the window's end only
            # Dropout and drop-path follow from the step, so a resumed run needs no generator state.
            torch.manual_seed(keyed.key(self.config.seed, "step", self.step_done, micro, self.place.rank))
            self._stepped = False
            yield batch
            assert self._stepped, "run.step() was not called for this micro-batch"

    def step(self, loss: Tensor, values: dict[str, Tensor]) -> None:
        """Backward; at the end of the window also clip, check, update, log, evaluate, save.

        `loss` is 0-d, already this micro-batch's share of the window (see `Objective`); `values` are its
        detached terms by name, for the log.
        """
        self._stepped = True
        self.accelerator.backward(loss)
        self.update.add(loss, values)
        if not self._last_micro:
            return
        lr = lr_at(self.step_done, self.config.optim, self.train, self.steps_per_epoch, self.total_steps,
                   self.selection.plateau_factor)
        wish = Stop.SAVE if self.stop_signal.number else Stop.NO
        self.update.apply(self.step_done, lr, Stop.LEAVE if self.record.trouble else wish)
        self.step_done += 1
        if self.average:
            self.average.update(self.module, self.step_done)
        if self.ema:
            self.ema.follow()
        self._at_edge()

    # ----------------------------------------------------------------------------------- step's edge

    def _due(self, every: str) -> bool:
        steps = to_steps(every, self.steps_per_epoch, self.total_steps)
        return bool(steps) and self.step_done % steps == 0

    def _at_edge(self) -> None:
        if self.update.stop is Stop.LEAVE:
            self.record.raise_trouble()
        final = self.step_done == self.total_steps
        due = {name: final or self._due(getattr(self.train, f"{name}_every")) for name in ("eval", "checkpoint")}
        due["eval"] &= len(self.task.splits["val"]) > 0
        if self.step_done % self.train.log_every == 0 or any(due.values()):
            self.update.settle()
            self._log_training()
        if due["eval"]:
            self._evaluate()
            final = final or self.selection.stopped
        if due["checkpoint"] or final:
            self._save(final)
        self.progress.update()
        if self.update.stop is Stop.SAVE and not final:
            self.update.settle()
            if not due["checkpoint"]:
                self._save(False)
            raise Preempted(f"stopped by a signal; saved at step {self.step_done}, the same command continues")

    def _log_training(self) -> None:
        """One line: every term's mean over the steps since the last line and over all processes."""
        row = {f"train/{name}": mean for name, mean in self.update.means().items()}
        rate = self.progress.rate() * self.train.batch_size
        self.record.write(self.step_done, {
            **row, "lr": self.optimizer.param_groups[0]["lr"], f"{self.task.unit}_per_second": rate,
            "epoch": self.step_done / self.steps_per_epoch})
        if self.place.main:
            self.progress.note(row["train/loss"], f"{rate:.4g} {self.task.unit}/s")

    def _evaluate(self) -> None:
        started = time.perf_counter()
        results = self.validation.scores(self.module, self.step_done, self.record.journal)
        self.module.train()
        self.selection.take(results.get("val_average", results["val"]), self.step_done)
        self.record.write(self.step_done, {f"{split}/{name}": value for split, metrics in results.items()
                                           for name, value in metrics.items()})
        self.progress.spent(time.perf_counter() - started)

    def _save(self, final: bool) -> None:
        self.record.raise_trouble()
        progress = {"epoch": self.step_done / self.steps_per_epoch, "total_steps": self.total_steps,
                    "selection": self.selection.state()}
        best = self.selection.best
        self.saver.save(self.step_done, final, best and int(best["step"]), progress, self.print)

    def finish(self) -> None:
        """Say how the run ended; it is `done` once the context is left."""
        if self.config.dry_run:
            self.print("dry run: configuration, data, models and objective fit together; nothing was trained")
            return
        if self.step_done < self.total_steps and not self.selection.stopped:
            raise RuntimeError("finish() before the end of the loop")
        self.record.raise_trouble()
        self.finished = True
        where = f"step {self.step_done}" + (" (stopped early)" if self.selection.stopped else "")
        best = self.selection.best
        if self.record.journal and best:
            self.record.journal.hparams(leaves(self.config.to_dict()), best)
        name = next((key for key in ("accuracy", "nll") if best and key in best), "")
        best = f"; best on validation: {name} {best[name]:.4f} at step {best['step']}" if best else ""
        self.print(f"{self.dir}: done at {where}{best}")
