"""Digests of the source files that decide a run's result.

A commit says nothing of files that are not in it, and a new loss or task is one. So every checkpoint holds a digest of
each file that its run computes with: the training script, the parts that its configuration names, and what these import
from the package, in the rooms where numbers are made (tasks, students, teachers, losses, augment, training and the
scores of the validation split). A run whose sources have changed is not resumed, unless `--code_changed` says that this
is meant; then the change is recorded. Other files of the package (configuration, logs, reports, figures) are noted by
the commit alone and may change at any time. Comments, docstrings and layout do not count.

A measurement that is kept for another time (`evaluation.kept`) holds one digest of the files that it computes with.

Imports are read, not executed. Not seen is the student part of another run that is this run's teacher: what it computes
is decided by its weights' digest and by its own checkpoint.
"""

import ast
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from graft.config.options import Config, Part
from graft.config.schema import ROOT

ROOMS = ("tasks", "students", "teachers", "losses", "augment", "training", "evaluation", "keyed.py", "outputs.py")
# Of these rooms, what only writes about a run or decides whether it may go on.
APART = {f"training/{name}.py" for name in ("journal", "pictures", "progress", "record", "resume", "trackers")}


def of_run(config: Config) -> dict[str, str]:
    """A digest of every file that decides the result of this run, by its path in the package."""
    parts = [("tasks", config.task), ("students", config.student), ("teachers", config.teacher),
             *(("losses", term) for term in config.objective if term.used),
             *(("augment", part) for part in config.augment)]
    names = _used(ROOT / f"train_{config.method}.py", parts)
    return {name: _digest(names[name]) for name in sorted(names)
            if (name.startswith("train_") or name.split("/")[0] in ROOMS) and name not in APART}


def of_measurement(module: str, config: Config) -> str:
    """One digest of all files that decide what a module (its `__file__`) measures of this run's student and teacher."""
    parts = [("tasks", config.task), ("students", config.student), ("teachers", config.teacher)]
    names = _used(Path(module), parts)
    kept = [f"{name} {_digest(names[name])}" for name in sorted(names) if name.split("/")[0] in (*ROOMS, "probes")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _used(first: Path, parts: Sequence[tuple[str, Part]]) -> dict[str, Path]:
    """A file, parts as (kind, part), and all of the package that they import, by their path in it."""
    left, found = [first, *(ROOT / kind / f"{part.name}.py" for kind, part in parts)], set()
    while left:
        if (file := left.pop()) not in found:
            found.add(file)
            left += _imported(file)
    return {str(file.relative_to(ROOT)): file for file in found}


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The files that have changed, came or went."""
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


@functools.cache
def _imported(file: Path) -> tuple[Path, ...]:
    """The package's files that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    stems = [ROOT.joinpath(*name.split(".")[1:]) for name in names if name.split(".")[0] == ROOT.name]
    return tuple(path for stem in stems for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file())


@functools.cache
def _digest(file: Path) -> str:
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:32]
