"""No teacher."""

from graft.tasks._task import Task


def build(task: Task) -> None:
    """Nothing."""
    return None
