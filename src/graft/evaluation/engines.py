"""The engine that answers, by its name."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from graft.errors import UserError
from graft.evaluation._transformers import Transformers
from graft.evaluation._vllm import Vllm
from graft.evaluation.generation import Source, is_adapter

VLLM_PYTHON = Path(__file__).parents[3] / ".venv-vllm/bin/python"  # scripts/setup_vllm.sh makes it


def vllm_python() -> Path | None:
    """The Python that has vLLM: $GRAFT_VLLM_PYTHON, else this one, else the one of .venv-vllm; None without any.

    Raises UserError if the variable names no file.
    """
    named = os.environ.get("GRAFT_VLLM_PYTHON", "")
    if not named and importlib.util.find_spec("vllm"):
        return Path(sys.executable)
    python = Path(named or VLLM_PYTHON).absolute()
    if named and not python.is_file():
        raise UserError(f"GRAFT_VLLM_PYTHON: expected a Python that has vLLM, got {named}: no such file")
    return python if python.is_file() else None


def enter_environment(name: str) -> None:
    """Run this very command again with the Python that has vLLM, where engine `name` wants it and this one has not.

    The process stays the same one. Raises UserError as `vllm_python` does.
    """
    python = vllm_python() if name == "vllm" else None
    if python is None or python == Path(sys.executable):
        return  # there is none, as the engine will say, or it is this one
    print(f"--engine vllm: going on in its own environment, {python}", file=sys.stderr, flush=True)
    os.environ["PATH"] = f"{python.parent}:{os.environ.get('PATH', '')}"  # vLLM calls programs that lie beside it
    os.execv(python, [str(python), *sys.orig_argv[1:]])


def engine(name: str, source: Source, *, batch_size: int, device: torch.device, adapters: Sequence[Path] = (),
           tensor_parallel: int = 1, processes: int = 1, temperature: float = 0.0, seed: int = 0) -> Any:
    """The engine `name`. `adapters` are the checkpoints' folders that it will be asked for; only transformers samples,
    at a `temperature` above 0, under `seed`.

    Raises UserError if vLLM is asked for and not installed, or started in several processes.
    """
    if batch_size < 1:
        raise UserError(f"--batch_size: expected a number from 1 on, got {batch_size}")
    if name == "transformers":
        return Transformers(source, batch_size, device, temperature, seed)
    assert not temperature, "this engine answers greedily"
    if processes > 1:
        raise UserError(f"--engine vllm: started in {processes} processes; vLLM spreads the model itself: start it "
                        "with python, and --tensor_parallel")
    return Vllm(source, [folder for folder in adapters if is_adapter(folder)], tensor_parallel)
