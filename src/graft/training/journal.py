"""`metrics.jsonl`, the record of a run, and TensorBoard events and other trackers as views of it."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from graft.errors import DiskProblem, disk_problem
from graft.runtime.files import parsed, set_aside, write_text
from graft.training.trackers import Trackers


class Journal:
    """Appends `{"step": …, name: value, …}` lines.

    On a resume the lines after the resumed step are dropped, so that every step appears once; a file with damaged
    lines is set aside and what can be read of it kept. A disk that takes no more is noted in `trouble` and ends the
    run at the step's edge, where all its processes meet.
    """

    def __init__(self, run_dir: Path, step: int, tensorboard: bool, trackers: Trackers | None = None):
        self.path = run_dir / "metrics.jsonl"
        self.trouble: DiskProblem | None = None
        self.trackers = trackers
        if step and (not self.path.exists() or self.path.stat().st_size == 0):
            print(f"{self.path}: what was logged up to step {step} is missing", flush=True)
        if self.path.exists():
            records, damaged = _parse(self.path)
            if damaged:
                print(f"{self.path}: {damaged} damaged lines; set aside as {set_aside(self.path).name}, the other "
                      f"{len(records)} are kept", flush=True)
            write_text(self.path, "".join(line + "\n" for line, record in records if record["step"] <= step))
        self.file = self.path.open("a", encoding="utf-8")
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # a second to import; only the main process logs
            self.board = SummaryWriter(run_dir / "tensorboard", purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record `values` after optimizer step `step`."""
        with self._noting_trouble():
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
            if self.trackers:
                self.trackers.log(step, values)
            for name, value in values.items() if self.board else ():
                self.board.add_scalar(name, value, step)

    def picture(self, name: str, image: Tensor | None, step: int) -> None:
        """Show an image (C, H, W) in [0, 1] on the board, if there is one."""
        if self.board and image is not None:
            with self._noting_trouble():
                self.board.add_image(name, image, step)

    def hparams(self, config: dict[str, Any], scores: dict[str, float]) -> None:
        """Record the configuration with the final scores, in the run's own folder rather than a dated one."""
        if not self.board:
            return
        from torch.utils.tensorboard.summary import hparams
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in config.items()}
        with self._noting_trouble():
            for part in hparams(plain, {f"final/{name}": value for name, value in scores.items()}):
                self.board.file_writer.add_summary(part)
            for name, value in scores.items():
                self.board.add_scalar(f"final/{name}", value)

    def close(self) -> None:
        """Flush to disk and close. Raises DiskProblem if not all that was written is on disk."""
        with self._noting_trouble():
            self.file.flush()
            os.fsync(self.file.fileno())
        with self._noting_trouble(), contextlib.closing(self.file):
            if self.board:
                self.board.close()
        if self.trackers:
            self.trackers.close()
        if self.trouble:
            raise self.trouble

    @contextlib.contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (problem := disk_problem(error)) is None:
                raise
            self.trouble = self.trouble or DiskProblem(f"{self.path.parent}: the log cannot be written: {problem}")


def _parse(path: Path) -> tuple[list[tuple[str, dict[str, float]]], int]:
    """The lines that can be read, each with its record, and how many cannot; one cut short by a kill is no damage."""
    records, damaged = [], 0
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, rest] if rest else lines):
        try:
            text = line.decode()
            record = parsed(text)
            if not all(isinstance(value, int | float) for value in [record["step"], *record.values()]):
                raise ValueError
            records.append((text, record))
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged += number < len(lines)
    return records, damaged


def read(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`, without one cut short by a kill; others that cannot be read are counted aloud."""
    records, damaged = _parse(path)
    if damaged:
        print(f"{path}: {damaged} damaged lines left out", flush=True)
    return [record for _, record in records]
