"""A language teacher's largest logits at every answer token of the training items, on disk.

Flat arrays over all answer tokens, item after item: `log_probs` (tokens, K) float16 or float32, `indices` (tokens, K)
int32, `offset` and `logsumexp` (tokens,) float32, once for each position that was asked for; `done` (items,) says what
has been computed, so that an interrupted job, or several at once, go on. A logit is `log_probs` + `offset`: log-
probabilities keep more digits than raw logits, and `logsumexp` is that of the rounded ones and the exact mass of the
others, so that the K and the others still add up to 1. `manifest.json` says whose logits these are: a cache is used
only where model, tokenizer, template, items, context, precision and dtype are the same, and K is no smaller than what
is wanted.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from graft.errors import UserError
from graft.outputs import Outputs, Tokens, TopK, on_device
from graft.runtime.files import write_text
from graft.tasks._context import Context
from graft.tasks._text import TextTask
from graft.teachers._cache import cache_dir
from graft.teachers._topk import divide, within
from graft.training.resume import leaves

FORMAT = 1
DTYPES = {"fp16": np.float16, "fp32": np.float32}


def about(task: TextTask, context: Context, base: str, precision: str, dtype: str) -> dict[str, Any]:
    """Everything the logits depend on, and how they are kept; K apart.

    `base` identifies the weights. Raises UserError if nobody can have the same ones again.
    """
    if base.startswith("random"):
        raise UserError("teacher.serve: the student's weights are drawn for each run alone, a cache would be another "
                        "model's; name teacher.model")
    return {"format": FORMAT, "model": base, "tokenizer": task.prompt.tokenizer_sha256,
            "template": task.prompt.template_sha256, "items": task.fingerprints["train"], "max_length": task.max_length,
            "split": "train", "context": asdict(context), "precision": precision, "dtype": dtype}


def said(short: int, items: int, context: Context) -> str:
    """What a run says about its teacher's context when it starts."""
    return (f"teacher reads {context.shots if context.kind != 'zeroshot' else 0} worked examples ({context.kind}); "
            f"{short} of {items} items had to drop some to fit teacher.max_length {context.max_length}")


def folder_for(wanted: dict[str, Any], path: str) -> Path:
    """Where a cache belongs: `path`, or a folder named by what is in it."""
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]
    return Path(path) if path else cache_dir() / f"topk-{key}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """A cache's manifest. Raises UserError if there is none."""
    try:
        return json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"teacher.path: {folder}: no cache of teacher logits; build it with "
                        "scripts/cache_teacher.py and the same configuration") from None


def refuse_other(folder: Path, manifest: dict[str, Any], wanted: dict[str, Any], k: int) -> None:
    """Raise UserError naming the first thing in which a cache differs from what is wanted."""
    have, want = leaves(manifest["about"]), leaves(wanted)
    for key, value in want.items():
        if have.get(key) != value:
            raise UserError(f"teacher.path: {folder}: made with another {key} ({_short(have.get(key))}, wanted "
                            f"{_short(value)}); build another cache")
    if manifest["k"] < k:
        raise UserError(f"teacher.k: {k}, the cache {folder} holds the {manifest['k']} largest logits")


def _short(value: Any) -> str:
    return str(value)[:60]


def _load(file: Path, mode: str) -> np.ndarray:
    try:
        np.load(file, mmap_mode="r")  # "r+" would lengthen a file that was cut short
        return np.load(file, mmap_mode=mode)
    except (OSError, ValueError):
        raise UserError(f"teacher.path: {file}: missing or damaged; remove the folder and build it again") from None


class Arrays:
    """The memory-mapped arrays of a cache, for one position."""

    def __init__(self, folder: Path, position: str, tokens: int, k: int, dtype: str, mode: str):
        shapes = {"log_probs": ((tokens, k), DTYPES[dtype]), "indices": ((tokens, k), np.int32),
                  "offset": ((tokens,), np.float32), "logsumexp": ((tokens,), np.float32)}
        self.arrays = {name: np.lib.format.open_memmap(folder / f"{position}.{name}.npy", mode, kind, shape)
                       if mode == "w+" else _load(folder / f"{position}.{name}.npy", mode)
                       for name, (shape, kind) in shapes.items()}

    def write(self, start: int, top: TopK) -> None:
        """Put the positions of one item at row `start` on. Raises UserError if a logit is not finite or too far off."""
        if not (top.values.isfinite().all() and top.logsumexp.isfinite().all()):
            raise UserError("teacher: a logit is not finite; nothing can be learned from it")
        offset = top.logsumexp.double().cpu().numpy()
        exact = top.values.double().cpu().numpy() - offset[:, None]
        with np.errstate(over="ignore"):  # looked at below
            stored = exact.astype(self.arrays["log_probs"].dtype)
        if not np.isfinite(stored).all():
            raise UserError("teacher.cache_dtype: a logit does not fit float16; use fp32")
        others = np.maximum(0, 1 - np.exp(exact).sum(-1))
        total = np.exp(stored.astype(np.float64)).sum(-1) + others
        rows = {"log_probs": stored, "indices": top.indices.cpu().numpy(), "offset": offset,
                "logsumexp": offset + np.log(total)}
        for name, array in self.arrays.items():
            array[start:start + len(stored)] = rows[name]

    def read(self, spans: Sequence[tuple[int, int]], k: int, device: torch.device) -> TopK:
        """The rows of `spans` one after the other, the k largest of each."""
        rows = {name: np.concatenate([array[start:end, :k] if array.ndim == 2 else array[start:end]
                                      for start, end in spans]) for name, array in self.arrays.items()}
        values = rows["log_probs"].astype(np.float32) + rows["offset"][:, None]
        return TopK(on_device(values, device, torch.float32), on_device(rows["indices"], device, torch.int64),
                    on_device(rows["logsumexp"], device, torch.float32))

    def flush(self) -> None:
        """Hand everything to the disk."""
        for array in self.arrays.values():
            array.flush()


class CachedTeacher(nn.Module):
    """A teacher that looks up what it said: `forward` as `ContextLM`'s, without a model.

    Raises UserError if the cache is not there, not finished, or another one than wanted.
    """

    num_classes = 0

    def __init__(self, folder: Path, wanted: dict[str, Any], k: int, task: TextTask):
        super().__init__()
        self.k = k
        self.manifest = read_manifest(folder)
        refuse_other(folder, self.manifest, wanted, k)
        done = _load(folder / "done.npy", "r")
        if not done.all():
            raise UserError(f"teacher.path: {folder}: {int(done.sum())} of {len(done)} items are done; run "
                            "scripts/cache_teacher.py again to finish it")
        self.positions = self.manifest["positions"]
        self.notes = (said(self.manifest["short"], len(done), Context(**wanted["context"])),)
        self.offsets = task.splits["train"].answers.offsets
        self.arrays = {name: Arrays(folder, name, int(self.offsets[-1]), self.manifest["k"], wanted["dtype"], "r")
                       for name in self.positions}

    def forward(self, tokens: Tokens, features: Sequence[str] = ("rows",)) -> Outputs:
        """`topk[name]` for each of `features`, at the answer tokens of these items."""
        assert tokens.split == "train"
        spans = [(int(self.offsets[i]), int(self.offsets[i + 1])) for i in tokens.index.tolist()]
        return Outputs(None, topk={name: self.arrays[name].read(spans, self.k, tokens.ids.device) for name in features})


def build(folder: Path, wanted: dict[str, Any], k: int, positions: Sequence[str], teacher: nn.Module, task: TextTask, *,
          device: torch.device, autocast: Callable[[], AbstractContextManager], rank: int = 0, world: int = 1,
          wait: Callable[[], None] = lambda: None) -> int:
    """Compute what is missing of a cache; returns how many items that were for this process.

    `teacher` is a `ContextLM`. Of `world` processes each takes every world-th group of items; an interrupted job
    goes on with any number of them, all on one machine: they write into the same pages. Raises UserError if `folder`
    holds another cache or the disk is too small.
    """
    answers = task.splits["train"].answers
    if rank == 0:
        _begin(folder, wanted, k, positions, teacher, answers.offsets)
    wait()
    manifest = read_manifest(folder)
    refuse_other(folder, manifest, wanted, k)
    if list(positions) != manifest["positions"]:
        raise UserError(f"teacher.path: {folder}: holds positions {manifest['positions']}, wanted {list(positions)}; "
                        "build another cache")
    arrays = {name: Arrays(folder, name, 0, 0, wanted["dtype"], "r+") for name in manifest["positions"]}
    done = _load(folder / "done.npy", "r+")
    left = torch.from_numpy(np.flatnonzero(done == 0))
    if len(left) and manifest["k"] != k:
        raise UserError(f"teacher.k: {k}, the unfinished cache {folder} has {manifest['k']}; finish it with that")
    wait()  # all have looked at what is left before anybody finishes anything
    lengths = teacher.prompts.lengths + answers.lengths
    groups = within(lengths[left], teacher.batch_tokens)[rank::world]
    for places in tqdm(groups, desc=str(folder), unit="batch", disable=None if rank == 0 else True):
        index = left[places]
        tokens, _ = next(task.splits["train"].batches([index]))
        with autocast():
            seen = teacher(tokens, features=manifest["positions"])
        for name in manifest["positions"]:
            for i, top in zip(index.tolist(), divide(seen.topk[name], tokens.counts), strict=True):
                arrays[name].write(int(answers.offsets[i]), top)
            arrays[name].flush()
        done[index.numpy()] = 1  # only after its logits are written
        done.flush()
    wait()
    return sum(len(places) for places in groups)


def _begin(folder: Path, wanted: dict[str, Any], k: int, positions: Sequence[str], teacher: nn.Module,
           offsets: Tensor) -> None:
    """Lay out a new cache, unless one is there already."""
    if (folder / "manifest.json").exists():
        return
    tokens = int(offsets[-1])
    need = len(positions) * tokens * (k * (np.dtype(DTYPES[wanted["dtype"]]).itemsize + 4) + 8)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(f"{folder}: the cache needs {need >> 20} MiB, {free >> 20} MiB are free")
    for name in positions:
        Arrays(folder, name, tokens, k, wanted["dtype"], "w+").flush()
    np.save(folder / "done.npy", np.zeros(len(offsets) - 1, np.uint8))
    write_text(folder / "manifest.json", json.dumps(
        {"about": wanted, "k": k, "positions": list(positions), "tokens": tokens, "bytes": need,
         "bytes_per_token": need / tokens, "short": teacher.short,
         "vocabulary": teacher.vocabulary}, indent=1) + "\n")

