"""What a task of questions and answers is: items in three splits, as token ids, and how an answer is judged."""

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graft import keyed
from graft.errors import UserError
from graft.outputs import Tokens, on_device
from graft.tasks._prompts import Prompt


@dataclass(frozen=True)
class Item:
    """One question, already worded as the user's turn, with its worked answer."""

    id: int  # its row in the source file; with the few-shot seed it decides which worked examples it gets
    question: str
    answer: str  # the assistant's turn
    gold: str  # what an extracted prediction must equal
    group: str = ""  # worked examples come from the same group
    system: str = ""  # the system's turn, before everything else
    document: str = ""  # a text that only a teacher reads
    family: str = ""  # items of one family say too much about each other; `content` alone where it is empty
    traits: tuple[tuple[str, str], ...] = ()  # name and value of what scores are also read by, such as its difficulty


    @property
    def says(self) -> list[Any]:
        """All that decides what is asked, read and judged; what came later than the first keys, where it is there."""
        later = {name: value for name in ("document", "family") if (value := getattr(self, name))}
        return [self.id, self.question, self.answer, self.gold, self.group, self.system, *([later] if later else [])]


Content = tuple[str, str]  # group, normal question
_ALIKE = str.maketrans("‘’‚‛“”„‟‐‑‒–—−", "''''\"\"\"\"------")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


def content(item: Item) -> Content:
    """What two items have in common that ask the same: their group, and the question but for case, width, space around
    marks, kinds of quotes and dashes, and a mark at its end."""
    text = _UNSEEN.sub("", unicodedata.normalize("NFKC", item.question)).casefold().translate(_ALIKE)
    text = re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.split()))
    return item.group, text.rstrip(".?!:") or text


def divide(items: Sequence[Item], fraction: float, base: int) -> tuple[list[int], list[int]]:
    """The items to hold out, about a `fraction` of them, and the others, each in a random order that follows from the
    key `base`; items of one content are on one side."""
    places: dict[Content, list[int]] = {}
    for i, item in enumerate(items):
        places.setdefault(content(item), []).append(i)
    alike, held, kept = list(places.values()), [], []
    for j in keyed.permutation(base, len(alike)).tolist():
        (held if len(held) < round(fraction * len(items)) else kept).extend(alike[j])
    return held, kept


class Ragged:
    """Lists of token ids as one flat array."""

    def __init__(self, lists: Sequence[Sequence[int]]):
        self.lengths = torch.tensor([len(ids) for ids in lists], dtype=torch.int64)
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])
        flat = np.fromiter(itertools.chain.from_iterable(lists), np.int32, int(self.offsets[-1]))
        self.flat = torch.from_numpy(flat)

    def __getitem__(self, i: int) -> Tensor:
        return self.flat[self.offsets[i]:self.offsets[i + 1]]


def sequences(prompts: Ragged, answers: Ragged, index_B: Tensor, split: str,
              device: torch.device) -> tuple[Tokens, Tensor]:
    """Prompt + answer of the items at `index_B`, padded at the end, and their answer tokens `(N,)`, on the device."""
    index = index_B.tolist()
    pairs = [(prompts[i], answers[i]) for i in index]
    width = max(len(p) + len(a) for p, a in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.int64)
    rows = []
    for b, (prompt, answer) in enumerate(pairs):
        ids[b, :len(prompt) + len(answer)] = torch.cat([prompt, answer])
        start = b * width + len(prompt) - 1  # the output at position t predicts token t + 1
        rows.append(torch.arange(start, start + len(answer)))
    targets = torch.cat([answer for _, answer in pairs])
    tokens = Tokens(on_device(ids, device, torch.int64), on_device(torch.cat(rows), device, torch.int64),
                    answers.lengths[index_B], index_B, split)
    return tokens, on_device(targets, device, torch.int64)


class TextSplit:
    """Items of a split and their ids without worked examples."""

    resident = True

    def __init__(self, name: str, items: Sequence[Item], prompt: Prompt):
        self.name, self.items, self.device = name, list(items), torch.device("cpu")
        self.prompts = Ragged(prompt.prompt_ids([((), item.question, item.system) for item in self.items]))
        self.answers = Ragged(prompt.answer_ids([item.answer for item in self.items]))
        self.lengths = self.prompts.lengths + self.answers.lengths
        self.contents = [content(item) for item in self.items]
        self.first: dict[Content, int] = {}  # where each content stands, the first time
        self.groups: dict[str, list[int]] = {}  # those places, by group
        for i, about in enumerate(self.contents):
            if self.first.setdefault(about, i) == i:
                self.groups.setdefault(about[0], []).append(i)

    def __len__(self) -> int:
        return len(self.items)

    def answer(self, answers: Sequence[Sequence[int]]) -> None:
        """Put these ids in place of the items' answers, which stay what worked examples and golds are read from."""
        self.answers = Ragged(answers)
        self.lengths = self.prompts.lengths + self.answers.lengths

    def to(self, device: torch.device | str, workers: int | None = None) -> "TextSplit":
        """Deliver to `device` from now on. Returns the split itself."""
        self.device = torch.device(device)
        return self

    def batches(self, order: Iterable[Tensor]) -> Iterator[tuple[Tokens, Tensor]]:
        """Sequences and answer tokens `(N,)` int64 on the device, for each index tensor `(B,)`."""
        for index_B in order:
            yield sequences(self.prompts, self.answers, index_B, self.name, self.device)

    def positions(self, index: Tensor) -> int:
        """Answer tokens of the items at `index`."""
        return int(self.answers.lengths[index].sum())

    def arrange(self, index: Tensor, world: int, accumulate: int) -> Tensor:
        """The same items with those of like length in one micro-batch, dealt evenly to the processes.

        Sorting within the batch of one optimizer step spares most of the padding and cannot change the gradient.
        Process r's micro-batch m is rows (r·accumulate + m)·size onwards of what is returned.
        """
        by_length = index[torch.argsort(self.lengths[index], descending=True, stable=True)]
        return by_length.view(accumulate, world, -1).transpose(0, 1).reshape(-1)


@dataclass(frozen=True)
class TextTask:
    """A data set of questions and answers, split; `data_id` says which copy of the data was read."""

    name: str
    data_id: str
    fingerprints: dict[str, str]  # split -> SHA-256 (hex) of its items, in their order
    prompt: Prompt
    max_length: int  # tokens of a training item without worked examples
    left_out: int  # training items that were longer
    splits: dict[str, TextSplit]  # train, val, test
    extract: Callable[[str], tuple[str, str]]  # generated text -> prediction: strict, flexible; "" if there is none
    stop: tuple[str, ...] = ()  # text that ends an answer besides the end-of-turn token
    overlap: int = 0  # test items whose question also stands in train or val
    answered: str = ""  # digest of the training answers where they are not the data's own
    donors: tuple[Item, ...] = ()  # of other groups, for contexts alone: neither trained on nor scored

    unit = "items"
    classes = ()

    @property
    def num_classes(self) -> int:
        """Tokens that the next one may be."""
        return self.prompt.vocabulary

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest question of any split, as it is asked without worked examples."""
        return max(int(split.prompts.lengths.max()) for split in self.splits.values() if len(split))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run says about its data when it starts."""
        kept = len(self.splits["train"])
        left_out = f"{self.left_out} of {kept + self.left_out} training items are longer than task.max_length " \
                   f"{self.max_length} and left out"
        return (f"{self.prompt.layout} layout, {int(self.splits['train'].answers.lengths.sum()):,} answer tokens; "
                + left_out,
                f"{self.overlap:,} of {len(self.splits['test']):,} test questions also stand in train or val")

    @property
    def about(self) -> dict[str, Any]:
        """What checkpoints and results say about the data; `graft.runtime.identity` compares it."""
        return {"id": self.data_id, "fingerprint": self.fingerprint, "fingerprints": self.fingerprints,
                "sizes": {name: len(split) for name, split in self.splits.items()}, "layout": self.prompt.layout,
                "template_sha256": self.prompt.template_sha256, "tokenizer_sha256": self.prompt.tokenizer_sha256}

    @property
    def fingerprint(self) -> str:
        """One digest for the items of all splits, tokenizer and template."""
        about = [sorted(self.fingerprints.items()), self.prompt.tokenizer_sha256, self.prompt.template_sha256]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def fingerprint(items: Sequence[Item]) -> str:
    """SHA-256 (hex) of all that items say, in their order."""
    return hashlib.sha256(json.dumps([item.says for item in items]).encode()).hexdigest()


def text_task(name: str, data_id: str, train: Sequence[Item], test: Sequence[Item], prompt: Prompt, *,
              val_fraction: float, split_seed: int, subset: int, max_length: int,
              extract: Callable[[str], tuple[str, str]], stop: tuple[str, ...] = (),
              allow_overlap: bool = True, donors: Sequence[Item] = ()) -> TextTask:
    """A task from its items: validation is held out from `train`, then `subset` items are kept (0: all).

    Training items longer than `max_length` tokens are left out and counted: an answer is never cut. Raises
    UserError if `subset` asks for more than there are, nothing is left, or a test question also stands in train or
    val without `allow_overlap`.
    """
    held, kept = divide(train, val_fraction, keyed.key(split_seed, "val"))
    if val_fraction and len({content(train[i]) for i in kept}) > 1 and not held:  # it holds out one at least
        held, kept = divide(train, 1 / len(train), keyed.key(split_seed, "val"))
    if subset > len(kept):
        raise UserError(f"task.subset: {name} has {len(kept)} training items, got {subset}")
    chosen = {"train": [train[i] for i in sorted(kept[:subset or None])], "val": [train[i] for i in sorted(held)],
              "test": list(test)}
    splits = {key: TextSplit(key, items, prompt) for key, items in chosen.items()}
    fits = (splits["train"].lengths <= max_length).tolist()
    if not all(fits):
        splits["train"] = TextSplit("train", [item for item, ok in zip(chosen["train"], fits) if ok], prompt)
    if not len(splits["train"]):
        raise UserError(f"task.max_length: no training item of {name} fits {max_length} tokens")
    shared = _shared(splits)
    if shared and not allow_overlap:
        first, other = splits["test"].items[shared[0][0]], shared[0][1]
        raise UserError(f"task.allow_overlap: {name}: {len(shared)} of {len(test)} test questions also stand in train "
                        f"or val (item {first.id} of test is item {other.id} of the training data, "
                        f"{first.question[:60]!r}); remove them, or set it to true")
    digests = {key: fingerprint(split.items) for key, split in splits.items()}
    return TextTask(name, data_id, digests, prompt, max_length, fits.count(False), splits, extract, stop, len(shared),
                    donors=tuple(donors))


def _shared(splits: dict[str, TextSplit]) -> list[tuple[int, Item]]:
    """The places of test items whose content is also in train or val, each with the first item there."""
    found = []
    for i, about in enumerate(splits["test"].contents):
        for split in (splits["train"], splits["val"]):
            if about in split.first:
                found.append((i, split.items[split.first[about]]))
                break
    return found
