"""`metrics.jsonl`, the record of a run, and TensorBoard events as a view of it."""

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from graft.runtime.files import write_text


class Journal:
    """Appends `{"step": …, name: value, …}` lines.

    On a resume the lines after the resumed step are dropped, so that every step appears once.
    """

    def __init__(self, run_dir: Path, step: int, tensorboard: bool):
        self.path = run_dir / "metrics.jsonl"
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
            write_text(self.path, "".join(line + "\n" for line in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # a second to import; only the main process logs
            self.board = SummaryWriter(run_dir / "tensorboard", purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record `values` after optimizer step `step`."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def picture(self, name: str, image: Tensor | None, step: int) -> None:
        """Show an image (C, H, W) in [0, 1] on the board, if there is one."""
        if self.board and image is not None:
            self.board.add_image(name, image, step)

    def hparams(self, config: dict[str, Any], scores: dict[str, float]) -> None:
        """Record the configuration with the final scores, in the run's own folder rather than a dated one."""
        if not self.board:
            return
        from torch.utils.tensorboard.summary import hparams
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in config.items()}
        for part in hparams(plain, {f"final/{name}": value for name, value in scores.items()}):
            self.board.file_writer.add_summary(part)
        for name, value in scores.items():
            self.board.add_scalar(f"final/{name}", value)

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self.file.fileno())
        self.file.close()
        if self.board:
            self.board.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # a line cut short by a kill


def read(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`, without one cut short by a kill."""
    return [json.loads(line) for line in path.read_text().splitlines() if _step(line) != float("inf")]
