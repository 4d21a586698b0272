"""DINOv2 (or another self-supervised ViT of timm), frozen: features, no logits."""

from typing import Annotated

import timm

from graft import keyed
from graft.errors import UserError
from graft.students._backbone import Backbone
from graft.students._weights import from_file, from_hub, require_arch, size_option
from graft.tasks._task import Task
from graft.teachers._freeze import freeze, isolated


def build(task: Task, *,
          arch: Annotated[str, "", "timm model name"] = "vit_small_patch14_dinov2.lvd142m",
          checkpoint: Annotated[str, "", "local .safetensors or .pth file; empty: timm's published weights (hub)"] = "",
          size: Annotated[int, ">= 14", "side in pixels that images are resized to; with patches of 14, 112 gives 8x8 "
                                        "tokens and 224 16x16"] = 112,
          pool: Annotated[int, ">= 1", "average pool x pool patch tokens; 224 with pool 2 gives 8x8 tokens"] = 1,
          norm_layers: Annotated[bool, "", "pass every block's tokens through the final norm, as DINOv2's own "
                                           "get_intermediate_layers does"] = False,
          random_weights: Annotated[bool, "", "negative control: the architecture, never trained"] = False,
          init_seed: Annotated[int, ">= 0", "random_weights: which initialisation"] = 0) -> Backbone:
    """DINOv2 (arXiv:2304.07193) with ImageNet normalisation; grey images are repeated to RGB."""
    require_arch(arch, "teacher.arch")
    options = size_option(arch, size)

    def make():
        if random_weights:
            return timm.create_model(arch, num_classes=0, **options)
        if checkpoint:
            return from_file(arch, checkpoint, "teacher.checkpoint", **options)
        return from_hub(arch, num_classes=0, **options)

    model = isolated(make, keyed.key(init_seed, "teacher", arch))
    if not hasattr(model, "patch_embed"):
        raise UserError(f"teacher.arch: {arch} is no vision transformer; use teacher.name: timm")
    patch = model.patch_embed.patch_size[0]
    if size % (patch * pool):
        raise UserError(f"teacher.size: must be a multiple of patch {patch} x pool {pool}, got {size}")
    published = timm.get_pretrained_cfg(arch)
    return freeze(Backbone(model, mean=published.mean, std=published.std, image_size=task.size, size=size,
                           classifier=False, norm_layers=norm_layers, pool=pool))
