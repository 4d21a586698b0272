"""Your own questions and answers: local JSONL or parquet files with columns of any name."""

import re
from pathlib import Path
from typing import Annotated

from graft import keyed
from graft.errors import UserError
from graft.tasks import _prompts, _rows
from graft.tasks._answers import Gold, by_pattern
from graft.tasks._files import parquet_files
from graft.tasks._text import Item, TextTask, divide, text_task

TEXT = True


def build(*, tokenizer: Annotated[str, "", "folder with a tokenizer, or a model on the hub"],
          train: Annotated[str, "", "file of the training items, .jsonl or .parquet; or the beginning of the names of "
                                    "parquet shards, as in data/train for data/train-00000-of-00002.parquet"],
          test: Annotated[str, "", "the same for the test items; empty: some of train's are held out"] = "",
          test_fraction: Annotated[float, "(0, 0.5]", "part of train held out for the test, without a file"] = 0.1,
          question: Annotated[str, "", "column of the questions"] = "question",
          answer: Annotated[str, "", "column of the answers, worked out as a model is to write them"] = "answer",
          group: Annotated[str, "", "column; worked examples come from the question's group; empty: from all"] = "",
          system: Annotated[str, "", "column of system messages; empty: none"] = "",
          document: Annotated[str, "", "column of texts that only a teacher with context document reads; empty: none",
                              "", "2026-11"] = "",
          answer_pattern: Annotated[str, "", "what of an answer is compared: exact (all of it), number (alone or after "
                                             "####), boxed, letter (A to E, alone or in 'answer is (A)'), or a regular "
                                             "expression (its first group, if it has one)"] = "exact",
          prefix: Annotated[str, "", "written before every question; a blank line and this also end an answer"]
          = "Question: ",
          tokenizer_revision: Annotated[str, "", "the commit of that model; empty: its newest"] = "",
          layout: Annotated[str, "auto | chat | plain", "auto: the tokenizer's chat template, if it has one"] = "auto",
          max_length: Annotated[int, "> 0", "tokens; longer training items are left out"] = 512,
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training items held out for validation"] = 0.05,
          split_seed: Annotated[int, ">= 0", "which items are held out"] = 0,
          subset: Annotated[int, ">= 0", "train on that many items only; 0: all"] = 0,
          allow_overlap: Annotated[bool, "", "test questions may also stand in train; they are counted"] = False,
          ) -> TextTask:
    """Rows of questions and answers. What `answer_pattern` finds in an answer is its gold, which evaluation wants back.

    Raises UserError naming file and row where a column is missing or empty, or the pattern finds nothing in an answer.
    """
    try:
        extract, gold = by_pattern(answer_pattern)
    except re.error as error:
        raise UserError(f"task.answer_pattern: {answer_pattern!r} is no regular expression ({error}); expected one, or "
                        "exact, number, boxed or letter") from None
    prompt = _prompts.load(tokenizer, tokenizer_revision, layout)

    def read(row: _rows.Row) -> tuple[str, ...]:
        asked, answered = (_rows.text(row, column, numbers=True) for column in (question, answer))
        return (prefix + asked, answered, _gold(answered, gold, answer, answer_pattern),
                *(_rows.text(row, column, numbers=True) if column else "" for column in (group, system, document)))

    items = {"train": _rows.items(_files("train", train), read, prompt)}
    if test:
        items["test"] = _rows.items(_files("test", test), read, prompt)
    else:
        items = _held_out(items["train"], test_fraction, split_seed, train)
    about = f"jsonl ({_name(train)}, {_name(test) if test else f'{test_fraction:g} of it held out for test'})"
    return text_task("jsonl", about, items["train"], items["test"], prompt, val_fraction=val_fraction,
                     split_seed=split_seed, subset=subset, max_length=max_length, extract=extract,
                     stop=(f"\n\n{prefix.rstrip()}",) if prefix.strip() else (), allow_overlap=allow_overlap)


def _gold(text: str, gold: Gold, column: str, pattern: str) -> str:
    if found := gold(text):
        return found
    wanted = {"number": "a number and nothing else, alone or after ####", "boxed": "a result in a closed \\boxed{}",
              "letter": "a letter A to E, alone or in 'answer is (A)'"}
    raise ValueError(f"{column}: expected {wanted.get(pattern, f'a match of task.answer_pattern {pattern!r}')}, got "
                     f"{text[-60:]!r}")


def _files(key: str, given: str) -> list[Path]:
    """The file `given`, or the parquet shards whose names begin so."""
    path = Path(given)
    if path.is_file():
        if path.suffix not in (".jsonl", ".parquet"):
            raise UserError(f"task.{key}: {given}: expected a .jsonl or .parquet file")
        return [path]
    if files := parquet_files(path.parent, path.name) if path.name else []:
        return files
    raise UserError(f"task.{key}: {given}: no such file; expected a .jsonl or .parquet file, or the beginning of the "
                    "names of parquet shards")


def _held_out(items: list[Item], fraction: float, split_seed: int, file: str) -> dict[str, list[Item]]:
    held, kept = divide(items, fraction, keyed.key(split_seed, "test"))
    if not held or not kept:
        raise UserError(f"task.test_fraction: {fraction:g} of {len(items)} items of {file} leaves nothing on one side; "
                        "expected more items, or a file for task.test")
    return {"train": [items[i] for i in sorted(kept)], "test": [items[i] for i in sorted(held)]}


def _name(file: str) -> str:
    return Path(file).name.encode("utf-8", "backslashreplace").decode()
