"""Reading published data sets (MNIST, CIFAR) from parquet files, torchvision's folder or the Hugging Face hub."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.utils import check_integrity

from graft.errors import UserError
from graft.tasks import _parquet
from graft.tasks._files import data_root, from_hub
from graft.tasks._parquet import Arrays, Columns


@dataclass(frozen=True)
class Source:
    """What is known about a published data set: its columns, as in `parquet_images`, and where to get it."""

    columns: Columns
    classes: list[str]
    rows: dict[str, int]  # of train and test
    hub: str  # repository on the Hugging Face hub, in the parquet layout
    torchvision: str  # torchvision's folder below the root
    files: list[tuple[str, str]]  # in that folder: name, md5
    read: Callable[[Path, str], Arrays]  # (root, "train" or "test") from torchvision's folder, once verified


def load(source: Source, kind: str, root: str, revision: str) -> tuple[dict[str, Arrays], str]:
    """Images and labels of train and test, and the data_id: which copy was read, whether it is lossy.

    Raises `UserError` if the data are missing, incomplete or damaged.
    """
    name = source.columns.name
    folder, origin = data_root(root, name), kind
    if kind == "hub":
        folder = from_hub(name, source.hub, revision)
        origin = f"{source.hub}@{revision[:7]}"
    elif kind == "auto":
        origin = "torchvision" if not _parquet.files_of(folder, "train") and (folder / source.torchvision).is_dir() \
            else "parquet"
    if origin == "torchvision":
        _verify(source, folder)
        return {split: source.read(folder, split) for split in ("train", "test")}, f"{name} (torchvision)"
    arrays, notes = {}, []
    for split, expected in source.rows.items():
        files = _parquet.files_of(folder, split)
        if not files:
            raise UserError(_missing(source, folder, split))
        images, labels, encoding = _parquet.read(source.columns, split, files, source.classes)
        arrays[split] = images, labels
        notes.append(encoding)
        if len(labels) != expected:
            notes.append(f"{split} {len(labels):,} of {expected:,} rows")
    return arrays, f"{name} ({origin}, {', '.join(dict.fromkeys(notes))})"


def _missing(source: Source, folder: Path, split: str) -> str:
    return (f"{source.columns.name}: no {split} data in {folder}: expected {split}.parquet or its shards "
            f"{split}-00000-of-… there or one folder down, or torchvision's {source.torchvision}/; set task.root or "
            f"GRAFT_DATA (the folder above), or get it with: "
            f"hf download {source.hub} --repo-type dataset --local-dir {folder}")


def _verify(source: Source, root: Path) -> None:
    """Refuse files whose md5 is not the published one: CIFAR's are pickles, which can run code."""
    name = source.columns.name
    for file, md5 in source.files:
        path = root / source.torchvision / file
        if not path.is_file():
            raise UserError(f"{name}: {path} is missing; get it with: "
                            f"hf download {source.hub} --repo-type dataset --local-dir {root}")
        if not check_integrity(path, md5):
            raise UserError(f"{name}: {path} is damaged: its md5 is not the published {md5}")
