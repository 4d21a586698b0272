"""The one place where a question, with or without worked examples before it, becomes token ids.

Training, the teacher's cache and evaluation all come here, so they cannot differ in the template, in the
switch that turns thinking off, or in how an answer begins and ends. A sequence is always *prompt ids +
answer ids*, tokenised apart; teacher and student therefore share the answer's ids by construction.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from graft.errors import UserError
from graft.tasks import _gguf

Shot = tuple[str, str]  # a worked example: question, answer
# Variables of the chat template, given at its top level: nested in `chat_template_kwargs` a tokenizer ignores them.
# Llama's template writes today's date into every prompt unless it is given one.
VARIABLES: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
_MARK = "graft-answer"


def load(tokenizer: str, revision: str = "", layout: str = "auto") -> "Prompt":
    """The prompt of a tokenizer: a folder, a GGUF file, or a model on the hub at a `revision`.

    Raises UserError if there is no such tokenizer, or if the `layout` does not suit it.
    """
    if tokenizer.endswith(_gguf.SUFFIX):
        tokenizer = str(_gguf.folder_of(tokenizer, "task.tokenizer"))
    if tokenizer and Path(tokenizer).is_dir() and not list(Path(tokenizer).glob("tokenizer*")):
        adapter = (Path(tokenizer) / "adapter_config.json").is_file()
        raise UserError(f"task.tokenizer: {tokenizer}: " + (
            "is an adapter, no model; name the model it belongs to" if adapter else "has no tokenizer.json"))
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, revision=revision or None, trust_remote_code=False)
    except Exception as error:  # a damaged tokenizer.json raises nothing more special
        raise UserError(f"task.tokenizer: {tokenizer}: no tokenizer there ({str(error).splitlines()[0][:200]}); "
                        "expected a folder with tokenizer.json, or a model of the hub that can be reached") from None
    if not loaded.is_fast or len(loaded) <= len(loaded.all_special_tokens):  # a lone config.json makes an empty one
        raise UserError(f"task.tokenizer: {tokenizer}: has no tokenizer.json")
    if layout == "auto":
        layout = "chat" if loaded.chat_template else "plain"
    if layout == "chat" and not loaded.chat_template:
        raise UserError(f"task.layout: {tokenizer} has no chat template; use plain")
    return Prompt(loaded, layout)


class Prompt:
    """Questions and answers as token ids, in the tokenizer's chat template or in plain text.

    chat: every worked example is a user's and an assistant's turn, thinking is off, the prompt ends with the
    template's generation prompt, the answer with its end-of-turn token. plain (base models): a question line,
    an answer, a blank line; BOS first where the tokenizer itself would put one; the answer ends with EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, layout: str):
        self.tokenizer, self.layout = tokenizer, layout
        bos = tokenizer.bos_token_id
        itself = bos is not None and tokenizer("")["input_ids"][:1] == [bos]  # the tokenizer puts one
        self._start = [bos] if layout == "plain" and itself else []
        self.end = self._end_of_turn() if layout == "chat" else [tokenizer.eos_token_id]
        if self.end == [None]:
            raise UserError(f"task.tokenizer: {tokenizer.name_or_path} has no end-of-sequence token")

    def _end_of_turn(self) -> list[int]:
        text = self._chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}], False)
        rest = self._ids([text[text.rindex(_MARK) + len(_MARK):]])[0]
        # The first special token: the template may write a space before it and a newline after it.
        added = self.tokenizer.added_tokens_decoder
        return [token for token in rest if token in added and added[token].special][:1] or [self.tokenizer.eos_token_id]

    def _chat(self, messages: list[dict[str, str]], generate: bool) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, **VARIABLES)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        # Rendered templates hold their special tokens already.
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def text(self, shots: Sequence[Shot], question: str) -> str:
        """What a model reads before its answer (BOS apart, in plain layout)."""
        if self.layout == "plain":
            return "".join(f"{q}\n{a}\n\n" for q, a in shots) + f"{question}\n"
        roles = ("user", "assistant")
        turns = [{"role": role, "content": content} for shot in shots for role, content in zip(roles, shot)]
        return self._chat([*turns, {"role": "user", "content": question}], True)

    def prompt_ids(self, asked: Sequence[tuple[Sequence[Shot], str]]) -> list[list[int]]:
        """The ids before the answer for each (worked examples, question)."""
        return [self._start + ids for ids in self._ids([self.text(*one) for one in asked])]

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The ids of each answer, end of turn included."""
        return [ids + self.end for ids in self._ids(answers)]

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @property
    def vocabulary(self) -> int:
        """Tokens of the tokenizer, added ones included; a model's embedding may have more rows, never fewer."""
        return len(self.tokenizer)

    @functools.cached_property
    def tokenizer_sha256(self) -> str:
        """Digest of what the tokenizer does: two models may be compared token by token only where it is equal."""
        about = json.loads(self.tokenizer.backend_tokenizer.to_str())
        del about["padding"], about["truncation"]  # of the last call
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    @property
    def template_sha256(self) -> str:
        """Digest of the layout: template, its variables, start and end of a sequence."""
        about = [self.layout, self.tokenizer.chat_template if self.layout == "chat" else "", VARIABLES, self._start,
                 self.end]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
