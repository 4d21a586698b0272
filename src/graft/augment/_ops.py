"""The elementary operations of AutoAugment, RandAugment and TrivialAugment, each on its share of a batch.

Definitions and magnitudes are those of `torchvision.transforms.v2` for uint8 tensors, which is the tests' oracle
(version 1 rounds elsewhere). Three kinds: operations on single grey levels become one look-up table per image and
channel; Color, Sharpness and Hue compute; the rest are nearest-neighbour warps (`_warp` says how equal they are).
Arithmetic that torchvision does in one rounding (x + a·y) is done in float64 and rounded to float32 once, because
the result is cut off to an integer.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from graft.augment._warp import inverse_affine, warp
from graft.outputs import View, on_device

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
LEVELWISE = ("Brightness", "Contrast", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert")
SIGNED = (*GEOMETRIC, "Brightness", "Color", "Contrast", "Sharpness")


@functools.cache
def magnitudes(bins: int, height: int, width: int, wide: bool = False) -> dict[str, list[float]]:
    """The magnitudes that `bins` steps of each operation stand for; `wide`: the space of TrivialAugment."""
    ranges = {"ShearX": (0.0, 0.99 if wide else 0.3), "ShearY": (0.0, 0.99 if wide else 0.3),
              "TranslateX": (0.0, 32.0 if wide else 150.0 / 331.0 * width),
              "TranslateY": (0.0, 32.0 if wide else 150.0 / 331.0 * height),
              "Rotate": (0.0, 135.0 if wide else 30.0), "Solarize": (255.0, 0.0)}
    ranges |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.0, 0.99 if wide else 0.9))
    table = {name: torch.linspace(*ends, bins).tolist() for name, ends in ranges.items()}
    lost_bits = np.round(np.arange(bins) / ((bins - 1) / (6 if wide else 4)))
    return table | {"Posterize": (8 - lost_bits).tolist(),
                    **dict.fromkeys(("Identity", "AutoContrast", "Equalize", "Invert"), [0.0] * bins)}


def apply_ops(view: View, names: np.ndarray, magnitude: np.ndarray) -> View:
    """Apply to each image the operation that `names` (B,) says, with its `magnitude` (B,)."""
    rows = np.flatnonzero(np.isin(names, GEOMETRIC))
    if len(rows):
        view = warp(view, _inverse(names[rows], magnitude[rows], *view.inputs.shape[-2:]), rows)
    images = view.inputs.clone()
    for chosen, operation in ((LEVELWISE, _levelwise), (("Color",), _color), (("Sharpness",), _sharpness),
                              (("Hue",), _hue)):
        _put(images, operation, images, names, magnitude, np.isin(names, chosen))
    return replace(view, inputs=images)


def _put(results: Tensor, operation: Callable, images: Tensor, names: np.ndarray, magnitude: np.ndarray,
         chosen: np.ndarray) -> None:
    """Write `operation(images, names, magnitude)` into `results` (B, …) for the samples that are `chosen` (B,)."""
    rows = np.flatnonzero(chosen)
    if len(rows):
        place = on_device(rows, images.device, torch.int64)
        results.index_copy_(0, place, operation(images.index_select(0, place), names[rows], magnitude[rows]))


def _inverse(names: np.ndarray, magnitude: np.ndarray, height: int, width: int) -> np.ndarray:
    """The maps (n, 3, 3) of the geometric operations; shears are about the upper left corner."""
    where = lambda name, value=magnitude: np.where(names == name, value, 0.0)  # noqa: E731
    degrees = np.rad2deg(np.arctan(magnitude))
    shears = np.isin(names, ("ShearX", "ShearY"))
    return inverse_affine(angle=where("Rotate", -magnitude),
                          translate_x=where("TranslateX", np.trunc(magnitude)),
                          translate_y=where("TranslateY", np.trunc(magnitude)),
                          shear_x=where("ShearX", degrees), shear_y=where("ShearY", degrees),
                          centre_x=np.where(shears, -width / 2, 0.0), centre_y=np.where(shears, -height / 2, 0.0))


# ------------------------------------------------------------------------------- one level to one level

def _levelwise(images: Tensor, names: np.ndarray, magnitude: np.ndarray) -> Tensor:
    tables = on_device(_fixed_tables(names, magnitude), images.device, torch.uint8)
    tables = tables[:, None, :].repeat(1, images.shape[1], 1)
    for name, adaptive in (("Contrast", _contrast), ("AutoContrast", _autocontrast), ("Equalize", _equalize)):
        _put(tables, adaptive, images, names, magnitude, names == name)
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _fixed_tables(names: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Tables (n, 256) of the operations that do not look at the image."""
    level = np.arange(256)
    tables = np.zeros((len(names), 256), np.uint8)
    for name, table in (
            ("Invert", lambda value: 255 - level),
            ("Solarize", lambda value: np.where(level >= value, 255 - level, level)),
            ("Posterize", lambda value: level & (256 - (1 << 8 - value.astype(int)))),
            ("Brightness", lambda value: np.clip(level.astype(np.float32) * (1.0 + value).astype(np.float32), 0, 255))):
        rows = names == name
        tables[rows] = table(magnitude[rows, None])
    return tables


def _blend(images: Tensor, other: Tensor, magnitude: np.ndarray) -> Tensor:
    """`factor·images + (1 - factor)·other` with factor = 1 + magnitude, per sample, as uint8."""
    shape = (-1, *[1] * (images.ndim - 1))
    factor = on_device((1.0 + magnitude).reshape(shape), images.device, torch.float32)
    rest = on_device((1.0 - (1.0 + magnitude)).reshape(shape), images.device, torch.float32)
    return torch.addcmul((images * factor).double(), other.double(), rest.double()).float().clamp_(0, 255).byte()


def _grey(images: Tensor) -> Tensor:
    """Luma (n, 1, H, W), float32 whole levels."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]


def _contrast(images: Tensor, names: np.ndarray, magnitude: np.ndarray) -> Tensor:
    mean = _grey(images).mean(dim=(-3, -2, -1), keepdim=True)[..., 0]
    level = torch.arange(256, device=images.device).expand(len(images), images.shape[1], -1)
    return _blend(level, mean, magnitude)


def _autocontrast(images: Tensor, names: np.ndarray, magnitude: np.ndarray) -> Tensor:
    """Tables that stretch each channel to the whole range; a flat channel stays."""
    low, high = (end.float()[..., None] for end in images.flatten(2).aminmax(dim=2))
    flat = low == high
    low, scale = low.masked_fill(flat, 0), ((high - low) * (1 / 255)).masked_fill_(flat, 1)
    return torch.arange(256, device=images.device).sub(low).div_(scale).clamp_(0, 255).byte()


def _equalize(images: Tensor, names: np.ndarray, magnitude: np.ndarray) -> Tensor:
    """Tables that make each channel's histogram flat; a channel with too few levels below its largest stays."""
    pixels = images.flatten(2).long()
    one = torch.ones((), dtype=torch.int32, device=images.device)
    count = torch.zeros((*pixels.shape[:2], 256), dtype=torch.int32, device=images.device)
    count = count.scatter_add_(2, pixels, one.expand_as(pixels))
    below = count.cumsum(2, dtype=torch.int32) - count
    # pixels below the largest level present, shared out over 255 steps
    step = below.gather(2, pixels.amax(2, keepdim=True)).div_(255, rounding_mode="floor")
    tables = below.add_(step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    return torch.where(step > 0, tables, torch.arange(256, device=images.device, dtype=torch.int32)).byte()


# ------------------------------------------------------------------------------------------ computations

def _color(images: Tensor, names: np.ndarray, magnitude: np.ndarray) -> Tensor:
    return images if images.shape[1] == 1 else _blend(images, _grey(images), magnitude)


def _sharpness(images: Tensor, names: np.ndarray, magnitude: np.ndarray) -> Tensor:
    """Blend with the mean of the 3x3 neighbourhood in which the centre counts 5 times; the border stays."""
    height, width = images.shape[-2:]
    if height <= 2 or width <= 2:
        return images
    inner = images[..., 1:-1, 1:-1].float()
    rows = images[..., :-2].float() + images[..., 1:-1] + images[..., 2:]
    total = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :] + 4 * inner
    # whole numbers until the division by 13, whose result is never a half
    smooth = total.div_(13).round_()
    rest = on_device((1.0 - (1.0 + magnitude)).reshape(-1, 1, 1, 1), images.device, torch.float32).double()
    result = images.clone()
    result[..., 1:-1, 1:-1] = torch.addcmul(inner.double(), (smooth - inner).double(), rest).float().clamp_(0, 255)
    return result


def _hue(images: Tensor, names: np.ndarray, magnitude: np.ndarray) -> Tensor:
    """Turn the hue by `magnitude` of the full circle, in HSV."""
    if images.shape[1] == 1:
        return images
    pixels = images.float().div_(255)
    red, green, blue = pixels.unbind(1)
    low, value = pixels.aminmax(dim=1)
    spread = value - low
    divisor = spread.clamp(min=1e-6)
    hue = torch.where(value == red, (green - blue) / divisor,
                      torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor))
    hue = hue + on_device(6 * magnitude.reshape(-1, 1, 1), images.device, torch.float32)
    # each channel falls from value to value - spread and rises again around the circle of six
    phase = (hue[:, None] + torch.arange(5, 0, -2, device=images.device)[:, None, None]).remainder_(6)
    dip = torch.minimum(phase, 4 - phase).clamp_(0, 1)
    return (value[:, None] - spread[:, None] * dip).mul_(256 - 1e-3).byte()
