"""Random crop of varying area and shape, resized to one size."""

from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from graft.augment._boxes import check_range, proposals
from graft.augment._warp import composed
from graft.keyed import Draw
from graft.outputs import View, on_device

LARGE = 64  # pixels; a CPU resamples the bytes of larger ones one by one faster than it multiplies a batch


def apply(view: View, draw: Draw, *,
          scale: Annotated[list[float], "(0, 1]", "range of the crop's area, as a part of the image"] = (0.08, 1.0),
          ratio: Annotated[list[float], "> 0", "range of height/width"] = (0.75, 1.3333333333333333),
          size: Annotated[int, ">= 0", "side of the result, pixels; 0: the image's own size"] = 0) -> View:
    """Cut a rectangle from each image and resize it, bilinear with antialiasing.

    If ten tries do not fit, the largest central crop with an allowed shape is taken. Raises `UserError` if
    `scale` or `ratio` is not a range.
    """
    check_range("resized_crop.scale", scale)
    check_range("resized_crop.ratio", ratio)
    height, width = view.inputs.shape[-2:]
    boxes, found = proposals(draw("resized_crop", 22), scale, ratio, height, width, (height, width))
    boxes[~found] = _central(height, width, ratio)
    return _resized(view, boxes, size or height, size or width)


def _central(height: int, width: int, ratio: list[float]) -> list[int]:
    tall = min(height, round(width * ratio[1]))
    wide = min(width, round(height / ratio[0]))
    top, left = (height - tall) // 2, (width - wide) // 2
    return [top, top + tall, left, left + wide]


def _resized(view: View, boxes: np.ndarray, height: int, width: int) -> View:
    """The boxes (B, 4) of top, bottom, left, right (ends excluded) of the images as images of the given size."""
    if view.inputs.device.type == "cpu" and min(view.inputs.shape[-2:]) >= LARGE:
        # torch's own resampling of bytes, which other devices lack: it may round a pixel the other way
        images = torch.cat([F.interpolate(image[None, :, top:bottom, left:right], (height, width), mode="bilinear",
                                          antialias=True)
                            for image, (top, bottom, left, right) in zip(view.inputs, boxes.tolist(), strict=True)])
    else:
        # halves go up by a margin: their last bit may depend on the device and on the size of the batch; means of
        # pixels stay between 0 and 255
        images = _product(view.inputs, boxes, (height, width)).add_(0.5 + 1e-9).to(torch.uint8)
    if view.matrix is None:
        return replace(view, inputs=images)
    top, bottom, left, right = boxes.T
    inverse = np.zeros((len(boxes), 3, 3))
    inverse[:, 0, 0], inverse[:, 1, 1], inverse[:, 2, 2] = (right - left) / width, (bottom - top) / height, 1
    inverse[:, 0, 2] = (left + right - view.inputs.shape[-1]) / 2
    inverse[:, 1, 2] = (top + bottom - view.inputs.shape[-2]) / 2
    hidden = _product(~view.visible[:, None], boxes, (height, width))[:, 0]
    return replace(view, inputs=images, visible=hidden < 1e-6, matrix=composed(view.matrix, inverse))


def _product(maps: Tensor, boxes: np.ndarray, out: tuple[int, int]) -> Tensor:
    """The weights of rows times the maps (B, C, H, W) times those of columns, float64."""
    rows, columns = (_weights(boxes[:, 2 * axis:2 * axis + 2], maps.shape[2 + axis], out[axis], maps.device)
                     for axis in (0, 1))
    return rows[:, None] @ maps.double() @ columns[:, None].mT


def _weights(ends: np.ndarray, length: int, out_length: int, device: torch.device) -> Tensor:
    """Antialiased bilinear weights (B, out_length, length) that resize the pixels between `ends` (B, 2).

    float64, so that the products neither run in TF32 nor differ between devices.
    """
    start, stop = on_device(ends[:, :, None, None], device, torch.float64).unbind(1)
    step = (stop - start) / out_length
    centre = start + (torch.arange(out_length, device=device)[:, None] + 0.5) * step - 0.5
    pixel = torch.arange(length, device=device)
    weight = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp_(min=0)
    weight = weight * ((pixel >= start) & (pixel < stop))
    return weight / weight.sum(-1, keepdim=True)
