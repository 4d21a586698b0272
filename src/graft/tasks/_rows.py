"""Reading questions and answers: JSONL or parquet files, local or at a commit of the Hugging Face hub."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graft.errors import UserError
from graft.tasks import _prompts
from graft.tasks._files import data_root, from_hub
from graft.tasks._text import Item, TextTask, text_task

Row = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """What is known about a published data set before reading it."""

    name: str
    hub: str  # repository on the Hugging Face hub
    folder: str  # of the parquet files there
    files: dict[str, tuple[str, int]]  # of train and test: how file names begin, rows


def load(published: Published, source: str, root: str, revision: str,
         read: Callable[[Row], tuple[str, str, str]]) -> tuple[dict[str, list[Item]], str]:
    """Items of train and test, and the data_id: which copy was read. `read` makes question, answer and gold of a row.

    auto reads the hub where a revision is given and the root has no data. Raises UserError if data are missing or
    damaged, or `read` raises ValueError, with file and row.
    """
    folder, origin = data_root(root, published.name), "local"
    if source == "hub" or (source == "auto" and revision and not _files(published, folder, "train")):
        folder, origin = from_hub(published.name, published.hub, revision), f"{published.hub}@{revision[:7]}"
    items, notes = {}, [origin]
    for split, (stem, expected) in published.files.items():
        files = _files(published, folder, stem)
        if not files:
            raise UserError(_missing(published, folder, stem))
        items[split] = _items(files, read)
        if len(items[split]) != expected:
            notes.append(f"{split} {len(items[split]):,} of {expected:,} rows")
    return items, f"{published.name} ({', '.join(notes)})"


def task(published: Published, read: Callable[[Row], tuple[str, str, str]], extract: Callable[[str], tuple[str, str]],
         stop: str, *, source: str, root: str, revision: str, tokenizer: str, tokenizer_revision: str, layout: str,
         **split: Any) -> TextTask:
    """The task of a published data set; `stop` is the text that ends an answer, `split` as in `text_task`."""
    items, data_id = load(published, source, root, revision, read)
    return text_task(published.name, data_id, items["train"], items["test"],
                     _prompts.load(tokenizer, tokenizer_revision, layout), extract=extract, stop=(stop,), **split)


def _files(published: Published, folder: Path, stem: str) -> list[Path]:
    jsonl = folder / f"{stem}.jsonl"
    return [jsonl] if jsonl.is_file() else (sorted(folder.glob(f"{stem}*.parquet"))
                                            or sorted((folder / published.folder).glob(f"{stem}*.parquet")))


def _missing(published: Published, folder: Path, stem: str) -> str:
    return (f"{published.name}: no {stem} data in {folder}: expected {stem}.jsonl, or {stem}*.parquet there or in "
            f"{published.folder}/; set task.root or GRAFT_DATA (the folder above), or get it with: "
            f"hf download {published.hub} --repo-type dataset --local-dir {folder}")


def _items(files: list[Path], read: Callable[[Row], tuple[str, str, str]]) -> list[Item]:
    items = []
    for file in files:
        for where, row in _jsonl(file) if file.suffix == ".jsonl" else _parquet(file):
            try:
                items.append(Item(len(items), *read(row)))
            except ValueError as error:
                raise UserError(f"{where}: {error}") from None
    if not items:
        raise UserError(f"{files[0]}: no rows")
    return items


def _jsonl(file: Path) -> Iterator[tuple[str, Row]]:
    """Where a row stands, and the row."""
    with file.open("rb") as lines:  # bytes: a str would also be split at U+2028, which JSON allows inside text
        for number, line in enumerate(lines, 1):
            where = f"{file}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where}: not JSON ({str(error).splitlines()[0]})") from None
            if not isinstance(row, dict):
                raise UserError(f"{where}: expected an object, got {str(row)[:60]}")
            yield where, row


def _parquet(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from None
    yield from ((f"{file}: row {number}", row) for number, row in enumerate(rows, 1))


def text(row: Row, key: str) -> str:
    """The text at `key` of a row, without the space around it, which some chat templates drop and others keep.

    Raises ValueError if there is none.
    """
    if key not in row:
        raise ValueError(f"has no {key}; expected it besides {', '.join(row) or 'nothing'}")
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f"{key}: expected text, got {str(row[key])[:60]!r}")
    return row[key].strip()
