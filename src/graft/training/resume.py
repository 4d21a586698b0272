"""Whether a run may go on from what lies in its folder."""

from pathlib import Path
from typing import Any

from graft.config import restored
from graft.config.options import Config
from graft.errors import UserError
from graft.runtime import checkpoint, identity, sources
from graft.runtime.provenance import code_sha


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


def refuse_other_run(path: Path, info: dict[str, Any], config: Config, world: int, origin: dict[str, Any]) -> list[str]:
    """Raise UserError, one line with all that differs, if the checkpoint is of another configuration, number of
    processes, sharding, data or base model, or if the sources that decide its result (see `runtime.sources`) have
    changed and `--code_changed` was not given.

    `origin` is what a checkpoint says of them. Returns notes on what may differ: changed sources that are meant, a
    commit that changed others (the next checkpoint records it), and data that are not trained on.
    """
    found = []
    if changed := _other_keys(path, info, config):
        found.append(f"with another configuration ({'; '.join(changed[:3])})")
    if info["world_size"] != world:
        found.append(f"by {info['world_size']} processes, this is {world}, and the result would not be bit-identical")
    trained = identity.of_checkpoint(path, info)
    if other := identity.differences(trained, origin["data"], ("train", "val")):
        found.append(f"with other data ({'; '.join(other)})")
    for key, what in (("base", "base model"), ("teacher", "teacher"), ("sharding", "sharding"),
                      ("targets", "answers of the teacher")):
        if info.get(key) != origin.get(key):
            found.append(f"with another {what} ({info.get(key)}, now {origin.get(key)})")
    if other_code := code_changes(info, config):
        shown = ", ".join(other_code[:5]) + (f" and {len(other_code) - 5} more" if len(other_code) > 5 else "")
        if not config.code_changed:
            found.append(f"with other code ({shown}; if that is meant, --code_changed goes on and records it)")
    if found:
        raise UserError(f"{path}: was made {'; '.join(found)}: start it again as it was, or use another --output_dir")
    notes = [f"note: since the last checkpoint another {other}; the run was not trained on it and goes on"
             for other in identity.differences(trained, origin["data"], ("test",))]
    if other_code:
        notes.append(f"note: goes on although the checkpoint was made with other code ({shown})")
    elif info["code_sha"] != code_sha():
        notes.append(f"note: the checkpoint was made by code {info['code_sha'][:12]}, this is {code_sha()[:12]}")
    return notes


def _other_keys(path: Path, info: dict[str, Any], config: Config) -> list[str]:
    """The keys, with both values, in which a checkpoint's configuration differs; one that is younger than the
    checkpoint had its default."""
    if info["config_sha256"] == config.sha256:
        return []
    try:
        old = leaves(restored(info["config"], f"{path}/trainer.json").to_dict())
    except UserError:  # it has keys, or values, that are none any more
        old = leaves(info["config"])
    new = leaves(config.identity())
    idle = leaves(config.to_dict()).keys() - new.keys()  # keys that have no influence on the result
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in {**old, **new} if k not in idle and old.get(k) != new.get(k)]


def code_changes(info: dict[str, Any], config: Config) -> list[str]:
    """The files that decide the result and are not those that the checkpoint was made with (older ones do not say)."""
    return sources.differences(info["sources"], sources.of_run(config)) if "sources" in info else []


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping with dotted keys."""
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in leaves(item, f"{path}.{key}".lstrip(".")).items()}
    return {path: value}
