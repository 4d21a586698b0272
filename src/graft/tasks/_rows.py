"""Reading questions and answers: JSONL or parquet files, local or at a commit of the Hugging Face hub."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graft.config.schema import nearest
from graft.errors import UserError
from graft.tasks import _prompts
from graft.tasks._files import data_root, from_hub, parquet_files
from graft.tasks._prompts import Prompt
from graft.tasks._text import Item, TextTask, text_task

Row = dict[str, Any]
Reader = Callable[[Row], tuple[str, ...]]  # a row's question, answer, gold[, group, system, document], or ValueError


@dataclass(frozen=True)
class Published:
    """What is known about a published data set before reading it."""

    name: str
    hub: str  # repository on the Hugging Face hub
    folder: str  # of the parquet files there
    files: dict[str, tuple[str, int]]  # of train and test: how file names begin, rows


def load(published: Published, source: str, root: str, revision: str, read: Reader,
         prompt: Prompt) -> tuple[dict[str, list[Item]], str]:
    """Items of train and test, and the data_id: which copy was read.

    auto reads the hub where a revision is given and the root has no data. Raises UserError if data are missing or
    damaged, with file and row.
    """
    folder, origin = data_root(root, published.name), "local"
    if source == "hub" or (source == "auto" and revision and not _files(published, folder, "train")):
        folder, origin = from_hub(published.name, published.hub, revision), f"{published.hub}@{revision[:7]}"
    split, notes = {}, [origin]
    for name, (stem, expected) in published.files.items():
        files = _files(published, folder, stem)
        if not files:
            raise UserError(_missing(published, folder, stem))
        split[name] = items(files, read, prompt)
        if len(split[name]) != expected:
            notes.append(f"{name} {len(split[name]):,} of {expected:,} rows")
    return split, f"{published.name} ({', '.join(notes)})"


def task(published: Published, read: Reader, extract: Callable[[str], tuple[str, str]], stop: str, *, source: str,
         root: str, revision: str, tokenizer: str, tokenizer_revision: str, layout: str, **split: Any) -> TextTask:
    """The task of a published data set; `stop` is the text that ends an answer, `split` as in `text_task`."""
    prompt = _prompts.load(tokenizer, tokenizer_revision, layout)
    found, data_id = load(published, source, root, revision, read, prompt)
    return text_task(published.name, data_id, found["train"], found["test"], prompt, extract=extract, stop=(stop,),
                     **split)


def _files(published: Published, folder: Path, stem: str) -> list[Path]:
    jsonl = folder / f"{stem}.jsonl"
    return [jsonl] if jsonl.is_file() else (parquet_files(folder, stem)
                                            or parquet_files(folder / published.folder, stem))


def _missing(published: Published, folder: Path, stem: str) -> str:
    return (f"{published.name}: no {stem} data in {folder}: expected {stem}.jsonl, or {stem}.parquet or its shards "
            f"{stem}-00000-of-… there or in {published.folder}/; set task.root or GRAFT_DATA (the folder above), or "
            f"get it with: hf download {published.hub} --repo-type dataset --local-dir {folder}")


def items(files: list[Path], read: Reader, prompt: Prompt) -> list[Item]:
    """Every row of the files, as `read` makes an item of it.

    Raises UserError with file and row where a row is damaged, `read` raises ValueError, or the item cannot be asked.
    """
    found: list[Item] = []
    for file in files:
        for where, row in _jsonl(file) if file.suffix == ".jsonl" else _parquet(file):
            try:
                item = Item(len(found), *read(row))
                prompt.check(_prompts.behind(item.document, item.question), item.answer, item.system)
            except ValueError as error:
                raise UserError(f"{where}: {error}") from None
            found.append(item)
    if not found:
        raise UserError(f"{files[0]}: no rows")
    return found


def _jsonl(file: Path) -> Iterator[tuple[str, Row]]:
    """Where a row stands, and the row."""
    with file.open("rb") as lines:  # bytes: a str would also be split at U+2028, which JSON allows inside text
        for number, line in enumerate(lines, 1):
            where = f"{file}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # the latter for brackets in brackets
                raise UserError(f"{where}: not JSON ({str(error).splitlines()[0]})") from None
            if not isinstance(row, dict):
                raise UserError(f"{where}: expected an object, got {str(row)[:60]}")
            yield where, row


def _parquet(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        with file.open("rb") as opened:  # not its name, which may be no UTF-8
            rows = pq.read_table(opened).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from None
    yield from ((f"{file}: row {number}", row) for number, row in enumerate(rows, 1))


def text(row: Row, key: str, numbers: bool = False) -> str:
    """The text at `key` of a row, without the space around it, which some chat templates drop and others keep.

    With `numbers` an integer is text, too. Raises ValueError if there is none.
    """
    if key not in row:
        raise ValueError(f"has no column {key!r}{nearest(key, [*row]) if row else ': the row is empty'}")
    value = row[key]
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}: expected text, got {str(value)[:60]!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key}: character {error.start} is half of a pair (lone surrogate); expected text") from None
    return value.strip()
