"""Strings rewritten by a rule that only worked examples show: a task for language models trained in minutes on a CPU.

A question is four digits, its answer the same digits under a substitution table: `0123` -> `8631` by the table
`8631927045`. A new model cannot know which table holds for a question: without worked examples it can only guess among
those it has learned, and with some it can know. `documents` are texts to teach it that: worked examples of one table,
one after the other. With `by_digits` a question does say its table, in a way that only training shows.
"""

import itertools
import random
import re
from collections.abc import Sequence
from typing import Annotated

from graft.errors import UserError
from graft.keyed import key, permutation
from graft.tasks import _prompts
from graft.tasks._prompts import Prompt, Shot
from graft.tasks._text import Item, TextTask, text_task

TEXT = True
ALPHABET = "0123456789"
LENGTH = 4
# What is written for 0, 1, … 9: random permutations. Tables of which no two agree anywhere, such as d -> d + rule,
# are far harder to learn from documents: without the rule a digit then says nothing at all of what is written for it.
RULES = ("6192038745", "0314875269", "8631927045", "7851934260", "6139820475", "7684529301")
# Which of the 10,000 strings, in a random order that is always the same, belong to what.
SHARES = {"documents": slice(0, 6000), "train": slice(6000, 8000), "test": slice(8000, 10_000)}


def build(*, tokenizer: Annotated[str, "", "folder with a tokenizer, or a model on the hub"],
          tokenizer_revision: Annotated[str, "", "the commit of that model; empty: its newest"] = "",
          layout: Annotated[str, "auto | chat | plain", "auto: the tokenizer's chat template, if it has one"] = "auto",
          rules: Annotated[list[int], "[0, 5]", "which tables; worked examples share the question's"] = (
              0, 1, 2, 3, 4, 5),
          by_digits: Annotated[int, "[0, 4]", "questions: so many last digits say by their sum which table holds; 0: "
                               "each holds for each", "2026-11"] = 0,
          documents: Annotated[bool, "", "texts for pretraining instead of questions; layout plain"] = False,
          examples: Annotated[int, "[1, 1000]", "documents: worked examples in each"] = 9,
          train: Annotated[int, "> 0", "training items, validation included"] = 800,
          test: Annotated[int, "> 0", "test items"] = 500,
          max_length: Annotated[int, "> 0", "tokens; longer training items are left out"] = 512,
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training items held out for validation"] = 0.05,
          split_seed: Annotated[int, ">= 0", "which items those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many items only; 0: all"] = 0) -> TextTask:
    """Questions, or documents. The strings of documents, training and test questions are different ones.

    A document's prompt is its first question and its answer all that follows, so that a model is trained on every
    answer in it, the first included, in the very layout in which it will be asked. Raises UserError for a rule given
    twice, more items than there are, or documents in a chat.
    """
    if len(set(rules)) < max(1, len(rules)):
        raise UserError(f"task.rules: expected different ones, got {list(rules)}")
    prompt = _prompts.load(tokenizer, tokenizer_revision, layout)
    if documents:
        items = {"train": _documents(prompt, rules, examples, train, "train"),
                 "test": _documents(prompt, rules, examples, test, "test")}
    else:
        items = {split: _questions(rules, count, split, by_digits)
                 for split, count in (("train", train), ("test", test))}
    about = f"strings ({'documents' if documents else 'questions'}, rules {' '.join(RULES[rule] for rule in rules)})"
    return text_task("strings", about, items["train"], items["test"], prompt, val_fraction=val_fraction,
                     split_seed=split_seed, subset=subset, max_length=max_length, extract=extract, stop=("\n",))


def strings(share: str) -> list[str]:
    """The strings that documents, or questions of a split, are made of."""
    everything = ["".join(digits) for digits in itertools.product(ALPHABET, repeat=LENGTH)]
    return [everything[i] for i in permutation(key("strings"), len(everything))[SHARES[share]].tolist()]


def apply(rule: int, text: str) -> str:
    """The answer to a question under a rule."""
    return text.translate(str.maketrans(ALPHABET, RULES[rule]))


def extract(text: str) -> tuple[str, str]:
    """The first line, if it is nothing but digits."""
    line = text.split("\n", 1)[0]
    found = line if re.fullmatch(f"[{ALPHABET}]+", line) else ""
    return found, found


def _questions(rules: Sequence[int], count: int, split: str, by_digits: int) -> list[Item]:
    pairs = [(text, rule) for text in strings(split)
             for rule in ([rules[sum(map(int, text[-by_digits:])) % len(rules)]] if by_digits else rules)]
    if count > len(pairs):
        raise UserError(f"task.{split}: there are {len(pairs)} questions of {len(rules)} rules, got {count}")
    picked = random.Random(key("strings", split)).sample(pairs, count)
    return [Item(i, text, apply(rule, text), apply(rule, text), RULES[rule]) for i, (text, rule) in enumerate(picked)]


def _documents(prompt: Prompt, rules: Sequence[int], examples: int, count: int, split: str) -> list[Item]:
    if prompt.layout != "plain":
        raise UserError(f"task.layout: documents are plain text, got {prompt.layout}")
    known, draw = strings("documents"), random.Random(key("strings", "documents", split))
    items = []
    for i in range(count):
        rule = draw.choice(rules)
        shots: list[Shot] = [(text, apply(rule, text)) for text in draw.sample(known, examples)]
        question, rest = (prompt.text(shots[:-1], shots[-1][0]) + shots[-1][1]).split("\n", 1)
        items.append(Item(i, question, rest, shots[0][1], f"{split} {i}"))  # no other asks the same
    return items
