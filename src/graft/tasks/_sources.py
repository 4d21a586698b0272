"""Reading MNIST and CIFAR-10 from parquet files, from torchvision's folder or from the Hugging Face hub."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torchvision.datasets.utils import check_integrity

from graft.errors import UserError
from graft.tasks import _cache
from graft.tasks._files import data_root, from_hub
from graft.tasks._images import describe, open_image, pixels

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, C, H, W), labels int64 (N,)


@dataclass(frozen=True)
class Source:
    """What is known about a published data set before reading it."""

    name: str
    classes: int
    shape: tuple[int, int, int]  # channels, height, width
    rows: dict[str, int]  # of train and test
    hub: str  # repository on the Hugging Face hub, in the parquet layout
    torchvision: str  # torchvision's folder below the root
    files: list[tuple[str, str]]  # in that folder: name, md5
    read: Callable[[Path, str], Arrays]  # (root, "train" or "test") from torchvision's folder, once verified


def load(source: Source, kind: str, root: str, revision: str) -> tuple[dict[str, Arrays], str]:
    """Images and labels of train and test, and the data_id: which copy was read, whether it is lossy.

    Raises `UserError` if the data are missing, incomplete or damaged.
    """
    folder, origin = data_root(root, source.name), kind
    if kind == "hub":
        folder = from_hub(source.name, source.hub, revision)
        origin = f"{source.hub}@{revision[:7]}"
    elif kind == "auto":
        origin = "torchvision" if not _parquet_files(folder, "train") and (folder / source.torchvision).is_dir() \
            else "parquet"
    if origin == "torchvision":
        _verify(source, folder)
        return {split: source.read(folder, split) for split in ("train", "test")}, f"{source.name} (torchvision)"
    arrays, notes = {}, []
    for split, expected in source.rows.items():
        files = _parquet_files(folder, split)
        if not files:
            raise UserError(_missing(source, folder, split))
        images, labels, encoding = _read_parquet(source, split, files)
        arrays[split] = images, labels
        notes.append(encoding)
        if len(labels) != expected:
            notes.append(f"{split} {len(labels):,} of {expected:,} rows")
    return arrays, f"{source.name} ({origin}, {', '.join(dict.fromkeys(notes))})"


def _missing(source: Source, folder: Path, split: str) -> str:
    return (f"{source.name}: no {split} data in {folder}: expected {split}*.parquet there or one folder down, or "
            f"torchvision's {source.torchvision}/; set task.root or GRAFT_DATA (the folder above), or get it with: "
            f"hf download {source.hub} --repo-type dataset --local-dir {folder}")


# ------------------------------------------------------------------------------------------- parquet

def _parquet_files(folder: Path, split: str) -> list[Path]:
    """`train*.parquet` in the folder, or else in one folder below it (the hub's layouts)."""
    here = sorted(folder.glob(f"{split}*.parquet"))
    below = sorted(folder.glob(f"*/{split}*.parquet"))
    if not here and len({path.parent for path in below}) > 1:
        raise UserError(f"{folder}: {split}*.parquet is in several folders: "
                        f"{', '.join(sorted({path.parent.name for path in below}))}; set task.root to one of them")
    return here or below


def _read_parquet(source: Source, split: str, files: list[Path]) -> tuple[np.ndarray, np.ndarray, str]:
    """Images (a read-only memory map of the cache), labels, and how the images were encoded."""
    labels = np.concatenate([_labels(source, file) for file in files])
    if not len(labels):
        raise UserError(f"{source.name}: {', '.join(map(str, files))}: no rows")
    images, encoding = _cache.arrays(f"{source.name}-{split}", files, str(source.shape),
                                     lambda: _decode(source, split, files))
    return images, labels, encoding


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from None


def _image_column(file: Path, schema: pa.Schema) -> str:
    for name in ("img", "image"):
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return name
    raise UserError(f"{file}: expected a column img or image, struct of bytes and path, and label; "
                    f"got {', '.join(f'{field.name}: {field.type}' for field in schema)}")


def _labels(source: Source, file: Path) -> np.ndarray:
    with _open(file) as parquet:
        _image_column(file, parquet.schema_arrow)
        if "label" not in parquet.schema_arrow.names or not pa.types.is_integer(
                parquet.schema_arrow.field("label").type):
            raise UserError(f"{file}: expected an integer column label; got "
                            f"{', '.join(f'{field.name}: {field.type}' for field in parquet.schema_arrow)}")
        column = parquet.read(["label"])["label"]
    if column.null_count:
        raise UserError(f"{file}: {column.null_count} labels are missing")
    labels = column.to_numpy().astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= source.classes))
    if len(wrong):
        raise UserError(f"{file}: row {wrong[0]}: label {labels[wrong[0]]}, expected 0 to {source.classes - 1}")
    return labels


def _decode(source: Source, split: str, files: list[Path]) -> tuple[np.ndarray, str]:
    channels, height, width = source.shape
    images, encodings = [], set()
    for file in files:
        for row in _rows(file):
            where = f"{source.name} {split} image {len(images)} ({row.get('path') or 'no path'} in {file})"
            if not row.get("bytes"):
                raise UserError(f"{where}: has no bytes")
            image, encoding = open_image(row["bytes"], channels, where)
            if image.size != (width, height):
                raise UserError(f"{where}: expected {width}x{height} pixels, got {image.width}x{image.height}")
            encodings.add(encoding)
            images.append(pixels(image))
    return np.stack(images), describe(encodings)


def _rows(file: Path) -> Iterator[dict]:
    """The structs of the image column, an empty one where it is null."""
    with _open(file) as parquet:
        name = _image_column(file, parquet.schema_arrow)
        batches = parquet.iter_batches(1000, columns=[name])
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{file}: damaged: {str(error).splitlines()[0]}") from None
            if batch is None:
                return
            yield from (row or {} for row in batch.column(name).to_pylist())


# ----------------------------------------------------------------------------------------- torchvision

def _verify(source: Source, root: Path) -> None:
    """Refuse files whose md5 is not the published one: CIFAR-10's are pickles, which can run code."""
    for name, md5 in source.files:
        path = root / source.torchvision / name
        if not path.is_file():
            raise UserError(f"{source.name}: {path} is missing; get it with: "
                            f"hf download {source.hub} --repo-type dataset --local-dir {root}")
        if not check_integrity(path, md5):
            raise UserError(f"{source.name}: {path} is damaged: its md5 is not the published {md5}")
