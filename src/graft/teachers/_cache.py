"""A frozen teacher's outputs for the stored images of a split, computed once and kept on disk.

`<cache>/<key>/` holds one float16 `.npy` per feature (and the logits) and `manifest.json`, written last. The
key digests teacher weights and arguments, data, split, precision and feature names, so a changed teacher never
meets an old cache. Only outputs for un-augmented images can be kept.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from graft.augment import to_float
from graft.config.options import Part
from graft.errors import DiskProblem, UserError
from graft.outputs import Outputs, on_device
from graft.runtime import digests
from graft.runtime.checkpoint import sha256
from graft.runtime.files import cache_dir, named_by, parsed
from graft.tasks._task import Split, Task

FORMAT = 1
LOGITS = "logits"


def teacher_fingerprint(teacher: nn.Module, part: Part) -> str:
    """SHA-256 (hex) of a teacher's weights and arguments."""
    about = [part.name, part.args, digests.of_state(teacher)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


class TeacherCache:
    """Outputs of `teacher` for the images of one split, by index; built on first use by whoever comes first.

    Kept on the device if all of them are smaller than `limit_bytes` (None: half of what a GPU has free, 4 GiB of a
    CPU's memory), else read from the disk batch by batch, one batch ahead.
    `batch_size` images per teacher pass, under `autocast()`. Raises UserError if a value does not fit
    float16, DiskProblem if all of them do not fit on the disk.
    """

    def __init__(self, teacher: nn.Module, part: Part, task: Task, split: str, features: Sequence[str],
                 device: torch.device | str, *, limit_bytes: int | None = None, batch_size: int = 256,
                 autocast: Callable[[], AbstractContextManager] = nullcontext):
        self.device = torch.device(device)
        names = sorted(set(features)) + ([LOGITS] if teacher.num_classes else [])
        origin = {"format": FORMAT, "teacher": teacher_fingerprint(teacher, part), "data": task.fingerprints[split],
                  "split": split, "count": len(task.splits[split]), "names": names,
                  "precision": _precision(autocast, self.device.type)}
        self.folder = cache_dir() / named_by(origin)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder.with_suffix(".lock")):  # other processes and jobs wait here while one builds
                if not _intact(self.folder, origin):
                    _build(self.folder, origin, teacher, task.splits[split].to(self.device), batch_size, autocast)
        except OSError as error:
            raise DiskProblem(f"{self.folder}: cannot keep the teacher's outputs ({error.strerror or error}); set "
                              "GRAFT_CACHE to another disk, or teacher.cache: none") from None
        # "c": torch has no read-only tensors; nothing is written.
        self._arrays = {name: torch.from_numpy(np.load(self.folder / f"{name}.npy", mmap_mode="c")) for name in names}
        limit = room(self.device) if limit_bytes is None else limit_bytes
        self.resident = sum(array.nbytes for array in self._arrays.values()) < limit
        if self.resident:
            self._arrays = {name: array.clone().to(self.device) for name, array in self._arrays.items()}
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[Tensor, Future] | None = None  # what is being read, and for which images

    def fetch(self, index_B: Tensor, ahead_B: Tensor | None = None) -> Outputs:
        """Outputs (float32, on the device) for the images at these positions of the split, `(B,)` int64 on the CPU.

        `ahead_B` are those that will be asked for next, as far as is known: read while the device works.
        """
        if self.resident:
            place = on_device(index_B, self.device, torch.int64)
            rows = {name: array.index_select(0, place) for name, array in self._arrays.items()}
        else:
            known = self._ahead is not None and torch.equal(self._ahead[0], index_B)
            rows = self._ahead[1].result() if known else self._read(index_B)
            self._ahead = None if ahead_B is None else (ahead_B, self._reader.submit(self._read, ahead_B))
        values = {name: row.to(self.device, non_blocking=True).float() for name, row in rows.items()}
        logits = values.pop(LOGITS, None)
        return Outputs(logits, logits, values)

    def _read(self, index_B: Tensor) -> dict[str, Tensor]:
        """Rows of every file, in memory that a GPU can take them from without the host waiting."""
        rows = {name: torch.empty((len(index_B), *array.shape[1:]), dtype=array.dtype,
                                  pin_memory=self.device.type == "cuda") for name, array in self._arrays.items()}
        for name, array in self._arrays.items():
            torch.index_select(array, 0, index_B, out=rows[name])
        return rows


def room(device: torch.device) -> int:
    """Bytes of outputs that may stay on a device: half of what a GPU has free, for activations are still to come."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 4 << 30


def _precision(autocast: Callable[[], AbstractContextManager], device: str) -> str:
    with autocast():
        return str(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32)


def _intact(folder: Path, origin: dict) -> bool:
    """Whether the folder holds what its manifest says, and that is `origin`."""
    try:
        manifest = parsed((folder / "manifest.json").read_text())
        return manifest["origin"] == origin and all(
            sha256(folder / f"{name}.npy") == manifest["sha256"][name] for name in origin["names"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


@torch.no_grad()
def _build(folder: Path, origin: dict, teacher: nn.Module, split: Split, batch_size: int,
           autocast: Callable[[], AbstractContextManager]) -> None:
    names, count = origin["names"], origin["count"]
    (folder / "manifest.json").unlink(missing_ok=True)
    files = {name: (folder / f"{name}.npy").open("wb") for name in names}
    try:
        for number, (images, _) in enumerate(split.batches(torch.arange(count).split(batch_size))):
            with autocast():
                out = teacher(to_float(images), [name for name in names if name != LOGITS])
            halves = {name: out.logits.half() if name == LOGITS else out.features[name].half() for name in names}
            if number == 0:
                _begin(folder, files, halves, count)
            for name, half in halves.items():
                if not half.isfinite().all():
                    raise UserError(f"teacher: {name} does not fit float16; set teacher.cache: none")
                files[name].write(half.cpu().contiguous().numpy().tobytes())
        for file in files.values():
            file.flush()
    except BaseException:
        for file in files.values():
            Path(file.name).unlink()  # what a full disk left would keep it full
        raise
    finally:
        for file in files.values():
            with contextlib.suppress(OSError):  # closing writes what is buffered
                file.close()
    manifest = {"origin": origin, "sha256": {name: sha256(folder / f"{name}.npy") for name in names}}
    temporary = folder / "manifest.json.tmp"
    temporary.write_text(json.dumps(manifest, indent=1))
    os.replace(temporary, folder / "manifest.json")


def _begin(folder: Path, files: dict, halves: dict[str, Tensor], count: int) -> None:
    """Write the headers, after asking whether everything will fit."""
    need = sum(2 * count * half[0].numel() for half in halves.values())
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DiskProblem(f"{folder}: the teacher's outputs need {need >> 20} MiB, {free >> 20} MiB are free; set "
                          "GRAFT_CACHE to another disk, or teacher.cache: none")
    for name, half in halves.items():
        header = {"descr": "<f2", "fortran_order": False, "shape": (count, *half.shape[1:])}
        np.lib.format.write_array_header_1_0(files[name], header)
