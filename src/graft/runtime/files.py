"""Small files beside a run's checkpoints. No torch here."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
