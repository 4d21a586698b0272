"""Cross-entropy with label smoothing, for hard and mixed labels."""
from typing import Annotated
import torch


def loss(logits: torch.Tensor, targets: torch.Tensor, *,
         smoothing: Annotated[float, "[0, 1)", "label smoothing"] = 0.0) -> torch.Tensor:
    pass
