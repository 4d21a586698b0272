"""Random crop of varying area and shape, resized to one size."""

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
    rows = _weights(boxes[:, :2], height, out_height, view.inputs.device)
    columns = _weights(boxes[:, 2:], width, out_width, view.inputs.device)
    enlarged = (boxes[:, 1::2] - boxes[:, ::2] <= (out_height, out_width)).all()
    if view.inputs.device.type == "cpu" and enlarged and min(height, width) >= LARGE:
        resample = lambda maps: _from_two(maps, rows, columns)  # noqa: E731
    else:
        resample = lambda maps: rows[:, None] @ maps.double() @ columns[:, None].mT  # noqa: E731
    # halves go up by a margin: their last bit may depend on the device and on the size of the batch
    images = resample(view.inputs).add_(0.5 + 1e-9).clamp_(0, 255).to(torch.uint8)
    if view.matrix is None:
        return replace(view, inputs=images)
    top, bottom, left, right = boxes.T
    inverse = np.zeros((len(boxes), 3, 3))
    inverse[:, 0, 0], inverse[:, 1, 1], inverse[:, 2, 2] = (right - left) / out_width, (bottom - top) / out_height, 1
    inverse[:, 0, 2], inverse[:, 1, 2] = (left + right - width) / 2, (top + bottom - height) / 2
    return replace(view, inputs=images, visible=resample(~view.visible[:, None])[:, 0] < 1e-6,
                   matrix=composed(view.matrix, inverse))


def _from_two(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The two products, where a pixel of the result comes from no more than two on each axis: nearly all of what a CPU
    would multiply large pictures with is 0."""
    def pairs(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = (weights > 0).int().argmax(-1).clamp_(max=weights.shape[-1] - 2)
        return first, *(weights.gather(-1, (first + i)[..., None]) for i in (0, 1))

    (top, *vertical), (left, *horizontal) = pairs(rows), pairs(columns)
    result = torch.empty(*maps.shape[:2], rows.shape[1], columns.shape[1], dtype=torch.float64)
    for b, image in enumerate(maps):  # one at a time, so that it stays in the processor's cache
        tall = image.double()
        tall = (tall.index_select(1, top[b]).mul_(vertical[0][b])
                .addcmul_(tall.index_select(1, top[b] + 1), vertical[1][b])).mT.contiguous()
        result[b] = (tall.index_select(1, left[b]).mul_(horizontal[0][b])
                     .addcmul_(tall.index_select(1, left[b] + 1), horizontal[1][b])).mT
    return result


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
