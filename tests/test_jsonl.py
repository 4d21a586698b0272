"""Questions and answers that users bring: columns, patterns, files; and what every reader of rows refuses."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graft import config
from graft.config import parts, schema
from graft.errors import UserError
from graft.students._tiny_lm import make
from graft.tasks import gsm8k, jsonl
from graft.tasks._context import Context, choose, encode
from graft.tasks._text import Item
from small import environment

ROWS = [{"q": f"Capital of country {i}?", "a": f"Think. The answer is town {i}.", "rule": f"Be brief, {i % 3}.",
         "kind": "even" if i % 2 == 0 else "odd"} for i in range(40)]


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> str:
    return str(make(tmp_path_factory.mktemp("lm"), no_weights=True))


def write(file, rows) -> str:
    if file.suffix == ".parquet":
        with file.open("wb") as opened:  # its name may be no UTF-8
            pq.write_table(pa.Table.from_pylist(rows), opened)
    else:
        file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(file)


@pytest.fixture
def build(tmp_path, lm):
    """The task on ROWS; keyword arguments as in its configuration."""
    train = write(tmp_path / "mine.jsonl", ROWS)
    return lambda **args: jsonl.build(**{"tokenizer": lm, "train": train, "question": "q", "answer": "a", **args})


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_columns_groups_and_system_messages(build, tmp_path):
    test = write(tmp_path / "test.parquet", [{"q": "New?", "a": 5, "kind": "odd", "rule": "Be long."}])
    task = build(test=test, group="kind", system="rule", val_fraction=0.0)
    assert task.splits["train"].items[3] == Item(3, "Question: Capital of country 3?", *[ROWS[3]["a"]] * 2, "odd",
                                                 "Be brief, 0.")
    assert task.splits["test"].items == [Item(0, "Question: New?", "5", "5", "odd", "Be long.")]
    assert task.stop == ("\n\nQuestion:",) and "mine.jsonl" in task.data_id and "test.parquet" in task.data_id
    shown = task.prompt.tokenizer.decode(task.splits["test"].prompts[0])
    assert shown.startswith("<|im_start|>system\nBe long.<|im_end|>\n<|im_start|>user\nQuestion: New?<|im_end|>")
    assert {answer[-2] in "13579" for _, answer in choose(task, "test", 0, Context(shots=8))} == {True}
    assert build(test=test, prefix="").stop == () and build(layout="plain", test=test).prompt.layout == "plain"


def test_documents_are_a_column_that_the_student_never_reads(build, tmp_path):
    rows = [{**row, "text": f"About {i}."} for i, row in enumerate(ROWS)]
    file = write(tmp_path / "documents.jsonl", rows)
    task, bare = build(train=file, document="text", val_fraction=0.0), build(train=file, val_fraction=0.0)
    item = task.splits["train"].items[3]
    assert item.document == f"About {item.id}." and bare.splits["train"].items[3].document == ""
    assert task.fingerprints["train"] != bare.fingerprints["train"]
    assert task.splits["train"].prompts.flat.tolist() == bare.splits["train"].prompts.flat.tolist()
    seen = task.prompt.decode(encode(task, "train", [3], Context("document"))[0][0].tolist())
    assert f"About {item.id}.\n\n{item.question}" in seen
    assert "text: expected text" in refused(build, train=write(tmp_path / "no.jsonl", [*rows, {**ROWS[0], "text": ""}]),
                                            document="text")
    assert "control token" in refused(build, document="text", train=write(
        tmp_path / "bad.jsonl", [{**ROWS[0], "text": "a <|im_end|> b"}]))


def test_a_test_is_held_out_where_no_file_is_given(build, tmp_path, lm):
    task, again, other = build(test_fraction=0.25, val_fraction=0.2), build(test_fraction=0.25), build(split_seed=1)
    ids = {split: {item.id for item in task.splits[split].items} for split in task.splits}
    assert [len(ids[split]) for split in ("train", "val", "test")] == [24, 6, 10]
    assert set.union(*ids.values()) == set(range(40)) and task.overlap == 0
    assert ids["test"] == {item.id for item in again.splits["test"].items}
    assert [item.id for item in other.splits["test"].items] != [item.id for item in build().splits["test"].items]
    copies = [{**row, "q": row["q"].upper().replace(" ", "  ")} for row in ROWS]
    twice = write(tmp_path / "twice.jsonl", [*ROWS, *copies])
    task = build(train=twice, val_fraction=0.2, test_fraction=0.25)
    sides = [{item.id % 40 for item in split.items} for split in task.splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 40, "a question and its copy are on one side"
    assert "leaves nothing on one side" in refused(build, train=write(tmp_path / "few.jsonl", ROWS[:3]))


@pytest.mark.parametrize(("pattern", "answer", "gold", "right", "wrong"), [
    ("exact", "New  York", "New York", ["New York", " New\nYork "], ["new york", "York"]),
    ("number", "It is 5.\n#### 1,005", "1005", ["#### 1005", "1005", "$1,005.00"], ["#### 5", "5"]),
    ("number", "-7", "-7", ["-7", "−7", "#### -7"], ["7", "-7 or 8", "#### -7/2"]),
    ("boxed", r"So $\boxed{\frac12}$", r"\frac{1}{2}", [r"\boxed{1/2}"], ["1/2", r"\boxed{1"]),
    ("letter", "(C)", "C", ["C", "(C).", "The answer is (C)."], ["C or D", "The answer is (D)."]),
    (r"answer is (town \d+)", "The answer is town 5.", "town 5",
     ["So the answer is town 5", "answer is town 4; answer is town 5"], ["town 5", "Answer is town 5"]),
    ("yes|no", "no, yes", "yes", ["yes", "no yes"], ["YES"])])
def test_patterns_find_the_gold_and_judge_by_it(build, tmp_path, pattern, answer, gold, right, wrong):
    task = build(test=write(tmp_path / "one.jsonl", [{"q": "a", "a": answer}]), answer_pattern=pattern,
                 train=write(tmp_path / "other.jsonl", [{"q": "b", "a": answer}] * 3))
    assert task.splits["test"].items[0].gold == gold == task.extract(answer)[0]
    assert {task.extract(text)[0] for text in right} == {gold} and gold not in {task.extract(text)[0] for text in wrong}


def test_patterns_are_kind_where_they_are_flexible(build):
    task = build(answer_pattern=r"answer is (town \d+)")
    assert task.extract("ANSWER IS town 5") == ("", "town 5") and task.extract("answer is town 5") == ("town 5",) * 2
    assert "task.answer_pattern: '(' is no regular expression" in refused(build, answer_pattern="(")


@pytest.mark.parametrize(("pattern", "answer", "why"), [
    ("number", "#### 1/2", "expected a number and nothing else"), ("number", "#### 3e5", "nothing else"),
    ("number", "#### 7:30", "nothing else"), ("number", "1 1/2", "nothing else"),
    ("number", "#### 1,2", "nothing else"),
    ("number", "#### 18 million", "nothing else"), ("number", "5 or 6", "nothing else"),
    ("boxed", r"\boxed{1}, \boxed{2", "a result in a closed"), ("boxed", "5", "a result in a closed"),
    ("letter", "F", "a letter A to E"), ("letter", "A or B", "a letter A to E"),
    ("town (x)", "town 5", "a match of task.answer_pattern 'town (x)'")])
def test_a_gold_is_read_whole_or_named_with_file_and_row(build, tmp_path, pattern, answer, why):
    train = write(tmp_path / "bad.jsonl", [{"q": "c", "a": answer}])
    message = refused(build, train=train, answer_pattern=pattern)
    assert message.startswith(f"{train}:1: a: ") and why in message


def test_bad_rows_are_named_with_file_and_row(build, tmp_path):
    good = {"q": "a", "a": "b"}
    for bad, why in [('{"q": "bad \\ud83d here", "a": "b"}', "q: character 4 is half of a pair"),
                     ('{"q": "c", "a": "b \\udc00"}', "a: character 2 is half of a pair"),
                     ("[" * 100_000, "not JSON"), ('{"q": ' + "[" * 100_000, "not JSON"),
                     ('{"q": "a", "a": "b', "not JSON"),
                     ('{"q": 1e999, "a": "b"}', "q: expected text"), ('{"q": true, "a": "b"}', "q: expected text"),
                     ('{"q": "c", "a": ' + "9" * 5000 + "}", "not JSON"),
                     ('{"q": "c"}', "has no column 'a'; one of: q"),
                     ({"q": "<|im_end|>", "a": "b"}, "holds '<|im_end|>', which"),
                     ({"q": "c", "a": "b<|endoftext|>"}, "as a control token")]:
        train = write(tmp_path / "bad.jsonl", [good, "", bad])
        message = refused(build, train=train)
        assert message.startswith(f"{train}:3: ") and why in message, (str(bad)[:60], message[:300])
    train = write(tmp_path / "bad.parquet", [good, {"q": "c", "a": ""}])
    assert f"{train}: row 2: a: expected text" in refused(build, train=train)
    assert "has no column 'kind'; one of: a, q" in refused(build, train=train, group="kind")
    many = write(tmp_path / "many.jsonl", [{"q": "c", "a": int("9" * 400)}, {"q": "d", "a": "9" * 6000}])
    task = build(train=many, test=write(tmp_path / "t.jsonl", [good]), max_length=10_000, val_fraction=0)
    assert [len(item.gold) for item in task.splits["train"].items] == [400, 6000]


def test_files_are_the_ones_that_are_named(build, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")  # not UTF-8
    folder.mkdir()
    for i in range(3):
        write(folder / f"train-0000{i}-of-00003.parquet", ROWS[10 * i:10 * i + 10])
    write(folder / "train_old_backup.parquet", ROWS)
    task = build(train=str(folder / "train"), test_fraction=0.5)
    assert sum(len(split) for split in task.splits.values()) == 30
    (folder / "train-00001-of-00003.parquet").unlink()
    train = str(folder / "train")
    assert "train-00001-of-00003.parquet is missing; expected all 3 shards" in refused(build, train=train)
    write(folder / "train.parquet", ROWS)
    assert "is there more than once" in refused(build, train=train)
    assert "no such file" in refused(build, train=str(folder / "test"))
    (folder / "mine.txt").touch()
    assert "expected a .jsonl or .parquet file" in refused(build, train=str(folder / "mine.txt"))


def test_published_tasks_read_no_copies_and_miss_no_shard(tmp_path, lm):
    rows = [{"question": f"What is {i}?", "answer": f"#### {i}"} for i in range(20)]
    for name in ("train", "test", "train_old_backup", "train-copy"):
        write(tmp_path / f"{name}.parquet", rows)
    task = gsm8k.build(tokenizer=lm, root=str(tmp_path), val_fraction=0.0)
    assert len(task.splits["train"]) == 20 and task.overlap == 20
    (tmp_path / "train.parquet").rename(tmp_path / "train-00000-of-00002.parquet")
    assert "train-00001-of-00002.parquet is missing" in refused(gsm8k.build, tokenizer=lm, root=str(tmp_path))


def test_overlaps_are_counted_said_and_refused_unless_allowed(build, tmp_path):
    test = write(tmp_path / "test.jsonl", [{"q": "capital  of Country 7", "a": "x"}, {"q": "Other?", "a": "y"}])
    message = refused(build, test=test)
    assert message.startswith("task.allow_overlap: jsonl: 1 of 2 test questions also stand in train or val (item 0 of "
                              "test is item 7 of the training data")
    task = build(test=test, allow_overlap=True)
    assert task.overlap == 1 and "1 of 2 test questions also stand in train or val" in task.notes


def test_a_configuration_names_what_it_lacks(tmp_path):
    fields = schema.part_fields("tasks", "jsonl")
    assert fields["train"].default is schema.REQUIRED and fields["test"].default == ""
    base = tmp_path / "base.yaml"
    base.write_text("task: {name: jsonl, tokenizer: x, train: y, test_fraction: 0.9}\n"
                    "student: {name: causal_lm, model: x}\nobjective: [{name: ce}]\n")
    assert "task.test_fraction: must be (0, 0.5], got 0.9" in refused(config.load, [base])


WITHOUT = """
import importlib, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in ("torchvision", "timm") else PathFinder.find_spec(name, path, target)

if "absent" in sys.argv:
    sys.meta_path[sys.meta_path.index(PathFinder)] = Without
for name in sys.argv[2:]:
    importlib.import_module(name)
assert not {"torchvision", "timm"} & set(sys.modules), "imported"
"""


@pytest.mark.parametrize("how", ["present", "absent"])
def test_text_tasks_import_neither_torchvision_nor_timm(how):
    """The tasks of their own accord; transformers' models import torchvision where it is, and do without."""
    tasks = [f"graft.tasks.{name}" for name in schema.part_names("tasks")
             if schema.part_constant("tasks", name, "TEXT")]
    rest = ["students.causal_lm", "teachers.context_lm", "train_distill", "evaluation.generation"]
    modules = [*tasks, *(f"graft.{name}" for name in rest if how == "absent")]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT, how, *modules], env=environment(), text=True,
                          capture_output=True)
    assert done.returncode == 0 and len(tasks) >= 5, done.stderr
    assert parts.get("tasks", "jsonl") is jsonl.build
