"""What stands before a question: worked examples, chosen and arranged the same way for everybody who asks.

Training's teacher, its cache and the k-shot evaluation come here. Which examples an item gets depends on the
few-shot seed and the item alone, never on the training seed, the epoch or the process.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from graft.errors import UserError
from graft.tasks._prompts import Shot
from graft.tasks._text import Item, Ragged, TextTask

KINDS = ("fewshot", "zeroshot", "shuffled_answers", "wrong_shots", "random_shots")


@dataclass(frozen=True)
class Context:
    """Which worked examples.

    fewshot: `shots` training items of the item's group, other than itself. zeroshot: none. shuffled_answers: the
    same examples, each with the answer of another of them (a derangement: none keeps its own). wrong_shots: the
    same questions, each with an answer that is not its own, of an item outside the context. random_shots: the words
    of the same examples in random order.
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
    draw = random.Random(context.seed + item.id)
    pool, itself = train.groups.get(item.group, []), [i] if split == "train" else []
    if len(pool) - len(itself) < context.shots:
        raise UserError(f"teacher.shots, --shots: {context.shots} worked examples for item {item.id} of {task.name}, "
                        f"which has {len(pool) - len(itself)} other training items of its kind")
    # One more than needed, so that the item itself can be left out wherever it turns up.
    picked = [j for j in draw.sample(pool, context.shots + len(itself)) if j not in itself][:context.shots]
    shots = [(train.items[j].question, train.items[j].answer) for j in picked]
    if context.kind == "shuffled_answers":
        shots = [(question, shots[j][1]) for (question, _), j in zip(shots, derangement(len(shots), draw))]
    if context.kind == "wrong_shots":
        around = {*picked, *itself}
        shots = [(question, _foreign(train.items, pool, around, answer, draw)) for question, answer in shots]
    if context.kind == "random_shots":
        shots = [(_scramble(question, draw), _scramble(answer, draw)) for question, answer in shots]
    return shots


def derangement(n: int, draw: random.Random) -> list[int]:
    """A permutation of `range(n)`, n >= 2, that leaves no place as it is; all of them are equally likely."""
    assert n >= 2
    while True:
        order = draw.sample(range(n), n)
        if all(i != j for i, j in enumerate(order)):
            return order


def _foreign(items: Sequence[Item], pool: Sequence[int], around: set[int], own: str, draw: random.Random) -> str:
    """An answer other than a question's `own`, from the pool without the items `around`."""
    for _ in range(1000):
        j = draw.choice(pool)
        if j not in around and items[j].answer != own:
            return items[j].answer
    raise UserError("wrong_shots: found no other answer in 1000 draws; expected more training items, or fewer shots")


def _scramble(text: str, draw: random.Random) -> str:
    words = text.split(" ")
    return " ".join(draw.sample(words, len(words)))


def encode(task: TextTask, split: str, index: Sequence[int], context: Context) -> tuple[Ragged, list[int]]:
    """Prompt ids of the items at `index` behind their worked examples, and how many examples each had to drop."""
    questions = [task.splits[split].items[i].question for i in index]
    room = [context.max_length - int(task.splits[split].answers.lengths[i]) for i in index]
    shots = [choose(task, split, i, context) for i in index]
    dropped = [0] * len(questions)
    ids = task.prompt.prompt_ids(list(zip(shots, questions)))
    while too_long := [j for j in range(len(ids)) if len(ids[j]) > room[j] and dropped[j] < len(shots[j])]:
        for j in too_long:
            dropped[j] += 1
        again = task.prompt.prompt_ids([(shots[j][dropped[j]:], questions[j]) for j in too_long])
        for j, shorter in zip(too_long, again):
            ids[j] = shorter
    return Ragged(ids), dropped
