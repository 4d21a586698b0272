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
SUFFIXES = {"past": "ed", "ing": "ing", "third": "s", "plural": "s", "comparative": "er"}
TEST_SHARE = 0.4  # of the words, whatever is asked of them
_WORD = re.compile(r"[a-z]{3,}")


def build(*, tokenizer: Annotated[str, "", "folder with a tokenizer, or a model on the hub"],
          tokenizer_revision: Annotated[str, "", "the commit of that model; empty: its newest"] = "",
          layout: Annotated[str, "auto | chat | plain", "auto: the tokenizer's chat template, if it has one"] = "plain",
          rules: Annotated[list[str], "past | ing | third | plural | comparative",
                           "which forms; worked examples share the question's"] = ("past",),
          train: Annotated[int, "> 0", "training items of every rule, validation included"] = 420,
          test: Annotated[int, "> 0", "test items of every rule"] = 500,
          donors: Annotated[list[str], "past | ing | third | plural | comparative",
                            "other rules, for the teacher's context other_group alone: up to as many of the training "
                            "side's words as `train`", "", "2026-11"] = (),
          max_length: Annotated[int, "> 0", "tokens; longer training items are left out"] = 64,
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training items held out for validation"] = 0.05,
          split_seed: Annotated[int, ">= 0", "which items those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many items only; 0: all"] = 0) -> TextTask:
    """Words and their forms. Words of training and test are different ones, under every rule and in every form.

    Left out are words with two spellings of the form, with none, and those whose form is the word itself. An item's
    traits are `form` (regular, respelt: regular but for the spelling where suffix and word meet, irregular; see
    `regular`) and `letters`, of the word. Raises UserError for a rule given twice, or more items
    than there are.
    """
    if not rules or len({*rules, *donors}) < len(rules) + len(donors):
        raise UserError(f"task.rules: expected different ones, none of task.donors, got {list(rules)} and "
                        f"{list(donors)}")
    table = forms()
    family = families(table)
    held = test_words(family)
    pairs = {"train": [], "test": []}
    for rule in rules:
        for split, count in (("train", train), ("test", test)):
            own = [word for word in sorted(table[rule]) if (word in held) == (split == "test")]
            if count > len(own):
                raise UserError(f"task.{split}: the rule {rule} has {len(own)} words for {split}, got {count}")
            order = keyed.permutation(keyed.key("words", rule, split), len(own))[:count]
            pairs[split] += [(own[i], rule) for i in order.tolist()]
    for rule in donors:
        own = [word for word in sorted(table[rule]) if word not in held]
        order = keyed.permutation(keyed.key("words", rule, "train"), len(own))[:train]
        pairs.setdefault("donors", []).extend((own[i], rule) for i in order.tolist())
    items = {split: [_item(i, word, table[rule][word], rule, family[word]) for i, (word, rule) in enumerate(own)]
             for split, own in pairs.items()}
    return text_task("words", f"words (English inflection: {', '.join(rules)})", items["train"], items["test"],
                     _prompts.load(tokenizer, tokenizer_revision, layout), val_fraction=val_fraction,
                     split_seed=split_seed, subset=subset, max_length=max_length, extract=extract, stop=("\n",),
                     allow_overlap=False, donors=items.get("donors", ()))


def _item(i: int, word: str, form: str, rule: str, family: str) -> Item:
    letters = next(f"{low} to {low + 1}" for low in (3, 5, 7) if len(word) < low + 2) if len(word) < 9 else "9 or more"
    plain = form.removeprefix(word) in (SUFFIXES[rule], SUFFIXES[rule][1:], "es")  # walk-ed, bake-d, watch-es
    kind = "irregular" if not regular(word, form, rule) else "regular" if plain else "respelt"
    return Item(i, word, form, form, rule, family=family, traits=(("form", kind), ("letters", letters)))


def regular(word: str, form: str, rule: str) -> bool:
    """Whether the form is the word with the rule's suffix by the rules of spelling.

    These are: a final e falls away (`bake` -> `baked`, `baking`; `ie` -> `y` before ing), y after a consonant becomes
    i or ie (`cry` -> `cried`, `cries`), a final consonant may be doubled (`stop` -> `stopped`), and s is es after a
    hissing sound or o (`watch` -> `watches`).
    """
    suffix, stems = SUFFIXES[rule], {word}
    if suffix == "s":
        stems |= {word + "e"} if re.search(r"([sxzo]|ch|sh)$", word) else set()
        stems |= {word[:-1] + "ie"} if re.search(r"[^aeiou]y$", word) else set()
        return form in {stem + suffix for stem in stems}
    stems |= {word[:-1]} if word.endswith("e") else {word + word[-1]}
    stems |= {word[:-1] + "i"} if suffix != "ing" and re.search(r"[^aeiou]y$", word) else set()
    stems |= {word[:-2] + "y"} if suffix == "ing" and word.endswith("ie") else set()
    return form in {stem + suffix for stem in stems}


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


def families(table: dict[str, dict[str, str]]) -> dict[str, str]:
    """word or form -> the first word of its family: words that are each other's forms (`lay` is one of `lie`), or share
    a form, under any rule."""
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
    return {word: root(word) for word in sorted(parent)}


def test_words(family: dict[str, str]) -> set[str]:
    """The words that belong to the test: whole families, about `TEST_SHARE` of all words, always the same."""
    together: dict[str, list[str]] = {}
    for word, first in family.items():
        together.setdefault(first, []).append(word)
    alike, held = sorted(together.values()), set()
    for i in keyed.permutation(keyed.key("words", "test"), len(alike)).tolist():
        if len(held) >= TEST_SHARE * len(family):
            break
        held.update(alike[i])
    return held


def extract(text: str) -> tuple[str, str]:
    """The first line, if it is one word; and whatever its first word is, in small letters."""
    line = text.split("\n", 1)[0].strip()
    first = re.search(r"[A-Za-z]+", line)
    return (line if _WORD.fullmatch(line) else ""), (first[0].lower() if first else "")
