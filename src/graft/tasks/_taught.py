"""A task whose training answers are not the data's own, and what is read before them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from graft.tasks._context import Context, encode
from graft.tasks._text import Ragged, TextSplit, TextTask


@dataclass(frozen=True, kw_only=True)
class Taught(TextTask):
    """A task whose training answers are not the data's own.

    Its `about` is that of the data, which a checkpoint is compared with; whose answers they are stands in `answered`.
    """

    gold: TextTask  # with the data's own answers: what worked examples are chosen from
    places: tuple[int, ...]  # of the training items in gold's
    reserve: int  # tokens that a context keeps free for an answer that is to be generated
    said: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run says about its data when it starts."""
        return (*self.gold.notes, self.said)


def taught(task: TextTask, split: TextSplit, places: Sequence[int], reserve: int, said: str, answered: str) -> Taught:
    """`task` with `split` in place of its training items; the others as in `Taught`."""
    own = {item.name: getattr(task, item.name) for item in fields(TextTask)}
    return Taught(**{**own, "splits": {**task.splits, "train": split}, "answered": answered}, gold=task,
                  places=tuple(places), reserve=reserve, said=said)


def prompts_of(task: TextTask, context: Context) -> tuple[Ragged, list[int]]:
    """What the teacher reads before each training item's answer, and how many worked examples each had to drop."""
    if isinstance(task, Taught):
        return encode(task.gold, "train", task.places, context, task.reserve)
    return encode(task, "train", range(len(task.splits["train"])), context)


def longest(task: TextTask, prompts: Ragged) -> int:
    """Tokens of the longest sequence that the teacher will read."""
    own = int((prompts.lengths + task.splits["train"].answers.lengths).max())
    return max(own, int(prompts.lengths.max()) + task.reserve) if isinstance(task, Taught) else own
