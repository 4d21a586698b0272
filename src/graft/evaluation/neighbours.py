"""A model without a classifier, read by its nearest neighbours: what a self-supervised teacher knows of the classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graft.augment import to_float
from graft.outputs import Outputs

CLS = "cls.final"
TEMPERATURE = 0.07


class Neighbours(nn.Module):
    """Votes of the `k` nearest training images, as logits.

    Cosine similarity of the class tokens, votes weighted by exp(similarity / 0.07) (Wu et al. 2018,
    arXiv:1805.01978). `logits` (B, K) are the logarithms of the shares, one vote of the least weight among the k spread
    evenly over the classes, so that a class without a neighbour has a finite one. Images of the training split itself
    count among their own neighbours.
    """

    def __init__(self, module: nn.Module, task, k: int, batch_size: int):
        super().__init__()
        self.module, self.k, self.num_classes = module, k, task.num_classes
        self.eval()
        train = task.splits["train"]
        rows = [(self._embed(to_float(images)), labels)
                for images, labels in train.batches(list(torch.arange(len(train)).split(batch_size)))]
        self.bank = torch.cat([embedded for embedded, _ in rows])
        self.labels = torch.cat([labels for _, labels in rows])

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        return F.normalize(self.module(images, features=(CLS,)).features[CLS][:, 0].float(), dim=-1)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """`images` (B, C, H, W) in [0, 1]."""
        similarity, nearest = (self._embed(images) @ self.bank.T).topk(min(self.k, len(self.bank)), dim=1)
        weight = ((similarity - similarity[:, :1]) / TEMPERATURE).exp()
        votes = similarity.new_zeros(len(images), self.num_classes).scatter_add_(1, self.labels[nearest], weight)
        return Outputs((votes + weight[:, -1:] / self.num_classes).log())
