"""Where a process runs."""

from typing import Any

import torch
from accelerate import Accelerator


def accelerator(**options: Any) -> Accelerator:
    """The Accelerator of this process.

    `mixed_precision` is off: precision is the experiment's, `Run.autocast` applies it. Without a GPU `cpu` must be
    said, or accelerate lets every launched process train alone.
    """
    return Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available(), **options)
