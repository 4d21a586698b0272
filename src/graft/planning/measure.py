"""FLOPs and memory of a computation that is not carried out: its tensors have shapes and no data."""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import masking_utils


@dataclass(frozen=True)
class Cost:
    """FLOPs of a computation, and the most bytes that it held at once besides what was there before."""

    flops: int = 0
    bytes: int = 0


class Watch(TorchDispatchMode):
    """Adds up FLOPs, by the formulas of torch's own counter, and the bytes of tensors that are made and still alive.

    `peak` is the most bytes there were at once. What an operation holds only while it works is not seen, nor how an
    allocator rounds and splits. Not torch's `FlopCounterMode`: its hooks on modules keep recomputed activations alive.
    """

    def __init__(self, before: Iterable[Tensor]):
        super().__init__()
        self.flops = self.now = self.peak = 0
        self._before = list(before)  # kept, so that no new storage gets the address of an old one
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in self._before}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self._see(value)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.finalize(storage, self._gone, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def cost(work: Callable[[], Any], before: Iterable[Tensor]) -> Cost:
    """What `work()` costs; `before` are the tensors that it finds and that are counted elsewhere.

    A product of (n, k) with (k, m) is 2nkm FLOPs; element-wise work is none. Fused attention counts as what it
    computes, in the backward pass again.
    """
    gc.disable()  # what lies in a cycle is let go of at an end that depends on everything before
    try:
        with Watch(before) as seen:
            work()
    finally:
        gc.enable()
    return Cost(seen.flops, seen.peak)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, those that share their memory once."""
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}.values())


def state_of(*modules: nn.Module | None) -> Iterator[Tensor]:
    """Parameters and buffers."""
    for module in modules:
        if module is not None:
            yield from module.parameters()
            yield from module.buffers()


@contextmanager
def without_data() -> Iterator[None]:
    """Inside, tensors have a shape, a type and a place, and no data.

    transformers looks into positions for several sequences in one row, and where there is nothing to be seen makes the
    mask that those would need, (B, 1, T, T); here a row is one sequence, which needs none.
    """
    packed, masking_utils.find_packed_sequence_indices = masking_utils.find_packed_sequence_indices, lambda _: None
    try:
        with FakeTensorMode():
            yield
    finally:
        masking_utils.find_packed_sequence_indices = packed


def emptied(module: nn.Module) -> nn.Module:
    """The module with tensors that have no data, as if they were in the CPU's memory; call it inside `without_data`."""
    made: dict[Tensor, Tensor] = {}  # tied weights stay tied

    def empty(tensor: Tensor) -> Tensor:
        if tensor not in made:
            like = torch.empty(tensor.shape, dtype=tensor.dtype)
            made[tensor] = nn.Parameter(like, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else like
        return made[tensor]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            held.update({name: empty(tensor) for name, tensor in held.items() if tensor is not None})
    return module
