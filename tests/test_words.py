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
from graft.tasks._context import Context, choose

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
    held = words.test_words(words.families(table))
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


def test_donors_are_other_rules_of_other_families_and_no_words_of_the_test(tokenizer):
    task = build(tokenizer, rules=["past"], donors=["ing", "plural"], test=100)
    bare = build(tokenizer, rules=["past"], test=100)
    assert task.fingerprints == bare.fingerprints and {item.group for item in task.donors} == {"ing", "plural"}
    table, family = words.forms(), words.families(words.forms())
    held, train = words.test_words(family), task.splits["train"]
    assert all({item.question, item.answer}.isdisjoint(held) for item in task.donors)
    assert family["lay"] == family["laid"] == family["laying"] and family["see"] == family["saw"] == family["saws"]
    shared = 0
    for i, item in enumerate(train.items):
        for question, answer in choose(task, "train", i, Context("other_group", 8)):
            rule = next(rule for rule in ("ing", "plural") if table[rule].get(question) == answer)
            assert rule and family[question] != family[item.question]
        shared += any(family[item.question] == donor.family for donor in task.donors)
    assert shared > 50, "there were some to be left out"


def test_regular_forms_follow_the_rules_of_spelling(tokenizer):
    for rule, yes, no in [("past", "walk bake cry stop play", "see cut go take"), ("ing", "walk bake cry stop lie", ""),
                          ("third", "watch cry play fix", "have be"), ("plural", "city lobby", "child man"),
                          ("comparative", "big happy nice tall", "good bad")]:
        form = words.forms()[rule]
        assert all(words.regular(word, form[word], rule) for word in yes.split()), rule
        assert not any(words.regular(word, form[word], rule) for word in no.split() if word in form), rule
    past = words.forms()["past"]
    traits = [words._item(0, word, past[word], "past", "").traits for word in ("walk", "bake", "stop", "cry", "sell")]
    assert [dict(one)["form"] for one in traits] == ["regular", "regular", "respelt", "respelt", "irregular"]
    assert [dict(item.traits)["letters"] for item in build(tokenizer, test=20).splits["test"].items[:4]] == [
        "5 to 6", "3 to 4", "3 to 4", "7 to 8"]


@pytest.mark.parametrize(("text", "strict", "flexible"), [
    ("walked\n\nrun", "walked", "walked"), (" walked ", "walked", "walked"), ("Walked", "", "walked"),
    ("walked.", "", "walked"), ("walked home", "", "walked"), ("", "", ""), ("\nwalked", "", ""), ("42", "", "")])
def test_what_is_read_of_an_answer(text, strict, flexible):
    assert words.extract(text) == (strict, flexible)


def test_what_cannot_be_is_one_line(tokenizer, monkeypatch):
    for changes, match in (({"rules": ["past", "past"]}, "expected different ones"),
                           ({"rules": ["comparative"]}, r"task\.test: the rule comparative has \d+ words for test"),
                           ({"donors": ["past"]}, "none of task.donors"),
                           ({"train": 10**6}, r"task\.train: the rule past has \d+ words for train, got 1000000")):
        with pytest.raises(UserError, match=match):
            build(tokenizer, **changes)
    monkeypatch.setitem(sys.modules, "lemminflect", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install lemminflect"):
        words.forms()
