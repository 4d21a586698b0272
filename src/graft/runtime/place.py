"""Where a process runs: its device, and its number among the processes of a run."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

from graft.errors import UserError
from graft.runtime.signals import follow_launcher

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """One process of `world`; `rank` 0 is the main one, which writes. `sharded`: weights are in parts, one on each."""

    device: torch.device
    rank: int = 0
    world: int = 1
    sharded: bool = False

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, value: T) -> T:
        """The main process's value, on every process; all must ask."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work()` returns on the main process, the only one that does it, on every process; all must ask.

        A UserError or OSError that it raises there is raised on all, so that they end together and none waits for
        another; the main process says it.
        """
        result = error = None
        if self.main:
            try:
                result = work()
            except (UserError, OSError) as caught:
                error = caught
        result, shared = self.share((result, error))
        if shared is None:
            return result
        if not self.main:
            shared.told = True
        raise error or shared


def accelerator(**options: Any) -> Accelerator:
    """The Accelerator of this process, which ends with its launcher.

    `mixed_precision` is off: precision is the experiment's, `Run.autocast` applies it. Without a GPU `cpu` must be
    said, or accelerate lets every launched process train alone.
    """
    follow_launcher()
    return Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available(), **options)


def set_kernels(tf32: bool, deterministic: bool) -> None:
    """Which kernels this process may use; all of its computation after this."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic
