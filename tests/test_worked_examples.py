"""Worked examples before a question: whose they are, what each condition changes, what is dropped for want of room."""

import hashlib
import itertools
import json
import random
from collections import Counter

import pytest

from graft.config import schema
from graft.students._tiny_lm import make
from graft.tasks import _context, _other_texts, _prompts
from graft.tasks._answers import number
from graft.tasks._context import Context, choose, derangement, encode
from graft.tasks._text import Item, TextTask, text_task
from small import one_line


@pytest.fixture(scope="module")
def prompt(tmp_path_factory) -> _prompts.Prompt:
    return _prompts.load(str(make(tmp_path_factory.mktemp("lm"), no_weights=True)))


def small_task(prompt: _prompts.Prompt, train: list[Item], test: list[Item], val_fraction: float = 0.0) -> TextTask:
    return text_task("small", "small (made here)", train, test, prompt, val_fraction=val_fraction, split_seed=0,
                     subset=0, max_length=1000, extract=number)


def sums(first: int, count: int) -> list[Item]:
    """Questions whose answers are all different."""
    return [Item(i, f"What is {first + i} plus {i}?", f"It is {'so very ' * (i % 7)}<<{first + 2 * i}>>easy.",
                 str(first + 2 * i)) for i in range(count)]


@pytest.fixture(scope="module")
def task(prompt) -> TextTask:
    return small_task(prompt, sums(0, 60), sums(1000, 12), val_fraction=0.2)


KINDS = [Context(kind, 4) for kind in ("fewshot", "zeroshot", "shuffled_answers", "wrong_shots", "random_shots")]


def pairs(task, split="train") -> dict[str, str]:
    return {item.question: item.answer for item in task.splits[split].items}


def test_single_words_are_scrambled_by_letters(task, prompt):
    for before in ("Question: ", ""):  # the same before every question has no order either
        words = [Item(i, f"{before}{chr(97 + i)}ord{i:03}", f"form{i:03}ed", f"form{i:03}ed", "") for i in range(30)]
        single = small_task(prompt, words, [], val_fraction=0.2)
        said = one_line(choose, single, "train", 0, Context("random_shots", 4))
        assert "single words" in said and "random_letters" in said
    plain, mixed = (choose(single, "train", 0, Context(kind, 4)) for kind in ("fewshot", "random_letters"))
    assert mixed != plain and mixed == choose(single, "train", 0, Context("random_letters", 4))
    for shot, other in zip(plain, mixed, strict=True):
        assert [sorted(text) for text in shot] == [sorted(text) for text in other]
    assert choose(task, "train", 0, Context("random_shots", 4)) != choose(task, "train", 0, Context("fewshot", 4))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_worked_examples_are_other_training_items(task, split):
    seen = Counter()
    for i, item in enumerate(task.splits[split].items):
        shots = choose(task, split, i, Context("fewshot", 8))
        assert len({question for question, _ in shots}) == 8 and item.question not in dict(shots)
        assert all(pairs(task)[question] == answer for question, answer in shots)
        seen.update(question for question, _ in shots)
    assert split != "train" or len(seen) == 48  # every item is an example for somebody
    assert choose(task, split, 0, Context("zeroshot", 8)) == choose(task, split, 0, Context("fewshot", 0)) == []


def test_worked_examples_depend_on_item_and_seed_alone(task, prompt):
    again = small_task(prompt, sums(0, 60), [], val_fraction=0.2)
    for i in range(48):
        of_item = {seed: choose(task, "train", i, Context("fewshot", 8, seed)) for seed in (42, 43, 99)}
        random.seed(i)
        assert of_item == {seed: choose(again, "train", i, Context("fewshot", 8, seed)) for seed in (99, 43, 42)}
        assert of_item[42] != of_item[99]
    turned = small_task(prompt, sums(0, 60), sums(1000, 12)[::-1], val_fraction=0.2)
    of_test = [choose(task, "test", i, Context("fewshot", 8)) for i in range(12)]
    assert of_test == [choose(turned, "test", 11 - i, Context("fewshot", 8)) for i in range(12)]  # not its place
    assert len({json.dumps(shots) for shots in of_test}) == 12


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_conditions_change_what_they_say_and_nothing_else(task, split):
    for i, item in enumerate(task.splits[split].items):
        few, zero, shuffled, wrong, scrambled = (choose(task, split, i, context) for context in KINDS)
        questions = [question for question, _ in few]
        assert zero == [] and questions == [q for q, _ in shuffled] == [q for q, _ in wrong]
        assert sorted(a for _, a in shuffled) == sorted(a for _, a in few)
        assert all(answer != pairs(task)[question] for question, answer in shuffled)
        assert not {a for _, a in wrong} & {item.answer, *(pairs(task)[q] for q in questions)}
        assert {a for _, a in wrong} <= set(pairs(task).values())
        for (q, a), (mixed_q, mixed_a) in zip(few, scrambled):
            assert sorted(mixed_q.split(" ")) == sorted(q.split(" "))
            assert sorted(mixed_a.split(" ")) == sorted(a.split(" "))
    assert any(few[k] != scrambled[k] for k in range(4))


def test_worked_examples_come_from_the_items_group(prompt):
    items = [Item(i, f"q {i}", f"a {i}", "", "even" if i % 2 == 0 else "odd") for i in range(20)]
    task = small_task(prompt, items, [Item(0, "qt", "at", "", "odd"), Item(1, "qu", "au", "", "new")])
    for i, item in enumerate(task.splits["train"].items):
        for context in KINDS:
            for question, answer in choose(task, "train", i, context):
                numbers = [int(word) for word in f"{question} {answer}".split() if word.isdigit()]
                assert len(numbers) == 2 and {number % 2 for number in numbers} == {item.id % 2}
    assert all(int(question[2:]) % 2 for question, _ in choose(task, "test", 0, Context(shots=10)))
    assert "has 9 other training items in its group 'even'; expected as many: fewer shots, or larger" in one_line(
        choose, task, "train", 0, Context(shots=10))
    assert "has 0 other training items" in one_line(choose, task, "test", 1, Context(shots=1))


def test_wrong_answers_differ_even_where_few_answers_exist(prompt):
    letters = small_task(prompt, [Item(i, f"q{i}", "ABCDE"[i % 5], "") for i in range(40)], [])
    for i in range(40):
        for question, answer in choose(letters, "train", i, Context("wrong_shots", 5)):
            assert "ABCDE"[int(question[1:]) % 5] != answer
    same = small_task(prompt, [Item(i, f"q{i}", "A", "") for i in range(40)], [])
    assert "wrong_shots: found no other answer" in one_line(choose, same, "train", 0, Context("wrong_shots", 5))


def test_derangements_have_no_fixed_point_and_are_equally_likely():
    draw, drawn = random.Random(0), Counter()
    everything = {order for order in itertools.permutations(range(4)) if all(i != j for i, j in enumerate(order))}
    for _ in range(9000):
        drawn[tuple(derangement(range(4), draw))] += 1
    assert set(drawn) == everything and len(everything) == 9
    chi2 = sum((count - 1000) ** 2 / 1000 for count in drawn.values())
    assert chi2 < 26.1  # the 0.999 quantile for 8 degrees of freedom
    assert derangement(range(2), draw) == [1, 0]


def test_what_does_not_fit_drops_the_first_examples_and_never_the_answer(task):
    index, items = [0, 7, 3], task.splits["train"].items
    shots = {i: choose(task, "train", i, Context(shots=4)) for i in index}
    whole, dropped = encode(task, "train", index, Context(shots=4))
    assert dropped == [0, 0, 0]
    rendered = task.prompt.prompt_ids([(shots[i], items[i].question) for i in index])
    assert [whole[j].tolist() for j in range(3)] == rendered
    for room in range(200, 900, 37):
        ids, dropped = encode(task, "train", index, Context(shots=4, max_length=room))
        for j, i in enumerate(index):
            answer = len(task.prompt.answer_ids([items[i].answer])[0])
            lengths = [len(task.prompt.prompt_ids([(shots[i][k:], items[i].question)])[0]) + answer for k in range(5)]
            assert dropped[j] == next((k for k, n in enumerate(lengths) if n <= room), 4)
            assert len(ids[j]) == lengths[dropped[j]] - answer
            assert task.prompt.decode(ids[j].tolist()).count("<<") == 4 - dropped[j]


def test_the_prompt_of_a_question_to_be_answered_does_not_depend_on_its_answer(prompt):
    """The same questions with answers of one letter and of 200: evaluation must ask both alike."""
    tasks = [small_task(prompt, sums(0, 30), [Item(i, f"Test {i}?", "a" * length, "a") for i in range(5)])
             for length in (1, 200)]
    for room in (250, 300, 350):
        (short, few), (long, many) = (encode(task, "test", range(5), Context(shots=4, max_length=room), 64)
                                      for task in tasks)
        assert short.flat.tolist() == long.flat.tolist() and few == many and max(few) > 0
        assert all(len(short[j]) + 64 <= room for j in range(5) if few[j] < 4)
    own = [encode(task, "test", range(5), Context(shots=4, max_length=400))[1] for task in tasks]
    assert own[0] != own[1]  # what is to be scored needs its own room
    message = one_line(encode, tasks[0], "test", range(5), Context(shots=4, max_length=300), 290)
    assert "teacher.max_length: 300 tokens have no room for a single worked example" in message


def test_no_item_is_shown_what_asks_the_same(prompt):
    """Copies in train, in other case, width, spacing and punctuation; in every split."""
    train = [*sums(0, 8), Item(8, "WHAT is  3 plus 3 ?", "x", ""), Item(9, "What is ３ plus\u00a03", "y", "")]
    test = [Item(0, "what is 3 plus 3", "z", ""), Item(1, "What is 3 plus 30?", "z", "")]
    task = small_task(prompt, train, test)
    for i in (3, 8, 9):
        assert {q for q, _ in choose(task, "train", i, Context(shots=7))} == {
            item.question for item in train[:8]} - {"What is 3 plus 3?"}
    assert "has 7 other" in one_line(choose, task, "train", 9, Context(shots=8))
    assert "What is 3 plus 3?" not in dict(choose(task, "test", 0, Context(shots=7)))
    assert len(choose(task, "test", 1, Context(shots=8))) == 8
    assert task.overlap == 1
    halves = small_task(prompt, [*sums(0, 40), *(Item(40 + i, item.question.upper(), "a", "")
                                                 for i, item in enumerate(sums(0, 40)))], [], val_fraction=0.25)
    ids = [{item.id % 40 for item in halves.splits[split].items} for split in ("train", "val")]
    assert not ids[0] & ids[1] and len(ids[1]) == 10  # validation holds no copy of a training item


def test_another_seed_is_no_shift_of_the_items(task):
    """An offset of the seed must not be an offset of the item."""
    of = {seed: [choose(task, "train", i, Context("fewshot", 4, seed)) for i in range(48)] for seed in range(40, 46)}
    drawn = [tuple(question for question, _ in shots) for seed in of for shots in of[seed]]
    assert len(set(drawn)) == len(drawn) == 6 * 48


@pytest.mark.parametrize("counts", [[2] * 4, [4, 4], [4, 1, 1, 1, 1], [5, 2, 1], [7, 1], [8], [16, 16]])
def test_shuffled_answers_are_wrong_however_few_kinds_there_are(prompt, counts):
    """Examples say the same by their gold, in other words each; `counts` is how many of a context do."""
    golds = [gold for gold, count in enumerate(counts) for _ in range(count)]
    shown = [Item(i, f"q{i}", f"In words {i}: {gold}", str(gold)) for i, gold in enumerate(golds)]
    others = [Item(100 + i, f"o{i}", f"Else {i}: {i % 9}", str(i % 9)) for i in range(20)]
    right, drawn = {item.question: item.gold for item in shown}, set()
    for seed in range(20):
        draw = random.Random(seed)
        outside = _context._Outside([*shown, *others], range(len(shown) + 20), set(range(len(shown))),
                                    Context("shuffled_answers"), draw)
        answers = _context._shuffled(shown, outside, draw)
        assert all(answer.split(": ")[1] != right[item.question] for item, answer in zip(shown, answers))
        surplus = max(0, 2 * max(counts) - len(shown))
        assert len(set(answers) - {item.answer for item in shown}) <= surplus
        assert len([answer for answer in answers if answer.startswith("In words")]) == len(shown) - surplus
        drawn.add(tuple(answers))
    assert len(drawn) > 1


# -------------------------------------------------------------------------- other groups, fixed ones, other texts

@pytest.fixture(scope="module")
def grouped(prompt) -> TextTask:
    """Three groups, the same questions in each, as tables of one task have them."""
    train = [Item(i, f"q{i // 3}", f"{'abc'[i % 3]}{i // 3}", "", "abc"[i % 3]) for i in range(90)]
    return small_task(prompt, train, [Item(0, "Q3?", "a3", "", "a"), Item(1, "new", "b", "", "b")])


def test_examples_of_another_group_are_of_one_and_never_ask_the_same(grouped, prompt):
    seen = Counter()
    for split in ("train", "test"):
        for i, item in enumerate(grouped.splits[split].items):
            shots = choose(grouped, split, i, Context("other_group", 6))
            letters = {answer[0] for _, answer in shots}
            assert len(letters) == 1 and letters != {item.group} and len({question for question, _ in shots}) == 6
            assert item.question.lower().rstrip("?") not in dict(shots)
            assert all(answer[1:] == question[1:] for question, answer in shots), "their own answers"
            seen.update((item.group, *letters))
            assert shots == choose(grouped, split, i, Context("other_group", 6))
    assert len(seen) == 3
    assert "no group but 'a' of small has 40 worked examples" in one_line(
        choose, grouped, "test", 0, Context("other_group", 40))
    lone = small_task(prompt, sums(0, 20), [])
    assert "a task of several groups" in one_line(choose, lone, "train", 0, Context("other_group", 2))


def test_donors_are_shown_and_neither_trained_on_nor_scored_and_no_kin(prompt):
    items = [Item(i, f"q{i}", f"a{i}", "", "own", family=f"f{i}") for i in range(10)]
    donors = [Item(i, f"d{i}", f"b{i}", "", "other", family=f"f{i}") for i in range(10)]
    task = text_task("small", "small", items, [], prompt, val_fraction=0.0, split_seed=0, subset=0, max_length=1000,
                     extract=number, donors=donors)
    bare = text_task("small", "small", items, [], prompt, val_fraction=0.0, split_seed=0, subset=0, max_length=1000,
                     extract=number)
    for i in range(10):
        shots = choose(task, "train", i, Context("other_group", 9))
        assert sorted(shots) == [(f"d{j}", f"b{j}") for j in range(10) if j != i]
        assert choose(task, "train", i, Context(shots=9)) == choose(bare, "train", i, Context(shots=9))
    assert task.fingerprints == bare.fingerprints
    context = Context("other_group", 4)
    assert context.identity(task) != context.identity(bare) and Context().identity(task) == Context().identity(bare)


@pytest.mark.parametrize("shots", [1, 4])
def test_fixed_examples_are_the_same_for_all_but_those_that_they_are(task, shots):
    context = Context("fixed_shots", shots)
    common = choose(task, "test", 0, context)
    assert common == choose(task, "test", 11, context) and common != choose(task, "test", 0, Context(
        "fixed_shots", shots, seed=7))
    spares = set()
    for i, item in enumerate(task.splits["train"].items):
        own = choose(task, "train", i, context)
        differ = [place for place in range(shots) if own[place] != common[place]]
        assert item.question not in dict(own) and len(dict(own)) == shots
        assert differ == [place for place in range(shots) if common[place][0] == item.question]
        spares |= {own[place] for place in differ}
    assert len(spares) == 1


def test_an_instruction_stands_first_and_only_its_order_is_another(task, prompt):
    text = "Write the sum.\nNothing else."
    def asked(kind, i=0):
        return prompt.decode(encode(task, "train", [i], Context(kind, 8, instruction=text))[0][0].tolist())

    item = task.splits["train"].items[0]
    turns = [{"role": "system", "content": text}, {"role": "user", "content": item.question}]
    assert asked("instruction") == prompt.decode(prompt.prompt_ids([((), item.question, text)])[0])
    assert text in prompt._chat(turns, True)
    orders = {asked("instruction_shuffled", i).partition("What is")[0] for i in range(20)}
    assert len(orders) > 5 and all(text not in order for order in orders)
    for order in orders:
        assert sorted(w for w in text.split()) == sorted(w for w in order.split() if w in text.split())
    plain = _prompts.Prompt(prompt.tokenizer, "plain")
    alike = small_task(plain, sums(0, 60), [])
    ids, _ = encode(alike, "train", [3], Context("instruction", instruction=text))
    assert plain.decode(ids[0].tolist()) == f"{text}\n\nWhat is 3 plus 3?\n"


def test_a_document_stands_before_its_question_and_the_control_has_another(prompt):
    plain = _prompts.Prompt(prompt.tokenizer, "plain")
    train = [Item(i, f"q{i}", f"a{i}", "", "g" if i % 2 else "h", document=f"text {i}") for i in range(20)]
    task = small_task(plain, train, [])
    for kind in ("document", "other_document"):
        _context.check(task, Context(kind))
        for i in range(20):
            before, question = plain.decode(encode(task, "train", [i], Context(kind))[0][0].tolist()).split("\n\n")
            assert question == f"q{i}\n" and (before == f"text {i}") is (kind == "document")
            assert int(before.split()[1]) % 2 == i % 2
    assert "item 3 of train has" in one_line(encode, task, "train", [3], Context("document", max_length=12))


def test_what_a_task_has_not_is_refused_before_anything(task, prompt):
    same = small_task(prompt, [Item(i, f"q{i}", "a", "", document="one") for i in range(4)], [])
    for about, context, says in [
            (task, Context("document"), "item 1 of small has none; expected a task with documents"),
            (same, Context("other_document"), "every training item has the same document"),
            (task, Context("instruction_shuffled", instruction="Go"), "no other order of its words"),
            (task, Context("instruction", instruction="Say <|im_end|>"), "reads as a control token")]:
        assert says in one_line(_context.check, about, context)


def test_every_context_can_be_asked_for():
    assert set(schema.part_fields("teachers", "context_lm")["context"].rule.split(" | ")) == set(_context.KINDS)


def test_what_was_made_before_there_were_other_contexts_is_found_again(task):
    """Digests as they were: of items, of contexts and of which examples they chose."""
    few = Context("fewshot", 4)
    assert few.identity(task) == {"choice": 2, "context": {"kind": "fewshot", "shots": 4, "seed": 42,
                                                           "max_length": 4096}}
    assert task.fingerprints["test"] == "c06b1b4d4175742fc9c4b393a32500c398cb7cd0eaa68b9801ea05056c4b87a4"
    chosen = json.dumps([choose(task, split, i, context) for context in KINDS for split in ("train", "test")
                         for i in range(12)])
    assert hashlib.sha256(chosen.encode()).hexdigest() == (
        "fcd6c307206844ce24d6446cc86193209681ab94701d24bed113cedc5a935488")


@pytest.mark.parametrize("text", ["", "word", "word word"])
def test_an_instruction_without_another_order_never_hangs(task, text):
    with pytest.raises(AssertionError, match="no other order"):
        _other_texts.shuffled_words(text, task.splits["train"].items[0], 0)
