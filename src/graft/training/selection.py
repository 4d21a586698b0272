"""What the validation scores of a run decide: its best step, plateaus, early stopping."""

from typing import Any

from graft.config.options import Optim, Train


class Selection:
    """Takes in one validation score after another; its state is plain numbers and is saved with the run.

    All ranks see the same scores, so all decide alike and nobody waits for a rank that has left.
    """

    def __init__(self, train: Train, optim: Optim):
        self.train, self.optim = train, optim
        self.best: dict[str, float] | None = None
        self.bad = 0  # scores in a row that were no better than the best
        self.plateau_factor = 1.0
        self.plateau_best: float | None = None
        self.plateau_bad = 0
        self.stopped = False

    def take(self, scores: dict[str, float], step: int) -> None:
        """Note the scores of `step`: better is a lower `nll`, or a higher `accuracy` where there is no nll (kNN)."""
        loss = scores["nll"] if "nll" in scores else 1 - scores["accuracy"]
        if self.best is None or loss < self.best["loss"] - self.train.min_delta:
            self.best, self.bad = {**scores, "loss": loss, "step": step}, 0
        else:
            self.bad += 1
        if self.plateau_best is None or loss < self.plateau_best:
            self.plateau_best, self.plateau_bad = loss, 0
        else:
            self.plateau_bad += 1
            if self.plateau_bad >= self.optim.patience:
                self.plateau_factor, self.plateau_bad = self.plateau_factor * self.optim.gamma, 0
        self.stopped = bool(self.train.stop_after) and self.bad >= self.train.stop_after

    def state(self) -> dict[str, Any]:
        """Everything `take` depends on."""
        return {k: v for k, v in vars(self).items() if k not in ("train", "optim")}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved `state()`."""
        vars(self).update(state)
