"""Small pictures for TensorBoard: where the class token looks, and what is taken for what."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graft.augment import to_float
from graft.errors import UserError
from graft.probes import attention

SIDE = 64  # pixels of one picture


def confusion(rows: dict[str, np.ndarray], classes: int) -> Tensor:
    """Scored rows as a matrix in grey, true classes downwards: (1, H, W) in [0, 1], white where every image went."""
    counts = torch.zeros(classes, classes)
    counts.index_put_((torch.as_tensor(rows["label"]), torch.as_tensor(rows["prediction"])), torch.ones(1),
                      accumulate=True)
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    return F.interpolate(shares[None, None], scale_factor=max(1, 2 * SIDE // classes))[0]


@torch.no_grad()
def class_attention(model: nn.Module, images: Tensor) -> Tensor | None:
    """Images uint8 (B, C, H, W) above the last layer's attention from the class token, mean over heads: (1, H', W').

    Each map is scaled to its largest value. None for a model without attention to look at or a class token.
    """
    images = to_float(images)
    try:
        tokens = attention.geometry(model, images)
        last = attention.matrices(model, images)[-1]
    except UserError:
        return None
    if not tokens.cls:
        return None
    maps = last.float().mean(1)[:, 0, tokens.prefix:].unflatten(1, tokens.grid)
    maps = maps / maps.amax((1, 2), keepdim=True)
    pictures = [F.interpolate(x[:, None], size=(SIDE, SIDE)) for x in (images.mean(1), maps)]
    return torch.cat(pictures, 2).permute(1, 2, 0, 3).flatten(2).cpu()
