"""What a language teacher's cache is of: everything that what it holds depends on, and the refusal of any other."""

from pathlib import Path
from typing import Any

from graft.errors import UserError
from graft.runtime.files import cache_dir, named_by
from graft.tasks._context import Context
from graft.tasks._text import TextTask
from graft.teachers._topk_files import of_states
from graft.training.resume import leaves

FORMAT = 2


def about(task: TextTask, context: Context, base: str, precision: str, dtype: str,
          keep: str = "topk") -> dict[str, Any]:
    """Everything the logits depend on, and how they are kept; K apart.

    `base` identifies the weights. Raises UserError if nobody can have the same ones again.
    """
    if base.startswith("random"):
        raise UserError("teacher.serve: the student's weights are drawn for each run alone, a cache would be another "
                        "model's; name teacher.model")
    return {"format": FORMAT, "model": base, "tokenizer": task.prompt.tokenizer_sha256,
            "template": task.prompt.template_sha256, "items": task.fingerprints["train"], "max_length": task.max_length,
            "split": "train", "precision": precision, "dtype": dtype, **context.identity(task),
            **({"keep": keep} if keep != "topk" else {}), **({"answers": task.answered} if task.answered else {})}


def folder_for(wanted: dict[str, Any], path: str) -> Path:
    """Where a cache belongs: `path`, or a folder named by what is in it."""
    return Path(path) if path else cache_dir() / f"{'hidden' if 'keep' in wanted else 'topk'}-{named_by(wanted)}"


def refuse_other(folder: Path, manifest: dict[str, Any], wanted: dict[str, Any], k: int) -> None:
    """Raise UserError naming the first thing in which a cache differs from what is wanted."""
    have, want = leaves(manifest["about"]), leaves(wanted)
    for key in {**want, **have}:
        if have.get(key) != want.get(key):
            raise UserError(f"teacher.path: {folder}: made with another {key} ({str(have.get(key))[:60]}, wanted "
                            f"{str(want.get(key))[:60]}); build another cache")
    if manifest["k"] < k and not of_states(manifest):
        raise UserError(f"teacher.k: {k}, the cache {folder} holds the {manifest['k']} largest logits")
