"""Tiny runs of the real training scripts: 2 blocks of width 16 on 8x8 digits, seconds on one core."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graft import config
from graft.config.options import Config
from graft.errors import UserError
from graft.runtime import checkpoint
from graft.runtime.signals import StopSignal
from graft.training.journal import Journal, read

ROOT = Path(__file__).parent.parent
BASE = ROOT / "configs/base/digits_vit.yaml"
TINY = ["student.dim=16", "student.depth=2", "student.heads=2", "task.subset=160", "train.batch_size=32",
        "train.log_every=1", "train.tensorboard=false", "optim.warmup=1st", "train.eval_every=0",
        "train.checkpoint_every=0"]


def tiny(output_dir: Path, *overrides: str, method: str = "baseline", seed: int = 0) -> Config:
    """The demo's base configuration, shrunk."""
    return config.load([BASE], _last_wins(*TINY, "train.duration=3st", f"method={method}", *overrides),
                       output_dir=str(output_dir), seed=seed)


def _last_wins(*overrides: str) -> list[str]:
    """`key=value` words without those that a later word for the same key replaces."""
    return [f"{k}={v}" for k, v in dict(item.split("=", 1) for item in overrides).items()]


def one_line(call: Callable, *args: Any, exit_code: int = 2, **kwargs: Any) -> str:
    """What a call says when it refuses: one line, and the exit code, by default that of bad input."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value) and caught.value.exit_code == exit_code
    return str(caught.value)


def run_main(cfg: Config) -> list[dict[str, float]]:
    """Run the method's real `main` in this process; returns its log."""
    importlib.import_module(f"graft.train_{cfg.method}").main(cfg)
    return read(cfg.run_dir / "metrics.jsonl")


def logged(run_dir: Path) -> int:
    """How many steps are in a run's log."""
    path = run_dir / "metrics.jsonl"
    return path.read_text().count('"lr"') if path.exists() else 0


def hold(cfg: Config, step: int) -> None:
    """Let a run of this process wait at a line of its log until a signal comes: who stops it there is never late."""
    came = []

    def note(self: StopSignal, number: int, frame: Any, real: Callable = StopSignal._note) -> None:
        came.append(number)
        real(self, number, frame)

    def write(self: Journal, *args: Any, real: Callable = Journal.write) -> None:
        real(self, *args)
        end = time.monotonic() + 900
        while not came and logged(cfg.run_dir) >= step and time.monotonic() < end:
            time.sleep(0.002)

    StopSignal._note, Journal.write = note, write


def weights(run_dir: Path, step: int | None = None) -> dict[str, bytes]:
    """Every saved tensor of a checkpoint as bytes: model, average, objective and optimizer."""
    path = checkpoint.path_of(run_dir, step or checkpoint.steps(run_dir)[-1])
    tensors, optimizer, _ = checkpoint.load(path)
    flat = {f"{stem}.{k}": v.numpy().tobytes() for stem, state in tensors.items() for k, v in state.items()}
    for index, state in optimizer["state"].items():
        flat |= {f"optim.{index}.{k}": v.numpy().tobytes() for k, v in state.items()}
    return flat


def assert_same_training(one: Path, other: Path) -> None:
    """Two runs ended with the same weights and optimizer state, but for rounding."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        a, b = (torch.frombuffer(bytearray(x), dtype=torch.float32) for x in (ours[name], theirs[name]))
        assert torch.allclose(a, b, rtol=1e-3, atol=2e-5), f"{name}: {(a - b).abs().max()}"


def command(script: str, output_dir: Path, *overrides: str, processes: int = 1) -> list[str]:
    """The command line of a tiny run under `accelerate launch`."""
    launcher = "cpu" if processes == 1 else f"cpu{processes}"
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
            str(ROOT / f"configs/accelerate/{launcher}.yaml"),
            str(ROOT / f"src/graft/{script}"), "--base_config", str(BASE), "--output_dir", str(output_dir),
            *_last_wins(*TINY, *overrides)]


def environment() -> dict[str, str]:
    """For subprocesses: one thread each, the source tree first."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'scripts'}",
            "PYTHONWARNINGS": "default"}


def launch(*args, **kwargs) -> subprocess.CompletedProcess:
    """Run `command(...)` to its end."""
    return subprocess.run(command(*args, **kwargs), env=environment(), cwd=ROOT, text=True, capture_output=True)
