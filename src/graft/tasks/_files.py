"""Where a data set's files are: a local folder, or a commit of the Hugging Face hub."""

import os
import re
from pathlib import Path

from graft.errors import UserError


def data_root(root: str, name: str) -> Path:
    """The folder of a data set: `root`, or where that is empty `$GRAFT_DATA/<name>`, or `data/<name>`."""
    return Path(root) if root else Path(os.environ.get("GRAFT_DATA") or "data") / name


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
