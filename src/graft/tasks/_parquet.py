"""Reading parquet files of images: two columns, one of encoded images and one of labels."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from graft.errors import UserError
from graft.tasks import _cache
from graft.tasks._files import parquet_files
from graft.tasks._images import describe, open_image, pixels, shown, square

LABELS = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, C, H, W), labels int64 (N,)


@dataclass(frozen=True)
class Columns:
    """What is read from the rows of a data set, and what its images become."""

    name: str  # of the data set, for messages
    image: Sequence[str]  # the first of these columns that is there: bytes, or a struct with a field bytes
    label: str
    channels: int
    size: int  # pixels, height and width
    resize: bool  # cut out the largest centred square and resize it; else another size is refused


def files_of(folder: Path, split: str) -> list[Path]:
    """The split's files in the folder, or else in one folder below it (the hub's layouts)."""
    if here := parquet_files(folder, split):
        return here
    below = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    found = {path: files for path in below if (files := parquet_files(path, split))}
    if len(found) > 1:
        raise UserError(f"{folder}: {split} is in several folders: {', '.join(path.name for path in found)}; set "
                        "task.root to one of them")
    return next(iter(found.values()), [])


def read(columns: Columns, split: str, files: list[Path], classes: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """Images (a read-only memory map of the cache), labels, and how the images were encoded.

    Raises `UserError` with file and row for what is missing or damaged, and labels that are none of `classes`.
    """
    labels = np.concatenate([_numbers(columns, file, classes) for file in files])
    if not len(labels):
        raise UserError(f"{columns.name}: {', '.join(map(str, files))}: no rows")
    how = repr((columns.image, columns.channels, columns.size, columns.resize))
    images, encoding = _cache.arrays(f"{columns.name}-{split}", files, how, lambda: _decode(columns, split, files))
    return images, labels, encoding


def class_names(columns: Columns, files: list[Path]) -> list[str]:
    """The classes as the files declare them (ClassLabel of the hub's metadata), else the labels that occur.

    Text labels are sorted; of numbers there are as many as the largest asks for.
    """
    with _open(files[0]) as parquet:
        metadata = parquet.schema_arrow.metadata or {}
    try:
        declared = json.loads(metadata[b"huggingface"])["info"]["features"][columns.label]["names"]
        if isinstance(declared, list) and all(isinstance(name, str) for name in declared):
            return declared
    except (KeyError, TypeError, ValueError):  # no such metadata
        pass
    values = [_column(columns, file) for file in files]
    if pa.types.is_integer(values[0].type):
        return [str(k) for k in range(1 + max((max(column.to_pylist(), default=-1) for column in values), default=-1))]
    return sorted({value for column in values for value in column.to_pylist()})


def first_size(columns: Columns, file: Path) -> int:
    """Height and width of the first image. Raises `UserError` unless they are one."""
    row = next(_rows(columns, file), None)
    where = f"{file}: row 0"
    if not row or not row[0]:
        raise UserError(f"{where}: has no image")
    image, _ = open_image(row[0], columns.channels, where)
    if image.width != image.height:
        raise UserError(f"{where}: {image.width}x{image.height} pixels; set task.size to cut out and resize squares")
    return image.width


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from None


def _have(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _column(columns: Columns, file: Path) -> pa.ChunkedArray:
    """The labels of a file: integers or text, none missing."""
    with _open(file) as parquet:
        schema = parquet.schema_arrow
        _image_column(columns, file, schema)
        kind = schema.field(columns.label).type if columns.label in schema.names else None
        if kind is None or not any(fits(kind) for fits in LABELS):
            raise UserError(f"{file}: expected a column {columns.label} of integers or text; got {_have(schema)}")
        try:
            column = parquet.read([columns.label])[columns.label]
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file}: damaged: {str(error).splitlines()[0]}") from None
    if column.null_count:
        raise UserError(f"{file}: {column.null_count} labels are missing")
    return column


def _numbers(columns: Columns, file: Path, classes: list[str]) -> np.ndarray:
    column = _column(columns, file)
    if pa.types.is_integer(column.type):
        labels = column.to_numpy().astype(np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        expected = f"0 to {len(classes) - 1}"
    else:
        number = {name: k for k, name in enumerate(classes)}
        labels = np.array([number.get(value, -1) for value in column.to_pylist()], np.int64)
        wrong, expected = np.flatnonzero(labels < 0), f"one of {', '.join(classes[:10])}"
    if len(wrong):
        raise UserError(f"{file}: row {wrong[0]}: label {column[int(wrong[0])]}, expected {expected}")
    return labels


def _image_column(columns: Columns, file: Path, schema: pa.Schema) -> str:
    for name in columns.image:
        if name in schema.names:
            kind = schema.field(name).type
            if _is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
                return name
    raise UserError(f"{file}: expected a column {' or '.join(columns.image)}, bytes or struct of bytes and path, and "
                    f"{columns.label}; got {_have(schema)}")


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _decode(columns: Columns, split: str, files: list[Path]) -> tuple[np.ndarray, str]:
    images, encodings, size = [], set(), columns.size
    for file in files:
        for data, path in _rows(columns, file):
            where = f"{columns.name} {split} image {len(images)} ({path or 'no path'} in {shown(file)})"
            if not data:
                raise UserError(f"{where}: has no bytes")
            image, encoding = open_image(data, columns.channels, where)
            if not columns.resize and image.size != (size, size):
                raise UserError(f"{where}: expected {size}x{size} pixels, got {image.width}x{image.height}")
            encodings.add(encoding)
            images.append(pixels(square(image, size) if columns.resize else image))
    return np.stack(images), describe(encodings)


def _rows(columns: Columns, file: Path) -> Iterator[tuple[bytes | None, str | None]]:
    """Bytes and path of each image, None where there is none."""
    with _open(file) as parquet:
        name = _image_column(columns, file, parquet.schema_arrow)
        batches = parquet.iter_batches(1000, columns=[name])
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{file}: damaged: {str(error).splitlines()[0]}") from None
            if batch is None:
                return
            for value in batch.column(name).to_pylist():
                yield (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
