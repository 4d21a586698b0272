"""Finding and decoding images, and telling how they were encoded: one decoder for every folder, table and prediction.

An image is opened by one of Pillow's decoders for `FORMATS` (the first picture of several), turned upright as its
EXIF orientation says, laid on `BACKGROUND` where it is transparent, and only then made grey or RGB. `DECODER` is
part of what digests and caches are keyed by.
"""

import functools
import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from graft.errors import UserError

DECODER = 2  # raise it when what is decoded from the same bytes changes
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
BACKGROUND = "white"  # behind transparent pixels, whose own colour nobody sees

# Luminance quantisation at quality 50 (ITU-T T.81, table K.1), row by row.
_STANDARD = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99])


def open_image(file: bytes | Path, channels: int, where: str) -> tuple[Image.Image, str]:
    """The image as one sees it, grey (1 channel) or RGB (3), and its encoding: "PNG", "JPEG q75".

    Raises `UserError` starting with `where` if it cannot be decoded to 8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            encoding = image.format
            if encoding in ("JPEG", "MPO"):  # MPO: what some cameras write, a JPEG followed by others
                encoding = f"JPEG q{jpeg_quality(tuple(image.quantization[0]))}"
            stored = image.mode
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
            converted = image.convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise UserError(f"{where}: is not an image ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's decoders have no common error
        raise UserError(f"{where}: cannot be decoded: {error}") from None
    if stored[0] in "IF":  # convert() would clip them to white
        raise UserError(f"{where}: expected 8 bits per channel, got Pillow mode {stored}")
    return converted, encoding


def pixels(image: Image.Image) -> np.ndarray:
    """A grey or RGB image as uint8 `(C, H, W)`."""
    return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)


def square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square of an image, resized to `size` pixels; bicubic, antialiased where it shrinks."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def read_square(file: bytes | Path, channels: int, size: int, where: str) -> np.ndarray:
    """The `square` of an image file: uint8 `(C, size, size)`. Raises `UserError` as `open_image` does."""
    image, _ = open_image(file, channels, where)
    return pixels(square(image, size))


def refuse_endless(file: Path) -> None:
    """Raise UserError for what is there and no regular file: reading it may never end."""
    if file.exists() and not file.is_file():
        raise UserError(f"{shown(file)}: expected an image file, got a pipe, a device or a folder")


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Image files (by their suffix) in `folder` and in the folders below it, sorted, and the other files there.

    What is hidden (`.name`) is neither; links are followed, once. Raises UserError for an image that is a pipe or a
    device: reading it would never end.
    """
    files, seen = [], {os.path.realpath(folder)}
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")
                      and (real := os.path.realpath(os.path.join(here, name))) not in seen and not seen.add(real)]
        files += [Path(here, name) for name in names if not name.startswith(".")]
    images = {file for file in files if file.suffix.lower() in SUFFIXES}
    for file in images:
        refuse_endless(file)
    return sorted(images), sorted({*files} - images)


def shown(path: Path | str) -> str:
    """A path as text that can be printed and stored, also where its name is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


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
