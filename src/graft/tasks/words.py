"""English inflection: a question is a word, the rule that its answer follows is visible only in worked examples.

`walk` -> `walked` where the examples before it are past tenses, `walks` where they are third persons. Nothing in a
question says which, so that a model without examples can only guess, and one that has read some can know: a few-shot
gap that is graded, on models of a hundred million parameters. The forms are those of lemminflect's table (B. Jascob,
MIT licence), after the SPECIALIST lexicon.
"""

import csv
import gzip
import importlib.util
import re
from pathlib import Path
from typing import Annotated

from graft import keyed
from graft.errors import UserError
from graft.tasks import _prompts
from graft.tasks._text import Item, TextTask, text_task

TEXT = True
# rule -> part of speech, and the column of its form after the word and the part of speech
RULES = {"past": ("verb", 0), "ing": ("verb", 2), "third": ("verb", 3), "plural": ("noun", 0),
         "comparative": ("adj", 0)}
TEST_SHARE = 0.4  # of the words, whatever is asked of them
_WORD = re.compile(r"[a-z]{3,}")


def build(*, tokenizer: Annotated[str, "", "folder with a tokenizer, or a model on the hub"],
          tokenizer_revision: Annotated[str, "", "the commit of that model; empty: its newest"] = "",
          layout: Annotated[str, "auto | chat | plain", "auto: the tokenizer's chat template, if it has one"] = "plain",
          rules: Annotated[list[str], "past | ing | third | plural | comparative",
                           "which forms; worked examples share the question's"] = ("past",),
          train: Annotated[int, "> 0", "training items of every rule, validation included"] = 420,
          test: Annotated[int, "> 0", "test items of every rule"] = 500,
          max_length: Annotated[int, "> 0", "tokens; longer training items are left out"] = 64,
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training items held out for validation"] = 0.05,
          split_seed: Annotated[int, ">= 0", "which items those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many items only; 0: all"] = 0) -> TextTask:
    """Words and their forms. Words of training and test are different ones, under every rule and in every form.

    Left out are words with two spellings of the form, with none, and those whose form is the word itself. Raises
    UserError for a rule given twice, or more items than there are.
    """
    if not rules or len(set(rules)) < len(rules):
        raise UserError(f"task.rules: expected different ones, got {list(rules)}")
    table = forms()
    held = test_words(table)
    pairs = {"train": [], "test": []}
    for rule in rules:
        for split, count in (("train", train), ("test", test)):
            own = [word for word in sorted(table[rule]) if (word in held) == (split == "test")]
            if count > len(own):
                raise UserError(f"task.{split}: the rule {rule} has {len(own)} words for {split}, got {count}")
            order = keyed.permutation(keyed.key("words", rule, split), len(own))[:count]
            pairs[split] += [(own[i], rule) for i in order.tolist()]
    items = {split: [Item(i, word, table[rule][word], table[rule][word], rule) for i, (word, rule) in enumerate(own)]
             for split, own in pairs.items()}
    return text_task("words", f"words (English inflection: {', '.join(rules)})", items["train"], items["test"],
                     _prompts.load(tokenizer, tokenizer_revision, layout), val_fraction=val_fraction,
                     split_seed=split_seed, subset=subset, max_length=max_length, extract=extract, stop=("\n",),
                     allow_overlap=False)


def forms() -> dict[str, dict[str, str]]:
    """rule -> word -> its one form. Raises UserError where the table's package is missing."""
    found = importlib.util.find_spec("lemminflect")  # not imported: that would load its models
    if found is None:
        raise UserError("task.name: words needs the lemminflect package: pip install lemminflect")
    file = Path(found.submodule_search_locations[0]) / "resources/infl_lu.csv.gz"
    table: dict[str, dict[str, str]] = {rule: {} for rule in RULES}
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        for word, part, *columns in csv.reader(lines):
            for rule, (of, place) in RULES.items():
                form = columns[place] if part == of and place < len(columns) else ""
                if _WORD.fullmatch(word) and _WORD.fullmatch(form) and form != word:
                    table[rule][word] = form
    return table


def test_words(table: dict[str, dict[str, str]]) -> set[str]:
    """The words that belong to the test: about `TEST_SHARE` of them, always the same.

    Words that are each other's forms (`lay` is one of `lie`), or share a form, are on one side.
    """
    parent: dict[str, str] = {}

    def root(word: str) -> str:
        while parent.setdefault(word, word) != word:
            parent[word] = parent[parent[word]]
            word = parent[word]
        return word

    for rule in RULES:
        for word, form in table[rule].items():
            a, b = sorted((root(word), root(form)))
            parent[b] = a
    families: dict[str, list[str]] = {}
    for word in sorted(parent):
        families.setdefault(root(word), []).append(word)
    alike, held = sorted(families.values()), set()
    for i in keyed.permutation(keyed.key("words", "test"), len(alike)).tolist():
        if len(held) >= TEST_SHARE * len(parent):
            break
        held.update(alike[i])
    return held


def extract(text: str) -> tuple[str, str]:
    """The first line, if it is one word; and whatever its first word is, in small letters."""
    line = text.split("\n", 1)[0].strip()
    first = re.search(r"[A-Za-z]+", line)
    return (line if _WORD.fullmatch(line) else ""), (first[0].lower() if first else "")
