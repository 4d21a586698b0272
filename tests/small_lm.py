"""Tiny language runs of the real training scripts: 2 layers of width 32, sums as text; a second each on one core."""

import atexit
import functools
import importlib
import itertools
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graft import config
from graft.config.options import Config
from graft.errors import exit_cleanly
from graft.students._tiny_lm import make
from graft.students.causal_lm import CausalLM
from graft.tasks import gsm8k
from graft.tasks._text import TextTask
from graft.training.journal import read
from graft.training.objective import Objective
from small import ROOT, environment, hold, logged

FAMILIES = ("qwen3", "llama", "gemma3")
TRAIN, TEST = 60, 4
CPU = torch.device("cpu")
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["graft.train_distill", "small_lm", "graft.teachers.context_lm"])
KEYS = ["train.batch_size=8", "train.log_every=1", "train.tensorboard=false", "train.eval_every=0",
        "train.checkpoint_every=0", "train.duration=4st", "optim.warmup=1st", "optim.lr=1e-2", "student.rank=4"]


@functools.cache
def folder() -> Path:
    """For models and data of this session."""
    path = Path(tempfile.mkdtemp(prefix="graft-tiny-lm-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def lm(family: str = "qwen3", **options: Any) -> str:
    """The folder of a tiny model with random weights, large enough for its logits to differ."""
    name = "-".join([family, *(f"{k}{v}" for k, v in options.items())])
    return str(make(folder() / name, family, **{"hidden": 32, "ff": 48, "init_std": 0.3, **options}))


@functools.cache
def sums() -> str:
    """GSM8K's files with sums whose answers have 15 to 70 characters."""
    target = folder() / "sums"
    target.mkdir()
    for split, count in (("train", TRAIN), ("test", TEST)):
        rows = [{"question": f"What is {i} plus {3 * i}?",
                 "answer": f"It is {'so very ' * (i * 5 % 7)}easy.\n#### {4 * i}"} for i in range(count)]
        (target / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(target)


def task(family: str = "qwen3", **args: Any) -> TextTask:
    """The sums as a task."""
    return gsm8k.build(**{"tokenizer": lm(family), "root": sums(), "val_fraction": 0.1, **args})


def student(about: TextTask, family: str = "qwen3", *, seed: int = 0, **args: Any) -> CausalLM:
    """A student under its own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build("students", "causal_lm", about, **{"model": lm(family), "rank": 4, **args})


def build(kind: str, name: str, *given: Any, **args: Any) -> nn.Module:
    """A part with its defaults and `args`."""
    return importlib.import_module(f"graft.{kind}.{name}").build(*given, **args)


def disturb(model: nn.Module, seed: int = 1, size: float = 0.05) -> None:
    """Move every trained weight, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape, generator=draw)


def batch(about: TextTask, *index: int):
    """`(tokens, targets)` of training items."""
    return next(about.splits["train"].batches([torch.tensor(index)]))


def base_config(family: str = "qwen3") -> Path:
    """A base configuration for the sums."""
    path = folder() / f"{family}.yaml"
    path.write_text(f"task: {{name: gsm8k, tokenizer: '${{student.model}}', root: {sums()}, val_fraction: 0.1}}\n"
                    f"student: {{name: causal_lm, model: {lm(family)}}}\n")
    return path


def last_wins(*overrides: str) -> list[str]:
    return [f"{k}={v}" for k, v in dict(item.split("=", 1) for item in overrides).items()]


def tiny(output_dir: Path, *overrides: str, method: str = "baseline", family: str = "qwen3", seed: int = 0) -> Config:
    """A run of the training scripts."""
    return config.load([base_config(family)], last_wins(*KEYS, f"method={method}", *overrides),
                       output_dir=str(output_dir), seed=seed)


def run_main(cfg: Config) -> list[dict[str, float]]:
    """Run the method's real `main` in this process; returns its log."""
    importlib.import_module(f"graft.train_{cfg.method}").main(cfg)
    return read(cfg.run_dir / "metrics.jsonl")


class Interrupted(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    """Stop a run at these calls of its objective, counted from here on and from 1."""
    real, count = Objective.forward, itertools.count(1)

    def forward(self, *args, **kwargs):
        if next(count) in calls:
            raise Interrupted
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Objective, "forward", forward)


def untimed(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """A log without what differs from one run of the same to the next."""
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def kill_and_finish(cfg: Config, *lines: int) -> None:
    """Kill a run each time its log has so many lines of training, then let it end."""
    for count in lines:
        process = FORK.Process(target=_child, args=(cfg, count + 2))
        process.start()
        while process.is_alive() and logged(cfg.run_dir) < count:
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -9
    run_main(cfg)


def _child(cfg: Config, step: int) -> None:
    torch.set_num_threads(1)
    hold(cfg, step)
    exit_cleanly(lambda: run_main(cfg))


def launch(output_dir: Path, *overrides: str, method: str = "distill",
           processes: int = 1) -> subprocess.CompletedProcess:
    """The same under `accelerate launch`, to its end."""
    launcher = ROOT / f"configs/accelerate/{'cpu' if processes == 1 else f'cpu{processes}'}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launcher),
               str(ROOT / f"src/graft/train_{method}.py"), "--base_config", str(base_config()),
               "--output_dir", str(output_dir), *last_wins(*KEYS, f"method={method}", *overrides)]
    return subprocess.run(command, env=environment(), cwd=ROOT, text=True, capture_output=True)

