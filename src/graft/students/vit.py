"""ViT for small images, after DeiT: optional distillation token and two-layer convolutional stem."""

from functools import partial
from typing import Annotated

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import PatchEmbed, VisionTransformer
from torch import Tensor, nn

from graft.errors import UserError
from graft.students._backbone import Backbone
from graft.tasks._task import Task


def build(task: Task, *,
          patch: Annotated[int, ">= 1", "patch side in pixels"] = 4,
          dim: Annotated[int, ">= 1", "width of the tokens"] = 192,
          depth: Annotated[int, ">= 1", "number of blocks"] = 12,
          heads: Annotated[int, ">= 1", "attention heads; must divide dim"] = 3,
          mlp_ratio: Annotated[float, "> 0", "hidden width of the MLP / dim"] = 4.0,
          distilled: Annotated[bool, "", "a distillation token with its own head"] = False,
          inference: Annotated[str, "cls | dist | avg", "which head's logits count in evaluation; dist and avg only "
                                                        "where a loss trains the distillation head"] = "cls",
          stem: Annotated[str, "patch | conv", "conv: two 3x3 convolutions before the patches are cut"] = "patch",
          drop_path: Annotated[float, "[0, 1)", "stochastic depth of the last block; linear from 0"] = 0.1,
          dropout: Annotated[float, "[0, 1)", "after the position embedding and in the MLPs"] = 0.0,
          cls_token_dropout: Annotated[float, "[0, 1)", "part of the training images whose classifier reads the mean "
                                                        "patch token instead of the class token"] = 0.0,
          init_std: Annotated[float, "> 0", "standard deviation of linear weights, tokens and positions; DeiT's 0.02 "
                                            "suits widths from 192 on, narrow models start faster with more"] = 0.02,
          grayscale_to_rgb: Annotated[bool, "", "images of one channel: learn a 1x1 convolution to three"] = False,
          ) -> Backbone:
    """A vision transformer (arXiv:2010.11929); `distilled` is DeiT (arXiv:2012.12877).

    In training `logits` are the class token's and `distill_logits` the distillation token's; in evaluation
    `logits` follow `inference` (avg: the mean of both logits).
    """
    if task.size % patch:
        raise UserError(f"student.patch: must divide the image size {task.size}, got {patch}")
    if dim % heads:
        raise UserError(f"student.heads: must divide student.dim {dim}, got {heads}")
    if inference != "cls" and not distilled:
        raise UserError(f"student.inference: {inference} needs student.distilled: true")
    embed = partial(_StemEmbed, to_rgb=grayscale_to_rgb and task.channels == 1, conv=stem == "conv")
    model = (_Distilled if distilled else _Plain)(
        img_size=task.size, patch_size=patch, in_chans=task.channels, num_classes=task.num_classes, embed_dim=dim,
        depth=depth, num_heads=heads, mlp_ratio=mlp_ratio, drop_path_rate=drop_path, pos_drop_rate=dropout,
        proj_drop_rate=dropout, embed_layer=embed,
        dynamic_img_size=True)  # other sizes too: the small crops of self-supervised training
    _initialise(model, init_std)
    model.inference, model.cls_token_dropout = inference, cls_token_dropout
    return Backbone(model, mean=task.mean, std=task.std, image_size=task.size)


class _StemEmbed(PatchEmbed):
    """Patch embedding, optionally after a learned grey-to-RGB mixture and two 3x3 convolutions at full size."""

    def __init__(self, *, in_chans: int, embed_dim: int, to_rgb: bool, conv: bool, **options):
        channels = 3 if to_rgb else in_chans
        super().__init__(in_chans=embed_dim if conv else channels, embed_dim=embed_dim, **options)
        half = embed_dim // 2
        self.stem = nn.Sequential(
            *([nn.Conv2d(in_chans, 3, 1, bias=False)] if to_rgb else []),
            *([nn.Conv2d(channels, half, 3, padding=1, bias=False), nn.BatchNorm2d(half), nn.GELU(),
               nn.Conv2d(half, embed_dim, 3, padding=1, bias=False), nn.BatchNorm2d(embed_dim), nn.GELU()]
              if conv else []))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.stem(x))


class _Plain(VisionTransformer):
    def forward_head(self, tokens: Tensor) -> Tensor:
        return self.head(_class_feature(self, tokens))


class _Distilled(VisionTransformerDistilled):
    def forward_head(self, tokens: Tensor) -> dict[str, Tensor]:
        cls, dist = self.head(_class_feature(self, tokens)), self.head_dist(tokens[:, 1])
        return {"cls": cls, "dist": dist} if self.training else {"cls": cls, "dist": dist, "avg": (cls + dist) / 2}


def _class_feature(model: VisionTransformer, tokens: Tensor) -> Tensor:
    """What the class head reads `(B, D)`, from the normalised tokens."""
    cls = tokens[:, 0]
    if not (model.training and model.cls_token_dropout):
        return cls
    dropped = torch.rand(len(cls), 1, device=cls.device) < model.cls_token_dropout
    return torch.where(dropped, tokens[:, model.num_prefix_tokens:].mean(1), cls)


def _initialise(model: VisionTransformer, std: float) -> None:
    """DeiT's initialisation: truncated normal tokens, positions and linear weights, convolutions by He (fan-out)."""
    for token in (model.cls_token, getattr(model, "dist_token", None), model.pos_embed):
        if token is not None:
            nn.init.trunc_normal_(token, std=std)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
