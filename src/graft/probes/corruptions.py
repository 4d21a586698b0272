"""Common corruptions at five severities, after CIFAR-10-C, made here; and the views of test-time augmentation.

Noise, blur, contrast and JPEG have the parameters of Hendrycks, Dietterich 2019 (arXiv:1903.12261) for 32-pixel
images. Larger images are blurred and shifted in proportion. Pixels are rounded, where the published files are cut off.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.special import ndtri
from torch import Tensor, nn

from graft.errors import UserError
from graft.keyed import key, uniform
from graft.outputs import Outputs, on_device

NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation, of [0, 1]
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)  # standard deviation in pixels
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # what is left of it
JPEG = (80, 65, 58, 50, 40)  # quality
SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_SIZE = 32  # pixels


def corrupt(images: Tensor, name: str, severity: int, index: Tensor, seed: int = 0) -> Tensor:
    """Images uint8 (B, C, H, W) with a corruption, uint8; what is random depends on (seed, name, index (B,)) alone.

    Severities share their random numbers, so that they differ in strength only. Raises UserError for an unknown
    name or severity.
    """
    assert images.dtype == torch.uint8
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise UserError(f"corruption: expected one of {', '.join(CORRUPTIONS)} at severity 1 to 5, got {name} at "
                        f"{severity}")
    return CORRUPTIONS[name](images, severity - 1, np.asarray(index), key(seed, name))


def _scale(images: Tensor) -> float:
    return max(1.0, images.shape[-1] / REFERENCE_SIZE)


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).byte()


def _noise(images: Tensor, level: int, index: np.ndarray, base: int) -> Tensor:
    draws = uniform(base, index, images[0].numel()).clip(2.0**-54)
    normal = on_device(ndtri(draws), images.device, torch.float32).view_as(images)
    return _bytes(images + 255 * NOISE[level] * normal)


def _blur(images: Tensor, level: int, index: np.ndarray, base: int) -> Tensor:
    sigma = BLUR[level] * _scale(images)
    radius = int(4 * sigma + 0.5)
    kernel = torch.exp(-torch.arange(-radius, radius + 1, device=images.device) ** 2 / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    planes = images.float().flatten(0, 1)[:, None]
    for _ in (0, 1):  # along x, then transposed: along y
        planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel).transpose(2, 3)
    return _bytes(planes.view_as(images))


def _contrast(images: Tensor, level: int, index: np.ndarray, base: int) -> Tensor:
    mean = images.float().mean((2, 3), keepdim=True)
    return _bytes((images - mean) * CONTRAST[level] + mean)


def _jpeg(images: Tensor, level: int, index: np.ndarray, base: int) -> Tensor:
    results = np.empty(images.shape, np.uint8)
    for i, image in enumerate(images.cpu().numpy()):
        stored = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(stored, "JPEG", quality=JPEG[level])
        decoded = np.asarray(Image.open(stored))
        results[i] = decoded[None] if len(image) == 1 else decoded.transpose(2, 0, 1)
    return torch.from_numpy(results).to(images.device)


def _shift(images: Tensor, level: int, index: np.ndarray, base: int) -> Tensor:
    """By `severity`/32 of the width in one of eight directions; the border is repeated."""
    pixels = max(1, round((level + 1) * images.shape[-1] / REFERENCE_SIZE))
    direction = (uniform(base, index, 1)[:, 0] * 8).astype(int)
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    result = torch.empty_like(images)
    for k, (dy, dx) in enumerate(steps):
        rows = on_device(np.flatnonzero(direction == k), images.device, torch.int64)
        result[rows] = shifted(images[rows], dy * pixels, dx * pixels)
    return result


CORRUPTIONS: dict[str, Callable[[Tensor, int, np.ndarray, int], Tensor]] = {
    "gaussian_noise": _noise, "gaussian_blur": _blur, "contrast": _contrast, "jpeg": _jpeg, "shift": _shift}


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Images (B, C, H, W) moved by whole pixels; the border is repeated."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp(0, width - 1)
    return images[:, :, rows][:, :, :, columns]


class AveragedViews(nn.Module):
    """Test-time augmentation: a classifier whose probabilities are averaged over distinct views of each image.

    The views are the image and its shifts by one pixel in 32 up, down, left and right, with `flip` also their
    mirror images: 5 or 10. Mirror only where it keeps the class, as it does if the model was trained with flips.
    """

    def __init__(self, model: nn.Module, flip: bool):
        super().__init__()
        self.model, self.flip = model, flip
        self.train(model.training)

    def views(self, images: Tensor) -> list[Tensor]:
        """The views of images (B, C, H, W), the images themselves first."""
        step = max(1, round(images.shape[-1] / REFERENCE_SIZE))
        moved = [shifted(images, down, right) for down, right in
                 ((0, 0), (-step, 0), (step, 0), (0, -step), (0, step))]
        return moved + [view.flip(-1) for view in moved] if self.flip else moved

    def forward(self, images: Tensor) -> Outputs:
        """Logits (B, K) are the logarithms of the mean probabilities."""
        views = self.views(images)
        logs = torch.stack([self.model(view).logits.float().log_softmax(-1) for view in views])
        return Outputs(logs.logsumexp(0) - math.log(len(views)))
