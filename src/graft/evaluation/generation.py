"""Greedy generation from a causal language model and from its checkpoints: one interface, two engines.

An engine's `generate(prompts, weights)` answers prompts of token ids with the base model (`weights` None) or a
checkpoint's folder: an adapter where there is an adapter_config.json, else a whole model. It yields `(i, Generated)`
as answers come, in an order of its own. The other engine is in `graft.evaluation._vllm`.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from graft.config.options import Config
from graft.errors import UserError
from graft.students import _language
from graft.tasks._prompts import Prompt
from graft.tasks._text import TextTask

ENGINES = ("transformers", "vllm")


@dataclass(frozen=True)
class Stop:
    """What ends an answer."""

    ids: tuple[int, ...]  # tokens: the end of a turn, and what the model itself calls an end
    texts: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Generated:
    """One answer."""

    ids: list[int]  # as generated, without the token that ended it
    text: str  # without special tokens, up to the first stop text
    ended: bool  # by itself; False: cut off by max_new_tokens


@dataclass(frozen=True)
class Source:
    """The base model: where its weights are, in which precision it runs, what ends its answers."""

    model: str  # a folder, or a model of the hub
    revision: str
    dtype: str
    attention: str
    trust_remote_code: bool
    prompt: Prompt
    stop: Stop
    longest: int  # tokens of the longest prompt


def source(cfg: Config, task: TextTask, longest: int, untrained: bool = False) -> Source:
    """The base model of a run, where it is to answer `untrained` or with an adapter.

    Raises UserError if it cannot be found again or is too short for the prompts.
    """
    args = cfg.student.args
    if args["random_weights"] and (untrained or args["lora"]):
        raise UserError("student.random_weights: the model that training started from was drawn from its seed and is "
                        "nowhere; name a folder")
    where, options = _language.folder_of(args["model"]), {"revision": args["revision"] or None}
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=args["trust_remote_code"], **options)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"student.model: {where}: {' '.join(str(error).split())[:300]}") from None
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    if room and longest + cfg.evaluate.max_new_tokens > room:
        raise UserError(f"evaluate.max_new_tokens: {cfg.evaluate.max_new_tokens} after prompts of up to {longest} "
                        f"tokens are more than the {room} positions of {where}")
    ids = {*task.prompt.end, *_ids(config.get_text_config().eos_token_id)}
    with contextlib.suppress(OSError):  # not every folder has one
        ids |= _ids(GenerationConfig.from_pretrained(where, **options).eos_token_id)
    # Wherever training computed in bf16, so does generation; it has no autocast, which would be slow at one token.
    dtype = "bf16" if "bf16" in (args["dtype"], cfg.train.precision) else "fp32"
    return Source(where, args["revision"], dtype, args["attention"], args["trust_remote_code"], task.prompt,
                  Stop(tuple(sorted(ids)), tuple(task.stop), cfg.evaluate.max_new_tokens), longest)


def engine(name: str, source: Source, *, batch_size: int, device: torch.device, adapters: Sequence[Path] = (),
           tensor_parallel: int = 1, processes: int = 1) -> Any:
    """The engine `name`. `adapters` are the checkpoints' folders that it will be asked for.

    Raises UserError if vLLM is asked for and not installed, or started in several processes.
    """
    if batch_size < 1:
        raise UserError(f"--batch_size: expected a number from 1 on, got {batch_size}")
    if name == "transformers":
        return Transformers(source, batch_size, device)
    if processes > 1:
        raise UserError(f"--engine vllm: started in {processes} processes; vLLM spreads the model itself: start it "
                        "with python, and --tensor_parallel")
    from graft.evaluation._vllm import Vllm
    return Vllm(source, [folder for folder in adapters if is_adapter(folder)], tensor_parallel)


def _ids(one_or_many: int | list[int] | None) -> set[int]:
    return set() if one_or_many is None else {one_or_many} if isinstance(one_or_many, int) else set(one_or_many)


def is_adapter(weights: Path | None) -> bool:
    """Whether a checkpoint's folder holds an adapter rather than a model."""
    return weights is not None and (weights / "adapter_config.json").is_file()


def cut(ids: Sequence[int], stop: Stop, decode: Callable[[Sequence[int]], str]) -> Generated:
    """The answer in generated ids: before the first stop token, its text before the first stop text."""
    end = next((place for place, token in enumerate(ids) if token in stop.ids), None)
    ids = list(ids[:end])
    text = decode(ids)
    places = [place for place in map(text.find, stop.texts) if place >= 0]
    return Generated(ids, text[:min(places, default=len(text))], end is not None or bool(places))


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
