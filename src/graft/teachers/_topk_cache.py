"""A language teacher's largest logits at every answer token of the training items, on disk.

A cache is used only where model, tokenizer, template, items, context, precision and dtype are the same, K is no smaller
than what is wanted, and every array has the sha256 that it had when it was finished. What the files hold, and what of
damage is noticed, stands in `_topk_files`. An interrupted job goes on, and the same command mends a damaged cache.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from tqdm import tqdm

from graft.errors import UserError
from graft.outputs import Outputs, Tokens
from graft.runtime.digests import of_files
from graft.runtime.files import cache_dir
from graft.runtime.lock import RunLock
from graft.tasks._context import CHOICE, Context
from graft.tasks._text import TextTask
from graft.teachers._topk import divide, within
from graft.teachers._topk_files import (
    AGAIN,
    DTYPES,
    Arrays,
    Damaged,
    check_layout,
    digests,
    files,
    forget_changed,
    lay_out,
    load,
    mark,
    read_manifest,
    write_manifest,
)
from graft.training.resume import leaves

FORMAT = 2


def about(task: TextTask, context: Context, base: str, precision: str, dtype: str) -> dict[str, Any]:
    """Everything the logits depend on, and how they are kept; K apart.

    `base` identifies the weights. Raises UserError if nobody can have the same ones again.
    """
    if base.startswith("random"):
        raise UserError("teacher.serve: the student's weights are drawn for each run alone, a cache would be another "
                        "model's; name teacher.model")
    return {"format": FORMAT, "model": base, "tokenizer": task.prompt.tokenizer_sha256,
            "template": task.prompt.template_sha256, "items": task.fingerprints["train"], "max_length": task.max_length,
            "split": "train", "context": asdict(context), "choice": CHOICE, "precision": precision, "dtype": dtype}


def said(short: int, items: int, context: Context) -> str:
    """What a run says about its teacher's context when it starts."""
    return (f"teacher reads {context.shots if context.kind != 'zeroshot' else 0} worked examples ({context.kind}); "
            f"{short} of {items} items had to drop some to fit teacher.max_length {context.max_length}")


def folder_for(wanted: dict[str, Any], path: str) -> Path:
    """Where a cache belongs: `path`, or a folder named by what is in it."""
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]
    return Path(path) if path else cache_dir() / f"topk-{key}"


def refuse_other(folder: Path, manifest: dict[str, Any], wanted: dict[str, Any], k: int) -> None:
    """Raise UserError naming the first thing in which a cache differs from what is wanted."""
    have, want = leaves(manifest["about"]), leaves(wanted)
    for key, value in want.items():
        if have.get(key) != value:
            raise UserError(f"teacher.path: {folder}: made with another {key} ({str(have.get(key))[:60]}, wanted "
                            f"{str(value)[:60]}); build another cache")
    if manifest["k"] < k:
        raise UserError(f"teacher.k: {k}, the cache {folder} holds the {manifest['k']} largest logits")


class CachedTeacher(nn.Module):
    """A teacher that looks up what it said: `forward` as `ContextLM`'s, without a model.

    Raises UserError if the cache is not there, not finished, damaged, or another one than wanted. Its arrays are read
    once for that, at the speed of SHA-256 (about a second per GB); later runs on the machine remember their digests
    while nobody writes to them (see `runtime.digests`).
    """

    num_classes = 0

    def __init__(self, folder: Path, wanted: dict[str, Any], k: int, task: TextTask):
        super().__init__()
        self.k, self.identity = k, wanted["model"]
        self.manifest = read_manifest(folder)
        refuse_other(folder, self.manifest, wanted, k)
        _refuse_unfinished(folder, self.manifest)
        self.positions = self.manifest["positions"]
        self.notes = (said(self.manifest["short"], self.manifest["items"], Context(**wanted["context"])),)
        self.offsets = task.splits["train"].answers.offsets
        self.arrays, _ = _open(folder, self.manifest, "r")

    def forward(self, tokens: Tokens, features: Sequence[str] = ("rows",)) -> Outputs:
        """`topk[name]` for each of `features`, at the answer tokens of these items."""
        assert tokens.split == "train"
        spans = [(int(self.offsets[i]), int(self.offsets[i + 1])) for i in tokens.index.tolist()]
        return Outputs(None, topk={name: self.arrays[name].read(spans, self.k, tokens.ids.device) for name in features})


def _refuse_unfinished(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise UserError unless all items are done and every array is what it was when they were."""
    if "sha256" not in manifest:
        done = np.count_nonzero(load(folder / "done.npy", "r"))
        raise UserError(f"teacher.path: {folder}: {done} of {manifest['items']} items are done; finish it with {AGAIN}")
    check_layout(folder, manifest)
    found = of_files([folder / name for name in manifest["sha256"]])
    for (name, digest), now in zip(manifest["sha256"].items(), found, strict=True):
        if now != digest:
            raise Damaged(f"teacher.path: {folder / name}: differs from its sha256; mend the cache with {AGAIN}")


def build(folder: Path, wanted: dict[str, Any], k: int, positions: Sequence[str], teacher: nn.Module, task: TextTask, *,
          device: torch.device, autocast: Callable[[], AbstractContextManager], rank: int = 0, world: int = 1,
          wait: Callable[[], None] = lambda: None) -> int:
    """Compute what is missing of a cache, or damaged; returns how many items that were for this process.

    `teacher` is a `ContextLM`. Of `world` processes each takes every world-th group of items; an interrupted job
    goes on with any number of them, all on one machine: they write into the same pages. Raises UserError if `folder`
    holds another cache, Locked while another job builds it, DiskProblem if the disk is too small.
    """
    if (here := int(os.environ.get("LOCAL_WORLD_SIZE", world))) != world:
        raise UserError(f"scripts/cache_teacher.py: {here} of {world} processes are on this machine; those of another "
                        "one would write over their pages; start it on one machine")
    offsets = task.splits["train"].answers.offsets
    with _alone(folder) if rank == 0 else nullcontext():
        if rank == 0:
            _begin(folder, wanted, k, positions, teacher, offsets)
            _refuse_other_use(folder, wanted, k, positions)
            _reopen(folder, offsets)
        wait()
        manifest = read_manifest(folder)
        _refuse_other_use(folder, wanted, k, positions)
        count = _compute(folder, manifest, teacher, task, device, autocast, rank, world, wait)
        wait()
        if rank == 0 and "sha256" not in manifest:
            _finish(folder, manifest, offsets)
        wait()
    return count


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The cache in the hands of one job, here or on another machine. Raises Locked while it is in another's."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(folder)
    try:
        yield
    finally:
        lock.release()


def _begin(folder: Path, wanted: dict[str, Any], k: int, positions: Sequence[str], teacher: nn.Module,
           offsets: Tensor) -> None:
    """Lay out a new cache, unless one is there already that has all its arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".begin.lock"):
        try:
            manifest = read_manifest(folder)
            if manifest["about"] == wanted:
                check_layout(folder, manifest)
            return
        except Damaged as error:
            print(f"{str(error).partition(';')[0]}; the cache is built again", flush=True)
        except UserError:
            pass
        tokens = int(offsets[-1])
        per_token = len(positions) * (k * (np.dtype(DTYPES[wanted["dtype"]]).itemsize + 4) + 8)
        lay_out(folder, {"about": wanted, "k": k, "positions": list(positions), "tokens": tokens,
                         "items": len(offsets) - 1, "bytes": per_token * tokens, "bytes_per_token": per_token,
                         "short": teacher.short, "vocabulary": teacher.vocabulary})


def _refuse_other_use(folder: Path, wanted: dict[str, Any], k: int, positions: Sequence[str]) -> None:
    """Raise UserError if the cache is of something else, or of other positions or fewer logits."""
    manifest = read_manifest(folder)
    refuse_other(folder, manifest, wanted, k)
    if list(positions) != manifest["positions"]:
        raise UserError(f"teacher.path: {folder}: holds positions {manifest['positions']}, wanted {list(positions)}; "
                        "build another cache")
    if "sha256" not in manifest and manifest["k"] != k:
        raise UserError(f"teacher.k: {k}, the unfinished cache {folder} has {manifest['k']}; finish it with that")


def _open(folder: Path, manifest: dict[str, Any], mode: str = "r+") -> tuple[dict[str, Arrays], np.ndarray]:
    shape = manifest["tokens"], manifest["k"], manifest["about"]["dtype"]
    arrays = {name: Arrays(folder, name, *shape, mode) for name in manifest["positions"]}
    return arrays, load(folder / "done.npy", mode)


def _reopen(folder: Path, offsets: Tensor) -> None:
    """Mark as not done what has changed since it was written, in a finished cache or an unfinished one."""
    manifest = read_manifest(folder)
    if finished := manifest.pop("sha256", None):
        changed = [name for name, digest in finished.items() if digests(folder, [name])[name] != digest]
        if not changed:
            return
        write_manifest(folder, manifest)
        print(f"{folder}: {', '.join(changed)} differ from their sha256; the items concerned are computed again",
              flush=True)
    arrays, done = _open(folder, manifest)
    if count := forget_changed([*arrays.values()], done, offsets.tolist()):
        print(f"{folder}: {count} items are not what was written and are computed again", flush=True)
        done.flush()


def _compute(folder: Path, manifest: dict[str, Any], teacher: nn.Module, task: TextTask, device: torch.device,
             autocast: Callable[[], AbstractContextManager], rank: int, world: int, wait: Callable[[], None]) -> int:
    """Compute this process's share of the items that are not done; returns how many that were."""
    answers = task.splits["train"].answers
    arrays, done = _open(folder, manifest)
    left = torch.from_numpy(np.flatnonzero(done == 0))
    wait()  # all have looked at what is left before anybody finishes anything
    lengths = teacher.prompts.lengths + answers.lengths
    groups = within(lengths[left], teacher.batch_tokens)[rank::world]
    for places in tqdm(groups, desc=str(folder), unit="batch", disable=None if rank == 0 else True):
        index = left[places]
        tokens, _ = next(task.splits["train"].batches([index]))
        with autocast():
            seen = teacher(tokens, features=manifest["positions"])
        for name, written in arrays.items():
            for i, top in zip(index.tolist(), divide(seen.topk[name], tokens.counts), strict=True):
                written.write(int(answers.offsets[i]), top)
            written.flush()
        for i in index.tolist():  # only after its logits are written
            done[i] = mark(arrays.values(), int(answers.offsets[i]), int(answers.offsets[i + 1]))
        done.flush()
    return sum(len(places) for places in groups)


def _finish(folder: Path, manifest: dict[str, Any], offsets: Tensor) -> None:
    """Say that all is done. Raises UserError if the disk does not give back what was written."""
    arrays, done = _open(folder, manifest)
    forget_changed([*arrays.values()], done, offsets.tolist())
    if left := int(np.count_nonzero(done == 0)):
        raise UserError(f"{folder}: {left} of {len(done)} items were not kept as they were written; run the same "
                        "command again to compute them again")
    write_manifest(folder, {**manifest, "sha256": digests(folder, files(manifest))})
