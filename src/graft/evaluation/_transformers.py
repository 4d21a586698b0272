"""The transformers engine of `graft.evaluation.generation`."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from graft.errors import UserError
from graft.evaluation.generation import Generated, Source, cut, is_adapter
from graft.students import _language


class Transformers:
    """Batches of prompts of like length, the longest first, in this process.

    The batch size changes an answer only where rounding decides between two tokens.
    """

    name = "transformers"

    def __init__(self, source: Source, batch_size: int, device: torch.device):
        self.source, self.batch_size, self.device = source, batch_size, device
        self.loaded: tuple[str, PreTrainedModel] | None = None

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]],
                 weights: Path | None = None) -> Iterator[tuple[int, Generated]]:
        """Answers as `(i, Generated)`, each prompt once. Raises UserError naming a checkpoint that cannot be loaded."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        with self._placed(weights) as lm:
            for start in range(0, len(order), self.batch_size):
                batch = order[start:start + self.batch_size]
                for i, ids in zip(batch, self._batch(lm, [prompts[i] for i in batch]), strict=True):
                    yield i, cut(ids, self.source.stop, self.source.prompt.decode)

    def _batch(self, lm: PreTrainedModel, prompts: list[Sequence[int]]) -> list[list[int]]:
        """New ids of each prompt. Prompts are padded in front; positions count from each one's first token."""
        width, filler = max(map(len, prompts)), self.source.stop.ids[0]
        ids = torch.tensor([[filler] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        texts = self.source.stop.texts
        criteria = StoppingCriteriaList([_StopTexts(texts, width, self.source.prompt.decode)] if texts else [])
        out = lm.generate(input_ids=ids.to(self.device), attention_mask=mask.to(self.device),
                          stopping_criteria=criteria)
        return out[:, width:].tolist()

    @contextlib.contextmanager
    def _placed(self, weights: Path | None) -> Iterator[PreTrainedModel]:
        """The model with the weights asked for; the base model is kept between adapters."""
        if not is_adapter(weights):
            yield self._model(self.source.model if weights is None else str(weights))
            return
        lm = self._model(self.source.model)
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft asks by a name of the past
                # An adapter with other names than the model's would silently be none.
                warnings.filterwarnings("error", message="Found missing adapter keys")
                tuned = PeftModel.from_pretrained(lm, weights, torch_device="cpu").eval()
        except (OSError, ValueError, RuntimeError, KeyError, UserWarning) as error:
            self.loaded = None  # it may have the adapter half inside
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{weights}: is no adapter for {self.source.model} ({reason})") from None
        try:
            yield lm
        finally:
            tuned.unload()

    def _model(self, where: str) -> PreTrainedModel:
        if self.loaded is None or self.loaded[0] != where:
            self.loaded = None  # before the next one is loaded: two may not fit
            source, base = self.source, where == self.source.model
            lm = _language.load("student.model", where, source.revision if base else "", source.dtype,
                                source.attention, False, source.trust_remote_code)
            # The model's own configuration may sample or penalise repetition.
            lm.generation_config = GenerationConfig(
                do_sample=False, use_cache=True, max_new_tokens=source.stop.max_new_tokens,
                eos_token_id=list(source.stop.ids), pad_token_id=source.stop.ids[0])
            self.loaded = where, lm.to(self.device).eval()
        return self.loaded[1]


class _StopTexts(StoppingCriteria):
    """Ends a row whose newest token completed a stop text."""

    def __init__(self, texts: Sequence[str], width: int, decode: Callable[[Sequence[int]], str]):
        self.texts, self.width, self.decode = texts, width, decode
        # A token has at least one byte, so a text that ends at the newest one began no earlier than this; the first
        # characters of a tail may be broken, hence some more.
        self.tail = max(len(text.encode()) for text in texts) + 8

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        rows = input_ids[:, max(self.width, input_ids.shape[1] - self.tail):].tolist()
        found = [any(text in tail for text in self.texts) for tail in map(self.decode, rows)]
        return torch.tensor(found, device=input_ids.device)
