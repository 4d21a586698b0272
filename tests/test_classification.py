"""Metrics beyond top-1, corruptions and averaged views, against hand values, scikit-learn, SciPy and Pillow."""

import io
import json
import math
import unittest.mock

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn import metrics
from torch import nn

from graft.errors import UserError
from graft.evaluation.scoring import score
from graft.outputs import Outputs
from graft.probes import classification, corruptions
from graft.probes._images import fixed_index
from graft.tasks._task import ResidentSplit, StreamedSplit

# four examples of three classes: right at 0.9 and 0.6, wrong at 0.5 and 0.8
P = np.array([[0.9, 0.05, 0.05], [0.3, 0.6, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
LABELS = np.array([0, 1, 2, 1])


def random_scores(n: int = 400, k: int = 5):
    random = np.random.default_rng(0)
    logits = random.normal(size=(n, k))
    labels = np.where(random.random(n) < 0.5, logits.argmax(1), random.integers(k, size=n))
    return labels, logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_probabilistic_scores_by_hand():
    found = classification.probabilistic(LABELS, np.log(P))
    assert found["accuracy"] == 0.5
    assert found["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.6) + math.log(0.2) + math.log(0.1)) / 4)
    brier = [0.01 + 0.0025 + 0.0025, 0.09 + 0.16 + 0.01, 0.25 + 0.09 + 0.64, 0.01 + 0.81 + 0.64]
    assert found["brier"] == pytest.approx(sum(brier) / 4)
    assert found["ece"] == pytest.approx((0.1 + 0.4 + 0.5 + 0.8) / 4)  # each alone in its bin


def test_reliability_bins_are_closed_above():
    log_probs = np.log(np.array([[0.6, 0.4], [0.61, 0.39], [1 - 1e-12, 1e-12], [0.5, 0.5]]))
    rows = classification.reliability(np.array([0, 0, 1, 0]), log_probs, bins=5)
    assert [row["n"] for row in rows] == [0, 0, 2, 1, 1]  # 0.6 belongs to (0.4, 0.6]
    assert rows[2]["accuracy"] == 1 and rows[2]["confidence"] == pytest.approx(0.55)
    assert rows[0]["accuracy"] is None and (rows[4]["low"], rows[4]["high"]) == (0.8, 1)
    assert classification.expected_calibration_error(rows) == pytest.approx((2 * 0.45 + 0.39 + 1) / 4)


def test_ece_of_a_calibrated_model_is_what_chance_leaves():
    random = np.random.default_rng(1)
    confidence = random.uniform(0.5, 1, 1000)
    log_probs = np.log(np.stack([confidence, 1 - confidence], 1))
    drawn = [classification.probabilistic((random.random(1000) > confidence).astype(int), log_probs)["ece"]
             for _ in range(50)]
    found = classification.probabilistic(np.zeros(1000, int), log_probs)
    assert found["ece_calibrated"] == pytest.approx(np.mean(drawn), rel=0.1)
    assert found["ece"] == pytest.approx(0.25, abs=0.02) and found["ece_calibrated"] < 0.06


def test_everything_agrees_with_scikit_learn():
    labels, log_probs = random_scores()
    p, predictions, classes = np.exp(log_probs), log_probs.argmax(1), list("abcde")
    found = classification.evaluate(labels, log_probs, classes)
    report = metrics.classification_report(labels, predictions, target_names=classes, output_dict=True)
    for row in found["per_class"]:
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(
            list(report[row["class"]].values()))
    assert list(found["macro"].values())[:3] == pytest.approx(list(report["macro avg"].values())[:3])
    assert found["macro"]["auc"] == pytest.approx(metrics.roc_auc_score(labels, p, multi_class="ovr"))
    assert found["weighted_auc"] == pytest.approx(
        metrics.roc_auc_score(labels, p, multi_class="ovr", average="weighted"))
    for k in (1, 3):
        assert found["topk"][str(k)] == pytest.approx(metrics.top_k_accuracy_score(labels, p, k=k))
    assert found["topk"]["5"] == 1
    assert found["nll"] == pytest.approx(metrics.log_loss(labels, p))
    confusion = np.array(found["confusion"])
    assert confusion[labels[0], predictions[0]] > 0 and confusion.sum() == 400
    assert (confusion.sum(1) == np.bincount(labels)).all() and np.trace(confusion) / 400 == found["accuracy"]
    curve = found["roc"]["b"]
    assert metrics.auc(curve["fpr"], curve["tpr"]) == pytest.approx(found["per_class"][1]["auc"], abs=2e-3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_reference_is_what_a_uniform_model_gets():
    labels = np.arange(40) % 4
    found = classification.evaluate(labels, np.full((40, 4), -math.log(4)), list("abcd"))
    reference = found["reference"]
    assert [found["nll"], found["brier"], found["macro"]["auc"], found["accuracy"]] == pytest.approx(
        [reference["nll"], reference["brier"], reference["auc"], reference["accuracy"]])
    assert found["topk"]["1"] == 0  # ties count against the label


def test_a_class_without_examples_is_named_and_left_out():
    found = classification.evaluate(LABELS[:2], np.log(P[:2]), list("abc"))
    assert found["per_class"][2] == {"class": "c", "support": 0, "auc": None, "precision": None, "recall": None,
                                     "f1": None}
    assert found["macro"] == {"precision": 1, "recall": 1, "f1": 1, "auc": 1} and set(found["roc"]) == {"a", "b"}


def test_agreement():
    _, log_probs = random_scores()
    _, other = random_scores()
    same = classification.agreement(log_probs, other)
    assert same["agreement"] == same["kappa"] == 1 and same["kl"] == pytest.approx(0)
    rolled = np.roll(other, 1, 0)
    found = classification.agreement(log_probs, rolled)
    assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(log_probs.argmax(1), rolled.argmax(1)))
    expected = nn.functional.kl_div(torch.tensor(log_probs), torch.tensor(rolled), log_target=True,
                                    reduction="batchmean")
    assert found["kl"] == pytest.approx(float(expected))


class Linear(nn.Module):
    """Images to 3 classes; sees where things are."""

    def __init__(self, pixels: int):
        super().__init__()
        self.layer = nn.Linear(pixels, 3)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, images):
        return Outputs(self.layer(images.flatten(1)))


def some_images(n: int = 6, channels: int = 3, size: int = 32) -> torch.Tensor:
    """Smooth random images, as JPEG and blur expect."""
    noise = np.random.default_rng(0).normal(size=(n, channels, size, size))
    smooth = gaussian_filter(noise, (0, 0, 3, 3))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return torch.from_numpy((255 * smooth).astype(np.uint8))


def test_scores_with_log_probs():
    split = ResidentSplit(some_images(), torch.arange(6) % 3)
    model = Linear(3 * 32 * 32)
    rows = score(model, split, torch.device("cpu"), 4, log_probs=True)
    assert rows["log_probs"].shape == (6, 3) and np.exp(rows["log_probs"]).sum(1) == pytest.approx(1)
    assert (rows["log_probs"].argmax(1) == rows["prediction"]).all()
    assert rows["nll"] == pytest.approx(-rows["log_probs"][np.arange(6), rows["label"]])
    plain = score(model, split, torch.device("cpu"), 6)
    assert "log_probs" not in plain and plain["nll"] == pytest.approx(rows["nll"], rel=1e-6)


def test_a_process_without_images_scores_none_and_an_empty_split_is_said():
    def decode(i):
        return some_images(1)[0].numpy()

    split = StreamedSplit(decode, torch.tensor([2]))
    with unittest.mock.patch("graft.evaluation.scoring.gather_object", lambda rows: [*rows, first]):
        first = score(Linear(3 * 32 * 32), split, torch.device("cpu"), 4)
        rows = score(Linear(3 * 32 * 32), split, torch.device("cpu"), 4, rank=1, world=2)
    assert rows["label"].tolist() == [2] and rows["index"].tolist() == [0]
    with pytest.raises(UserError, match="nothing to score: the split is empty"):
        score(Linear(3 * 32 * 32), StreamedSplit(decode, torch.tensor([], dtype=torch.int64)), torch.device("cpu"), 4)
    with pytest.raises(UserError, match="0 images of a split of 1"):
        fixed_index(split, 0)


def test_noise_has_its_standard_deviation_and_key():
    grey, index = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8), torch.arange(20)
    for severity, sigma in zip(corruptions.SEVERITIES, corruptions.NOISE):
        noise = corruptions.corrupt(grey, "gaussian_noise", severity, index).float() - 128
        assert float(noise.std()) == pytest.approx(255 * sigma, rel=0.02) and abs(float(noise.mean())) < 0.2
    part = corruptions.corrupt(grey[3:5], "gaussian_noise", 5, index[3:5])
    assert torch.equal(part, corruptions.corrupt(grey, "gaussian_noise", 5, index)[3:5])
    assert not torch.equal(part[0], part[1])
    assert not torch.equal(part, corruptions.corrupt(grey[3:5], "gaussian_noise", 5, index[3:5], seed=1))


def test_blur_is_scipys():
    for size, scale in ((32, 1), (64, 2), (8, 1)):
        images = some_images(2, 3, size)
        for severity, sigma in zip(corruptions.SEVERITIES, corruptions.BLUR):
            sigma *= scale
            expected = gaussian_filter(images.numpy().astype(float), (0, 0, sigma, sigma), mode="nearest", truncate=4)
            found = corruptions.corrupt(images, "gaussian_blur", severity, torch.arange(2))
            assert np.abs(found.numpy() - expected).max() < 0.51


def test_contrast_and_jpeg():
    images = some_images()
    found = corruptions.corrupt(images, "contrast", 5, torch.arange(6)).double()
    assert (found.std((2, 3)) / images.double().std((2, 3))).numpy() == pytest.approx(0.15, abs=0.02)
    assert found.mean((2, 3)).numpy() == pytest.approx(images.double().mean((2, 3)).numpy(), abs=0.3)
    for channels in (1, 3):
        images = some_images(2, channels)
        found = corruptions.corrupt(images, "jpeg", 5, torch.arange(2))
        for image, result in zip(images, found):
            stored = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(stored, "JPEG", quality=40)
            pillow = np.asarray(Image.open(stored)).reshape(32, 32, channels).transpose(2, 0, 1)
            assert (result.numpy() == pillow).all()
            assert not torch.equal(result, image)


def test_shift_moves_by_its_severity():
    images, index = some_images(64), torch.arange(64)
    for severity in corruptions.SEVERITIES:
        moved = corruptions.corrupt(images, "shift", severity, index)
        directions = set()
        for image, result in zip(images, moved):
            found = [(dy, dx) for dy in (-severity, 0, severity) for dx in (-severity, 0, severity)
                     if torch.equal(corruptions.shifted(image[None], dy, dx)[0], result)]
            assert len(found) == 1 and found[0] != (0, 0)
            directions.add(found[0])
        assert len(directions) == 8
    right = corruptions.shifted(images, 0, 2)
    assert torch.equal(right[..., 2:], images[..., :-2]) and torch.equal(right[..., 0], images[..., 0])
    down = corruptions.shifted(images, 3, 0)
    assert torch.equal(down[..., 3:, :], images[..., :-3, :])


def test_severities_get_worse_and_names_are_checked():
    images, index = some_images(), torch.arange(6)
    for name in corruptions.CORRUPTIONS:
        errors = [float((corruptions.corrupt(images, name, s, index).float() - images.float()).square().mean())
                  for s in corruptions.SEVERITIES]
        assert errors == sorted(errors) and 0 < errors[0] < errors[-1], name
    with pytest.raises(UserError, match=r"expected one of gaussian_noise, .* got fog at 1"):
        corruptions.corrupt(images, "fog", 1, index)


@pytest.mark.parametrize("flip", [False, True])
def test_averaged_views_are_distinct_and_their_probabilities_averaged(flip):
    model = Linear(3 * 32 * 32).eval()
    averaged = corruptions.AveragedViews(model, flip)
    images = some_images().float() / 255
    views = averaged.views(images)
    assert len(views) == (10 if flip else 5) and torch.equal(views[0], images)
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])
    expected = torch.stack([model(view).logits.softmax(-1) for view in views]).mean(0)
    torch.testing.assert_close(averaged(images).logits.exp(), expected)
    if flip:  # the same answer for the mirror image
        torch.testing.assert_close(averaged(images.flip(-1)).logits, averaged(images).logits)
    assert not averaged.training
