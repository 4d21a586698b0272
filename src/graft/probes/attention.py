"""Where a vision transformer looks: statistics of every head's attention.

With s prefix tokens (class, distillation, registers) before a grid of T = h·w patches, A (N, N) is one head's
attention, a row a query. `mean_distance`, `distance_without_self` and `entropy` describe the patch-patch block
with its rows renormalised to 1, so `patch_mass` says how much of a patch's attention they speak of.
Distances are Euclidean between grid places, in patches. Every one depends on the grid: read it beside `uniform`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graft.errors import UserError
from graft.probes._images import evaluating, require_images

COLLAPSED = 1.5  # patches: the mean distance below which the original calls a head collapsed, on its 8x8 grid
CLS_COLLAPSED = 0.9  # a head whose class token attends to itself more than that
CLS_WARNING = 0.5  # share of such heads above which class-token statistics say little


class _Explicit(TorchFunctionMode):
    """Self-attention written out where a model calls the fused kernel; `see` gets the scores (B, H, N, N).

    Nothing is switched off: the kernel's arguments are what the model made of its input, so normalised
    queries, rotary positions and relative biases are in them.
    """

    def __init__(self, see: Callable[[Tensor], None]):
        super().__init__()
        self.see = see

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention and args[0].shape[-2] == args[1].shape[-2]:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))  # also attention from a pooling query, which has no grid

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
        if is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool):
            raise UserError("attention: causal, masked and grouped attention have no statistics here")
        scores = (q.float() * (scale or q.shape[-1] ** -0.5)) @ k.float().mT
        if attn_mask is not None:
            scores = scores + attn_mask
        self.see(scores)
        return scores.softmax(-1).to(v.dtype) @ v


@dataclass(frozen=True)
class Geometry:
    """How a model's tokens lie: `prefix` tokens, the first the class token if `cls`, then the grid row by row."""

    grid: tuple[int, int]
    prefix: int
    cls: bool

    def places(self) -> Tensor:
        """(T, 2) grid places from the centre of the grid, float64, in patches."""
        rows, columns = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in self.grid)
        return torch.cartesian_prod(rows, columns).reshape(-1, 2)

    def distances(self) -> Tensor:
        """(T, T) Euclidean, float64, in patches."""
        places = self.places()
        return (places[:, None] - places).square().sum(-1).sqrt()


def geometry(model: nn.Module, images: Tensor) -> Geometry:
    """Of a timm vision transformer, or a student or teacher around one; UserError for other models."""
    inner = getattr(model, "model", model)
    name = type(inner).__name__
    if not all(hasattr(block, "attn") for block in getattr(inner, "blocks", [model])):
        raise UserError(f"attention: {name} has no blocks[i].attn; expected a vision transformer")
    if not hasattr(getattr(inner, "patch_embed", None), "dynamic_feat_size"):
        raise UserError(f"attention: {name} has no patch_embed that tells its grid")
    size = getattr(model, "size", 0)  # what a student or teacher resizes to; 0: not at all
    grid = inner.patch_embed.dynamic_feat_size((size, size) if size else tuple(images.shape[-2:]))
    prefix = getattr(inner, "num_prefix_tokens", 0)
    return Geometry(tuple(grid), prefix, prefix > 0 and getattr(inner, "cls_token", None) is not None)


def look(model: nn.Module, images: Tensor, see: Callable[[int, Tensor], None]) -> None:
    """Run the model once and call `see(layer, scores (B, H, N, N))` for every layer in order.

    softmax(scores, -1) is the attention; only one layer's scores exist at a time. Raises UserError if the
    model's blocks do not each call the fused kernel once on all tokens.
    """
    tokens = geometry(model, images)
    inner, seen = getattr(model, "model", model), 0
    n = tokens.prefix + math.prod(tokens.grid)

    def count(scores: Tensor) -> None:
        nonlocal seen
        if scores.ndim != 4 or scores.shape[-1] != n or seen == len(inner.blocks):
            raise UserError(f"attention: {type(inner).__name__}: expected one {n}x{n} attention a block in "
                            f"{len(inner.blocks)} blocks, got number {seen + 1} of shape {tuple(scores.shape)}")
        see(seen, scores)
        seen += 1

    with _Explicit(count):
        model(images)
    if seen != len(inner.blocks):
        raise UserError(f"attention: {type(inner).__name__}: {seen} of {len(inner.blocks)} blocks used fused "
                        "attention; expected all (TIMM_FUSED_ATTN must not be 0)")


@torch.no_grad()
def matrices(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The attention (B, H, N, N) of every layer, for a few images."""
    found: list[Tensor] = []
    with evaluating(model):
        look(model, images, lambda layer, scores: found.append(scores.softmax(-1)))
    return found


def image_statistics(scores: Tensor, tokens: Geometry) -> dict[str, Tensor]:
    """Statistics of attention scores (B, H, N, N) before the softmax, each (B, H) float32.

    mean_distance = mean over patch queries i of Σ_j p_ij d_ij; left = Σ_ij p_ij over j ≠ i, / T; entropy = mean over
    i of -Σ_j p_ij ln p_ij (nats); cls_dispersion = variance along rows plus along columns of the class token's
    attention to the patches; cls_self_attn = A[cls, cls]. The last two only with a class token.
    """
    s, places, distances = tokens.prefix, tokens.places(), tokens.distances()
    count = len(places)
    # one matrix product over all (i, j): the distance, and what does not stay on the own patch
    weights = torch.stack([distances, 1 - torch.eye(count, dtype=torch.float64)], -1).flatten(0, 1) / count
    p = scores[..., s:, s:].softmax(-1)
    moments = p.flatten(-2) @ weights.to(p)
    attention = scores.softmax(-1)
    found = {"mean_distance": moments[..., 0], "left": moments[..., 1],
             "entropy": torch.special.entr(p).sum(-1).mean(-1),
             "patch_mass": attention[..., s:, s:].sum(-1).mean(-1)}
    if tokens.cls:
        to_patches = scores[..., 0, s:].softmax(-1)
        first, second = to_patches @ places.to(p), to_patches @ places.square().sum(-1).to(p)
        found["cls_dispersion"] = (second - first.square().sum(-1)).clamp_min(0)
        found["cls_self_attn"] = attention[..., 0, 0]
    return found


def _of_batch(model: nn.Module, images: Tensor) -> tuple[Geometry, list[dict[str, Tensor]]]:
    tokens, found = geometry(model, images), []
    look(model, images, lambda layer, scores: found.append(image_statistics(scores, tokens)))
    return tokens, found


@dataclass(frozen=True)
class Heads:
    """Means over n images: `values[statistic]` (layers, heads); `image_distance` (n,) over layers and heads."""

    tokens: Geometry
    n: int
    values: dict[str, Tensor]
    image_distance: Tensor


@torch.no_grad()
def head_statistics(model: nn.Module, images: Iterable[Tensor]) -> Heads:
    """Statistics of every head over batches (B, C, H, W) in [0, 1]; only one layer's attention exists at a time.

    `distance_without_self` is Σ p_ij d_ij / Σ p_ij over j ≠ i and all images: of the attention that leaves its
    own patch; NaN if none does. Raises UserError for a model without such attention, for no image at all and
    for attention that is not finite.
    """
    sums: dict[tuple[str, int], Tensor] = {}
    distances = []
    with evaluating(model):
        for batch in images:
            tokens, of_layers = _of_batch(model, batch)
            distances.append(torch.cat([found["mean_distance"] for found in of_layers], 1).double().mean(1).cpu())
            for layer, found in enumerate(of_layers):
                for name, value in found.items():
                    sums[name, layer] = sums.get((name, layer), 0) + value.double().sum(0)
    n = sum(map(len, distances))
    require_images(n, 1, "attention")
    layers = range(1 + max(layer for _, layer in sums))
    values = {name: torch.stack([sums[name, layer] for layer in layers]).cpu() / n
              for name in dict.fromkeys(name for name, _ in sums)}
    if not all(value.isfinite().all() for value in values.values()):
        raise UserError("attention: not finite; the weights are damaged")
    values["distance_without_self"] = values["mean_distance"] / values.pop("left")
    return Heads(tokens, n, values, torch.cat(distances))


def uniform(tokens: Geometry) -> dict[str, float | None]:
    """Every statistic of a head that attends to all tokens alike (8x8 patches: mean distance 4.1365)."""
    (h, w), count = tokens.grid, math.prod(tokens.grid)
    n, distance = count + tokens.prefix, float(tokens.distances().mean())
    return {"mean_distance": distance, "distance_without_self": distance * count / (count - 1) if count > 1 else None,
            "entropy": math.log(count), "patch_mass": count / n,
            "cls_dispersion": (h * h + w * w - 2) / 12 if tokens.cls else None,
            "cls_self_attn": 1 / n if tokens.cls else None}


def collapse_thresholds(tokens: Geometry) -> dict[str, float]:
    """Below which mean distance, in patches, a head counts as collapsed: the original's, the same share of uniform."""
    original = Geometry((8, 8), 0, False)
    share = COLLAPSED / uniform(original)["mean_distance"]
    return {"distance": COLLAPSED, "relative": share * uniform(tokens)["mean_distance"], "share_of_uniform": share,
            "cls_self_attn": CLS_COLLAPSED}


def summary(heads: Heads) -> dict[str, Any]:
    """What a study's files hold of a model: statistics by layer and head, their averages, shares of collapsed heads.

    Undefined numbers are None; `warnings` says why an average may mislead.
    """
    values, limits, tokens = heads.values, collapse_thresholds(heads.tokens), heads.tokens
    expected = uniform(tokens)
    number = lambda x: float(x) if math.isfinite(x) else None  # noqa: E731
    layers = [{name: [number(x) for x in value[layer].tolist()] for name, value in values.items()}
              for layer in range(len(values["entropy"]))]
    distance = values["mean_distance"]
    found = {
        "n": heads.n, "grid": list(tokens.grid), "prefix_tokens": tokens.prefix,
        "per_layer_stats": {str(i): layer for i, layer in enumerate(layers)},
        "layer_distance": distance.mean(1).tolist(),
        "layer_relative_distance": (distance.mean(1) / expected["mean_distance"]).tolist(),
        "avg_attention_distance": float(distance.mean()),
        "avg_relative_distance": float(distance.mean() / expected["mean_distance"]),
        "avg_distance_without_self": number(values["distance_without_self"].nanmean()),
        "avg_entropy": float(values["entropy"].mean()), "avg_patch_mass": float(values["patch_mass"].mean()),
        "collapsed_heads_ratio": float((distance < limits["distance"]).double().mean()),
        "collapsed_heads_ratio_relative": float((distance < limits["relative"]).double().mean()),
        "avg_cls_dispersion": None, "avg_cls_self_attn": None, "cls_collapse_ratio": None, "warnings": []}
    if tokens.cls:
        collapsed = float((values["cls_self_attn"] > CLS_COLLAPSED).double().mean())
        found |= {"avg_cls_dispersion": float(values["cls_dispersion"].mean()),
                  "avg_cls_self_attn": float(values["cls_self_attn"].mean()), "cls_collapse_ratio": collapsed}
        if collapsed > CLS_WARNING:
            found["warnings"].append(f"the class token attends to itself alone in {collapsed:.0%} of the heads; "
                                     "its dispersion there is that of a vanishing rest")
    return found
