"""The engine that answers, by its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from graft.errors import UserError
from graft.evaluation._transformers import Transformers
from graft.evaluation._vllm import Vllm
from graft.evaluation.generation import Source, is_adapter

ENGINES = ("transformers", "vllm")


def engine(name: str, source: Source, *, batch_size: int, device: torch.device, adapters: Sequence[Path] = (),
           tensor_parallel: int = 1, processes: int = 1) -> Any:
    """The engine `name`. `adapters` are the checkpoints' folders that it will be asked for.

    Raises UserError if vLLM is asked for and not installed, or started in several processes.
    """
    if batch_size < 1:
        raise UserError(f"--batch_size: expected a number from 1 on, got {batch_size}")
    if name == "transformers":
        return Transformers(source, batch_size, device)
    if processes > 1:
        raise UserError(f"--engine vllm: started in {processes} processes; vLLM spreads the model itself: start it "
                        "with python, and --tensor_parallel")
    return Vllm(source, [folder for folder in adapters if is_adapter(folder)], tensor_parallel)
