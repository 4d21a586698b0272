"""What stands before a question: worked examples, chosen and arranged the same way for everybody who asks.

Training's teacher, its cache and the k-shot evaluation come here. Which examples an item gets depends on the
few-shot seed and the item alone, never on the training seed, the epoch or the process.
"""

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from graft import keyed
from graft.errors import UserError
from graft.tasks._prompts import Shot
from graft.tasks._text import Item, Ragged, TextTask

CHOICE = 2  # raise it when the same context comes to mean other examples: caches of teachers hold it
KINDS = ("fewshot", "zeroshot", "shuffled_answers", "wrong_shots", "random_shots")


@dataclass(frozen=True)
class Context:
    """Which worked examples.

    fewshot: `shots` training items of the item's group, none of which asks what it asks. zeroshot: none.
    shuffled_answers: the same examples, each with the answer of another of them that says something else (where more
    than half say the same, of an item outside the context). wrong_shots: the same questions, each with an answer of an
    item outside the context that says something else. random_shots: the words of the same examples in random order.
    """

    kind: str = "fewshot"
    shots: int = 8
    seed: int = 42
    max_length: int = 4096  # tokens of prompt and answer; beyond it the first examples are dropped, never the answer


def choose(task: TextTask, split: str, i: int, context: Context) -> list[Shot]:
    """The worked examples of item `i` of a split, before any is dropped for want of room.

    Raises UserError if there are too few training items.
    """
    if context.kind == "zeroshot" or context.shots == 0:
        return []
    item, train = task.splits[split].items[i], task.splits["train"]
    draw = random.Random(keyed.key(context.seed, "shots", item.id))
    # A question that stands in train more than once is one example, and none for a question like it in any split.
    pool, own = train.groups.get(item.group, []), train.first.get(task.splits[split].contents[i])
    others = len(pool) - (own is not None)
    if others < context.shots:
        group = f" in its group {item.group!r}" if item.group else ""
        raise UserError(f"teacher.shots, --shots: {context.shots} worked examples for item {item.id} of {task.name}, "
                        f"which has {others} other training items{group}; expected as many: fewer shots, or "
                        f"{'larger groups' if group else 'more items'}")
    # One more than needed, so that the item itself can be left out wherever it turns up.
    picked = [j for j in draw.sample(pool, context.shots + (own is not None)) if j != own][:context.shots]
    examples, outside = [train.items[j] for j in picked], _Outside(train.items, pool, {*picked, own}, context, draw)
    shots = [(example.question, example.answer) for example in examples]
    if context.kind == "shuffled_answers":
        shots = [(question, answer) for (question, _), answer in zip(shots, _shuffled(examples, outside, draw))]
    if context.kind == "wrong_shots":
        shots = [(example.question, outside(_says(example))) for example in examples]
    if context.kind == "random_shots":
        shots = [(_scramble(question, draw), _scramble(answer, draw)) for question, answer in shots]
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


def _scramble(text: str, draw: random.Random) -> str:
    words = text.split(" ")
    return " ".join(draw.sample(words, len(words)))


def encode(task: TextTask, split: str, index: Sequence[int], context: Context,
           reserve: int | None = None) -> tuple[Ragged, list[int]]:
    """Prompt ids of the items at `index` behind their worked examples, and how many examples each had to drop.

    `reserve` tokens of `context.max_length` are kept free for an answer that is to be generated: what it is asked must
    not depend on how long the right one is. None: as many as the item's own answer has, which is to be scored.
    Raises UserError if no item has room for any example.
    """
    items = [task.splits[split].items[i] for i in index]
    room = [context.max_length - (int(task.splits[split].answers.lengths[i]) if reserve is None else reserve)
            for i in index]
    shots = [choose(task, split, i, context) for i in index]
    dropped = [0] * len(items)

    def asked(j: int) -> tuple[Sequence[Shot], str, str]:
        return shots[j][dropped[j]:], items[j].question, items[j].system

    ids = task.prompt.prompt_ids([asked(j) for j in range(len(items))])
    while too_long := [j for j in range(len(ids)) if len(ids[j]) > room[j] and dropped[j] < len(shots[j])]:
        for j in too_long:
            dropped[j] += 1
        for j, shorter in zip(too_long, task.prompt.prompt_ids([asked(j) for j in too_long])):
            ids[j] = shorter
    if items and all(dropped[j] == len(shots[j]) > 0 for j in range(len(items))):
        raise UserError(f"teacher.max_length: {context.max_length} tokens have no room for a single worked example in "
                        f"any of {len(items)} {split} items" + ("" if reserve is None else
                        f", {reserve} of them kept for the answer") + "; expected more")
    return Ragged(ids), dropped
