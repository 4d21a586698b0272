"""Where a data set's files are: a local folder, or a commit of the Hugging Face hub; and which are a split's."""

import os
import re
from pathlib import Path

from graft.errors import UserError


def data_root(root: str, name: str) -> Path:
    """The folder of a data set: `root`, or where that is empty `$GRAFT_DATA/<name>`, or `data/<name>`."""
    return Path(root) if root else Path(os.environ.get("GRAFT_DATA") or "data") / name


def parquet_files(folder: Path, stem: str) -> list[Path]:
    """`stem.parquet`, or all of its shards, in order; nothing else that lies there.

    Shards are `stem-00000-of-00002.parquet`, or `stem-0.parquet`, `stem-1.parquet` from 0 or 1 on without a gap.
    Empty if there is none. Raises UserError if a shard is missing, or there are two sets of files.
    """
    whole = folder / f"{stem}.parquet"
    named = re.compile(rf"{re.escape(stem)}-([0-9]+)(?:-of-([0-9]+)(?:-[0-9a-f]+)?)?\.parquet")
    sets: dict[int, dict[int, Path]] = {}  # by how many shards there are; 0: the names do not say
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := named.fullmatch(path.name):
            shards = sets.setdefault(int(match[2] or 0), {})
            if int(match[1]) in shards:
                raise UserError(f"{path}: {shards[int(match[1])].name} is the same shard; expected one of them")
            shards[int(match[1])] = path
    if len(sets) + whole.is_file() > 1:
        several = [whole] * whole.is_file() + [next(iter(shards.values())) for shards in sets.values()]
        raise UserError(f"{folder}: {stem} is there more than once: {' and '.join(path.name for path in several)}; "
                        "expected one of them")
    for count, shards in sets.items():
        wanted = range(count) if count else range(min(1, *shards), max(shards) + 1)
        if lacking := sorted(set(wanted) - shards.keys()):
            name = f"{stem}-{lacking[0]:05d}-of-{count:05d}" if count else f"{stem}-{lacking[0]}"
            raise UserError(f"{folder}: {name}.parquet is missing; expected all {len(wanted)} shards")
        return [shards[i] for i in wanted]
    return [whole] if whole.is_file() else []


def require_model(key: str, model: str) -> None:
    """Raise UserError unless `model` is a folder or can be the name of a model on the hub.

    The hub says of a folder that is not there that it is no good name of a repository.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not model or not Path(model).is_dir():
        try:
            validate_repo_id(model)
        except HFValidationError:
            raise UserError(f"{key}: {model or 'empty'}: no such folder; expected one, or a model of the hub as "
                            "OWNER/NAME") from None


def from_hub(name: str, hub: str, revision: str) -> Path:
    """The local copy of the parquet files of repository `hub` at one commit, downloaded if it is not there yet.

    Raises `UserError` if `revision` is no commit, or the hub cannot be reached.
    """
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise UserError(f"task.revision: source hub needs a commit of {hub}, 40 hex digits, got {revision!r}")
    from huggingface_hub import snapshot_download  # slow to import

    try:
        return Path(snapshot_download(hub, repo_type="dataset", revision=revision,
                                      allow_patterns="*.parquet"))
    except Exception as error:  # HTTP, offline, disk: no common error
        raise UserError(f"{name}: cannot get {hub}@{revision[:7]} from the hub: "
                        f"{' '.join(str(error).split())}") from None
