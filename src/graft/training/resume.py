"""Whether a run may go on from what lies in its folder."""

from pathlib import Path
from typing import Any

from graft.config.options import Config
from graft.errors import UserError
from graft.runtime import checkpoint
from graft.runtime.process import code_sha


def find(run_dir: Path, choice: str) -> Path | None:
    """The checkpoint to resume from, or None for a new run; `choice` is `--resume`.

    Raises UserError where `never` or `must` does not fit, NoValidCheckpoint if all are damaged.
    """
    have = checkpoint.steps(run_dir) or list(run_dir.glob("bad-checkpoint-*"))
    if choice == "never" and have:
        raise UserError(f"{run_dir}: has checkpoints and --resume never was given; remove them or resume")
    if choice == "must" and not have:
        raise UserError(f"{run_dir}: --resume must was given and there is no checkpoint")
    checkpoint.remove_temporaries(run_dir)
    return checkpoint.newest_valid(run_dir)


def refuse_other_run(path: Path, info: dict[str, Any], config: Config, world: int, origin: dict[str, str]) -> str:
    """Raise UserError if the checkpoint is of another configuration, number of processes, sharding, data or base model.

    Returns a note if only the code differs: that may be a fix, and the next checkpoint records the new commit.
    """
    if info["config_sha256"] != config.sha256:
        old, new = leaves(info["config"]), leaves(config.identity())
        changed = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]
        raise UserError(f"{path}: was made with another configuration ({'; '.join(changed[:3])}); "
                        "use another --output_dir")
    if info["world_size"] != world:
        raise UserError(f"{path}: was made by {info['world_size']} processes, this is {world}; the result would not be "
                        "bit-identical; launch with the same number")
    for key, what in (("data_fingerprint", "other data"), ("base", "another base model"),
                      ("sharding", "another sharding")):
        if info.get(key) != origin.get(key):
            raise UserError(f"{path}: was made with {what} ({key} {str(info.get(key))[:12]}, now "
                            f"{str(origin.get(key))[:12]})")
    if info["code_sha"] != code_sha():
        return f"note: the checkpoint was made by code {info['code_sha'][:12]}, this is {code_sha()[:12]}"
    return ""


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping with dotted keys."""
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in leaves(item, f"{path}.{key}".lstrip(".")).items()}
    return {path: value}
