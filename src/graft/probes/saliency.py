"""Where a classifier looks: Grad-CAM for CNNs and ViTs alike, and the feature maps themselves."""

import torch
import torch.nn.functional as F
from torch import Tensor

from graft.errors import UserError
from graft.outputs import grid_of
from graft.probes._images import evaluating
from graft.students._backbone import Backbone


def grad_cam(model: Backbone, images: Tensor, classes: Tensor) -> Tensor:
    """Evidence for `classes` (B,) in images (B, C, H, W) in [0, 1], at their size: (B, H, W), each map's maximum 1.

    ReLU(Σ_c α_c A_c), A the feature map and α_c the mean of ∂logit/∂A_c over places (Selvaraju et al. 2017,
    arXiv:1610.02391). A is the last map of a CNN. Of a ViT it is the last block's input, without the prefix
    tokens: the block's output reaches the logits through the class token alone. A map without evidence is 0.
    Raises UserError for a transformer whose blocks need more than their tokens.
    """
    with evaluating(model), torch.enable_grad():
        activation, logits = (_vit if _is_vit(model) else _cnn)(model, images)
        gradient, = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), activation)
    activation, gradient = (_places(model, x.detach()) for x in (activation, gradient))
    cam = (activation * gradient.mean((1, 2), keepdim=True)).sum(-1).clamp(min=0)
    cam = F.interpolate(cam[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return cam / cam.amax((1, 2), keepdim=True).clamp(min=torch.finfo(cam.dtype).tiny)


def _is_vit(model: Backbone) -> bool:
    return hasattr(model.model, "blocks") and hasattr(model.model, "patch_embed")


def _logits(model: Backbone, final: Tensor) -> Tensor:
    logits = model.model.forward_head(final)
    return logits[model.model.inference] if isinstance(logits, dict) else logits


def _cnn(model: Backbone, images: Tensor) -> tuple[Tensor, Tensor]:
    """The last map, as a leaf of the graph, and the logits (B, K) from it."""
    with torch.no_grad():
        final, _ = model.model.forward_intermediates(model._prepare(images), [len(model.model.feature_info) - 1])
    final = final.detach().requires_grad_()
    return final, _logits(model, final)


def _vit(model: Backbone, images: Tensor) -> tuple[Tensor, Tensor]:
    """The patch tokens before the last block, as a leaf of the graph, and the logits (B, K) from them."""
    inner = model.model
    if model.depth < 2:
        raise UserError("Grad-CAM: a transformer needs at least 2 blocks, this one has 1")
    with torch.no_grad():
        final, (block,) = inner.forward_intermediates(model._prepare(images), indices=[model.depth - 2],
                                                      return_prefix_tokens=True, output_fmt="NLC")
        expected = _logits(model, final)
    patches, prefix = block if isinstance(block, tuple) else (block, block[:, :0])
    patches = patches.detach().requires_grad_()
    logits = _logits(model, inner.norm(inner.blocks[-1](torch.cat([prefix, patches], 1))))
    if (logits - expected).norm() > 1e-4 * expected.norm():
        raise UserError(f"Grad-CAM: {type(inner).__name__}: its last block needs more than its tokens")
    return patches, logits


def _places(model: Backbone, tokens: Tensor) -> Tensor:
    """A map (B, D, h, w), (B, h, w, D) or tokens (B, h·w, D) as (B, h, w, D)."""
    if tokens.ndim == 3:
        return tokens.unflatten(1, grid_of(tokens.shape[1]))
    return tokens if getattr(model.model, "output_fmt", "NCHW") == "NHWC" else tokens.permute(0, 2, 3, 1)


@torch.no_grad()
def feature_maps(model: Backbone, images: Tensor, layers: int = 4, channels: int = 8) -> dict[str, Tensor]:
    """The most varied channels of evenly spaced layers for images (B, C, H, W): {"patch.i": (B, channels, h, w)}."""
    chosen = torch.linspace(0, model.depth - 1, min(layers, model.depth)).round().long().tolist()
    with evaluating(model):
        features = model(images, [f"patch.{i}" for i in chosen]).features
    maps = {}
    for name, tokens in features.items():
        best = tokens.var(1).topk(min(channels, tokens.shape[2])).indices
        picked = tokens.gather(2, best[:, None].expand(-1, tokens.shape[1], -1))
        maps[name] = picked.transpose(1, 2).unflatten(2, model.grid_of_feature(name))
    return maps
