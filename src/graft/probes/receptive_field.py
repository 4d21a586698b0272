"""Where in the image a model's tokens depend on: the effective receptive field."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from graft import keyed
from graft.probes._images import evaluating, require_images


def receptive_field(model: nn.Module, images: Iterable[Tensor], names: list[str]) -> dict[str, Any]:
    """Where in the image the central token of each feature depends on, by the input gradient.

    M(pixel) = Σ over channels, images of (∂ v·z / ∂ pixel)², v random signs: in expectation the squared Jacobian of
    the token z (a plain sum of z would be constant after layer norm). `radius`: mean distance from the token's
    centre under M, in pixels, for any grid; `uniform`: if all pixels counted alike; `map` is M (H, W) with sum 1.
    After Luo et al. 2016 (arXiv:1701.04128). None where no pixel has an influence.
    """
    total: dict[str, Tensor] = {}
    n = 0
    with evaluating(model), torch.enable_grad():
        for batch in images:
            batch = batch.detach().requires_grad_()
            features = model(batch, names).features
            index = torch.arange(n, n + len(batch))
            for name in names:
                h, w = model.grid_of_feature(name)
                token = features[name][:, (h // 2) * w + w // 2]
                signs = keyed.uniform(keyed.key("receptive field", name), index, token.shape[1]) < 0.5
                value = (token * torch.from_numpy(1.0 - 2.0 * signs).to(token)).sum()
                gradient, = torch.autograd.grad(value, batch, retain_graph=True)
                total[name] = total.get(name, 0) + gradient.detach().double().square().sum((0, 1)).cpu()
            n += len(batch)
    require_images(n, 1, "receptive field")
    return {name: {"n": n, **_radius(total[name], model.grid_of_feature(name))} for name in names}


def _radius(influence: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
    rows, columns = ((torch.arange(size, dtype=torch.float64) + 0.5) - (side // 2 + 0.5) * size / side
                     for size, side in zip(influence.shape, grid, strict=True))
    away = (rows[:, None].square() + columns.square()).sqrt()
    whole, expected = float(influence.sum()), float(away.mean())
    if whole == 0:
        return {"radius": None, "uniform": expected, "relative": None, "map": None}
    radius = float((influence * away).sum() / whole)
    return {"radius": radius, "uniform": expected, "relative": radius / expected,
            "map": (influence / whole).tolist()}
