"""The optimizer step: a window of micro-batches, its gradient's norm, the update unless something is not finite."""

import enum

import torch
import torch.distributed as dist
from torch import Tensor, nn

from graft.config.options import Config
from graft.errors import NonFinite
from graft.runtime import checkpoint
from graft.runtime.place import Place
from graft.training.sharding import whole


class Stop(enum.IntEnum):
    """What a process asks all to do at the step's edge."""

    NO = 0
    SAVE = 1  # and end: a signal came
    LEAVE = 2  # without saving: the folder is another job's, or its disk takes no more


class Update:
    """Applies one window of micro-batches after another, and keeps the means of their terms for the log.

    On a GPU the host reads whether a step was finite one step later, so `settle` must be called before anything
    is saved or scored. `stop` is the most urgent that any process asked for, as of the last step settled.
    """

    def __init__(self, config: Config, optimizer: torch.optim.Optimizer, place: Place):
        self.config, self.optimizer, self.place = config, optimizer, place
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.stop = Stop.NO
        self._pending: list[tuple] = []
        self._window: dict[str, Tensor] = {}  # terms of the accumulation window so far
        self._logged: dict[str, list] = {}  # [sum, steps] since the last line of the log

    def add(self, loss: Tensor, values: dict[str, Tensor]) -> None:
        """Note the loss, 0-d, and the terms of a micro-batch whose gradients are there."""
        for name, value in {"loss": loss.detach(), **values}.items():
            self._window[name] = self._window.get(name, 0.0) + value.detach().float()

    def apply(self, step: int, lr: float, stop: Stop) -> None:
        """End the window: clip, then update unless something is not finite; all ranks decide alike.

        `stop` is what this process asks for. Raises NonFinite, for this step or an earlier one.
        """
        norm = whole(nn.utils.clip_grad_norm_(self.params, self.config.optim.clip or float("inf")))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        broken = ~(torch.isfinite(norm) & torch.isfinite(self._window["loss"]))
        flags = torch.stack([broken.float(), broken.new_full((), stop, dtype=torch.float32)])
        if self.place.world > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        values = {**self._window, "grad_norm": norm.detach()}
        self._window = {}
        for name, value in values.items():
            entry = self._logged.setdefault(name, [0.0, 0])
            entry[:] = entry[0] + value, entry[1] + 1
        self._pending.append((step, *_to_host(flags), values))
        if self.config.optim.name == "rmsprop":
            self.settle()  # it has no fused kernel, so the host has to look first
        else:
            # A fused kernel skips the update by itself where found_inf is 1. So on a GPU the host reads the flags of
            # this step while the device works on the next one.
            self.optimizer.found_inf = flags[0]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.settle(leave=1 if self.place.device.type == "cuda" else 0)

    def settle(self, leave: int = 0) -> None:
        """Read the flags of all but the last `leave` steps and act on them."""
        while len(self._pending) > leave:
            step, flags, event, values = self._pending.pop(0)
            if event is not None:
                event.synchronize()
            broken, stop = flags.tolist()
            if broken:
                shown = " ".join(f"{k}={float(v):.4g}" for k, v in values.items())
                kept = checkpoint.steps(self.config.run_dir)
                raise NonFinite(f"step {step}: not finite on at least one process; rank {self.place.rank} has {shown}; "
                                f"the update was not applied; last checkpoint: step {kept[-1] if kept else 'none'}")
            self.stop = Stop(int(stop))

    def means(self) -> dict[str, float]:
        """Every term's mean over the steps since this was last asked and over all processes."""
        sums = torch.stack([total.to(self.place.device) / count for total, count in self._logged.values()])
        if self.place.world > 1:
            dist.all_reduce(sums)
        names, self._logged = list(self._logged), {}
        return {name: value / self.place.world for name, value in zip(names, sums.tolist())}


def _to_host(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The flags in host memory once the event has happened (None: already)."""
    if flags.device.type != "cuda":
        return flags, None
    host = torch.empty(flags.shape, pin_memory=True)
    host.copy_(flags, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event
