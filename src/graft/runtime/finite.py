"""Whether everything that a checkpoint would hold is finite."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def nonfinite(state: Any) -> str:
    """What is not finite in nested mappings and lists of tensors: the first one's name and how many; "" if all are.

    One number per tensor, the largest magnitude, computed where the tensors are; the host waits once per device.
    """
    found = {name: value for name, value in _tensors(state, "") if value.is_floating_point() and value.numel()}
    for device in {value.device for value in found.values()}:
        here = {name: value for name, value in found.items() if value.device == device}
        finite = torch.stack([norm.isfinite() for norm in torch._foreach_norm(list(here.values()), torch.inf)])
        if not finite.all():
            name = list(here)[int(finite.int().argmin())]
            return f"{name} is not finite ({int((~finite).sum())} of {len(here)} tensors of the checkpoint)"
    return ""


def _tensors(state: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested mappings and lists, with its dotted name."""
    if isinstance(state, Tensor):
        yield path, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _tensors(value, f"{path}.{key}".lstrip("."))
