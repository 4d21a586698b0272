"""Tasks of questions and answers: reading, splits, batches; oracles are written out by hand."""

import json
import random
import string

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from graft.students._tiny_lm import make
from graft.tasks import commonsenseqa, gsm8k, math
from graft.tasks._text import Item
from small import one_line

TRAIN, TEST = 60, 12


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> str:
    return str(make(tmp_path_factory.mktemp("lm"), no_weights=True))


@pytest.fixture(scope="module")
def plain_lm(tmp_path_factory) -> str:
    return str(make(tmp_path_factory.mktemp("lm"), "gemma3", plain=True, no_weights=True))


def rows(split: str, count: int) -> list[dict]:
    """Sums whose answers are all different and of different length."""
    first = 1000 * (split == "test")
    return [{"question": f"What is {first + i} plus {i}?",
             "answer": f"It is {'so very ' * (i % 7)}<<{first + i}+{i}={first + 2 * i}>>easy.\n#### {first + 2 * i:,}"}
            for i in range(count)]


def write(folder, train=None, test=None) -> str:
    folder.mkdir(exist_ok=True)
    for split, count, given in (("train", TRAIN, train), ("test", TEST, test)):
        lines = [json.dumps(row) for row in rows(split, count)] if given is None else given
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture
def build(tmp_path, lm):
    """The task on sixty sums; keyword arguments as in its configuration."""
    root = write(tmp_path / "sums")
    return lambda **args: gsm8k.build(**{"tokenizer": lm, "root": root, "val_fraction": 0.2, **args})


# ---------------------------------------------------------------------------------------------- reading

def test_gsm8k_reads_its_rows_as_they_stand(build):
    task = build(val_fraction=0.0)
    wanted = [Item(i, f"Question: What is {i} plus {i}?", rows("train", TRAIN)[i]["answer"], str(2 * i))
              for i in range(TRAIN)]
    assert task.splits["train"].items == wanted and task.splits["test"].items[3].gold == "1006"
    assert task.data_id == "gsm8k (local, train 60 of 7,473 rows, test 12 of 1,319 rows)"
    assert task.stop == ("\n\nQuestion:",) and task.extract("#### 1,006") == ("1006", "1006")
    assert all(task.extract(item.answer)[0] == item.gold for split in task.splits.values() for item in split.items)


def test_bad_rows_are_named_with_file_and_line(tmp_path, lm):
    good = json.dumps(rows("train", 1)[0])
    for bad, why in [('{"question": "a"', "not JSON"), ('["a"]', "expected an object"),
                     ('{"answer": "#### 1"}', "has no column 'question'"),
                     ('{"question": "a"}', "has no column 'answer'"),
                     ('{"question": "a", "answer": 5}', "answer: expected text"),
                     ('{"question": " ", "answer": "#### 5"}', "question: expected text"),
                     ('{"question": "a", "answer": "5"}', "expected a number after ####")]:
        root = write(tmp_path / "bad", train=[good, "", bad])
        message = one_line(gsm8k.build, tokenizer=lm, root=root)
        assert f"{root}/train.jsonl:3: " in message and why in message
    (tmp_path / "bad/train.jsonl").write_bytes(b'{"question": "\xff", "answer": "#### 1"}')
    assert "train.jsonl:1: not JSON" in one_line(gsm8k.build, tokenizer=lm, root=root)
    (tmp_path / "bad/train.jsonl").write_text("\n")
    assert "train.jsonl: no rows" in one_line(gsm8k.build, tokenizer=lm, root=root)
    assert "no train data in" in one_line(gsm8k.build, tokenizer=lm, root=str(tmp_path / "none"))


def test_a_line_separator_inside_text_is_no_end_of_line(tmp_path, lm):
    row = {"question": "a\u2028b", "answer": "c\n#### 1"}
    root = write(tmp_path / "odd", train=[json.dumps(row, ensure_ascii=False)] * 2)
    assert [item.question for item in gsm8k.build(tokenizer=lm, root=root, val_fraction=0.0).splits["train"].items] \
        == ["Question: a\u2028b"] * 2


def test_the_hub_is_read_at_a_pinned_commit(tmp_path, lm, monkeypatch):
    commit, asked = "0123456789abcdef" * 2 + "01234567", []
    (tmp_path / "hub/main").mkdir(parents=True)
    for split, count in (("train", TRAIN), ("test", TEST)):
        pq.write_table(pa.Table.from_pylist(rows(split, count)), tmp_path / f"hub/main/{split}-00000-of-00001.parquet")
    monkeypatch.setattr("huggingface_hub.snapshot_download",
                        lambda *args, **kw: asked.append((args, kw)) or tmp_path / "hub")
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path))
    hub = gsm8k.build(tokenizer=lm, source="hub", revision=commit)
    assert hub.data_id.startswith("gsm8k (openai/gsm8k@0123456, train 60 of 7,473")
    assert asked[0][0] == ("openai/gsm8k",) and asked[0][1]["revision"] == commit
    assert gsm8k.build(tokenizer=lm, revision=commit).data_id == hub.data_id
    assert "40 hex digits, got 'main'" in one_line(gsm8k.build, tokenizer=lm, source="hub", revision="main")
    local = gsm8k.build(tokenizer=lm, root=write(tmp_path / "sums"), revision=commit)
    assert len(asked) == 2 and "local" in local.data_id
    assert local.fingerprints == hub.fingerprints and local.fingerprint == hub.fingerprint
    (tmp_path / "hub/main/test-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert "not a readable parquet file" in one_line(gsm8k.build, tokenizer=lm, root=str(tmp_path / "hub"))


def test_math_asks_a_problem_and_its_gold_is_in_the_box(tmp_path, lm):
    solution = r"It is $\boxed{\dfrac{1}{2}}$."
    row = {"problem": "Half of $1$?", "level": "Level 1", "solution": f"{solution}\n", "type": "Algebra"}
    root = write(tmp_path / "math", train=[json.dumps(row)], test=[json.dumps(row)])
    task = math.build(tokenizer=lm, root=root)
    assert task.splits["test"].items == [Item(0, "Problem: Half of $1$?", solution, r"\frac{1}{2}")]
    assert task.extract(r"0.5 = \boxed{1/2}") == (r"\frac{1}{2}",) * 2
    root = write(tmp_path / "math", train=[json.dumps({**row, "solution": "5"})])
    assert r"train.jsonl:1: solution: expected a result in \boxed{}" in one_line(math.build, tokenizer=lm, root=root)


def test_commonsenseqa_lists_the_choices_and_is_scored_on_validation(tmp_path, lm):
    row = {"id": "x", "question": "Where?", "question_concept": "where", "answerKey": "C",
           "choices": {"label": list("ABCDE"), "text": ["here", "there", "up", "down", "in"]}}
    write(tmp_path / "cqa", train=[json.dumps(row)], test=[])
    (tmp_path / "cqa/validation.jsonl").write_text(json.dumps(row))
    task = commonsenseqa.build(tokenizer=lm, root=str(tmp_path / "cqa"))
    assert task.splits["test"].items == [Item(0, "Question: Where?\n(A) here\n(B) there\n(C) up\n(D) down\n(E) in",
                                              "The answer is (C).", "C")]
    assert task.extract("The answer is (C).") == ("C", "C")
    for change, why in [({"answerKey": "F"}, "answerKey: expected a letter"),
                        ({"answerKey": ""}, "answerKey: expected text"),
                        ({"choices": None}, "choices: expected label A to E"),
                        ({"choices": {**row["choices"], "text": 5}}, "choices: expected label A to E"),
                        ({"choices": {"label": ["A"], "text": ["a"]}}, "choices: expected label A to E")]:
        write(tmp_path / "cqa", train=[json.dumps({**row, **change})])
        assert f"train.jsonl:1: {why}" in one_line(commonsenseqa.build, tokenizer=lm, root=str(tmp_path / "cqa"))


# --------------------------------------------------------------------------------------- splits and batches

def test_splits_are_disjoint_complete_and_depend_on_their_seed_alone(build):
    first, again, other = build(), build(subset=20), build(split_seed=1)
    ids = {split: [item.id for item in first.splits[split].items] for split in ("train", "val")}
    assert len(ids["val"]) == 12 and sorted(ids["train"] + ids["val"]) == list(range(TRAIN))
    assert {item.id for item in again.splits["train"].items} < set(ids["train"]) and len(again.splits["train"]) == 20
    assert again.splits["val"].items == first.splits["val"].items != other.splits["val"].items


def test_too_much_is_refused_and_long_items_are_counted(build):
    assert "task.subset: gsm8k has 48 training items, got 49" in one_line(build, subset=49)
    assert "no training item of gsm8k fits 10 tokens" in one_line(build, max_length=10)
    full = build(max_length=1000)
    limit = int(full.splits["train"].lengths.median())  # the length of an item, which just fits
    short = build(max_length=limit)
    kept = [item for item in full.splits["train"].items if length(item) <= limit]
    assert 0 < len(kept) < 48 and short.splits["train"].items == kept and short.left_out == 48 - len(kept)
    assert full.left_out == 0 and len(short.splits["test"]) == TEST and short.fingerprint != full.fingerprint


def length(item: Item) -> int:
    """Tokens of a Qwen conversation in bytes: 5 around the question, 9 before the answer (6 of them an empty thought)
    and its end of turn."""
    return 5 + len(item.question.encode()) + 9 + len(item.answer.encode()) + 1


def test_lengths_are_those_of_the_rendered_text(build):
    split = build().splits["train"]
    assert split.lengths.tolist() == [length(item) for item in split.items]


@pytest.mark.parametrize("layout", ["chat", "plain"])
def test_rows_predict_the_answer_tokens(build, layout, plain_lm):
    """Walks each sequence token by token: whatever follows a position in `rows` is the next target."""
    task = build(**({} if layout == "chat" else {"tokenizer": plain_lm}))
    split, prompt = task.splits["train"], task.prompt
    order = [torch.tensor([5, 0, 17]), torch.tensor([2])]
    for index, (tokens, targets) in zip(order, split.batches(order)):
        width, flat = tokens.ids.shape[1], tokens.ids.flatten().tolist()
        assert tokens.ids.dtype == tokens.rows.dtype == targets.dtype == torch.int64
        assert tokens.index.tolist() == index.tolist() and tokens.split == "train"
        expected_rows, expected_targets = [], []
        for b, i in enumerate(index.tolist()):
            item = split.items[i]
            before = prompt.prompt_ids([((), item.question)])[0]
            answer = prompt.tokenizer(item.answer, add_special_tokens=False)["input_ids"] + prompt.end
            assert flat[b * width:(b + 1) * width] == before + answer + [0] * (width - len(before) - len(answer))
            expected_rows += [b * width + len(before) + j - 1 for j in range(len(answer))]
            expected_targets += answer
        assert tokens.rows.tolist() == expected_rows and targets.tolist() == expected_targets
        assert [flat[row + 1] for row in tokens.rows.tolist()] == targets.tolist()
        assert tokens.counts.tolist() == [len(split.items[i].answer.encode()) + 1 for i in index.tolist()]
        assert split.positions(index) == len(targets)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 4), (2, 3), (4, 2)])
def test_arranged_batches_are_the_same_items_of_like_length(build, world, accumulate):
    split, size = build(max_length=1000).splits["train"], 2
    index = torch.tensor(random.Random(3).sample(range(len(split)), world * accumulate * size))
    arranged = split.arrange(index, world, accumulate)
    assert sorted(arranged.tolist()) == sorted(index.tolist())
    assert arranged.tolist() == split.arrange(index.clone(), world, accumulate).tolist()
    micro = split.lengths[arranged].view(world, accumulate, size)
    for m in range(accumulate - 1):  # whatever is in a step of all processes is longer than the next step's
        assert micro[:, m].min() >= micro[:, m + 1].max()
    for r in range(world - 1):  # and within a step they are dealt in order
        assert (micro[r].min(dim=1).values >= micro[r + 1].max(dim=1).values).all()


def test_the_fingerprint_is_that_of_items_tokenizer_and_template(build, tmp_path, plain_lm):
    assert build().fingerprint == build().fingerprint
    changed = rows("train", TRAIN)
    changed[7]["answer"] = "#### 1"
    other = write(tmp_path / "other", train=[json.dumps(row) for row in changed])
    other_lm = str(make(tmp_path / "lm", characters=string.printable, no_weights=True))  # the same template
    changes = [{}, {"tokenizer": other_lm}, {"layout": "plain"}, {"tokenizer": plain_lm}, {"root": other},
               {"subset": 10}, {"split_seed": 1}]
    ids = [build(**change).fingerprint for change in changes]
    assert len(set(ids)) == len(ids)
    assert "has no chat template" in one_line(build, tokenizer=plain_lm, layout="chat")
