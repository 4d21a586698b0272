"""How far a run is: a bar on a terminal, elsewhere one line for each line of the log."""

import time

from tqdm import tqdm


class Progress:
    """From `step` to `total_steps`, on the main process; use as a context manager, within one pass of the loop."""

    def __init__(self, name: str, step: int, total_steps: int, main: bool):
        self.step, self.total_steps, self.main = step, total_steps, main
        self.started, self.first = time.perf_counter(), step
        self.noted = self.started, step
        self.bar = tqdm(total=total_steps, initial=step, desc=name, unit="step", mininterval=2.0,
                        disable=None if main else True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self) -> None:
        """One optimizer step is done."""
        self.step += 1
        self.bar.update()

    def rate(self) -> float:
        """Steps per second since this was last asked, without time that was `spent` on something else."""
        (since, step), self.noted = self.noted, (time.perf_counter(), self.step + 1)
        return (self.noted[1] - step) / max(1e-9, self.noted[0] - since)

    def spent(self, seconds: float) -> None:
        """Time that went into scoring is none of training."""
        self.noted = self.noted[0] + seconds, self.noted[1]

    def note(self, loss: float, rate: str) -> None:
        """The mean loss since the last note, and the rate, such as `812 images/s`, of the steps up to this one."""
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        if self.main and self.bar.disable:
            step = self.step + 1  # the one that is being ended; scoring and saving count as time, as they will again
            left = (time.perf_counter() - self.started) / (step - self.first) * (self.total_steps - step)
            print(f"step {step}/{self.total_steps}: loss {loss:.4f}, {rate}, {tqdm.format_interval(left)} left",
                  flush=True)
