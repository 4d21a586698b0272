"""A timm model, or one with timm's methods, behind the contract of students and teachers."""

import inspect
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from graft.errors import UserError
from graft.outputs import Outputs, grid_of
from graft.students._attention import Watch

FINAL = -1
HEADS = "heads"  # every head's attention between patches, (B, H, T, T)
MAPS = (HEADS, "attention")  # attention: the mean of the heads, (B, T, T)


class Backbone(nn.Module):
    """Normalises images, runs `model` once, and names what comes out of its blocks.

    `model` has timm's `forward_intermediates` and `forward_head`; with two heads the latter returns a mapping: `cls`,
    `dist` and, in evaluation, `avg`, of which the model's `inference` names the one that counts then. Images are
    `(B, C, H, W)` in [0, 1]; grey ones are repeated for a model of three channels, and `size` > 0 resizes them
    (bicubic) first. `classifier=False` leaves the logits out.
    `norm_layers` passes every block's tokens through the final norm, `pool` averages `pool` x `pool` patches.

    `mean` and `std` are saved with the weights: a run that is loaded as a teacher normalises as it was trained.
    Raises UserError if the model cannot process images of that size.
    """

    def __init__(self, model: nn.Module, *, mean: Sequence[float], std: Sequence[float], image_size: int,
                 size: int = 0, classifier: bool = True, norm_layers: bool = False, pool: int = 1):
        super().__init__()
        _refuse_cut_off(model, size or image_size)
        self.model, self.size, self.pool = model, size, pool
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.num_classes = model.num_classes if classifier else 0
        self.num_prefix_tokens = getattr(model, "num_prefix_tokens", 0)
        self._has_cls = self.num_prefix_tokens > 0 and getattr(model, "cls_token", None) is not None
        accepted = inspect.signature(model.forward_intermediates).parameters
        self._options = {"norm": True} if norm_layers else {}
        if "return_prefix_tokens" in accepted:
            self._options |= {"return_prefix_tokens": True, "output_fmt": "NLC"}
        # timm lists the stem of its ResNets as a feature; it is no stage.
        self._first = int(model.feature_info[0]["module"] == "act1")
        self.depth = len(model.feature_info) - self._first
        layers = {**{str(i): i for i in range(self.depth)}, "final": FINAL}
        self._layer_of = {f"{kind}.{name}": (kind, layer)
                          for kind in ("patch", "cls") for name, layer in layers.items()}
        self._watch = Watch(model)
        self._maps = {f"{kind}.{layer}": (kind, layer)
                      for kind in MAPS for layer in range(len(self._watch) if pool == 1 else 0)}
        self._shape_of = self._measure(image_size)
        self.grid = self.grid_of_feature("patch.final")

    def forward(self, images: Tensor, features: Sequence[str] = ()) -> Outputs:
        """Logits and the features asked for, from one pass. Raises UserError for a feature that does not exist."""
        maps = {name: self._maps[name] for name in features if name in self._maps}
        wanted = {name: self._find(name) for name in features if name not in maps}
        # A CPU's fused attention takes eight times as long backward in bf16 as products of matrices do.
        plain = self.training and images.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        self._watch.choose({layer for _, layer in maps.values()}, plain)
        # The last block always: timm cannot be asked for none, and some models stop at the last one asked for.
        layers = sorted({layer for _, layer in wanted.values()} - {FINAL} | {self.depth - 1})
        final, blocks = self.model.forward_intermediates(
            self._prepare(images), indices=[self._first + layer for layer in layers], **self._options)
        logits = self.model.forward_head(final) if self.num_classes else None
        readings = logits if isinstance(logits, dict) else {}
        distill_logits = readings.get("dist", logits)
        if readings:
            logits = readings["cls" if self.training else self.model.inference]
        taken, seen = dict(zip(layers, blocks, strict=True)), self._watch.take(self.num_prefix_tokens)
        return Outputs(logits, distill_logits, {
            **{name: self._final(final, kind) if layer == FINAL else self._block(taken[layer], kind)
               for name, (kind, layer) in wanted.items()},
            **{name: seen[layer] if kind == HEADS else seen[layer].mean(1) for name, (kind, layer) in maps.items()}},
            readings={} if self.training else readings)

    def feature_dim(self, name: str) -> int:
        """Channels D of a feature `(B, T, D)`."""
        if name in self._maps:
            return math.prod(self.grid_of_feature(name))
        self._find(name)
        return self._shape_of[name][1]

    def grid_of_feature(self, name: str) -> tuple[int, int]:
        """(height, width) of a feature's tokens for images of the task's size; (1, 1) for `cls.*`."""
        if name in self._maps:
            return self._shape_of[f"patch.{self._maps[name][1]}"][0]
        self._find(name)
        return self._shape_of[name][0]

    def _find(self, name: str) -> tuple[str, int]:
        if name not in self._layer_of:
            if name.split(".")[0] in MAPS:
                raise UserError(f"feature {name!r} does not exist; " + (
                    f"this model has attention in blocks 0 to {len(self._maps) // len(MAPS) - 1}" if self._maps else
                    "this model has no attention maps of its patches"))
            last = self.depth - 1
            raise UserError(f"feature {name!r} does not exist; this model has patch.0 to patch.{last}, patch.final, "
                            f"cls.0 to cls.{last} and cls.final")
        return self._layer_of[name]

    def _prepare(self, images: Tensor) -> Tensor:
        channels = self.mean.shape[1]
        if images.shape[1] == 1 and channels > 1:
            images = images.expand(-1, channels, -1, -1)
        if self.size and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", align_corners=False,
                                   antialias=images.shape[-1] > self.size)
        return (images - self.mean) / self.std

    def _block(self, out: Tensor | tuple[Tensor, Tensor], kind: str) -> Tensor:
        """Tokens `(B, T, D)` of one block, from (patches, prefix) or a map `(B, D, H, W)`."""
        patches, prefix = out if isinstance(out, tuple) else (out, None)
        if patches.ndim == 4:
            patches = patches.flatten(2).transpose(1, 2)
        if kind == "patch":
            return self._pooled(patches)
        return prefix[:, :1] if self._has_cls and prefix is not None else patches.mean(1, keepdim=True)

    def _final(self, final: Tensor, kind: str) -> Tensor:
        """Tokens `(B, T, D)` after the final norm; what the classifier reads for `cls`."""
        if kind == "cls" and not self._has_cls:
            return self.model.forward_head(final, pre_logits=True)[:, None]
        if final.ndim == 4:
            is_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            final = final.flatten(1, 2) if is_last else final.flatten(2).transpose(1, 2)
        return final[:, :1] if kind == "cls" else self._pooled(final[:, self.num_prefix_tokens:])

    def _pooled(self, tokens: Tensor) -> Tensor:
        if self.pool == 1:
            return tokens
        height, width = grid_of(tokens.shape[1])
        maps = tokens.transpose(1, 2).unflatten(2, (height, width))
        return F.avg_pool2d(maps, self.pool).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def _measure(self, image_size: int) -> dict[str, tuple[tuple[int, int], int]]:
        """(grid, channels) of every feature, from one black image."""
        training = self.training
        self.eval()
        try:
            black = torch.zeros(1, self.mean.shape[1], image_size, image_size)
            features = self(black, list(self._layer_of)).features
            shapes = {name: (grid_of(value.shape[1]), value.shape[2]) for name, value in features.items()}
        except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{type(self.model).__name__} cannot process images of {image_size} x {image_size} "
                            f"pixels: {reason}") from None
        self.train(training)
        return shapes


def _refuse_cut_off(model: nn.Module, side: int) -> None:
    """Raise UserError if patches do not cover images of `side` pixels: timm leaves the rest out without a word."""
    embed = getattr(model, "patch_embed", None)
    if isinstance(embed, PatchEmbed) and not embed.dynamic_img_pad:
        height, width = embed.patch_size
        if side % height or side % width:
            raise UserError(f"{type(model).__name__}: patches of {height}x{width} pixels do not divide images of "
                            f"{side}x{side}; set another patch (student) or size (task, teacher)")
