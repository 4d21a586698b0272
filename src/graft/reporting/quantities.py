"""What the values that a run logs are called where people read them, and in which unit they are shown."""

import re

OWN = {"train/loss": "training loss", "train/grad_norm": "norm of the gradient", "val/nll": "validation NLL, nats",
       "val/loss": "validation loss", "lr": "learning rate"}


def quantity(key: str) -> tuple[str, float]:
    """Title of a key of metrics.jsonl, and what its values are multiplied with: shares are shown in percent."""
    if key in OWN:
        return OWN[key], 1
    kind, _, name = key.partition("/")
    words = re.sub(r"^top(\d+)$", r"top-\1 accuracy", name).replace("_", " ")
    if kind == "val":
        return (f"validation {words}, %", 100) if is_share(key) else (f"validation {words}", 1)
    return (f"loss term {name}", 1) if kind == "train" else (key.replace("_", " "), 1)


def is_share(key: str) -> bool:
    """Whether the values of a key lie between 0 and 1."""
    return re.search(r"/(?:accuracy|top\d)", key) is not None
