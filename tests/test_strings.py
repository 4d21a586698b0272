"""The task of strings: its rules, its splits, its documents; and the demo that is made of it."""

import itertools
import re

import pytest

from graft import config
from graft.config import study
from graft.config.study.graph import Asked, Graph
from graft.errors import UserError
from graft.students._tiny_lm import make
from graft.tasks import strings
from graft.tasks._context import Context, choose, encode
from small import ROOT

ANSWERS = ("9785", "1259", "3075", "5240", "3405", "8391")  # to 2769, looked up by hand, in the order of strings.RULES


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(make(tmp_path_factory.mktemp("lm"), characters=strings.ALPHABET, plain=True, no_weights=True))


@pytest.fixture(scope="module")
def build(folder):
    return lambda **args: strings.build(**{"tokenizer": folder, "train": 60, "test": 20, **args})


def test_rules():
    assert tuple(strings.apply(rule, "2769") for rule in range(6)) == ANSWERS
    assert [strings.extract(text)[0] for text in ("1234\n\n5678\n", "12", "", "\n1234", "12a4", "1234 ")] == [
        "1234", "12", "", "", "", ""]


def test_strings_of_documents_and_splits_are_different_ones(build):
    shares = [set(strings.strings(share)) for share in strings.SHARES]
    everything = {"".join(digits) for digits in itertools.product("0123456789", repeat=4)}
    assert set.union(*shares) == everything and sum(map(len, shares)) == len(everything) == 10_000
    task, documents = build(rules=[1, 3], train=1500), build(documents=True)
    items = {split: task.splits[split].items for split in ("train", "val", "test")}
    assert [len(items[split]) for split in items] == [1425, 75, 20]
    used = {split: {item.question for item in items[split]} for split in items}
    read = {line for split in documents.splits.values() for item in split.items
            for line in f"{item.question}\n{item.answer}".split("\n\n") for line in line.split("\n")[:1]}
    assert not used["test"] & (used["train"] | used["val"]) and len(read) > 300
    assert not read & (used["test"] | used["train"] | used["val"])
    assert len({(item.question, item.group) for item in [*items["train"], *items["val"]]}) == 1500
    for item in itertools.chain(*items.values()):
        assert item.answer == item.gold == strings.apply(strings.RULES.index(item.group), item.question)
        assert item.group in (strings.RULES[1], strings.RULES[3])
        assert task.extract(item.answer) == (item.gold, item.gold)


def test_a_questions_last_digits_say_its_table(build):
    task = build(rules=[4, 0, 2], by_digits=2, train=300)
    for item in itertools.chain(*(split.items for split in task.splits.values())):
        assert item.group == strings.RULES[(4, 0, 2)[(int(item.question[2]) + int(item.question[3])) % 3]]
        assert item.answer == strings.apply(strings.RULES.index(item.group), item.question)
    items = task.splits["train"].items
    assert len({item.question for item in items}) == len(items) and len({item.group for item in items}) == 3


def test_a_document_is_what_a_model_reads_before_the_last_answer_when_asked(build):
    """Worked examples of one rule, in the layout and with the end that evaluation has."""
    task, asked = build(documents=True, examples=4), build(rules=[2])
    split, rules = task.splits["train"], set()
    for i, item in enumerate(split.items):
        pairs = [tuple(pair.split("\n")) for pair in f"{item.question}\n{item.answer}".split("\n\n")]
        assert len(pairs) == len({question for question, _ in pairs}) == 4
        (rule,) = (rule for rule in range(6) if all(
            answer == strings.apply(rule, question) for question, answer in pairs))
        rules.add(rule)
        whole = [*split.prompts[i].tolist(), *split.answers[i].tolist()]
        assert whole == task.prompt.prompt_ids([(pairs[:-1], pairs[-1][0])])[0] + task.prompt.answer_ids(
            [pairs[-1][1]])[0]
        assert split.prompts[i].tolist() == task.prompt.prompt_ids([((), item.question)])[0], "the first answer counts"
    assert rules == set(range(6))
    ids, _ = encode(asked, "test", [0], Context(shots=3))
    assert len(ids[0]) == 3 * 11 + 5 and len(split.prompts[0]) + len(split.answers[0]) == 3 * 11 + 5 + 5


def test_worked_examples_show_the_questions_rule(build):
    task = build(train=300)
    for i, item in enumerate(task.splits["test"].items):
        shots = choose(task, "test", i, Context(shots=4))
        rule = strings.RULES.index(item.group)
        assert len(shots) == 4 and all(answer == strings.apply(rule, question) for question, answer in shots)


def test_the_same_items_again(build):
    assert build().fingerprint == build().fingerprint
    assert len({build(**args).fingerprint for args in (
        {}, {"rules": [1]}, {"documents": True}, {"documents": True, "examples": 3}, {"train": 61})}) == 5


def test_what_is_refused(build, tmp_path_factory):
    for args, why in [({"rules": [1, 1]}, "task.rules"), ({"rules": []}, "task.rules"),
                      ({"rules": [1], "train": 2001}, "task.train: there are 2000 questions of 1 rules, got 2001"),
                      ({"test": 12_001}, "task.test")]:
        with pytest.raises(UserError, match=re.escape(why)):
            build(**args)
    chat = str(make(tmp_path_factory.mktemp("chat"), no_weights=True))
    with pytest.raises(UserError, match=r"task\.layout: documents are plain text, got chat"):
        strings.build(tokenizer=chat, documents=True)
    assert strings.build(tokenizer=chat, train=30, test=5).prompt.layout == "chat"
    with pytest.raises(UserError, match=r"task\.rules"):
        config.load([ROOT / "configs/base/strings_qwen3.yaml"], ["task.rules=[6]"])


# ------------------------------------------------------------------------------------------------- demo

def test_the_demos_conditions(monkeypatch):
    monkeypatch.chdir(ROOT)
    graph = Graph(study.load("demo_language"), Asked(seeds=(0, 1)))
    runs = {(name.split("/")[0], job.config.seed): job.config for name, job in graph.jobs.items() if job.kind == "run"}
    conditions = {name for name, _ in runs}
    assert conditions == {"pretrain", "baseline", "distill", "kd_only", "zeroshot_teacher", "shuffled_answers",
                          "kd_only_zeroshot", "kd_only_shuffled"} and len(runs) == 15
    for (name, seed), cfg in runs.items():
        if name == "pretrain":
            continue
        changed = {key for key, _, _ in config.difference(runs["baseline", seed], cfg)}
        assert {key.split(".")[0] for key in changed} <= {"method", "teacher", "objective"}
        assert cfg.student.args["model"] == str(runs["pretrain", 0].run_dir)
        assert cfg.task.args["tokenizer"] == runs["pretrain", 0].student.args["model"]
        weights = {term.name: term.weight for term in cfg.objective}
        assert (weights["ce"] == 0) == name.startswith("kd_only")
        if name != "baseline":
            assert weights["topk"] > 0 and cfg.teacher.args["context"] == {
                "zeroshot": "zeroshot", "zeroshot_teacher": "zeroshot", "shuffled": "shuffled_answers",
                "shuffled_answers": "shuffled_answers"}.get(name.removeprefix("kd_only_"), "fewshot")
