"""What stands before a question: worked examples, chosen and arranged the same way for everybody who asks.

Training's teacher, its cache and the k-shot evaluation come here. Which examples an item gets depends on the
few-shot seed and the item alone, never on the training seed, the epoch or the process.
"""

import os
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graft import keyed
from graft.errors import UserError
from graft.tasks import _other_texts
from graft.tasks._prompts import Shot, behind
from graft.tasks._text import Item, Ragged, TextTask

CHOICE = 2  # raise it when the same context comes to mean other examples: caches of teachers hold it
SHOWN = ("fewshot", "shuffled_answers", "wrong_shots", "random_shots", "random_letters",
         "other_group", "fixed_shots")
INSTRUCTED, DOCUMENTED = ("instruction", "instruction_shuffled"), ("document", "other_document")
KINDS = ("zeroshot", *SHOWN, *INSTRUCTED, *DOCUMENTED)


@dataclass(frozen=True)
class Context:
    """Which worked examples, or what else.

    fewshot: `shots` training items of the item's group, none of which asks what it asks. zeroshot: none.
    shuffled_answers: the same examples, each with the answer of another of them that says something else (where more
    than half say the same, of an item outside the context). wrong_shots: the same questions, each with an answer of an
    item outside the context that says something else. random_shots: the words of the same examples in random order,
    random_letters: their letters, for examples of one word.
    other_group: as many examples of one other group (`_other_texts.of_another_group`). fixed_shots: the same examples
    for all items of a group; where one is the item itself, another takes its place.
    instruction: a text as the system's turn, in plain layout the first lines, and no examples; instruction_shuffled:
    its words in random order. document: the item's own, before its question; other_document: another item's.
    """

    kind: str = "fewshot"
    shots: int = 8
    seed: int = 42
    max_length: int = 4096  # tokens of prompt and answer; beyond it the first examples are dropped, never the answer
    instruction: str = ""

    @property
    def examples(self) -> int:
        """Worked examples in it."""
        return self.shots if self.kind in SHOWN else 0

    def identity(self, task: TextTask) -> dict[str, Any]:
        """What a cache of what it lets a teacher say is told by, the training items apart."""
        about = {key: value for key, value in asdict(self).items() if value or key != "instruction"}
        donors = {"donors": _other_texts.donors_sha256(task)} if self.kind == "other_group" else {}
        return {"context": about, "choice": CHOICE, **donors}


def check(task: TextTask, context: Context) -> None:
    """Raise UserError where a task has not what the context is made of."""
    if context.kind in INSTRUCTED:
        _other_texts.check_instruction(task, context.instruction, context.kind == "instruction_shuffled")
    if context.kind in DOCUMENTED:
        _other_texts.check_documents(task, task.splits["train"].items, context.kind == "other_document")


def choose(task: TextTask, split: str, i: int, context: Context) -> list[Shot]:
    """The worked examples of item `i` of a split, before any is dropped for want of room.

    Raises UserError if there are too few training items.
    """
    if not context.examples:
        return []
    item, train = task.splits[split].items[i], task.splits["train"]
    if context.kind == "other_group":
        others = _other_texts.of_another_group(task, item, context.shots, context.seed)
        return [(example.question, example.answer) for example in others]
    # A question that stands in train more than once is one example, and none for a question like it in any split.
    pool, own = train.groups.get(item.group, []), train.first.get(task.splits[split].contents[i])
    others = len(pool) - (own is not None)
    if others < context.shots:
        group = f" in its group {item.group!r}" if item.group else ""
        raise UserError(f"teacher.shots, --shots: {context.shots} worked examples for item {item.id} of {task.name}, "
                        f"which has {others} other training items{group}; expected as many: fewer shots, or "
                        f"{'larger groups' if group else 'more items'}")
    # One more than needed, so that the item itself can be left out wherever it turns up.
    if context.kind == "fixed_shots":
        draw = random.Random(keyed.key(context.seed, "fixed shots", item.group))
        sample = draw.sample(pool, min(context.shots + 1, len(pool)))
        picked = [sample[-1] if j == own else j for j in sample[:context.shots]]
    else:
        draw = random.Random(keyed.key(context.seed, "shots", item.id))
        picked = [j for j in draw.sample(pool, context.shots + (own is not None)) if j != own][:context.shots]
    examples, outside = [train.items[j] for j in picked], _Outside(train.items, pool, {*picked, own}, context, draw)
    shots = [(example.question, example.answer) for example in examples]
    if context.kind == "shuffled_answers":
        shots = [(question, answer) for (question, _), answer in zip(shots, _shuffled(examples, outside, draw))]
    if context.kind == "wrong_shots":
        shots = [(example.question, outside(_says(example))) for example in examples]
    if context.kind == "random_shots":
        # What stands before every question, such as "Question: ", makes no order of words.
        before = len(os.path.commonprefix([train.items[j].question for j in pool[:16]]))  # noqa: RUF071 (of letters, as it is meant)
        if not any(len({*text.split()}) > 1 for question, answer in shots for text in (question[before:], answer)):
            raise UserError(f"teacher.context: random_shots: the examples of item {item.id} of {task.name} are single "
                            "words, which have no other order; expected texts of several, or random_letters")
        shots = [tuple(_scramble(text, " ", draw) for text in shot) for shot in shots]
    if context.kind == "random_letters":
        shots = [tuple(_scramble(text, "", draw) for text in shot) for shot in shots]
    return shots


def _says(item: Item) -> str:
    """What an answer comes to: answers in other words with the same gold are the same answer."""
    return item.gold or " ".join(item.answer.split())


def _shuffled(examples: Sequence[Item], outside: "_Outside", draw: random.Random) -> list[str]:
    """An answer for each example, of another one that says something else.

    Where more than half of them say the same, the surplus gets answers from outside.
    """
    says = [_says(example) for example in examples]
    common, count = Counter(says).most_common(1)[0]
    if 2 * count <= len(says):
        return [examples[j].answer for j in derangement(says, draw)]
    places, rest = ([i for i, said in enumerate(says) if (said == common) == it] for it in (True, False))
    given = [examples[i].answer for i in rest] + [outside(common) for _ in range(count - len(rest))]
    answers = dict(zip(places, draw.sample(given, count)))
    answers |= {i: examples[j].answer for i, j in zip(rest, draw.sample(places, len(rest)))}
    return [answers[i] for i in range(len(says))]


def derangement(says: Sequence[Hashable], draw: random.Random) -> list[int]:
    """A permutation that gives every place the content of another, different one; no more than half may be equal.

    All of them are equally likely, unless they are so rare that 1000 permutations at random have none.
    """
    n, most = len(says), max(Counter(says).values())
    assert 2 * most <= n
    for _ in range(1000):
        order = draw.sample(range(n), n)
        if all(says[i] != says[j] for i, j in enumerate(order)):
            return order
    rank = {said: i for i, said in enumerate(draw.sample(sorted(set(says)), len(set(says))))}
    line = sorted(draw.sample(range(n), n), key=lambda i: rank[says[i]])  # equal ones side by side
    return [line[(place + most) % n] for _, place in sorted((i, place) for place, i in enumerate(line))]


@dataclass(frozen=True)
class _Outside:
    """Answers of training items of the group that are not in the context."""

    items: Sequence[Item]
    pool: Sequence[int]
    around: set[int | None]
    context: Context
    draw: random.Random

    def __call__(self, own: str) -> str:
        """One that says something else than `own`. Raises UserError if there is none."""
        for _ in range(100):  # nearly always the first or second
            j = self.draw.choice(self.pool)
            if j not in self.around and _says(self.items[j]) != own:
                return self.items[j].answer
        found = [j for j in self.pool if j not in self.around and _says(self.items[j]) != own]
        if not found:
            raise UserError(f"teacher.context: {self.context.kind}: found no other answer than {own[:60]!r} outside "
                            "the context; expected training items with other answers, or fewer shots")
        return self.items[self.draw.choice(found)].answer


def _scramble(text: str, between: str, draw: random.Random) -> str:
    """The parts of a text in random order: its words, or with "" its letters."""
    parts = text.split(between) if between else list(text)
    return between.join(draw.sample(parts, len(parts)))


def read(task: TextTask, split: str, i: int, context: Context) -> tuple[list[Shot], str, str]:
    """What stands before the answer of item `i`: worked examples, the user's turn, the system's turn."""
    item, system, document = task.splits[split].items[i], "", ""
    if context.kind in INSTRUCTED:
        system = context.instruction if context.kind == "instruction" else _other_texts.shuffled_words(
            context.instruction, item, context.seed)
    if context.kind in DOCUMENTED:
        document = item.document if context.kind == "document" else _other_texts.document_of_another(
            task, item, context.seed)
    return (choose(task, split, i, context), behind(document, item.question),
            "\n\n".join(text for text in (item.system, system) if text))


def encode(task: TextTask, split: str, index: Sequence[int], context: Context,
           reserve: int | None = None) -> tuple[Ragged, list[int]]:
    """Prompt ids of the items at `index` behind what they read, and how many worked examples each had to drop.

    `reserve` tokens of `context.max_length` are kept free for an answer that is to be generated: what it is asked must
    not depend on how long the right one is. None: as many as the item's own answer has, which is to be scored.
    Raises UserError if no item has room for any example, or an instruction or document does not fit.
    """
    items = [task.splits[split].items[i] for i in index]
    room = [context.max_length - (int(task.splits[split].answers.lengths[i]) if reserve is None else reserve)
            for i in index]
    around = [read(task, split, i, context) for i in index]
    dropped = [0] * len(items)

    def asked(j: int) -> tuple[Sequence[Shot], str, str]:
        shots, question, system = around[j]
        return shots[dropped[j]:], question, system

    def shown(j: int) -> int:
        return len(around[j][0])

    ids = task.prompt.prompt_ids([asked(j) for j in range(len(items))])
    while too_long := [j for j in range(len(ids)) if len(ids[j]) > room[j] and dropped[j] < shown(j)]:
        for j in too_long:
            dropped[j] += 1
        for j, shorter in zip(too_long, task.prompt.prompt_ids([asked(j) for j in too_long])):
            ids[j] = shorter
    if items and all(dropped[j] == shown(j) > 0 for j in range(len(items))):
        raise UserError(f"teacher.max_length: {context.max_length} tokens have no room for a single worked example in "
                        f"any of {len(items)} {split} items" + ("" if reserve is None else
                        f", {reserve} of them kept for the answer") + "; expected more")
    if context.kind in (*INSTRUCTED, *DOCUMENTED):
        for j, item in enumerate(items):
            if len(ids[j]) > room[j]:
                raise UserError(f"teacher.max_length: item {item.id} of {split} has {len(ids[j])} tokens before its "
                                f"answer with the {context.kind}, more than {room[j]}; expected more, or shorter texts")
    return Ragged(ids), dropped
