"""A language teacher's largest logits, or hidden states, at every answer token of the training items, on disk.

A cache is used only where model, tokenizer, template, items, context, precision and dtype are the same, K is no smaller
than what is wanted, and every array has the sha256 that it had when it was finished. What the files hold, and what of
damage is noticed, stands in `_topk_files`. An interrupted job goes on, and the same command mends a damaged cache.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from graft.runtime.lock import RunLock
from graft.tasks._context import Context
from graft.tasks._text import TextTask
from graft.teachers._facts import about as about
from graft.teachers._facts import folder_for as folder_for
from graft.teachers._facts import refuse_other
from graft.teachers._topk import divide, within
from graft.teachers._topk_files import (
    AGAIN,
    Arrays,
    Damaged,
    States,
    check_layout,
    digests,
    files,
    forget_changed,
    lay_out,
    layout,
    load,
    mark,
    of_states,
    read_manifest,
    write_manifest,
)


def said(short: int, items: int, context: Context) -> str:
    """What a run says about its teacher's context when it starts."""
    return (f"teacher reads {context.examples} worked examples ({context.kind}); "
            f"{short} of {items} items had to drop some to fit teacher.max_length {context.max_length}")


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
        """`topk[name]`, or hidden states, for each of `features`, at the answer tokens of these items."""
        assert tokens.split == "train"
        spans = [(int(self.offsets[i]), int(self.offsets[i + 1])) for i in tokens.index.tolist()]
        found = {name: self.arrays[name].read(spans, self.k, tokens.ids.device) for name in features}
        return Outputs(None, features=found) if of_states(self.manifest) else Outputs(None, topk=found)


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
        arrays = layout(1, k, wanted["dtype"], of_states({"about": wanted})).values()
        per_token = len(positions) * sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in arrays)
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
    kind = States if of_states(manifest) else Arrays
    arrays = {name: kind(folder, name, *shape, mode) for name in manifest["positions"]}
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
            each = (divide(seen.topk[name], tokens.counts) if name in seen.topk else
                    seen.features[name].split(tokens.counts.tolist()))
            for i, said_ in zip(index.tolist(), each, strict=True):
                written.write(int(answers.offsets[i]), said_)
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
