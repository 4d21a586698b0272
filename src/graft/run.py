"""One training run: everything that can be wrong silently, done once.

The `for` loop and the loss stand on the page of each training script; accumulation, clipping, the learning
rate, averaging, logging, evaluation, saving, resuming and stopping are here. Nothing depends on how many
processes share the work: the batch size is global, the learning rate is a function of the optimizer step,
and every random number is a function of (seed, step or epoch, sample).
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import DistributedDataParallelKwargs
from omegaconf import OmegaConf
from torch import Tensor, nn
from tqdm import tqdm

from graft import checkpoint, keyed, pictures
from graft.augment import Augment
from graft.errors import DiskProblem, NonFinite, Preempted, UserError
from graft.journal import Journal
from graft.optim import Average, build_optimizer, lr_at, recompute_batchnorm
from graft.options import Config
from graft.outputs import Batch, Tokens
from graft.process import StopSignal, accelerator, code_sha, die_with_parent, lock, provenance, write_status
from graft.resume import find, leaves, refuse_other_run
from graft.schema import to_steps
from graft.scoring import score, score_answers, summary
from graft.selection import Selection
from graft.tasks._task import Task
from graft.tasks._text import TextTask

BATCHNORM_BATCHES = 50
PICTURES = 8  # validation images whose attention TensorBoard shows


class Learner(nn.Module):
    """Student and objective as one module, so that what DDP wraps returns the loss.

    DDP finds the parameters that a step does not use by walking back from what the module returns. A student
    alone returns outputs that a loss may leave aside (a distillation head without `kd`), and DDP would wait
    for their gradients forever.
    """

    def __init__(self, student: nn.Module, objective: nn.Module, autocast: Callable):
        super().__init__()
        self.student, self.objective, self.autocast = student, objective, autocast

    def forward(self, inputs: Tensor | Tokens, features: Sequence[str], *rest,
                **options) -> tuple[Tensor, dict[str, Tensor]]:
        """`objective(student(inputs, features), *rest, **options)`: the loss, 0-d, and its terms, detached.

        The losses are fp32 by themselves; the objective is under autocast for a language model's head.
        """
        with self.autocast():
            return self.objective(self.student(inputs, features=features), *rest, **options)


class Run:
    """A run from its configuration to its last checkpoint; use as a context manager.

        with Run(cfg) as run:
            run.start(task, student, objective)
            for batch in run.loop():
                loss, values = run.learner(...)
                run.step(loss, values)
    """

    def __init__(self, config: Config):
        die_with_parent()
        self.config, self.train = config, config.train
        self.dir = config.run_dir
        precision_of_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        # Precision belongs to the experiment, so the config decides; autocast() applies it.
        self.accelerator = accelerator(kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)])
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.rank == 0
        if precision_of_launcher != "no" and precision_of_launcher != self.train.precision:
            self.print(f"note: the launcher says {precision_of_launcher}, the config says train.precision: "
                       f"{self.train.precision}; the config decides")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.train.tf32
        if self.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = not self.train.deterministic
        self.stop_signal = StopSignal()
        self.lock: Any = None
        self.journal: Journal | None = None
        self.step_done = 0
        self.finished = False

    # ------------------------------------------------------------------------------------- lifetime

    def __enter__(self) -> "Run":
        if not self.config.dry_run:
            if self.main:
                self.dir.mkdir(parents=True, exist_ok=True)
                self.lock = lock(self.dir)
                status = self.dir / "status.json"
                self.status_before = status.read_text() if status.exists() else None
                write_status(self.dir, "running", 0)
            self.accelerator.wait_for_everyone()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if not self.config.dry_run and (self.main and self.lock):
            if error is None:
                write_status(self.dir, "done" if self.finished else "running", self.step_done, 0)
            elif self.journal is None and self.status_before:
                # Refused before it began, by another configuration, say: what was there stays as it was.
                checkpoint.write_text(self.dir / "status.json", self.status_before)
            else:
                code = getattr(error, "exit_code", 1)
                state = "preempted" if isinstance(error, Preempted) else "failed"
                write_status(self.dir, state, self.step_done, code, " ".join(str(error).split())[:2000])
            self.lock.release()
        if self.journal:
            self.journal.close()
        self.stop_signal.restore()
        if dist.is_initialized() and (error is None or isinstance(error, (Preempted, NonFinite))):
            dist.destroy_process_group()  # all ranks get here together; after other errors they do not

    def print(self, text: str) -> None:
        """Print on the main process."""
        if self.main:
            tqdm.write(text)

    def seeded(self, purpose: str, build: Callable[[], Any]) -> Any:
        """Build something under its own seed, so that what else is built never shifts its initialisation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed.key(self.config.seed, purpose))
            return build()

    def autocast(self) -> contextlib.AbstractContextManager:
        """bf16 autocast if the config says so. Losses are fp32 either way."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16")

    # ---------------------------------------------------------------------------------------- start

    def start(self, task: Task | TextTask, student: nn.Module, objective: nn.Module, *,
              average: nn.Module | None = None,
              evaluate: Callable[[nn.Module], dict[str, float]] | None = None) -> None:
        """Place and wrap the modules, build the optimizer, resume if there is something to resume.

        `student` and `objective` (projectors, heads) are trained and saved. `average` is a module the caller
        averages itself and that is scored and exported (the EMA teacher of DINO); otherwise `train.average`
        decides. `evaluate(module)` replaces scoring the labels, or the answers, of the validation split.
        """
        config, train = self.config, self.train
        self.task, self.split = task, task.splits["train"]
        self.evaluate = evaluate or (self._read if isinstance(task, TextTask) else self._classify)
        self.steps_per_epoch = len(self.split) // train.batch_size
        if self.steps_per_epoch == 0:
            raise UserError(f"train.batch_size: {train.batch_size} is more than the {len(self.split)} training "
                            f"{task.unit}")
        self.total_steps = to_steps(train.duration, self.steps_per_epoch)
        if train.batch_size % (self.world * train.accumulate):
            raise UserError(f"train.batch_size: {train.batch_size} {task.unit} do not divide into {self.world} "
                            f"processes × train.accumulate {train.accumulate}")
        if to_steps(config.optim.warmup, self.steps_per_epoch, self.total_steps) >= self.total_steps:
            raise UserError(f"optim.warmup: {config.optim.warmup} is not shorter than the {self.total_steps} steps of "
                            "the run")
        if not len(task.splits["val"]) and (train.stop_after or config.optim.schedule == "plateau"):
            raise UserError("task.val_fraction: 0 leaves nothing to decide early stopping or schedule plateau by")
        self.micro_size = train.batch_size // (self.world * train.accumulate)
        for split in task.splits.values():
            split.to(self.device, train.workers)
        if self.world > 1 and self.device.type == "cuda":
            # Otherwise a CNN's statistics, and so the condition, would depend on the number of GPUs.
            student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
        self.module, self.objective_module = student.to(self.device), objective.to(self.device)
        self.average = None
        if average is None and train.average != "none":
            self.average = Average(self.module, train, self.steps_per_epoch, self.total_steps)
        self.averaged_module = self.average.model if self.average else average and average.to(self.device)
        self.optimizer = build_optimizer([self.module, self.objective_module], config.optim)
        self.params = [p for group in self.optimizer.param_groups for p in group["params"]]
        compiled = self.module if train.compile == "none" else torch.compile(self.module, mode=train.compile)
        self.learner = self.accelerator.prepare_model(Learner(compiled, self.objective_module, self.autocast))
        self.selection = Selection(train, config.optim)
        self.failed_saves = 0
        self._pending: list[tuple] = []
        self._window: dict[str, Tensor] = {}  # terms of the accumulation window so far
        self._logged: dict[str, list] = {}  # [sum, steps] since the last line of the log
        self._stop_requested = False
        if config.dry_run:
            self._describe()
            return
        self._resume()
        self._describe()
        if self.main:
            self.journal = Journal(self.dir, self.step_done, train.tensorboard)
            self._write_metadata()

    def _describe(self) -> None:
        sizes = [p.numel() for p in self.module.parameters()]
        trained = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        few = f" ({trained:,} trained)" if trained < sum(sizes) else ""
        self.print(f"{self.dir}: {self.task.data_id}, {len(self.split)} training {self.task.unit}; "
                   f"student {self.config.student.name}, {sum(sizes):,} parameters{few}; {self.total_steps} steps = "
                   f"{self.total_steps / self.steps_per_epoch:.4g} epochs of {self.steps_per_epoch} × "
                   f"{self.train.batch_size} {self.task.unit} on {self.world} × {self.device.type}")
        for note in self.task.notes:
            self.print(note)
        if self.step_done:
            self.print(f"resumed at step {self.step_done}")

    def _write_metadata(self) -> None:
        path = self.dir / "metadata.json"
        attempts = json.loads(path.read_text())["attempts"] if path.exists() else []
        entry = {**provenance(), "resumed_at": self.step_done, "total_steps": self.total_steps,
                 "world_size": self.world, "config_sha256": self.config.sha256}
        checkpoint.write_text(path, json.dumps({
            "schema_version": 1, "data": self.task.about,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "attempts": [*attempts, entry]}, indent=1) + "\n")
        checkpoint.write_text(self.dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config.to_dict())))

    # --------------------------------------------------------------------------------------- resume

    def _resume(self) -> None:
        found = [find(self.dir, self.config.resume) if self.main else None]
        if self.world > 1:
            dist.broadcast_object_list(found)
        if found[0] is None:
            return
        tensors, optimizer, info = checkpoint.load(found[0])
        if note := refuse_other_run(found[0], info, self.config, self.world, self._origin()):
            self.print(note)
        for stem, module in self._saved_modules().items():
            module.load_state_dict(tensors[stem])
        self.optimizer.load_state_dict(optimizer)
        self.step_done = info["step"]
        self.selection.restore(info["selection"])

    def _origin(self) -> dict[str, str]:
        """What a checkpoint of this run cannot be continued without, beside its configuration."""
        base = {"base": self.module.base} if isinstance(self.task, TextTask) else {}
        return {"data_fingerprint": self.task.fingerprint, **base}

    def _saved_modules(self) -> dict[str, nn.Module]:
        own = getattr(self.module, "stem", "model")  # adapters have another name than a whole model
        modules = {own: self.module, "average": self.averaged_module, "objective": self.objective_module}
        return {stem: module for stem, module in modules.items() if module is not None and module.state_dict()}

    # ----------------------------------------------------------------------------------------- loop

    def loop(self) -> Iterator[Batch]:
        """This process's micro-batches from where the run stands to its end.

        Each epoch is a permutation keyed by (seed, epoch), cut into global batches; a remainder smaller than
        a batch is dropped. The consumer must call `step` once for every micro-batch.
        """
        if self.config.dry_run:
            return
        self._clock = (time.perf_counter(), self.step_done)
        self.module.train()
        self.objective_module.train()
        with tqdm(total=self.total_steps, initial=self.step_done, desc=self.dir.parent.name, unit="step",
                  mininterval=2.0, disable=None if self.main else True) as self.bar:
            yield from self._batches()

    def _batches(self) -> Iterator[Batch]:
        while self.step_done < self.total_steps and not self.selection.stopped:
            epoch, first = divmod(self.step_done, self.steps_per_epoch)
            last = min(self.steps_per_epoch, first + self.total_steps - self.step_done)
            order = keyed.permutation(keyed.key(self.config.seed, "order", epoch), len(self.split))
            windows = [order[step * self.train.batch_size:][:self.train.batch_size] for step in range(first, last)]
            micros = [micro for window in windows for micro in self._share(window)]
            for number, (inputs, labels) in enumerate(self.split.batches(micros)):
                micro = number % self.train.accumulate
                self._last_micro = micro == self.train.accumulate - 1
                self.learner.require_backward_grad_sync = self._last_micro  # DDP reduces at the window's end only
                # Dropout and drop-path follow from the step, so a resumed run needs no generator state.
                torch.manual_seed(keyed.key(self.config.seed, "step", self.step_done, micro, self.rank))
                self._stepped = False
                positions = self.split.positions(windows[number // self.train.accumulate])
                yield Batch(micros[number], inputs, labels, epoch, self.step_done, positions / self.world,
                            1 / self.train.accumulate)
                assert self._stepped, "run.step() was not called for this micro-batch"
                if self.selection.stopped:
                    break

    def _share(self, window: Tensor) -> list[Tensor]:
        """This process's micro-batches of a global batch."""
        dealt = self.split.arrange(window, self.world, self.train.accumulate)
        own = self.micro_size * self.train.accumulate
        return list(dealt[self.rank * own:][:own].split(self.micro_size))

    def step(self, loss: Tensor, values: dict[str, Tensor]) -> None:
        """Backward; at the end of the window also clip, check, update, log, evaluate, save.

        `loss` is 0-d, already this micro-batch's share of the window (see `Objective`); `values` are its
        detached terms by name, for the log.
        """
        self._stepped = True
        self.accelerator.backward(loss)
        for name, value in {"loss": loss.detach(), **values}.items():
            self._window[name] = self._window.get(name, 0.0) + value.detach().float()
        if not self._last_micro:
            return
        norm = nn.utils.clip_grad_norm_(self.params, self.config.optim.clip or float("inf"))
        self._update(norm)
        if self.average:
            self.average.update(self.module, self.step_done)
        self._at_edge()

    def _update(self, norm: Tensor) -> None:
        """Apply the update unless something is not finite; all ranks decide alike."""
        lr = lr_at(self.step_done, self.config.optim, self.train, self.steps_per_epoch, self.total_steps,
                   self.selection.plateau_factor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        broken = ~(torch.isfinite(norm) & torch.isfinite(self._window["loss"]))
        flags = torch.stack([broken.float(), broken.new_full((), self.stop_signal.number > 0).float()])
        if self.world > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        values = {**self._window, "grad_norm": norm.detach()}
        self._window = {}
        for name, value in values.items():
            entry = self._logged.setdefault(name, [0.0, 0])
            entry[:] = entry[0] + value, entry[1] + 1
        self._pending.append((self.step_done, *self._to_host(flags), values))
        if self.config.optim.name == "rmsprop":
            self._settle()  # it has no fused kernel, so the host has to look first
        else:
            # A fused kernel skips the update by itself where found_inf is 1. So on a GPU the host reads the flags of
            # this step while the device works on the next one.
            self.optimizer.found_inf = flags[0]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._settle(leave=1 if self.device.type == "cuda" else 0)
        self.step_done += 1

    @staticmethod
    def _to_host(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """The flags in host memory once the event has happened (None: already)."""
        if flags.device.type != "cuda":
            return flags, None
        host = torch.empty(flags.shape, pin_memory=True)
        host.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event

    def _settle(self, leave: int = 0) -> None:
        """Read the flags of all but the last `leave` steps and act on them."""
        while len(self._pending) > leave:
            step, flags, event, values = self._pending.pop(0)
            if event is not None:
                event.synchronize()
            broken, stop = flags.tolist()
            if broken:
                shown = " ".join(f"{k}={float(v):.4g}" for k, v in values.items())
                kept = checkpoint.steps(self.dir)
                raise NonFinite(f"step {step}: not finite on at least one process; rank {self.rank} has {shown}; the "
                                f"update was not applied; last checkpoint: step {kept[-1] if kept else 'none'}")
            self._stop_requested = bool(stop)

    # ----------------------------------------------------------------------------------- step's edge

    def _due(self, every: str) -> bool:
        steps = to_steps(every, self.steps_per_epoch, self.total_steps)
        return bool(steps) and self.step_done % steps == 0

    def _at_edge(self) -> None:
        final = self.step_done == self.total_steps
        due = {name: final or self._due(getattr(self.train, f"{name}_every")) for name in ("eval", "checkpoint")}
        due["eval"] &= len(self.task.splits["val"]) > 0
        if self.step_done % self.train.log_every == 0 or any(due.values()):
            self._settle()
            self._log_training()
        if due["eval"]:
            self._evaluate()
            final = final or self.selection.stopped
        if due["checkpoint"] or final:
            self._save(final)
        self.bar.update()
        if self._stop_requested and not final:
            self._settle()
            if not due["checkpoint"]:
                self._save(False)
            raise Preempted(f"stopped by a signal; saved at step {self.step_done}, the same command continues")

    def _log_training(self) -> None:
        """One line: every term's mean over the steps since the last line and over all processes."""
        sums = torch.stack([total.to(self.device) / count for total, count in self._logged.values()])
        if self.world > 1:
            dist.all_reduce(sums)
        row = {f"train/{name}": value / self.world for name, value in zip(self._logged, sums.tolist())}
        self._logged = {}
        (since, step), self._clock = self._clock, (time.perf_counter(), self.step_done)
        rate = (self.step_done - step) * self.train.batch_size / max(1e-9, self._clock[0] - since)
        if self.main:
            lr = self.optimizer.param_groups[0]["lr"]
            self.journal.write(self.step_done, {**row, "lr": lr, f"{self.task.unit}_per_second": rate,
                                                "epoch": self.step_done / self.steps_per_epoch})
            self.bar.set_postfix_str(f"loss {row['train/loss']:.3f}", refresh=False)

    def _classify(self, module: nn.Module) -> dict[str, float]:
        rows = score(module, self.task.splits["val"], self.device, self.config.evaluate.batch_size,
                     self.rank, self.world, self.autocast)
        if self.main and self.train.tensorboard:
            (images, _), = self.task.splits["val"].batches([torch.arange(min(PICTURES, len(rows["index"])))])
            self.journal.picture("val/confusion", pictures.confusion(rows, self.task.num_classes), self.step_done)
            self.journal.picture("val/class_attention", pictures.class_attention(module, images), self.step_done)
        return summary(rows)

    def _read(self, module: nn.Module) -> dict[str, float]:
        return score_answers(module, self.task.splits["val"], self.config.evaluate.batch_size, self.rank, self.world,
                             self.autocast)

    def _exported_ready(self) -> bool:
        return self.averaged_module is not None and (self.average is None or self.average.ready(self.step_done))

    def _evaluate(self) -> None:
        """Score the validation split, with the averaged weights too once there are any."""
        started = time.perf_counter()
        results = {"val": self.evaluate(self.module)}
        if self._exported_ready():
            if self.average:
                recompute_batchnorm(self.averaged_module, self._training_views())
            results["val_average"] = self.evaluate(self.averaged_module)
        self.module.train()
        if self.world > 1:  # a kNN score may differ in its last digit between GPUs; decisions must not
            shared = [results]
            dist.broadcast_object_list(shared)
            results = shared[0]
        self.selection.take(results.get("val_average", results["val"]), self.step_done)
        if self.main:
            self.journal.write(self.step_done, {f"{split}/{name}": value for split, metrics in results.items()
                                                for name, value in metrics.items()})
        # Time spent scoring is no training time: keep it out of the rate.
        self._clock = (self._clock[0] + time.perf_counter() - started, self._clock[1])

    def _training_views(self) -> Iterator[Tensor]:
        """Augmented training batches for BatchNorm statistics, the same whenever they are asked for."""
        order = keyed.permutation(keyed.key(self.config.seed, "batchnorm"), len(self.split))
        batches = list(order.split(self.train.batch_size))[:BATCHNORM_BATCHES]
        augment = Augment(self.config.augment, self.config.seed)
        for index, (images, labels) in zip(batches, self.split.batches(batches)):
            if len(index) % 2 == 0:  # MixUp and CutMix pair images; only the last batch can be odd
                yield augment(images, labels, index, 0, num_classes=self.task.num_classes).inputs

    def _save(self, final: bool) -> None:
        """Write a checkpoint on the main process; three failures in a row end the run."""
        outcome = [""]
        if self.main:
            info = {"epoch": self.step_done / self.steps_per_epoch, "total_steps": self.total_steps,
                    "final": final, "world_size": self.world, "config_sha256": self.config.sha256,
                    "config": self.config.identity(), "code_sha": code_sha(), "selection": self.selection.state(),
                    **self._origin()}
            texts = self.module.export_files() if isinstance(self.task, TextTask) else {}
            tensors = {stem: module.state_dict() for stem, module in self._saved_modules().items()}
            try:
                checkpoint.save(self.dir, self.step_done, tensors, self.optimizer.state_dict(), info, self.train.keep,
                                self.selection.best and int(self.selection.best["step"]), texts)
                write_status(self.dir, "running", self.step_done)
            except OSError as error:
                outcome = [str(error)]
        if self.world > 1:
            dist.broadcast_object_list(outcome)
        self.failed_saves = self.failed_saves + 1 if outcome[0] else 0
        if outcome[0]:
            self.print(f"warning: {outcome[0]}; trying again at the next interval")
            if self.failed_saves >= 3 or final:
                raise DiskProblem(f"{outcome[0]} ({self.failed_saves} failures in a row)")

    def finish(self) -> None:
        """Say how the run ended; it is `done` once the context is left."""
        if self.config.dry_run:
            self.print("dry run: configuration, data, models and objective fit together; nothing was trained")
            return
        if self.step_done < self.total_steps and not self.selection.stopped:
            raise RuntimeError("finish() before the end of the loop")
        self.finished = True
        where = f"step {self.step_done}" + (" (stopped early)" if self.selection.stopped else "")
        best = self.selection.best
        if self.main and best:
            self.journal.hparams(leaves(self.config.to_dict()), best)
        name = next((key for key in ("accuracy", "nll") if best and key in best), "")
        best = f"; best on validation: {name} {best[name]:.4f} at step {best['step']}" if best else ""
        self.print(f"{self.dir}: done at {where}{best}")
