"""What a teacher may read besides worked examples of the question's own group: those of another group, an instruction,
a document; and the same for what is not about the item, which is the control.

As in `_context`, everything follows from the few-shot seed and the item.
"""

import hashlib
import json
import random
from collections.abc import Iterable

from graft import keyed
from graft.errors import UserError
from graft.tasks._text import Item, TextTask, content


def of_another_group(task: TextTask, item: Item, shots: int, seed: int) -> list[Item]:
    """`shots` items of one group that is not the item's, drawn for it; none asks the same or is of its family.

    They are the task's donors, or where it has none the training items. Raises UserError if no group has as many.
    """
    draw = random.Random(keyed.key(seed, "other group", item.id))
    groups, asks = _others(task, item), content(item)[1]
    for name in draw.sample(sorted(groups), len(groups)):
        found: dict[str, Item] = {}
        for other in draw.sample(groups[name], len(groups[name])):
            alike = content(other)[1] == asks or (other.family and other.family == item.family)
            if not alike and content(other)[1] not in found:
                found[content(other)[1]] = other
            if len(found) == shots:
                return list(found.values())
    raise UserError(f"teacher.context: other_group: no group but {item.group!r} of {task.name} has {shots} worked "
                    f"examples for item {item.id}; expected fewer teacher.shots, or a task of several groups (jsonl: "
                    "task.group, words: task.donors)")


def _others(task: TextTask, item: Item) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = {}
    for other in task.donors or task.splits["train"].items:
        if other.group != item.group:
            groups.setdefault(other.group, []).append(other)
    return groups


def donors_sha256(task: TextTask) -> str:
    """Digest of what `of_another_group` chooses by besides the training items."""
    about = [[[*item.says, item.family] for item in task.donors],
             [item.family for item in task.splits["train"].items]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def check_instruction(task: TextTask, text: str, shuffled: bool) -> None:
    """Raise UserError for an instruction that cannot be read as it stands, or in no other order."""
    try:
        task.prompt.check("graft-question", "graft-answer", text)
    except ValueError as error:
        raise UserError(f"teacher.instruction: {error}") from None
    if text not in task.prompt.text((), "graft-question", text):
        raise UserError("teacher.instruction: the tokenizer's chat template does not write a system message as it "
                        "stands; set task.layout to plain")
    if shuffled and len(set(text.split())) < 2:
        raise UserError(f"teacher.instruction: {text!r} has no other order of its words; expected two different ones "
                        "for instruction_shuffled")


def shuffled_words(text: str, item: Item, seed: int) -> str:
    """The words of a text in an order that is not its own, drawn for the item."""
    words, draw = text.split(), random.Random(keyed.key(seed, "instruction", item.id))
    assert len({*words}) > 1, "check_instruction refuses what has no other order"
    while (order := draw.sample(words, len(words))) == words:
        pass
    return " ".join(order)


def check_documents(task: TextTask, items: Iterable[Item], other: bool) -> None:
    """Raise UserError where an item has no document, or with `other` where all training items have the same one."""
    if lacking := next((item for item in items if not item.document), None):
        raise UserError(f"teacher.context: document: item {lacking.id} of {task.name} has none; expected a task with "
                        "documents (jsonl: task.document, their column)")
    first = task.splits["train"].items[0].document
    if other and all(item.document == first for item in task.splits["train"].items):
        raise UserError("teacher.context: other_document: every training item has the same document; expected several")


def document_of_another(task: TextTask, item: Item, seed: int) -> str:
    """The document of a training item, of the same group where there is one, that is not the item's own document."""
    draw, train = random.Random(keyed.key(seed, "document", item.id)), task.splits["train"]
    for pool in (train.groups.get(item.group, ()), range(len(train))):
        for _ in range(100 if pool else 0):  # nearly always the first
            if (found := train.items[draw.choice(pool)].document) != item.document:
                return found
        if found := [other for j in pool if (other := train.items[j].document) != item.document]:
            return draw.choice(found)
    raise AssertionError("checked by check_documents")
