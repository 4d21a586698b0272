"""CNNs for small images: ResNet-18, ConvNeXt V2 and AdaptiveCNN with their 32-pixel stems, and a small one."""

from typing import Annotated

import timm
from timm.layers import LayerNorm2d
from timm.models.resnet import BasicBlock
from torch import nn

from graft.errors import UserError
from graft.students._adaptive_cnn import adaptive_cnn, small_cnn
from graft.students._backbone import Backbone
from graft.students._weights import from_hub
from graft.tasks._task import Task

STEM = 64  # channels of timm's stem, and the first stage's as published


def build(task: Task, *,
          arch: Annotated[str, "resnet18 | convnextv2_tiny | adaptive_cnn | small", "architecture"] = "resnet18",
          width: Annotated[int, ">= 1", "resnet18: channels of the first stage; the others have 2, 4 and 8 times as "
                                        "many", "", "2026-11"] = 64,
          variant: Annotated[str, "mnist | cifar", "adaptive_cnn: which one"] = "cifar",
          drop_path: Annotated[float, "[0, 1)", "convnextv2_tiny: stochastic depth"] = 0.0,
          pretrained: Annotated[bool, "", "convnextv2_tiny: ImageNet weights from the hub; the stem stays new"] = False,
          ) -> Backbone:
    """`patch.i` is the map after stage i, row by row; `cls.i` its spatial mean; `cls.final` the pooled features."""
    if pretrained and arch != "convnextv2_tiny":
        raise UserError(f"student.pretrained: there are no pretrained weights for {arch} with its 32-pixel stem")
    if drop_path and arch != "convnextv2_tiny":
        raise UserError(f"student.drop_path: is for convnextv2_tiny, not for {arch}; got {drop_path}")
    if width != STEM and arch != "resnet18":
        raise UserError(f"student.width: is for resnet18, not for {arch}; got {width}")
    if arch == "resnet18":
        model = _resnet18(task, width)
    elif arch == "convnextv2_tiny":
        model = _convnext(task, drop_path, pretrained)
    elif arch == "adaptive_cnn":
        model = adaptive_cnn(variant, task.channels, task.num_classes)
    else:
        model = small_cnn(task.channels, task.num_classes)
    return Backbone(model, mean=task.mean, std=task.std, image_size=task.size)


def _resnet18(task: Task, width: int) -> nn.Module:
    """ResNet-18 (arXiv:1512.03385) with a 3x3 stem of stride 1 and no max-pooling; He initialisation throughout."""
    model = timm.create_model("resnet18", num_classes=task.num_classes, in_chans=task.channels, zero_init_last=False,
                              channels=tuple(width * factor for factor in (1, 2, 4, 8)))
    if width != STEM:  # timm's stem has 64 channels, whatever follows
        model.bn1 = nn.BatchNorm2d(width)
        model.layer1[0] = BasicBlock(width, width)
        for conv in (model.layer1[0].conv1, model.layer1[0].conv2):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = nn.Conv2d(task.channels, width, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    nn.init.kaiming_normal_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    return model


def _convnext(task: Task, drop_path: float, pretrained: bool) -> nn.Module:
    """ConvNeXt V2 tiny (arXiv:2301.00808) with a 2x2 stem of stride 2 instead of 4x4."""
    options = {"num_classes": task.num_classes, "in_chans": task.channels, "drop_path_rate": drop_path}
    model = from_hub("convnextv2_tiny", **options) if pretrained else timm.create_model("convnextv2_tiny", **options)
    model.stem = nn.Sequential(nn.Conv2d(task.channels, 96, 2, 2), LayerNorm2d(96, eps=1e-6))
    nn.init.trunc_normal_(model.stem[0].weight, std=0.02)
    nn.init.zeros_(model.stem[0].bias)
    return model
