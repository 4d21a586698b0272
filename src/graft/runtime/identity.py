"""What a run was trained on and what lies there now, compared by digests: the same, or how they differ.

Facts are `Task.about` and `TextTask.about`; every checkpoint holds those of its training in `trainer.json` as `data`.
Class names, channels and size, or tokenizer and template, always count. Of the splits only those count that matter
where the two meet: training ones for going on with a run, the one that is scored for a score. A run that has seen
what is now scored cannot pass: its own digest of that split was made when those items were not in it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graft.errors import UserError

ALWAYS = ("classes", "channels", "size", "layout", "tokenizer_sha256", "template_sha256")
NAMES = {"classes": "class names", "tokenizer_sha256": "tokenizer", "template_sha256": "template"}
SHOWN = 40  # characters of a value


def of_checkpoint(path: Path, info: dict[str, Any]) -> dict[str, Any]:
    """The facts in a checkpoint's trainer.json. Raises UserError for a checkpoint from before there were any."""
    if "data" not in info:
        raise UserError(f"{path}: was written before checkpoints stored what data they were trained on; it cannot be "
                        "compared with any: train the run again")
    return info["data"]


def differences(trained: dict[str, Any], now: dict[str, Any], splits: Sequence[str]) -> list[str]:
    """In what `now` differs from the facts of training, each a few words: the checkpoint's value, then today's."""
    found = [f"{NAMES.get(key, key)} {_apart(trained.get(key), now.get(key))}"
             for key in ALWAYS if trained.get(key) != now.get(key)]
    for split in splits:
        then, today = (facts["fingerprints"].get(split, "") for facts in (trained, now))
        if then != today:
            sizes = [f"{facts['sizes'].get(split, 0)} items, sha256 {digest[:12]}"
                     for facts, digest in ((trained, then), (now, today))]
            found.append(f"{split} data of {sizes[0]}, now {sizes[1]}")
    return found


def _apart(then: Any, today: Any) -> str:
    """Two values that differ; of lists, such as class names, what differs first."""
    if isinstance(then, list) and isinstance(today, list):
        place = next((i for i, (a, b) in enumerate(zip(then, today)) if a != b), min(len(then), len(today)))
        then, today = (f"{len(values)} ({values[place] if place < len(values) else 'none'} as number {place + 1})"
                       for values in (then, today))
    return f"{str(then)[:SHOWN]}, now {str(today)[:SHOWN]}"
