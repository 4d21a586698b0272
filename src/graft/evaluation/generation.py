"""Greedy generation from a causal language model and from its checkpoints: what its two engines share.

An engine's `generate(prompts, weights)` answers prompts of token ids with the base model (`weights` None) or a
checkpoint's folder: an adapter where there is an adapter_config.json, else a whole model. It yields `(i, Generated)`
as answers come, in an order of its own. Engines are made by `graft.evaluation.engines.engine`.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from graft.config.options import Config
from graft.errors import UserError
from graft.students import _language
from graft.tasks._prompts import Prompt
from graft.tasks._text import TextTask


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
    _language.refuse_no_room(config, longest, cfg.evaluate.max_new_tokens)
    written = None
    with contextlib.suppress(OSError):  # not every folder has one
        written = GenerationConfig.from_pretrained(where, **options)
    # Wherever training computed in bf16, so does generation; it has no autocast, which would be slow at one token.
    dtype = "bf16" if "bf16" in (args["dtype"], cfg.train.precision) else "fp32"
    return Source(where, args["revision"], dtype, args["attention"], args["trust_remote_code"], task.prompt,
                  stop_of(task, where, config, written, cfg.evaluate.max_new_tokens), longest)


def stop_of(task: TextTask, model: str, config: PreTrainedConfig, written: GenerationConfig | None,
            max_new_tokens: int) -> Stop:
    """What ends an answer of a model with this configuration, and this generation_config.json where it has one."""
    ids = {*task.prompt.end, *_language.end_ids("student.model", model, config.get_text_config().eos_token_id)}
    ids |= _language.end_ids("student.model", model, written.eos_token_id if written else None)
    return Stop(tuple(sorted(ids)), tuple(task.stop), max_new_tokens)


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
