"""The transformers engine of `graft.evaluation.generation`, and its decoding for a model that is being trained."""

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from graft import keyed
from graft.errors import UserError
from graft.evaluation.generation import Generated, Source, Stop, cut, is_adapter
from graft.students import _language

Decode = Callable[[Sequence[int]], str]


class Transformers:
    """Batches of prompts of like length, the longest first, in this process.

    The batch size changes an answer only where rounding decides between two tokens. With a `temperature` above 0
    answers are sampled; their random numbers follow from `seed` and the prompt.
    """

    name = "transformers"

    def __init__(self, source: Source, batch_size: int, device: torch.device, temperature: float = 0.0, seed: int = 0):
        self.source, self.batch_size, self.device = source, batch_size, device
        self.temperature, self.seed = temperature, seed
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

    def release(self) -> None:
        """Nothing: a model takes what it takes, and others have room beside it."""

    def _batch(self, lm: PreTrainedModel, prompts: list[Sequence[int]]) -> list[list[int]]:
        draws, stop = None, self.source.stop
        if self.temperature:
            keys = [hashlib.sha256(" ".join(map(str, prompt)).encode()).digest()[:8] for prompt in prompts]
            index = np.array([int.from_bytes(key) for key in keys], np.uint64)
            draws = keyed.uniform(keyed.key(self.seed, "answers"), index, stop.max_new_tokens)
        return answer(lm, prompts, stop, self.source.prompt.decode, draws, self.temperature)

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
            self.loaded = where, lm.to(self.device).eval()
        return self.loaded[1]


@torch.no_grad()
def answer(lm: PreTrainedModel, prompts: Sequence[Sequence[int]], stop: Stop, decode: Decode,
           draws: np.ndarray | None = None, temperature: float = 1.0) -> list[list[int]]:
    """New ids of each of B prompts, as long as the longest answer; greedy, or by the `draws` (B, max_new_tokens) in
    [0, 1), one for each token.

    Prompts are padded in front; positions count from each one's first token.
    """
    width, filler = max(map(len, prompts)), stop.ids[0]
    ids = torch.tensor([[filler] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=lm.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=lm.device)
    criteria = StoppingCriteriaList([_StopTexts(stop.texts, width, decode)] if stop.texts else [])
    drawn = LogitsProcessorList([] if draws is None else [_Drawn(torch.from_numpy(draws).to(lm.device), width,
                                                                 temperature)])
    # The model's own configuration may sample or penalise repetition, and transformers would fill in what it says.
    own, lm.generation_config = lm.generation_config, GenerationConfig(
        do_sample=False, use_cache=True, max_new_tokens=stop.max_new_tokens, eos_token_id=list(stop.ids),
        pad_token_id=filler)
    try:
        out = lm.generate(input_ids=ids, attention_mask=mask, stopping_criteria=criteria, logits_processor=drawn)
    finally:
        lm.generation_config = own
    return out[:, width:].tolist()


def until_end(ids: Sequence[int], stop: Stop, decode: Decode) -> list[int]:
    """Generated ids up to the one that ended the answer, that one included; what a batch put behind is no part."""
    tail = _tail(stop.texts)
    for end in range(1, len(ids) + 1):
        if ids[end - 1] in stop.ids or any(text in decode(ids[max(0, end - tail):end]) for text in stop.texts):
            return list(ids[:end])
    return list(ids)


def _tail(texts: Sequence[str]) -> int:
    """Tokens in which a stop text that ends at the newest one lies: each has at least one byte; the first characters
    of a tail may be broken, hence some more."""
    return max((len(text.encode()) for text in texts), default=0) + 8


class _StopTexts(StoppingCriteria):
    """Ends a row whose newest token completed a stop text."""

    def __init__(self, texts: Sequence[str], width: int, decode: Decode):
        self.texts, self.width, self.decode, self.tail = texts, width, decode, _tail(texts)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        rows = input_ids[:, max(self.width, input_ids.shape[1] - self.tail):].tolist()
        found = [any(text in tail for text in self.texts) for tail in map(self.decode, rows)]
        return torch.tensor(found, device=input_ids.device)


class _Drawn(LogitsProcessor):
    """Leaves each row the token at which its cumulative probability passes the row's number for this position."""

    def __init__(self, draws: Tensor, width: int, temperature: float):
        self.draws, self.width, self.temperature = draws, width, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = input_ids.shape[1] - self.width
        passed = (scores.double() / self.temperature).softmax(-1).cumsum(-1)
        wanted = self.draws[:, place:place + 1] * passed[:, -1:]  # which is 1 but for rounding
        token = torch.searchsorted(passed, wanted, right=True).clamp_max(scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)
