"""English inflection as a task: the table's forms, splits that share no word in any form, what is read of an answer."""

import gzip
import importlib.util
import sys
from pathlib import Path

import pytest

from graft.config import parts, schema
from graft.config.options import Part
from graft.errors import UserError
from graft.students import _tiny_lm
from graft.tasks import words

EVERY = list(words.RULES)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return str(_tiny_lm.make(tmp_path_factory.mktemp("lm") / "qwen3", "qwen3"))


def build(tokenizer: str, **changes):
    args = {key: field.default for key, field in schema.part_fields("tasks", "words").items()}
    return parts.build("tasks", Part("words", {**args, "tokenizer": tokenizer, **changes}))


def test_forms_are_those_of_the_table():
    table = words.forms()
    for rule, pairs in {"past": {"walk": "walked", "see": "saw", "take": "took"}, "ing": {"make": "making"},
                        "third": {"watch": "watches"}, "plural": {"child": "children"},
                        "comparative": {"big": "bigger", "happy": "happier"}}.items():
        assert pairs.items() <= table[rule].items(), rule
    assert not {"cut", "dream", "be"} & set(table["past"]), "the word itself, two spellings, two spellings"
    # the file read a second time, by hand
    file = Path(importlib.util.find_spec("lemminflect").submodule_search_locations[0]) / "resources/infl_lu.csv.gz"
    lines = [line.split(",") for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    adjectives = {line[0]: line[2] for line in lines if line[1] == "adj"
                  if line[2].isascii() and line[2].isalpha() and line[2].islower() and line[0].isalpha()
                  and line[0].islower() and min(len(line[0]), len(line[2])) >= 3 and line[0] != line[2]}
    assert table["comparative"] == adjectives


def test_no_word_stands_in_two_splits_in_any_form_or_rule(tokenizer):
    task = build(tokenizer, rules=EVERY, train=200, test=150, val_fraction=0.1)
    surfaces = {split: {text for item in task.splits[split].items for text in (item.question, item.answer)}
                for split in ("train", "test")}
    assert not surfaces["train"] & surfaces["test"]
    table = words.forms()
    held = words.test_words(table)
    for rule in EVERY:  # not only those drawn
        inside = {text for word, form in table[rule].items() if word in held for text in (word, form)}
        assert inside <= held and len(inside) > 300
    whole = {text for rule in EVERY for pair in table[rule].items() for text in pair}
    assert 0.35 < len(held) / len(whole) < 0.45
    assert [len(task.splits[split]) for split in ("train", "val", "test")] == [900, 100, 750] and task.overlap == 0
    assert {item.group for item in task.splits["test"].items} == set(EVERY)


def test_the_same_words_on_every_machine(tokenizer):
    one, other = build(tokenizer, test=20), build(tokenizer, rules=["plural", "past"], test=20)
    assert [item.question for item in one.splits["test"].items] == [
        item.question for item in other.splits["test"].items if item.group == "past"]
    assert [item.question for item in one.splits["test"].items[:4]] == ["tickle", "mass", "clue", "withdraw"]


@pytest.mark.parametrize(("text", "strict", "flexible"), [
    ("walked\n\nrun", "walked", "walked"), (" walked ", "walked", "walked"), ("Walked", "", "walked"),
    ("walked.", "", "walked"), ("walked home", "", "walked"), ("", "", ""), ("\nwalked", "", ""), ("42", "", "")])
def test_what_is_read_of_an_answer(text, strict, flexible):
    assert words.extract(text) == (strict, flexible)


def test_what_cannot_be_is_one_line(tokenizer, monkeypatch):
    for changes, match in (({"rules": ["past", "past"]}, "expected different ones"),
                           ({"rules": ["comparative"]}, r"task\.test: the rule comparative has \d+ words for test"),
                           ({"train": 10**6}, r"task\.train: the rule past has \d+ words for train, got 1000000")):
        with pytest.raises(UserError, match=match):
            build(tokenizer, **changes)
    monkeypatch.setitem(sys.modules, "lemminflect", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install lemminflect"):
        words.forms()
