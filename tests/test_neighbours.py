"""A model read by its nearest neighbours, against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from graft.augment import to_float
from graft.evaluation.neighbours import CLS, TEMPERATURE, Neighbours
from graft.evaluation.scoring import score
from graft.outputs import Outputs
from graft.tasks import digits

K = 5


class Flat(nn.Module):
    """An image's pixels, projected, as its class token."""

    def __init__(self, pixels: int):
        super().__init__()
        self.project = nn.Linear(pixels, 6)

    def forward(self, images, features=()):
        return Outputs(None, features={CLS: self.project(images.flatten(1))[:, None]})


@pytest.fixture
def read():
    torch.manual_seed(0)
    task = digits.build(subset=300)
    images, _ = next(task.splits["train"].batches([torch.arange(1)]))
    model = Flat(images[0].numel())
    return task, model, Neighbours(model, task, K, batch_size=7)


def embedded(model, split):
    images, labels = next(split.batches([torch.arange(len(split))]))
    with torch.no_grad():
        return model(to_float(images)).features[CLS][:, 0].double().numpy(), labels.numpy()


def test_votes_are_those_of_scikit_learn(read):
    task, model, neighbours = read
    bank, labels = embedded(model, task.splits["train"])
    oracle = KNeighborsClassifier(K, metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE))
    query, _ = embedded(model, task.splits["val"])
    shares = np.zeros((len(query), task.num_classes))
    oracle.fit(bank, labels)
    shares[:, oracle.classes_] = oracle.predict_proba(query)
    images, _ = next(task.splits["val"].batches([torch.arange(len(query))]))
    found = neighbours(to_float(images)).logits.softmax(-1).numpy()
    # Without the vote that is spread evenly, which weighs as much as the farthest neighbour.
    distance, _ = oracle.kneighbors(query)
    weight = np.exp(-distance / TEMPERATURE)
    least = (weight[:, -1] / (weight.sum(1) + weight[:, -1]))[:, None]
    np.testing.assert_allclose((found - least / task.num_classes) / (1 - least), shares, atol=1e-4)


def test_scored_like_a_classifier(read):
    task, model, neighbours = read
    rows = score(neighbours, task.splits["val"], torch.device("cpu"), 4)
    bank, labels = embedded(model, task.splits["train"])
    query, truth = embedded(model, task.splits["val"])
    oracle = KNeighborsClassifier(K, metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE))
    assert (rows["prediction"] == oracle.fit(bank, labels).predict(query)).mean() > 0.9  # ties may differ
    assert (rows["label"] == truth).all() and np.isfinite(rows["nll"]).all()


def test_fewer_images_than_neighbours(read):
    task, model, _ = read
    few = Neighbours(model, task, 10_000, batch_size=64)
    images, _ = next(task.splits["val"].batches([torch.arange(2)]))
    assert few(to_float(images)).logits.shape == (2, task.num_classes)
