"""Random crop of varying area and shape, resized to one size."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from graft.augment._boxes import check_range, proposals
from graft.augment._warp import composed
from graft.keyed import Draw
from graft.outputs import View, on_device

LARGE = 64  # pixels; smaller ones are multiplied faster than looked up


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


def _resized(view: View, boxes: np.ndarray, out_height: int, out_width: int) -> View:
    """The boxes (B, 4) of top, bottom, left, right (ends excluded) of the images as images of the given size."""
    height, width = view.inputs.shape[-2:]
    enlarged = (boxes[:, 1::2] - boxes[:, ::2] <= (out_height, out_width)).all()
    product = _looked_up if view.inputs.device.type == "cpu" and enlarged and min(height, width) >= LARGE else _product
    resample = functools.partial(product, boxes=boxes, out=(out_height, out_width))
    # halves go up by a margin: their last bit may depend on the device and on the size of the batch; means of pixels
    # stay between 0 and 255
    images = resample(view.inputs, lambda x: x.add_(0.5 + 1e-9).to(torch.uint8))
    if view.matrix is None:
        return replace(view, inputs=images)
    top, bottom, left, right = boxes.T
    inverse = np.zeros((len(boxes), 3, 3))
    inverse[:, 0, 0], inverse[:, 1, 1], inverse[:, 2, 2] = (right - left) / out_width, (bottom - top) / out_height, 1
    inverse[:, 0, 2], inverse[:, 1, 2] = (left + right - width) / 2, (top + bottom - height) / 2
    return replace(view, inputs=images, visible=resample(~view.visible[:, None], lambda x: x < 1e-6)[:, 0],
                   matrix=composed(view.matrix, inverse))


def _product(maps: Tensor, finish: Callable[[Tensor], Tensor], boxes: np.ndarray, out: tuple[int, int]) -> Tensor:
    """`finish` of the weights of rows, times the maps (B, C, H, W), times those of columns, float64."""
    rows, columns = (_weights(boxes[:, 2 * axis:2 * axis + 2], maps.shape[2 + axis], out[axis], maps.device)
                     for axis in (0, 1))
    return finish(rows[:, None] @ maps.double() @ columns[:, None].mT)


def _looked_up(maps: Tensor, finish: Callable[[Tensor], Tensor], boxes: np.ndarray, out: tuple[int, int]) -> Tensor:
    """The same, where a pixel of the result comes from no more than two on each axis, so that nearly all of those
    products would be with 0; one crop at a time, which stays in a CPU's cache."""
    (top, vertical), (left, horizontal) = (_neighbours(boxes[:, 2 * axis:2 * axis + 2], out[axis]) for axis in (0, 1))

    def mixed(image: Tensor, place: Tensor, weight: Tensor) -> Tensor:
        return (image.index_select(1, place[0]).mul_(weight[0][:, None])
                .addcmul_(image.index_select(1, place[1]), weight[1][:, None]))

    crops = (image[:, a:b, c:d].double() for image, (a, b, c, d) in zip(maps, boxes.tolist(), strict=True))
    return torch.stack([finish(mixed(mixed(crop, top[b], vertical[b]).mT.contiguous(), left[b], horizontal[b]).mT)
                        for b, crop in enumerate(crops)])


def _neighbours(ends: np.ndarray, out_length: int) -> tuple[Tensor, Tensor]:
    """The two pixels (B, 2, out_length) next to each pixel of the result, counted from the start of the crop, and their
    `_weights`, which are the same."""
    start, stop = torch.as_tensor(ends, dtype=torch.float64)[:, :, None, None].unbind(1)
    centre = start + (torch.arange(out_length) + 0.5) * ((stop - start) / out_length) - 0.5
    pixel = centre.floor() + torch.arange(2)[:, None]
    weight = (1 - (pixel - centre).abs()).clamp_(min=0) * ((pixel >= start) & (pixel < stop))
    inside = torch.minimum(pixel.clamp(min=start), stop - 1) - start  # else its weight is 0
    return inside.long(), weight / weight.sum(1, keepdim=True)


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
