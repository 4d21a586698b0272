"""Geometry: affine maps per sample, the image warps that follow them, and the same for token maps.

Coordinates are those of `View.matrix`: the origin is the image centre, the unit a pixel, x right, y down.

Nearest-neighbour warps differ from `torchvision.transforms.v2` only where two pixels are equally near, as under
shears such as 0.2: a rounding decides there, and it depends on the CPU. Where height and width are powers of two
up to 128 (CIFAR's 32, digits' 8) they are bit-equal; at 28 or 224 some shears are not. Bilinear ones differ by at
most one grey level, on fewer than one pixel in a thousand.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from graft.outputs import View, on_device

SNAP = 1e-4  # patches; a token centre this close to another counts as on it


def inverse_affine(*, angle=0.0, translate_x=0.0, translate_y=0.0, scale=1.0, shear_x=0.0, shear_y=0.0,
                   centre_x=0.0, centre_y=0.0) -> np.ndarray:
    """Maps from output to input, (B, 3, 3), of affine transforms as `torchvision`'s `F.affine` defines them.

    Input is sheared along x, then along y, scaled, rotated clockwise, all about the centre, and translated.
    Angles and shears in degrees, the rest in pixels; each a number or one number per sample.
    """
    values = (angle, translate_x, translate_y, scale, shear_x, shear_y, centre_x, centre_y)
    values = np.broadcast_arrays(*[np.atleast_1d(np.asarray(value, np.float64)) for value in values])
    angle, translate_x, translate_y, scale, shear_x, shear_y, centre_x, centre_y = values
    angle, shear_x, shear_y = np.deg2rad(angle), np.deg2rad(shear_x), np.deg2rad(shear_y)
    # the linear part [[a, b], [c, d]] has determinant 1 before scaling
    a = np.cos(angle - shear_y) / np.cos(shear_y)
    b = -a * np.tan(shear_x) - np.sin(angle)
    c = np.sin(angle - shear_y) / np.cos(shear_y)
    d = -c * np.tan(shear_x) + np.cos(angle)
    inverse = np.zeros((len(angle), 3, 3))
    inverse[:, 0, 0], inverse[:, 0, 1] = d / scale, -b / scale
    inverse[:, 1, 0], inverse[:, 1, 1] = -c / scale, a / scale
    inverse[:, 2, 2] = 1.0
    moved = np.stack([centre_x + translate_x, centre_y + translate_y], axis=1)
    inverse[:, :2, 2] = np.stack([centre_x, centre_y], axis=1) - np.einsum("bij,bj->bi", inverse[:, :2, :2], moved)
    return inverse


def _sources(inverse: np.ndarray, height: int, width: int, device: torch.device) -> Tensor:
    """Where each output pixel comes from: x and y, from -1 to 1 across the input, float32 (B, 2, H, W).

    No matrix product (TF32 would put pixels off by hundredths), and the roundings of `torchvision` on most CPUs,
    fma(y, b, x·a) + c, which decide for shears such as 0.2 and for 45 degrees between two pixels equally near.
    """
    half = np.array([[width], [height]]) / 2
    scaled = on_device(inverse[:, :2].astype(np.float32) / half.astype(np.float32), device, torch.float32)
    a, b, c = scaled[..., None, None].unbind(2)
    x = torch.arange(width, device=device) - (width - 1) / 2
    y = (torch.arange(height, device=device) - (height - 1) / 2)[:, None]
    return ((a * x).double() + b.double() * y.double()).float().add_(c)


def _nearest(images: Tensor, sources: Tensor) -> Tensor:
    """The pixels of images (B, C, H, W) nearest to the sources; 0 outside."""
    height, width = images.shape[-2:]
    column, row = ((sources[:, axis] + 1).mul_(length / 2).sub_(0.5).round_()
                   for axis, length in enumerate((width, height)))
    inner_column, inner_row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    inside = (inner_column == column).logical_and_(inner_row == row)
    position = inner_row.mul_(width).add_(inner_column).long().flatten(1)
    position = position[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, position).view_as(images).mul_(inside[:, None])


def _bilinear(images: Tensor, sources: Tensor) -> Tensor:
    """Bilinear samples of uint8 images (B, C, H, W) at the sources; 0 outside."""
    grid = sources.permute(0, 2, 3, 1)
    return F.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=False).round_().byte()


def warp(view: View, inverse: np.ndarray, rows: np.ndarray | None = None, interpolation: str = "nearest") -> View:
    """Move the images `rows` (all if None) by their maps `inverse` (n, 3, 3), output pixel to input pixel.

    What comes from outside is 0 and not visible.
    """
    device = view.inputs.device
    chosen = None if rows is None else on_device(rows, device, torch.int64)
    take = lambda whole: whole if rows is None else whole.index_select(0, chosen)  # noqa: E731
    put = lambda whole, part: part if rows is None else whole.index_copy(0, chosen, part)  # noqa: E731
    sources = _sources(inverse, *view.inputs.shape[-2:], device)
    sample = _nearest if interpolation == "nearest" else _bilinear
    view = replace(view, inputs=put(view.inputs, sample(take(view.inputs), sources)))
    if view.visible is None:
        return view
    visible = sample(take(view.visible)[:, None].byte() * 255, sources)[:, 0] == 255
    return replace(view, visible=put(view.visible, visible), matrix=composed(view.matrix, inverse, rows))


def composed(matrix: Tensor, inverse: np.ndarray, rows: np.ndarray | None = None) -> Tensor:
    """View-to-stored maps (B, 3, 3) after the views `rows` were resampled by `inverse`, new view to old."""
    matrix = matrix.clone()
    chosen = slice(None) if rows is None else torch.as_tensor(rows)
    matrix[chosen] = matrix[chosen] @ torch.as_tensor(inverse)
    return matrix


def move_tokens(tokens: Tensor, view_matrix: Tensor, visible: Tensor | None, grid: tuple[int, int],
                image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A token map of the stored image as it lies in the view: tokens (B, h·w, D) -> the same shape, (B, h·w) bool.

    A view token takes the bilinear sample of the stored map at the place where `view_matrix` (B, 3, 3) puts
    its centre. It is visible if that sample lies inside the map and all its pixels in `visible` (B, H, W)
    are; tokens that are not visible hold the nearest sample inside. Stored image and view have one size and one grid.
    """
    (h, w), (height, width) = grid, image_size
    assert tokens.shape[1] == h * w, f"{tokens.shape[1]} tokens do not form a {h}x{w} grid"
    matrix = view_matrix.float()
    x = (torch.arange(w, device=tokens.device) - (w - 1) / 2).repeat(h) * (width / w)
    y = (torch.arange(h, device=tokens.device) - (h - 1) / 2).repeat_interleave(w) * (height / h)
    # products written out: a matrix product may run in TF32
    column = (matrix[:, 0, :1] * x + matrix[:, 0, 1:2] * y + matrix[:, 0, 2:]) * (w / width) + (w - 1) / 2
    row = (matrix[:, 1, :1] * x + matrix[:, 1, 1:2] * y + matrix[:, 1, 2:]) * (h / height) + (h - 1) / 2
    column, row = _snapped(column), _snapped(row)
    inner_column, inner_row = column.clamp(0, w - 1), row.clamp(0, h - 1)
    seen = (inner_column == column) & (inner_row == row)
    if visible is not None:
        seen = seen & (F.adaptive_max_pool2d((~visible)[:, None].float(), grid).flatten(1) == 0)
    left, top = inner_column.floor(), inner_row.floor()
    # whole rows of (B·T, D) are copied; a gather would carry an index for every channel
    rows, first = tokens.float().flatten(0, 1), torch.arange(len(tokens), device=tokens.device)[:, None] * (h * w)
    moved = 0.0
    for ahead in (0, 1):
        for below in (0, 1):
            weight = (1 - (inner_column - left - ahead).abs()) * (1 - (inner_row - top - below).abs())
            place = (top + below).clamp(max=h - 1) * w + (left + ahead).clamp(max=w - 1)
            picked = rows.index_select(0, (place.long() + first).flatten()).view(*tokens.shape)
            moved = picked.mul_(weight[..., None]) + moved
    return moved.to(tokens.dtype), seen


def _snapped(position: Tensor) -> Tensor:
    nearest = position.round()
    return torch.where((position - nearest).abs() < SNAP, nearest, position)
