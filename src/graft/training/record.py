"""A run's folder while the run goes on: locked, its status and log kept by the main process, given back at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from graft.config.options import Train
from graft.errors import UserError
from graft.runtime.place import Place
from graft.runtime.status import Job
from graft.training.journal import Journal
from graft.training.trackers import Trackers


class Record:
    """Opened and asked for trouble by all processes together; only the main one has a `job` and a `journal`."""

    def __init__(self, run_dir: Path, place: Place, say: Callable[[str], None]):
        self.dir, self.place, self.say = run_dir, place, say
        self.job: Job | None = None
        self.journal: Journal | None = None

    def open(self, stopped: Callable[[], bool]) -> None:
        """Take the folder; see `Job`."""
        def take() -> None:
            self.job = Job(self.dir, self.say, stopped)

        self.place.on_main(take)

    def refuse_file(self) -> None:
        """Raise UserError where the folder cannot be made because a file is in its place; nothing is touched."""
        there = next(path for path in (self.dir, *self.dir.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"output_dir: {there}: is a file; expected a folder, or a place for one")

    def begin(self, step: int, train: Train, config: dict[str, Any]) -> None:
        """Go on with the log after `step`; from here on how the run ends is how the folder's run ended."""
        def begin() -> None:
            board = train.tensorboard or "tensorboard" in train.trackers
            names = [name for name in dict.fromkeys(train.trackers) if name != "tensorboard"]
            self.journal = Journal(self.dir, step, board, Trackers(names, self.dir, config, self.say))

        self.place.on_main(begin)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log `values` after optimizer step `step`."""
        if self.journal:
            self.journal.write(step, values)

    @property
    def trouble(self) -> UserError | None:
        """Why nothing may be written any more, if so, on the main process."""
        return (self.job and self.job.trouble) or (self.journal and self.journal.trouble) or None

    def raise_trouble(self) -> None:
        """End the run here, on all processes, if there is any."""
        def look() -> None:
            if trouble := self.trouble:
                raise trouble

        self.place.on_main(look)

    def close(self, error: BaseException | None, step: int, finished: bool) -> BaseException | None:
        """Close the log and give the folder back, whatever happens; returns the first error, hidden by no later one."""
        ways = [self.journal.close] if self.journal else []
        if self.job:
            ways.append(lambda: self.job.end(error, step, finished, begun=self.journal is not None))
        for way in ways:
            try:
                way()
            except (UserError, OSError) as later:
                if error is not None and later is not error:
                    self.say(f"warning: {later}")
                error = error or later
        return error
