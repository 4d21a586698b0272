"""Checkpoints that are complete or not there, verified on every load.

A checkpoint is a folder `checkpoint-<step>` with

    model.safetensors      the student; adapter_model.safetensors where only adapters were trained
    average.safetensors    its EMA or SWA weights, if the run keeps them
    objective.safetensors  projectors and heads, if the objective has any
    ema.safetensors        the averaged adapters of a teacher that follows its student
    rollouts.safetensors   the student's own answers for the coming steps, if it is trained on those
    optim.pt               optimizer state: tensors, numbers and lists only, loaded with weights_only=True
    trainer.json           step, epoch, world size, configuration, best validation score, early stopping, and what data
                           it was trained on: classes, sizes, normalisation, digests (`graft.runtime.identity`)
    config.json ...        of a language model: what makes this folder a model, or an adapter, for other tools, with
                           tokenizer, chat template and generation config
    manifest.json          name -> size and sha256 of the files above; written last

It is written under a temporary name, synced to disk, then renamed: a kill at any point leaves the previous
one. There is no generator state: order, augmentation and dropout are functions of (seed, step), see
`graft.keyed`. The manifest guards against damage, not against a forger.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from graft.errors import NonFinite, NoValidCheckpoint, UserError, disk_problem
from graft.runtime.files import parsed, permitted, set_aside, sync
from graft.runtime.finite import nonfinite

SCHEMA_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9_.-]+")  # of a file in a checkpoint
PATTERN = re.compile(r"^checkpoint-(\d+)$")
STUDENT = ("model", "adapter_model")  # stems of the student's weights: one of them


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def steps(run_dir: Path) -> list[int]:
    """Steps of the checkpoints in a run's folder, ascending, intact or not."""
    if not run_dir.is_dir():
        return []
    return sorted(int(m.group(1)) for p in run_dir.iterdir() if (m := PATTERN.match(p.name)) and p.is_dir())


def path_of(run_dir: Path, step: int) -> Path:
    """The folder of one checkpoint."""
    return run_dir / f"checkpoint-{step}"


def save(run_dir: Path, step: int, tensors: dict[str, dict[str, Tensor]], optimizer: dict[str, Any],
         info: dict[str, Any], keep: int, best_step: int | None = None,
         files: dict[str, str | bytes] | None = None) -> Path:
    """Write `checkpoint-<step>`, then remove all but the newest `keep` and the best one.

    `tensors` maps a file stem (`model`, `average`, `objective`) to a state dict, `files` other files' names to
    their content. Raises NonFinite, with nothing written, unless every number in them is finite, and OSError, with
    nothing left behind, when the disk is full.
    """
    final = path_of(run_dir, step)
    if problem := nonfinite({**tensors, "optim": optimizer}):
        last = (steps(run_dir) or ["none"])[-1]
        raise NonFinite(f"step {step}: {problem}; it was not saved; last checkpoint: step {last}")
    temporary = run_dir / f".tmp-{final.name}"
    remove_temporaries(run_dir)
    _require_space(run_dir)
    try:
        temporary.mkdir(parents=True)
        for stem, state in tensors.items():
            save_file({k: v.detach().contiguous().cpu() for k, v in state.items()}, temporary / f"{stem}.safetensors",
                      metadata={"format": "pt"})  # transformers wants to be told
        for name, content in (files or {}).items():
            (temporary / name).write_bytes(content.encode() if isinstance(content, str) else content)
        torch.save(optimizer, temporary / "optim.pt")
        (temporary / "trainer.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "step": step, **info}))
        written = sorted(temporary.iterdir())
        readable = 0o666 & permitted()  # safetensors writes mode 0600
        for file in written:
            file.chmod(readable)
            sync(file)
        manifest = {file.name: {"size": file.stat().st_size, "sha256": sha256(file)} for file in written}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        sync(temporary / "manifest.json")
        sync(temporary)
        if final.exists():  # resumed from an older one after this one was found damaged
            set_aside(final)
        os.rename(temporary, final)
        sync(run_dir)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        problem = disk_problem(error)  # torch.save says it with a RuntimeError
        if problem is None and not isinstance(error, OSError | SafetensorError):
            raise
        raise OSError(f"{final}: could not be written ({problem or error}); "
                      f"{shutil.disk_usage(run_dir).free >> 20} MiB free") from None
    for old in steps(run_dir)[:-keep]:
        if old != best_step:
            shutil.rmtree(path_of(run_dir, old))
    return final


def _require_space(run_dir: Path) -> None:
    """Refuse to start a save that cannot fit, judged by the size of the last one."""
    if known := steps(run_dir):
        need = 1.2 * sum(f.stat().st_size for f in path_of(run_dir, known[-1]).iterdir())
        free = shutil.disk_usage(run_dir).free
        if free < need:
            raise OSError(f"{run_dir}: {free >> 20} MiB free, a checkpoint needs {int(need) >> 20} MiB")


def remove_temporaries(run_dir: Path) -> None:
    """Remove what killed saves left behind."""
    for leftover in run_dir.glob(".tmp-checkpoint-*"):
        shutil.rmtree(leftover)


def student_file(names: Container[str]) -> str:
    """Which of a checkpoint's files holds the student's weights; where none does, the one that is missing."""
    return next((f"{stem}.safetensors" for stem in STUDENT if f"{stem}.safetensors" in names),
                f"{STUDENT[0]}.safetensors")


def verify(path: Path) -> None:
    """Raise UserError naming the first file that is missing, cut short or changed."""
    try:
        manifest = parsed((path / "manifest.json").read_text())
        names = {student_file(manifest), "optim.pt", "trainer.json"} - manifest.keys()
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(f"{path}/manifest.json: missing or unreadable") from None
    if names:
        raise UserError(f"{path}/manifest.json: does not list {min(names)}")
    for name, expected in manifest.items():
        if not NAME.fullmatch(name) or not isinstance(expected, dict) or not {"size", "sha256"} <= expected.keys():
            raise UserError(f"{path}/manifest.json: damaged at {name!a}")
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: missing")
        if file.stat().st_size != expected["size"]:
            raise UserError(f"{file}: {file.stat().st_size} bytes, expected {expected['size']}")
        if sha256(file) != expected["sha256"]:
            raise UserError(f"{file}: content differs from its sha256")


def newest_valid(run_dir: Path) -> Path | None:
    """The newest intact checkpoint; damaged ones are set aside with one line each. None if there never was one.

    Raises NoValidCheckpoint if checkpoints exist, or were set aside earlier, and none is intact.
    """
    damaged = []
    for step in reversed(steps(run_dir)):
        path = path_of(run_dir, step)
        try:
            verify(path)
            return path
        except UserError as error:
            damaged.append(f"{error}")
            print(f"damaged checkpoint set aside as {set_aside(path).name}: {error}", flush=True)
    damaged = damaged or [path.name for path in sorted(run_dir.glob("bad-checkpoint-*"))]
    if damaged:
        raise NoValidCheckpoint(f"{run_dir}: no intact checkpoint ({'; '.join(damaged)}); "
                                "remove the folder to start over")
    return None


def load(path: Path, mapped: bool = False) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """`(tensors, optimizer, info)` of a verified checkpoint, on the CPU; `mapped`: read when they are used."""
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    optimizer = torch.load(path / "optim.pt", map_location="cpu", weights_only=True, mmap=mapped)
    return tensors, optimizer, json.loads((path / "trainer.json").read_text())


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, begun or finished."""
    return bool(steps(folder)) or (folder / "config.yaml").is_file()


def info_of(path: Path) -> dict[str, Any]:
    """A checkpoint's trainer.json, which its manifest vouches for; the other files are not looked at.

    Raises UserError if it is missing or changed.
    """
    file = path / "trainer.json"
    try:
        manifest, content = parsed((path / "manifest.json").read_text()), file.read_bytes()
        if manifest[file.name]["sha256"] != hashlib.sha256(content).hexdigest():
            raise UserError(f"{file}: content differs from its sha256")
        return json.loads(content)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file}: missing or unreadable, or not listed in {path}/manifest.json") from None


def newest(run_dir: Path) -> Path:
    """The folder of a run's newest checkpoint, intact or not. Raises UserError if there is none."""
    return path_of(run_dir, _any_steps(run_dir)[-1])


def finished(run_dir: Path) -> list[int]:
    """Steps of the checkpoints of a finished run, ascending. Raises UserError if it is not finished."""
    have = _any_steps(run_dir)
    _refuse_unfinished(run_dir, info_of(path_of(run_dir, have[-1])))
    return have


def final(run_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The last checkpoint of a finished run, verified, and its trainer.json.

    Raises UserError if the run did not finish, or the checkpoint is damaged.
    """
    path = newest(run_dir)
    verify(path)
    info = json.loads((path / "trainer.json").read_text())
    _refuse_unfinished(run_dir, info)
    return path, info


def _any_steps(run_dir: Path) -> list[int]:
    if not (have := steps(run_dir)):
        raise UserError(f"{run_dir}: no checkpoint; expected {run_dir}/checkpoint-<step>")
    return have


def _refuse_unfinished(run_dir: Path, info: dict[str, Any]) -> None:
    if not info["final"]:
        raise UserError(f"{run_dir}: not finished, its newest checkpoint is step {info['step']} of "
                        f"{info['total_steps']}; run the same command again to finish it")


def load_model(run_dir: Path, which: str = "auto") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of a finished run for scoring or teaching, and what is known about them.

    `which`: `last` weights, their `average`, or `auto`, the average where there is one. The info is
    trainer.json plus `weights` and `sha256` of the weights' file. Raises UserError as `final` does, and if
    there is no average.
    """
    path, info = final(run_dir)
    averaged = path / "average.safetensors"
    if which == "average" and not averaged.exists():
        raise UserError(f"{path}: has no averaged weights; train.average was none")
    file = averaged if which != "last" and averaged.exists() else path / student_file(os.listdir(path))
    return load_file(file), {**info, "weights": file.stem, "sha256": sha256(file)}
