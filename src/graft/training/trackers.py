"""wandb, MLflow and trackio as further views of `metrics.jsonl`, through accelerate's trackers.

Each lives in a thread of its own: a server that is slow, away or refuses never holds up a run or ends it. What goes
wrong is one line, once, and that tracker gets nothing more. Where nothing else is said (`WANDB_MODE`,
`MLFLOW_TRACKING_URI`, `TRACKIO_DIR` …) they write into `<study>/trackers`. Every attempt at a run is a run of its own
there.
"""

import importlib.util
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WAIT = 20.0  # seconds that the end of a run waits for its trackers to take what is left; Slurm kills after 30
LONGEST = 250  # characters of a configuration's value; MLflow takes no long ones


class Trackers:
    """Those of `names` that are installed; the others are named by `say` at once. Only the main process has any."""

    def __init__(self, names: Sequence[str], run_dir: Path, config: dict[str, Any], say: Callable[[str], None]):
        self.all: list[_Tracker] = []
        for name in names:
            if importlib.util.find_spec(name) is None:
                say(f"warning: train.trackers: {name} is not installed (pip install 'graft[trackers]'); nothing is "
                    "lost, metrics.jsonl has it all")
            else:
                self.all.append(_Tracker(name, run_dir, config, say))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hand on `values`; returns at once."""
        for one in self.all:
            one.left.put((values, step))

    def close(self) -> None:
        """Let every tracker take what is left, for `WAIT` seconds at most."""
        end = time.monotonic() + WAIT
        for one in self.all:
            one.left.put(None)
        for one in self.all:
            one.thread.join(max(end - time.monotonic(), 0))
            if one.thread.is_alive():
                one.say(f"warning: {one.name}: not done after {WAIT:.0f} s; left behind")


class _Tracker:
    """One tracker and the thread that feeds it what is `left`; None is the end."""

    def __init__(self, name: str, run_dir: Path, config: dict[str, Any], say: Callable[[str], None]):
        self.name, self.run_dir, self.say = name, run_dir, say
        self.config = {key: value if isinstance(value, bool | int | float) else str(value)[:LONGEST]
                       for key, value in config.items()}
        self.left: queue.SimpleQueue[tuple[dict[str, float], int] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._feed, name=name, daemon=True)  # a run never waits for it
        self.thread.start()

    def _feed(self) -> None:
        try:
            tracker = self._start()
            while (one := self.left.get()) is not None:
                tracker.log(one[0], step=one[1])
            tracker.finish()
        except BaseException as error:  # whatever a tracker does, also ending its thread, the run is none of it
            said = " ".join(str(error).split())[:200] or type(error).__name__
            self.say(f"warning: {self.name}: {said}; the run goes on without it")

    def _start(self) -> Any:
        """The tracker, its run begun in the study's folder unless its environment says otherwise."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS
        study, run = self.run_dir.parent.parent.resolve(), "-".join(self.run_dir.parts[-2:])
        folder = study / "trackers"
        folder.mkdir(parents=True, exist_ok=True)
        if "MLFLOW_TRACKING_URI" not in os.environ:  # files: many runs write at once, SQLite would be locked
            os.environ["MLFLOW_TRACKING_URI"] = (folder / "mlruns").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
        ways: dict[str, dict[str, Any]] = {
            "wandb": {"run_name": study.name, "name": run, "dir": str(folder)},
            "mlflow": {"experiment_name": study.name, "run_name": run},
            "trackio": {"run_name": study.name, "name": run, "embed": False}}
        tracker = LOGGER_TYPE_TO_CLASS[self.name](**ways[self.name])
        tracker.start()
        tracker.store_init_configuration(self.config)
        return tracker
