"""A classifier beyond top-1: per class, by rank, as probabilities, calibrated or not, against another model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import auc, confusion_matrix, precision_recall_fscore_support, roc_curve

from graft.keyed import key

BINS = 15
ROC_POINTS = 200  # kept of each curve; its area is that of the whole curve
CALIBRATED_DRAWS = 200


def evaluate(labels: np.ndarray, log_probs: np.ndarray, classes: Sequence[str], *, topk: Sequence[int] = (1, 3, 5),
             bins: int = BINS) -> dict[str, Any]:
    """All metrics of labels (N,) and log-probabilities (N, K), JSON-ready; fractions, nats, counts.

    `per_class` lists precision, recall, F1, support and one-vs-rest AUC; None where the labels have no such
    class, and `macro` means over those they have. A class that is never predicted has precision 0. `confusion`
    counts true class by predicted class; `roc` are one-vs-rest curves. `reference` holds the values of a model
    that says 1/K everywhere (accuracy and F1: of uniform guessing on balanced classes).
    """
    count = len(classes)
    assert log_probs.shape == (len(labels), count)
    predictions = log_probs.argmax(1)
    scores = precision_recall_fscore_support(labels, predictions, labels=range(count), zero_division=0)
    roc = [_roc(labels == k, log_probs[:, k]) for k in range(count)]
    per_class = []
    for k, (precision, recall, f1, support) in enumerate(zip(*scores, strict=True)):
        known = {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
        per_class.append({"class": classes[k], "support": int(support), "auc": roc[k] and roc[k]["auc"],
                          **(known if support else dict.fromkeys(known))})
    return {
        "n": len(labels), **probabilistic(labels, log_probs, bins),
        "topk": {str(k): topk_accuracy(labels, log_probs, k) for k in topk if k <= count},
        "macro": {name: _mean([row[name] for row in per_class]) for name in ("precision", "recall", "f1", "auc")},
        "weighted_auc": _mean([row["auc"] for row in per_class], [row["support"] for row in per_class]),
        "per_class": per_class, "reliability": reliability(labels, log_probs, bins),
        "confusion": confusion_matrix(labels, predictions, labels=range(count)).tolist(),
        "roc": {name: {"fpr": curve["fpr"], "tpr": curve["tpr"]} for name, curve in zip(classes, roc) if curve},
        "reference": {"accuracy": 1 / count, "f1": 1 / count, "nll": float(np.log(count)),
                      "brier": 1 - 1 / count, "auc": 0.5}}


def probabilistic(labels: np.ndarray, log_probs: np.ndarray, bins: int = BINS) -> dict[str, float]:
    """Accuracy, mean NLL in nats, Brier score, and ECE beside the ECE of a calibrated model of equal confidences."""
    found = reliability(labels, log_probs, bins)
    return {"accuracy": float((log_probs.argmax(1) == labels).mean()),
            "nll": float(-log_probs[np.arange(len(labels)), labels].mean()), "brier": brier(labels, log_probs),
            "ece": expected_calibration_error(found), "ece_calibrated": _calibrated(log_probs, bins)}


def topk_accuracy(labels: np.ndarray, log_probs: np.ndarray, k: int) -> float:
    """Share of examples (N,) whose label is among the k highest of (N, K); ties count against the label."""
    own = log_probs[np.arange(len(labels)), labels][:, None]
    return float(((log_probs >= own).sum(1) <= k).mean())


def brier(labels: np.ndarray, log_probs: np.ndarray) -> float:
    """Mean over examples of Σ_k (p_k - 1[k = label])², from 0 to 2 (Brier 1950)."""
    errors = np.exp(log_probs)
    errors[np.arange(len(labels)), labels] -= 1
    return float((errors**2).sum(1).mean())


def reliability(labels: np.ndarray, log_probs: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """Equal-width bins (low, high] of the confidence: count, mean confidence and accuracy (None in an empty bin)."""
    confidence, correct = np.exp(log_probs.max(1)), log_probs.argmax(1) == labels
    place = _bin(confidence, bins)
    rows = []
    for b in range(bins):
        inside = place == b
        rows.append({"low": b / bins, "high": (b + 1) / bins, "n": int(inside.sum()),
                     "confidence": float(confidence[inside].mean()) if inside.any() else None,
                     "accuracy": float(correct[inside].mean()) if inside.any() else None})
    return rows


def expected_calibration_error(rows: list[dict[str, Any]]) -> float:
    """Σ_b n_b/N · |accuracy_b - confidence_b| over the bins of `reliability` (Guo et al. 2017, arXiv:1706.04599)."""
    total = sum(row["n"] for row in rows)
    return sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows if row["n"]) / total


def agreement(log_probs: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Two models on the same examples, (N, K) each: how often they predict the same class, and how far apart they are.

    `chance` is the agreement of independent predictions with the same class frequencies, `kappa` what is above
    it (Cohen 1960), `kl` the mean KL(other ‖ this) in nats: `other` is the teacher.
    """
    mine, theirs = log_probs.argmax(1), other.argmax(1)
    same = float((mine == theirs).mean())
    shares = [np.bincount(x, minlength=log_probs.shape[1]) / len(x) for x in (mine, theirs)]
    chance = float(shares[0] @ shares[1])
    return {"agreement": same, "chance": chance, "kappa": (same - chance) / (1 - chance) if chance < 1 else 1.0,
            "kl": float((np.exp(other) * (other - log_probs)).sum(1).mean())}


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)


def _calibrated(log_probs: np.ndarray, bins: int) -> float:
    """Mean ECE if each prediction were right with its stated confidence: what chance alone leaves above 0."""
    confidence = np.exp(log_probs.max(1))
    place, random = _bin(confidence, bins), np.random.default_rng(key("calibrated"))
    total = 0.0
    for _ in range(CALIBRATED_DRAWS):
        gap = (random.random(len(confidence)) < confidence) - confidence
        total += np.abs(np.bincount(place, gap, bins)).sum()
    return float(total / CALIBRATED_DRAWS / len(confidence))


def _roc(positive: np.ndarray, score: np.ndarray) -> dict[str, Any] | None:
    if positive.all() or not positive.any():
        return None
    fpr, tpr, _ = roc_curve(positive, score)
    kept = np.unique(np.linspace(0, len(fpr) - 1, ROC_POINTS).round().astype(int))
    return {"fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist(), "auc": float(auc(fpr, tpr))}


def _mean(values: list[float | None], weights: list[float] | None = None) -> float | None:
    """Mean of the values that exist."""
    known = [i for i, value in enumerate(values) if value is not None]
    chosen = [weights[i] for i in known] if weights else None
    return float(np.average([values[i] for i in known], weights=chosen)) if known else None
