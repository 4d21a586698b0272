"""Tasks, students, teachers, losses and augmentations, found by file name.

`configs/…: student: {name: vit, patch: 4}` calls `graft/students/vit.py: build(task, patch=4)`.
A new part is a new file; nothing is registered.
"""

import importlib
from collections.abc import Callable
from typing import Any

from graft.config.options import Part
from graft.config.schema import ENTRY, part_tensors


def get(kind: str, name: str) -> Callable:
    """The entry function of a part: `get("losses", "cka")` is `graft.losses.cka.loss`."""
    return getattr(importlib.import_module(f"graft.{kind}.{name}"), ENTRY[kind])


def build(kind: str, part: Part, *given: Any) -> Any:
    """Call a part's entry function with as much of what is given as it takes, and what the configuration says."""
    return get(kind, part.name)(*given[:len(part_tensors(kind, part.name))], **part.args)
