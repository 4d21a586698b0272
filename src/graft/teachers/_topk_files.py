"""The files of a language teacher's cache: laid out, written, read, and looked at for damage.

Flat arrays over all answer tokens, item after item: `log_probs` (tokens, K) float16 or float32, `indices` (tokens, K)
int32, `offset` and `logsumexp` (tokens,) float32, once for each position that was asked for. A logit is `log_probs` +
`offset`: log-probabilities keep more digits than raw logits, and `logsumexp` is that of the rounded ones and the exact
mass of the others, so that the K and the others still add up to 1. A cache of hidden states has one array `hidden`
(tokens, width) instead: float16, float32, or the bits of bfloat16 as int16. `done` (items,) uint64 is 0 until an item
is computed, then 1 + the CRC-32 of its rows, so that damage to an unfinished cache is found, and only what is damaged
computed again. `manifest.json` says whose logits these are, holds its own digest, and once all items are done the
sha256 of every array.

The space is allocated before anything is computed: writing into the mapping of a sparse file on a full disk would end
the process with SIGBUS and no message. Files are laid out under another name and renamed, so that whoever has the old
ones mapped keeps them.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graft.errors import DiskProblem, UserError
from graft.outputs import TopK, on_device
from graft.runtime.checkpoint import sha256
from graft.runtime.files import write_text

DTYPES = {"fp16": np.float16, "fp32": np.float32, "bf16": np.int16}  # numpy has no bfloat16: its bits
AGAIN = "scripts/cache_teacher.py and the same configuration"


class Damaged(UserError):
    """Something of a cache is missing or is not what was written."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """A cache's manifest. Raises UserError if there is none, Damaged if it is not what was written."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise UserError(f"teacher.path: {folder}: no cache of teacher logits; build it with {AGAIN}")
    try:
        manifest = json.loads(file.read_text())
        intact = manifest.pop("digest") == _digest(manifest)
    except (ValueError, AttributeError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise Damaged(f"teacher.path: {file}: damaged; build the cache again with {AGAIN}")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest. Raises DiskProblem, with the old one kept, if there is no space for it."""
    try:
        write_text(folder / "manifest.json", json.dumps({**manifest, "digest": _digest(manifest)}, indent=1) + "\n")
    except OSError as error:
        for left in folder.glob(".manifest.json.*.tmp"):
            left.unlink()
        raise DiskProblem(f"{folder}: manifest.json could not be written ({error.strerror}); what was computed is "
                          "kept, the same command goes on") from None


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def of_states(manifest: dict[str, Any]) -> bool:
    """Whether a cache keeps hidden states rather than the largest logits."""
    return manifest["about"].get("keep") == "hidden"


def layout(tokens: int, k: int, dtype: str, hidden: bool) -> dict[str, tuple[type, tuple]]:
    """Type and shape of the arrays of a position, by name; of hidden states, `k` is their width."""
    if hidden:
        return {"hidden": (DTYPES[dtype], (tokens, k))}
    return {"log_probs": (DTYPES[dtype], (tokens, k)), "indices": (np.int32, (tokens, k)),
            "offset": (np.float32, (tokens,)), "logsumexp": (np.float32, (tokens,))}


def files(manifest: dict[str, Any]) -> dict[str, tuple[type, tuple]]:
    """Type and shape of every array of a cache, by its file's name."""
    arrays = {f"{position}.{name}.npy": about for position in manifest["positions"] for name, about in
              layout(manifest["tokens"], manifest["k"], manifest["about"]["dtype"], of_states(manifest)).items()}
    return {**arrays, "done.npy": (np.uint64, (manifest["items"],))}


def lay_out(folder: Path, manifest: dict[str, Any]) -> None:
    """Make a cache of zeros. Raises DiskProblem, with nothing left behind, if there is no space for it."""
    (folder / "manifest.json").unlink(missing_ok=True)
    for name in (wanted := files(manifest)):
        (folder / name).unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    try:
        if manifest["bytes"] > free:
            raise OSError
        for name, (kind, shape) in wanted.items():
            allocate(folder / name, kind, shape)
    except OSError as error:
        for name in wanted:
            (folder / name).unlink(missing_ok=True)
            _temporary(folder / name).unlink(missing_ok=True)
        raise DiskProblem(f"{folder}: the cache needs {manifest['bytes'] >> 20} MiB, {free >> 20} MiB are free"
                          + (f" ({error.strerror})" if error.strerror else "")) from None
    write_manifest(folder, manifest)


def allocate(file: Path, kind: type, shape: tuple[int, ...]) -> None:
    """A new .npy file of zeros that has its place on the disk. Raises OSError if there is none."""
    kind = np.dtype(kind)
    with _temporary(file).open("wb") as opened:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(opened, header)
        opened.flush()
        os.posix_fallocate(opened.fileno(), 0, opened.tell() + kind.itemsize * int(np.prod(shape)))
    os.replace(_temporary(file), file)


def _temporary(file: Path) -> Path:
    return file.with_name(f".{file.name}.tmp")


def check_layout(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise Damaged for the first array that is missing, cut short or of another type or shape."""
    for name, (kind, shape) in files(manifest).items():
        array = load(folder / name, "r")
        if array.dtype != kind or array.shape != shape:
            raise Damaged(f"teacher.path: {folder / name}: missing or damaged; build the cache again with {AGAIN}")


def load(file: Path, mode: str) -> np.ndarray:
    """An array, mapped. Raises Damaged if it is not there or not whole."""
    try:
        np.load(file, mmap_mode="r")  # "r+" would lengthen a file that was cut short
        return np.load(file, mmap_mode=mode)
    except Exception:  # what numpy makes of a damaged header has no common base
        raise Damaged(f"teacher.path: {file}: missing or damaged; build the cache again with {AGAIN}") from None


class Arrays:
    """The memory-mapped arrays of a cache, for one position; mode `w+` makes them, `r` and `r+` take what is there."""

    hidden = False

    def __init__(self, folder: Path, position: str, tokens: int, k: int, dtype: str, mode: str):
        self.arrays, self.dtype = {}, dtype
        for name, (kind, shape) in layout(tokens, k, dtype, self.hidden).items():
            file = folder / f"{position}.{name}.npy"
            if mode == "w+":
                allocate(file, kind, shape)
            self.arrays[name] = load(file, "r+" if mode == "w+" else mode)

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


class States(Arrays):
    """The same for hidden states."""

    hidden = True

    def write(self, start: int, states: Tensor) -> None:
        """Put those of one item at row `start` on. Raises UserError if one is not finite or too large."""
        if not states.isfinite().all():
            raise UserError("teacher: a hidden state is not finite; nothing can be learned from it")
        stored = states.to({"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}[self.dtype]).cpu()
        if not stored.isfinite().all():
            raise UserError("teacher.cache_dtype: a hidden state does not fit float16; use bf16 or fp32")
        rows = stored.view(torch.int16) if self.dtype == "bf16" else stored
        self.arrays["hidden"][start:start + len(rows)] = rows.numpy()

    def read(self, spans: Sequence[tuple[int, int]], k: int, device: torch.device) -> Tensor:
        """The rows of `spans` one after the other, (N, width) float32."""
        rows = torch.from_numpy(np.concatenate([self.arrays["hidden"][start:end] for start, end in spans]))
        return on_device(rows.view(torch.bfloat16) if self.dtype == "bf16" else rows, device, torch.float32)


def mark(arrays: Iterable[Arrays], start: int, end: int) -> int:
    """What `done` says of an item whose rows are `start` to `end`: 1 + their CRC-32, over all positions."""
    crc = 0
    for one in arrays:
        for array in one.arrays.values():
            crc = zlib.crc32(array[start:end], crc)
    return crc + 1


def forget_changed(arrays: Sequence[Arrays], done: np.ndarray, offsets: Sequence[int]) -> int:
    """Mark the items whose rows are not what was written as not done; returns how many there are."""
    changed = [i for i in np.flatnonzero(done) if done[i] != mark(arrays, int(offsets[i]), int(offsets[i + 1]))]
    done[changed] = 0
    return len(changed)


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of these files."""
    return {name: sha256(folder / name) for name in names}
