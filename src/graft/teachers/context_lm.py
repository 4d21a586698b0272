"""The language model itself, or another one, reading worked examples before the question that the student gets bare."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from graft.errors import UserError
from graft.outputs import Outputs, Tokens, TopK
from graft.students import _language
from graft.students.causal_lm import CausalLM
from graft.tasks._context import Context, check
from graft.tasks._taught import longest, prompts_of
from graft.tasks._text import TextTask, sequences
from graft.teachers import _topk_cache
from graft.teachers._ema import Average
from graft.teachers._freeze import freeze
from graft.teachers._topk import divide, join, top_k, within

TEXT = True


def build(task: TextTask, student: CausalLM, *,
          context: Annotated[str, "fewshot | zeroshot | shuffled_answers | wrong_shots | random_shots | "
                             "random_letters | other_group | fixed_shots | instruction | instruction_shuffled | "
                             "document | other_document",
                             "what the teacher reads before the question (see tasks/_context.py)"] = "fewshot",
          shots: Annotated[int, ">= 0", "worked examples"] = 8,
          fewshot_seed: Annotated[int, ">= 0", "which ones; independent of the training seed"] = 42,
          instruction: Annotated[str, "", "contexts instruction, instruction_shuffled: what the teacher reads; \\n is "
                                 "a new line", "", "2026-11"] = "",
          max_length: Annotated[int, "> 0", "tokens of the teacher's sequence; examples that do not fit are dropped"]
          = 4096,
          keep: Annotated[str, "topk | hidden", "what is known of the teacher at each answer token. topk: its largest "
                          "logits; hidden: its last hidden state, from which the head that it shares with a LoRA "
                          "student makes all logits, for any tau and without a tail", "", "2026-11"] = "topk",
          k: Annotated[int, "> 0", "topk: how many logits"] = 256,
          serve: Annotated[str, "adapter | copy | cache | ema", "adapter: the student's own weights without its "
                           "adapters; copy: a second, frozen model; cache: what scripts/cache_teacher.py computed; "
                           "ema: the student with the moving average of its adapters"] = "adapter",
          ema_decay: Annotated[float, "(0, 1)", "ema: decay per optimizer step", "", "2026-11"] = 0.99,
          path: Annotated[str, "", "cache: its folder; empty: found by its content in $GRAFT_CACHE or cache/",
                          "where the cache lies; its content is compared"] = "",
          cache_dtype: Annotated[str, "fp16 | fp32 | bf16", "cache: of what is kept on disk; bf16 for keep: hidden"]
          = "fp16",
          precision: Annotated[str, "fp32 | bf16", "cache: what it was computed in; write ${train.precision}"] = "fp32",
          model: Annotated[str, "", "copy, cache: another model with the same tokenizer; empty: the student's"] = "",
          revision: Annotated[str, "", "copy, cache: of that model on the hub"] = "",
          dtype: Annotated[str, "fp32 | bf16", "copy, cache: of the weights of that model"] = "fp32",
          targets: Annotated[str, "gold | teacher | student", "answers that the student is trained on. gold: the "
                             "data's; teacher: its own, from scripts/sample_teacher.py; student: its own, made while "
                             "it trains, which the teacher scores", "", "2026-11"] = "gold",
          temperature: Annotated[float, ">= 0", "targets teacher, student: of sampling; 0: greedy", "",
                                 "2026-11"] = 1.0,
          sample_every: Annotated[int, ">= 1", "targets student: optimizer steps between new answers", "",
                                  "2026-11"] = 1,
          samples: Annotated[str, "", "targets teacher: the folder of its answers; empty: found by its content in "
                             "$GRAFT_CACHE or cache/", "where the answers lie; their content is compared"] = "",
          only_right: Annotated[bool, "", "targets teacher: only answers that are judged right", "", "2026-11"] = False,
          batch_tokens: Annotated[int, "> 0", "tokens per forward pass, padding included"] = 16384) -> nn.Module:
    """A frozen teacher: `forward(tokens, features)` gives the top-K logits at the student's positions.

    Raises UserError where student, model, tokenizer, K, head or cache do not fit, before anything is trained.
    """
    del targets, temperature, sample_every, samples, only_right  # what the task's answers are: `_targets`, the loop
    settings = settings_of(task, context, shots, fewshot_seed, max_length, instruction)
    if keep == "topk" and k > task.num_classes:
        raise UserError(f"teacher.k: {k} is more than the {task.num_classes} tokens of the vocabulary")
    if serve == "cache":
        base = f"{_language.identity(model, revision, 'teacher.model')} in {dtype}" if model else student.base
        wanted = _topk_cache.about(task, settings, base, precision, cache_dtype, keep)
        _refuse_other_head(keep, student, base)
        cached = _topk_cache.CachedTeacher(_topk_cache.folder_for(wanted, path), wanted, k, task)
        _refuse_wider(cached.manifest["vocabulary"], student)
        return cached
    if serve == "copy":
        if not model and student.base.startswith("random"):
            raise UserError("teacher.serve: the student's weights were drawn for this run alone, a copy would have "
                            "others; name teacher.model")
        same = {kind: name for name, kind in _language.DTYPES.items()}[student.model.dtype]
        own = (frozen_lm(task, model, revision, dtype) if model
               else frozen_lm(task, student.source, student.revision, same))
        _refuse_wider(own.head.vocabulary, student)
        _refuse_other_head(keep, student, own.base)
        return freeze(ContextLM(task, settings, own, k, batch_tokens, keep=keep))
    if not student.lora or model:
        raise UserError(f"teacher.serve: {serve} needs a LoRA student and teaches with its own model; use cache or "
                        "copy")
    _refuse_other_head(keep, student, student.base)
    ema = Average(student, ema_decay) if serve == "ema" else None
    alone = ema.lent if ema else student.untrained
    return freeze(ContextLM(task, settings, student, k, batch_tokens, alone, keep, ema))


def _refuse_other_head(keep: str, student: CausalLM, base: str) -> None:
    """Hidden states become logits by the student's head, which must be the teacher's, now and after training."""
    if keep != "hidden":
        return
    output = student.model.get_output_embeddings()
    if not student.lora or type(output) is not nn.Linear or output.weight.requires_grad:
        raise UserError("teacher.keep: hidden needs a LoRA student whose head (its output embedding) stays as it is; "
                        "take the head out of student.targets, or use topk")
    if base != student.base:
        raise UserError("teacher.model: keep: hidden makes logits by the student's head, and another model has another "
                        f"one ({base[:60]}, the student {student.base[:60]}); use keep: topk")


def _refuse_wider(rows: int, student: CausalLM) -> None:
    """Models pad their embeddings; one of the largest logits could be of a row that the student does not have."""
    if rows > student.head.vocabulary:
        raise UserError(f"teacher.model: has {rows} embeddings, the student {student.head.vocabulary}; expected at "
                        "most as many")


def settings_of(task: TextTask, context: str, shots: int, fewshot_seed: int, max_length: int,
                instruction: str) -> Context:
    """What a configuration lets the teacher read. Raises UserError where that is impossible."""
    if context == "shuffled_answers" and shots < 2:
        raise UserError(f"teacher.shots: shuffled_answers needs at least 2 examples, got {shots}")
    if max_length < task.max_length:
        raise UserError(f"teacher.max_length: must be at least task.max_length {task.max_length}, got {max_length}")
    settings = Context(context, shots, fewshot_seed, max_length, instruction.replace("\\n", "\n").strip())
    check(task, settings)
    return settings


def context_of(task: TextTask, args: Mapping[str, Any]) -> Context:
    """`settings_of` the arguments of a teacher of this name."""
    return settings_of(task, *(args[key] for key in ("context", "shots", "fewshot_seed", "max_length", "instruction")))


def frozen_lm(task: TextTask, model: str, revision: str, dtype: str) -> CausalLM:
    """A model that is never trained. Raises UserError if its tokenizer is not the task's."""
    _language.refuse_other_tokenizer("teacher.model", task, model, revision)
    where = _language.folder_of(model, "teacher.model")
    lm = _language.load("teacher.model", where, revision, dtype, "sdpa", False, False)
    head = _language.Head(lm)
    _language.check_head("teacher.model", lm, head)
    base = f"{_language.identity(where, revision, 'teacher.model')} in {dtype}"
    return freeze(CausalLM(lm, head, False, base, model, revision, task.num_classes))


class ContextLM(nn.Module):
    """A teacher that computes: it encodes its sequences once, and its logits where they are asked for.

    `lm` is run inside `alone()`; `ema` is who averages its adapters, if they are. With an `alone` it is the student,
    which must not become a part of its own teacher, so it is held in a tuple, out of sight of `parameters()`.
    """

    num_classes = 0  # it gives its largest logits, never all
    positions = ("rows", "next")

    def __init__(self, task: TextTask, context: Context, lm: CausalLM, k: int, batch_tokens: int,
                 alone: Callable[[], AbstractContextManager] | None = None, keep: str = "topk",
                 ema: Average | None = None):
        super().__init__()
        self.ema = ema
        self.keep, self.width = keep, lm.model.get_output_embeddings().weight.shape[1]
        self.k, self.batch_tokens, self.alone = k, batch_tokens, alone or contextlib.nullcontext
        self.own, self.vocabulary = None if alone else lm, lm.head.vocabulary
        self.identity = f"{lm.base}, its adapters averaged" if ema else lm.base
        self._lm = (lm,)
        self.split = task.splits["train"]  # whose answers may change
        self.prompts, dropped = prompts_of(task, context)
        _language.refuse_longer("the teacher", lm.model.config, longest(task, self.prompts), "teacher.max_length")
        self.short = sum(d > 0 for d in dropped)  # items that had to drop examples
        self.notes = (_topk_cache.said(self.short, len(dropped), context),)

    @property
    def columns(self) -> int:
        """Numbers that a cache keeps of each token: K logits, or a hidden state."""
        return self.width if self.keep == "hidden" else self.k

    @torch.no_grad()
    def forward(self, tokens: Tokens, features: Sequence[str] = ("rows",)) -> Outputs:
        """`topk[name]`, or hidden states, for each of `features`: `rows` predict the answer tokens, `next` is one
        position later."""
        assert tokens.split == "train", "a context is prepared for training items"
        answers = self.split.answers
        lengths = self.prompts.lengths[tokens.index] + answers.lengths[tokens.index]
        found: list[dict[str, TopK | Tensor]] = [{}] * len(lengths)
        with self.alone():
            for places in within(lengths, self.batch_tokens):
                seen, _ = sequences(self.prompts, answers, tokens.index[places], "train", tokens.ids.device)
                out = self._lm[0](seen, features=[name for name in features if name != "rows"])
                hidden = {"rows": out.hidden, **out.features}
                each = {name: hidden[name].split(seen.counts.tolist()) if self.keep == "hidden" else
                        divide(top_k(hidden[name], out.head, self.k), seen.counts) for name in features}
                for row, place in enumerate(places.tolist()):
                    found[place] = {name: each[name][row] for name in features}
        if self.keep == "hidden":
            return Outputs(None, features={name: torch.cat([one[name] for one in found]) for name in features})
        return Outputs(None, topk={name: join([one[name] for one in found]) for name in features})
