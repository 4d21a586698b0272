"""How equal the same image operation is in two libraries: their float kernels round differently on other CPUs."""

import torch
from torch import Tensor


def nearly_equal(got: Tensor, want: Tensor, *, share: float, what: str, free: Tensor | None = None) -> None:
    """Grey levels (or masks) that differ by at most one, on at most a `share` of all; not looked at where `free`."""
    difference = (got.int() - want.int()).abs()
    if free is not None:
        difference = difference.masked_fill(free, 0)
    assert difference.max() <= 1, f"{what}: {difference.max()} levels apart"
    assert (difference > 0).float().mean() <= share, f"{what}: {(difference > 0).sum()} of {got.numel()} differ"


def ties(inverse: Tensor, height: int, width: int) -> Tensor:
    """Output pixels (height, width) whose source under the map `inverse` (3, 3) is equally near to two pixels."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)]).double().flatten(1)
    place = (inverse.double() @ points)[:2] + torch.tensor([[(width - 1) / 2], [(height - 1) / 2]])
    return ((place.remainder(1) - 0.5).abs() < 1e-4).any(0).unflatten(0, (height, width))
