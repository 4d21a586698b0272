"""What is needed to explain a number later: code, packages, machine, command."""

import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from graft import __version__

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "transformers", "numpy", "omegaconf")
# An environment dump could hold secrets; these names cannot.
ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "OMP_NUM_THREADS", "WORLD_SIZE", "CUBLAS_WORKSPACE_CONFIG")


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@functools.cache
def code_sha() -> str:
    """Commit of the source tree, with `+dirty` if files of the package differ from it and `+untracked` if it has files
    that are not in it; `unknown` outside a checkout."""
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=Path(__file__).parent.parent, capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        states = {line[:2] for line in git("status", "--porcelain", "-uall", ".").splitlines()}
        return (git("rev-parse", "HEAD") + ("+dirty" if states - {"??"} else "")
                + ("+untracked" if "??" in states else ""))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance() -> dict[str, Any]:
    """What is needed to explain a number later: code, packages, machine, command."""
    import torch  # not above: what reads a status needs no torch
    return {"time": now(), "argv": sys.argv, "code_sha": code_sha(), "graft_version": __version__,
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
            "cuda": torch.version.cuda if torch.cuda.is_available() else None, "host": platform.node(),
            "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}}
