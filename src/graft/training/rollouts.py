"""The student's own answers as what it is trained on: made anew while it trains, and the same after a resume.

Every `teacher.sample_every` steps of an epoch the student answers the questions of the steps up to the next time,
without a context and without dropout. Which tokens it draws follows from its weights, the run's seed, the step and the
item, never from how many processes share the work or what is answered beside it (but for rounding). A checkpoint holds
the answers of the steps that are still to come, for they are of weights that are gone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from graft import keyed
from graft.config.options import Config
from graft.evaluation._transformers import answer, until_end
from graft.evaluation.generation import stop_of
from graft.runtime.place import Place
from graft.students.causal_lm import CausalLM
from graft.tasks._text import Ragged, TextTask
from graft.training.batches import order


class Rollouts:
    """Answers of the training items of some steps; `state_dict` is what a resume needs of them."""

    def __init__(self, config: Config, task: TextTask, student: CausalLM, place: Place,
                 autocast: Callable[[], AbstractContextManager]):
        self.config, self.student, self.place, self.autocast = config, student, place, autocast
        self.split, self.prompt = task.splits["train"], task.prompt
        self.every, self.temperature = (config.teacher.args[key] for key in ("sample_every", "temperature"))
        lm = student.model
        self.stop = stop_of(task, config.student.args["model"], lm.config, lm.generation_config,
                            config.evaluate.max_new_tokens)
        self.round = (-1, -1)  # epoch, and its step that they were made for first
        self.items: list[int] = []
        self.answers: list[list[int]] = []

    def spans(self, steps: range) -> Iterator[range]:
        """These steps of an epoch in pieces, each of which has its answers before it begins."""
        cuts = [step for step in steps if step % self.every == 0 or step == steps.start]
        yield from (range(start, end) for start, end in zip(cuts, [*cuts[1:], steps.stop]))

    def prepare(self, epoch: int, steps: range) -> None:
        """Answer the items of these steps of an epoch, unless a checkpoint had their answers."""
        if self.round != (epoch, steps.start // self.every * self.every):
            assert steps.start % self.every == 0, "a checkpoint holds the answers of the steps that are to come"
            train = self.config.train
            items = order(self.split, self.config.seed, epoch)
            self.answer(items[steps.start * train.batch_size:steps.stop * train.batch_size], epoch, steps.start)
        known = dict(zip(self.items, self.answers))
        self.split.answer([known.get(item, ()) for item in range(len(self.split))])

    def answer(self, items: Tensor, epoch: int, step: int) -> None:
        """Let the student answer these items, which are those of an epoch's steps from `step` on."""
        by_length = items[torch.argsort(self.split.prompts.lengths[items], descending=True, stable=True)]
        own = by_length[self.place.rank::self.place.world]
        base = keyed.key(self.config.seed, "answers", epoch, step)
        draws = keyed.uniform(base, own.numpy(), self.stop.max_new_tokens) if self.temperature else None
        made, size = {}, self.config.evaluate.batch_size
        self.student.eval()
        with self.autocast():
            for start in range(0, len(own), size):
                batch = own[start:start + size].tolist()
                found = answer(self.student.model, [self.split.prompts[i].tolist() for i in batch], self.stop,
                               self.prompt.decode, None if draws is None else draws[start:start + size],
                               self.temperature)
                made |= {i: until_end(ids, self.stop, self.prompt.decode) for i, ids in zip(batch, found, strict=True)}
        self.student.train()
        for share in gather_object([made]) if self.place.world > 1 else [made]:
            made = {**made, **share}
        self.items = items.tolist()
        self.answers, self.round = [made[i] for i in self.items], (epoch, step)

    def state_dict(self) -> dict[str, Tensor]:
        """The answers that were made last, and for which steps."""
        ids = Ragged(self.answers)
        return {"round": torch.tensor(self.round), "items": torch.tensor(self.items, dtype=torch.int64),
                "lengths": ids.lengths, "ids": ids.flat.long()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        epoch, step = state["round"].tolist()
        self.round, self.items = (epoch, step), state["items"].tolist()
        self.answers = [ids.tolist() for ids in state["ids"].split(state["lengths"].tolist())]
