"""A teacher that follows its student: the exponential moving average of the student's adapters."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from graft.students.causal_lm import CausalLM


class Average(nn.Module):
    """w̄ <- decay·w̄ + (1 - decay)·w of every adapter weight, after each optimizer step; w̄ begins at the student's.

    Untrained adapters change nothing, so the teacher begins as the model without adapters (Tarvainen & Valpola 2017,
    arXiv:1703.01780, without their ramp, which would make it the student in the first steps). Its state belongs into
    a checkpoint. The student is held in a tuple: it is no part of its own teacher.
    """

    def __init__(self, student: CausalLM, decay: float):
        super().__init__()
        self.decay, self._student = decay, (student,)
        named = [(name, weight) for name, weight in student.named_parameters() if weight.requires_grad]
        self._weights = tuple(weight for _, weight in named)
        self._names = tuple(name.replace(".", "/") for name, _ in named)
        for name, weight in zip(self._names, self._weights):
            self.register_buffer(name, weight.detach().clone())

    @torch.no_grad()
    def follow(self) -> None:
        """Take in the student's weights; once after each optimizer step."""
        torch._foreach_lerp_([self.get_buffer(name) for name in self._names], list(self._weights), 1 - self.decay)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """The student with the averaged adapters and without dropout, for a forward pass that keeps no graph."""
        lm = self._student[0].lm
        training = lm.training
        lm.eval()
        self._swap()
        try:
            yield
        finally:
            self._swap()
            lm.train(training)

    def _swap(self) -> None:
        """Exchange what both point at: nothing is copied, and the student gets back its very memory."""
        for name, weight in zip(self._names, self._weights):
            own = self.get_buffer(name)
            weight.data, own.data = own.data, weight.data
