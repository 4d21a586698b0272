"""Rectangles in images, one per sample."""

import numpy as np
import torch
from torch import Tensor

from graft.errors import UserError
from graft.outputs import on_device


def inside(boxes: np.ndarray, height: int, width: int, device: torch.device) -> Tensor:
    """Which pixels lie in boxes (B, 4) of top, bottom, left, right (ends excluded): (B, height, width) bool."""
    top, bottom, left, right = on_device(boxes[..., None], device, torch.int64).unbind(1)
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]


def around(centre_y: np.ndarray, centre_x: np.ndarray, half_height: np.ndarray | int, half_width: np.ndarray | int,
           height: int, width: int) -> np.ndarray:
    """Boxes (B, 4) about their centres, cut off at the border of the image."""
    ends = [np.clip(centre_y - half_height, 0, height), np.clip(centre_y + half_height, 0, height),
            np.clip(centre_x - half_width, 0, width), np.clip(centre_x + half_width, 0, width)]
    return np.stack(ends, axis=1).astype(np.int64)


def proposals(uniform: np.ndarray, scale: list[float], ratio: list[float], height: int, width: int,
              largest: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (B, 4) of random area and shape at random places, and whether one was found (B,).

    `uniform` (B, 2n + 2) gives n tries: the area is uniform in `scale` (as a part of the image), the aspect
    ratio height/width log-uniform in `ratio`; the first try that is at most `largest` (height, width) counts.
    """
    tries = uniform[:, 2:].reshape(len(uniform), -1, 2)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * tries[..., 0])
    aspect = np.exp(np.log(ratio[0]) + (np.log(ratio[1]) - np.log(ratio[0])) * tries[..., 1])
    tall, wide = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (tall > 0) & (wide > 0) & (tall <= largest[0]) & (wide <= largest[1])
    chosen = np.arange(len(uniform)), fits.argmax(axis=1)
    tall, wide = tall[chosen], wide[chosen]
    top = np.floor(uniform[:, 0] * (height - tall + 1))
    left = np.floor(uniform[:, 1] * (width - wide + 1))
    return np.stack([top, top + tall, left, left + wide], axis=1).astype(np.int64), fits.any(axis=1)


def check_range(key: str, values: list[float]) -> None:
    """Raises `UserError` unless values are [smallest, largest]."""
    if len(values) != 2 or values[0] > values[1]:
        raise UserError(f"augment.{key}: expected [smallest, largest], got {list(values)}")


def filled(images: Tensor, mask: Tensor, colour: list[float], key: str) -> Tensor:
    """uint8 images (B, C, H, W) with `colour`, in [0, 1], one number or one per channel, where mask (B, H, W).

    Raises `UserError` if the number of channels is another.
    """
    if len(colour) not in (1, images.shape[1]):
        raise UserError(f"augment.{key}: expected 1 or {images.shape[1]} numbers, got {len(colour)}")
    levels = on_device(np.round(np.array(colour) * 255), images.device, torch.uint8)
    return torch.where(mask[:, None], levels[:, None, None], images)
