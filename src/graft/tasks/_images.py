"""Decoding encoded images, and telling how they were encoded."""

import functools
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from graft.errors import UserError

# Luminance quantisation at quality 50 (ITU-T T.81, table K.1), row by row.
_STANDARD = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99])


def open_image(file: bytes | Path, mode: str, where: str) -> tuple[Image.Image, str]:
    """The image in Pillow's `mode` ("L" or "RGB"), and its encoding: "PNG", "JPEG q75".

    Raises `UserError` starting with `where` if it cannot be decoded to 8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            encoding = image.format
            if encoding == "JPEG":
                encoding += f" q{jpeg_quality(tuple(image.quantization[0]))}"
            stored = image.mode
            converted = image.convert(mode)
    except UnidentifiedImageError:
        raise UserError(f"{where}: is not an image that Pillow can read") from None
    except Exception as error:  # Pillow's decoders have no common error
        raise UserError(f"{where}: cannot be decoded: {error}") from None
    if stored[0] in "IF":  # convert() would clip them to white
        raise UserError(f"{where}: expected 8 bits per channel, got Pillow mode {stored}")
    return converted, encoding


@functools.cache
def jpeg_quality(table: tuple[int, ...]) -> int:
    """The quality, 1 to 100 in libjpeg's scale, whose luminance table is nearest to the 64 values (row by row)."""
    def distance(quality: int) -> int:
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        return int(abs(np.clip((_STANDARD * scale + 50) // 100, 1, 255) - np.array(table)).sum())

    return min(range(1, 101), key=distance)


def describe(encodings: Iterable[str]) -> str:
    """Encodings as one phrase: "PNG, lossless" or "JPEG q75, lossy" or "4 encodings, JPEG q60 to PNG, lossy"."""
    kinds = sorted(set(encodings))
    names = " + ".join(kinds) if len(kinds) <= 3 else f"{len(kinds)} encodings, {kinds[0]} to {kinds[-1]}"
    if any(kind.startswith("JPEG") for kind in kinds):
        return f"{names}, lossy"
    return f"{names}, lossless" if kinds == ["PNG"] else names
