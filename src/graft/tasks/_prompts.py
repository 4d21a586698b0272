"""The one place where a question, with or without worked examples before it, becomes token ids.

Training, the teacher's cache and evaluation all come here, so they cannot differ in the template, in the
switch that turns thinking off, or in how an answer begins and ends. A sequence is always *prompt ids +
answer ids*, tokenised apart; teacher and student therefore share the answer's ids by construction.
"""

import datetime
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from graft.errors import UserError
from graft.tasks import _gguf
from graft.tasks._files import require_model

Shot = tuple[str, str]  # a worked example: question, answer
# Variables of the chat template, given at its top level: nested in `chat_template_kwargs` a tokenizer ignores them.
# Templates write today's date into every prompt: Llama's unless it is given one, others by `strftime_now`.
VARIABLES: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
# The macro takes the place of that function; transformers hands a template data alone.
TODAY = datetime.datetime(2024, 7, 26)
_NOW = "{%- macro strftime_now(format) -%}{{ format " + "".join(
    f"| replace('%{it}', '{TODAY.strftime('%' + it)}') " for it in "aAbBcdDeFgGhHIjklmMnprRsStTuUVwWxXyYzZ") + (
    "}}{%- endmacro %}{{ '' }}")
# Contents of a conversation by which a template is tried.
_ASKED, _ANSWERED, _QUESTION, _ANSWER = "graft-asked", "graft-answered", "graft-question", "graft-answer"


def load(tokenizer: str, revision: str = "", layout: str = "auto") -> "Prompt":
    """The prompt of a tokenizer: a folder, a GGUF file, or a model on the hub at a `revision`.

    Raises UserError if there is no such tokenizer, or if the `layout` does not suit it.
    """
    if tokenizer.endswith(_gguf.SUFFIX):
        tokenizer = str(_gguf.folder_of(tokenizer, "task.tokenizer"))
    require_model("task.tokenizer", tokenizer)
    if Path(tokenizer).is_dir() and not list(Path(tokenizer).glob("tokenizer*")):
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


def behind(document: str, question: str) -> str:
    """The user's turn where a text stands before the question about it."""
    return f"{document}\n\n{question}" if document else question


class Prompt:
    """Questions and answers as token ids, in the tokenizer's chat template or in plain text.

    chat: every worked example is a user's and an assistant's turn, thinking is off, the prompt ends with the
    template's generation prompt, the answer with its end-of-turn token. plain (base models): a question line,
    an answer, a blank line; BOS first where the tokenizer itself would put one; the answer ends with EOS.
    Raises UserError naming a template whose conversation is not prompt + answer + end of turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, layout: str):
        self.tokenizer, self.layout = tokenizer, layout
        self._start, self._lead, self._after, framing = [], "", "", ""
        self._written = _NOW + tokenizer.get_chat_template() if layout == "chat" else ""
        if layout == "plain":
            self._start, self.end = self._beginning(), [tokenizer.eos_token_id]
            if self.end == [None]:
                raise UserError(f"task.tokenizer: {tokenizer.name_or_path} has no end-of-sequence token")
        else:
            self._lead, self._after, framing = self._tried()
            self.end = self._end_of_turn()
        self._control = self._controls(framing)

    def _beginning(self) -> list[int]:
        """BOS, if the tokenizer puts it before a text; where BOS is EOS, what it puts behind one is an end."""
        tokenizer, added = self.tokenizer, self.tokenizer.added_tokens_decoder
        texts = (tokenizer.decode([token]) for token in range(len(tokenizer)) if token not in added)
        text = next((text for text in texts if text.strip()), "")  # any that it knows
        bos, bare, whole = tokenizer.bos_token_id, self._ids([text])[0], tokenizer(text)["input_ids"]
        return [bos] if bos is not None and whole[:1 + len(bare)] == [bos, *bare] else []

    def _tried(self) -> tuple[str, str, str]:
        """What the template writes between a prompt and its answer (space at most), behind the answer, and around a
        worked example."""
        before, turns = self.text([(_ASKED, _ANSWERED)], _QUESTION), self._turns([(_ASKED, _ANSWERED)], _QUESTION)
        whole = self._chat([*turns, {"role": "assistant", "content": _ANSWER}], False)
        found = re.fullmatch(f"(.*){_ASKED}(.*){_ANSWERED}(.*){_QUESTION}(.*)", before, re.S)
        if not found or not whole.startswith(before) or _ANSWER not in whole[len(before):]:
            raise UserError(f"{self._template}: a conversation that it writes is not the prompt, then the answer; "
                            "expected one that keeps all contents and heeds add_generation_prompt; or set task.layout "
                            "to plain")
        lead, after = whole[len(before):].split(_ANSWER, 1)
        if lead.strip():
            raise UserError(f"{self._template}: writes {lead.strip()[:60]!r} between prompt and answer; expected "
                            "nothing there; or set task.layout to plain")
        return lead, after, found[1] + found[2]

    @property
    def _template(self) -> str:
        return f"task.tokenizer: {self.tokenizer.name_or_path}: its chat template"

    def _end_of_turn(self) -> list[int]:
        """The first special token behind an answer, or where none is flagged special the first added one; a template
        may write space before it and a newline after it."""
        added, rest = self.tokenizer.added_tokens_decoder, self._ids([self._after])[0]
        ends = [token for token in rest if token in added]
        end = next((token for token in ends if added[token].special), ends[0] if ends else None)
        if end is None or not self._after.lstrip().startswith(added[end].content):
            raise UserError(f"{self._template}: writes {self._after[:60]!r} after an answer; expected a token that "
                            "ends the turn; or set task.layout to plain")
        return [end]

    def _controls(self, framing: str) -> re.Pattern[str] | None:
        """Finds what the tokenizer reads as a control token: special ones, the end of a turn, what frames turns."""
        added = self.tokenizer.added_tokens_decoder
        texts = {about.content for token, about in added.items() if about.content.strip() and (
            about.special or token in self.end or (about.content in framing and not about.content.isalnum()))}
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None

    def _turns(self, shots: Sequence[Shot], question: str, system: str = "") -> list[dict[str, str]]:
        roles = ("user", "assistant")
        turns = [{"role": role, "content": content} for shot in shots for role, content in zip(roles, shot)]
        first = [{"role": "system", "content": system}] if system else []
        return [*first, *turns, {"role": "user", "content": question}]

    def _chat(self, messages: list[dict[str, str]], generate: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, chat_template=self._written, tokenize=False,
                                                      add_generation_prompt=generate, **VARIABLES)
        except Exception as error:  # it may do anything: what it raises, and what Python does in it
            raise UserError(f"{self._template}: {type(error).__name__}: {' '.join(str(error).split())[:200]}; set "
                            "task.layout to plain, or mend it") from None

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        # Rendered templates hold their special tokens already.
        try:
            return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        except Exception as error:  # the tokenizers library has no other
            raise UserError(f"task.tokenizer: {self.tokenizer.name_or_path}: has no tokens for a question or answer "
                            f"({' '.join(str(error).split())[:200]})") from None

    def check(self, question: str, answer: str, system: str = "") -> None:
        """Raise ValueError if an item cannot be asked and answered as it stands.

        Its text must hold no control tokens, and the template must write it unchanged.
        """
        for text in (question, answer, system):
            if self._control and (found := self._control.search(text)):
                raise ValueError(f"holds {found[0]!r}, which {self.tokenizer.name_or_path} reads as a control token; "
                                 "expected plain text")
        if self.layout == "chat":
            whole = self._chat([*self._turns((), question, system), {"role": "assistant", "content": answer}], False)
            if whole != self.text((), question, system) + self._lead + answer + self._after or question not in whole:
                raise ValueError(f"{self._template} changes {answer[:60]!r} or its question; expected text that it "
                                 "leaves as it is; or set task.layout to plain")

    def text(self, shots: Sequence[Shot], question: str, system: str = "") -> str:
        """What a model reads before its answer (BOS apart, in plain layout)."""
        if self.layout == "plain":
            parts = [*([f"{system}\n\n"] if system else []), *(f"{q}\n{a}\n\n" for q, a in shots)]
            return "".join(parts) + f"{question}\n"
        return self._chat(self._turns(shots, question, system), True)

    def prompt_ids(self, asked: Sequence[tuple[Sequence[Shot], str] | tuple[Sequence[Shot], str, str]],
                   ) -> list[list[int]]:
        """The ids before the answer for each (worked examples, question), or (…, …, system message)."""
        return [self._start + ids for ids in self._ids([self.text(*one) for one in asked])]

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The ids of each answer, end of turn included."""
        return [ids + self.end for ids in self._ids([self._lead + answer for answer in answers])]

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
        """Digest of the layout: template, its variables, start and end of a sequence, and what they make of a
        conversation: a template reads more than it is given here, such as the tokenizer's special tokens."""
        about = [self.layout, self.tokenizer.chat_template if self.layout == "chat" else "", VARIABLES,
                 str(TODAY), self._start, self._lead, self.end, self.text([("a", "b")], "c")]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
