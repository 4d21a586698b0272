"""Figures of classifiers: numbers drawn equal those of the JSON by an independent way, equal bytes, no silent gaps."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import gen_confusion_fig
import gen_reliability_fig
import gen_roc_fig
import gen_teacher_fig
from graft.errors import UserError
from graft.probes import classification
from graft.reporting import figures, gains, results
from test_results import DATA, make_run, scored

CLASSES = ["cat", "dog", "eel", "fox"]
N = 200
SCRIPTS = {"reliability": gen_reliability_fig, "confusion": gen_confusion_fig, "roc": gen_roc_fig}


def predicted(seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % 4
    logits = rng.normal(size=(N, 4)) + 2 * np.eye(4)[labels]
    return labels, logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.fixture(scope="module")
def robustness(tmp_path_factory):
    """A robustness.json with two conditions, of two seeds and of one."""
    path = tmp_path_factory.mktemp("study") / "robustness.json"
    conditions = {name: {"runs": [{"seed": seed, "split": "test", "checkpoint_sha256": "c",
                                   "clean": classification.evaluate(*predicted(seed), CLASSES)} for seed in seeds]}
                  for name, seeds in {"baseline": [0, 1], "distill": [2]}.items()}
    results.write_json(path, {"schema_version": 1, "study": "s", "data": {"fingerprint": "f", "classes": CLASSES},
                              "order": list(conditions), "conditions": conditions})
    return path


def call(monkeypatch, script, path, out, *more):
    monkeypatch.setattr(sys, "argv", [script.__name__, "--results", str(path), "--out", str(out), *more])
    script.main()


def teacher_study(folder):
    """results.json: a baseline, its students of two seeds and a teacher of one."""
    level = {"baseline": [0.6, 0.62], "distill": [0.7, 0.72], "control": [0.6, 0.6], "other": [0.65, 0.6],
             "cnn_teacher": [0.9]}
    runs = [make_run(folder, name, seed, scored(seed, accuracy)) for name, accuracies in level.items()
            for seed, accuracy in enumerate(accuracies)]
    content = results.assemble("demo", DATA, runs, folder, references=["cnn_teacher"])
    path = ["teacher.path", "-", "experiments/demo/cnn_teacher/seed0"]
    content["conditions"]["distill"]["differs"] = [path]
    content["conditions"]["control"]["differs"] = [path, ["teacher.shuffle", False, True]]
    content["conditions"]["other"]["differs"] = [["teacher.path", "-", "experiments/demo/ssl_teacher"]]
    results.write_json(folder / "results.json", content)
    return folder / "results.json"


@pytest.mark.parametrize("name", [*SCRIPTS, "teacher"])
def test_equal_bytes_embedded_fonts_and_no_silent_gap(monkeypatch, robustness, tmp_path, name):
    path = teacher_study(tmp_path) if name == "teacher" else robustness
    script = SCRIPTS.get(name, gen_teacher_fig)
    for out in "ab":
        call(monkeypatch, script, path, tmp_path / out)
    for suffix in ("pdf", "svg", "png", "csv"):
        first, second = ((tmp_path / out / f"{name}.{suffix}").read_bytes() for out in "ab")
        assert first == second and len(first) > 100
    pdf = (tmp_path / "a" / f"{name}.pdf").read_bytes()
    assert b"/Type3" not in pdf and b"/CreationDate" not in pdf
    with pytest.raises(UserError, match="no nope; there are: "):
        call(monkeypatch, script, path, tmp_path / "c", "--conditions", "distill", "nope")
    assert not (tmp_path / "c").exists()
    call(monkeypatch, script, path, tmp_path / "c", "--conditions", "distill", "nope", "--allow_missing")
    assert set(pd.read_csv(tmp_path / "c" / f"{name}.csv")["condition"]) == {"distill"}


def test_reliability_pools_the_seeds(monkeypatch, robustness, tmp_path):
    """Pooled bins are those of both seeds' predictions scored as one set."""
    call(monkeypatch, gen_reliability_fig, robustness, tmp_path, "--conditions", "baseline")
    drawn = pd.read_csv(tmp_path / "reliability.csv")
    pooled = drawn[drawn["seed"].isna()]
    labels, log_probs = (np.concatenate(both) for both in zip(predicted(0), predicted(1), strict=True))
    confidence, correct = np.exp(log_probs.max(1)), log_probs.argmax(1) == labels
    for row in pooled.itertuples():
        inside = (confidence > row.low + 1e-6) & (confidence <= row.high + 1e-6)
        assert row.n == inside.sum()
        assert row.accuracy == pytest.approx(correct[inside].mean(), rel=1e-4)
        assert row.confidence == pytest.approx(confidence[inside].mean(), rel=1e-4)
    assert pooled["n"].sum() == 2 * N and pooled["share"].sum() == pytest.approx(1, rel=1e-4)


def test_confusion_counts_and_row_percentages(monkeypatch, robustness, tmp_path):
    call(monkeypatch, gen_confusion_fig, robustness, tmp_path)
    drawn = pd.read_csv(tmp_path / "confusion.csv")
    own = drawn[drawn["condition"] == "baseline"].set_index(["true", "predicted"])
    labels, log_probs = (np.concatenate(both) for both in zip(predicted(0), predicted(1), strict=True))
    for (true, guess), row in own.iterrows():
        count = ((labels == CLASSES.index(true)) & (log_probs.argmax(1) == CLASSES.index(guess))).sum()
        assert row["count"] == count and row["percent"] == pytest.approx(100 * count / (2 * N / 4), rel=1e-4)


def test_confusion_diagonal_is_no_error():
    with figures.style():
        figure = gen_confusion_fig.draw({"a": np.array([[90, 10], [5, 95]])}, ["x", "y"])
    panel, bar = figure.axes
    image, = panel.images
    assert image.get_array().mask.tolist() == [[True, False], [False, True]] and image.get_clim() == (0, 10)
    texts = {tuple(map(int, text.get_position())): text.get_text() for text in panel.texts}
    assert texts == {(0, 0): "90", (1, 0): "10", (0, 1): "5", (1, 1): "95"}
    assert bar.get_ylabel() == "errors, % of the true class" and panel.get_ylabel() == "true"


def test_roc_areas_and_curves(monkeypatch, robustness, tmp_path):
    call(monkeypatch, gen_roc_fig, robustness, tmp_path)
    drawn = pd.read_csv(tmp_path / "roc.csv")
    auc = drawn[(drawn["kind"] == "auc") & (drawn["condition"] == "baseline")].set_index("class")
    each = np.array([[roc_auc_score(labels == k, log_probs[:, k]) for k in range(4)]
                     for labels, log_probs in (predicted(0), predicted(1))])
    assert auc.loc[CLASSES, "mean"].to_numpy() == pytest.approx(each.mean(0), rel=1e-4)
    assert auc.loc[CLASSES, "min"].to_numpy() == pytest.approx(each.min(0), rel=1e-4)
    assert auc.loc["macro", "mean"] == pytest.approx(each.mean(), rel=1e-4)
    curve = drawn[(drawn["kind"] == "curve") & (drawn["condition"] == "distill")]
    labels, log_probs = predicted(2)
    for row in curve.iloc[::10].itertuples():  # the best rate among all thresholds that keep to the false positives
        expected = np.mean([max((log_probs[labels == k, k] >= c).mean() for c in [np.inf, *log_probs[:, k]]
                                if (log_probs[labels != k, k] >= c).mean() <= row.fpr + 1e-6) for k in range(4)])
        assert row.mean == pytest.approx(expected, abs=0.02)  # 200 points are kept of a curve
    assert (curve["min"] == curve["max"]).all()


def test_gain_by_teacher(monkeypatch, tmp_path, capsys):
    path = teacher_study(tmp_path)
    call(monkeypatch, gen_teacher_fig, path, tmp_path / "out")
    drawn = pd.read_csv(tmp_path / "out/teacher.csv").set_index("condition")
    assert list(drawn.index) == ["distill"]  # neither the control, whose teacher taught nothing, nor the unscored
    assert "left out other: its teacher ssl_teacher has no accuracy" in capsys.readouterr().err
    accuracy = {name: np.mean([run["metrics"]["accuracy"]["n_correct"] / run["n"] for run in condition["runs"]])
                for name, condition in json.loads(path.read_text())["conditions"].items()}
    row = drawn.loc["distill"]
    gain = accuracy["distill"] - accuracy["baseline"]
    assert row["gain"] == pytest.approx(gain, rel=1e-4) and row["low"] < row["gain"] < row["high"]
    assert row["teacher_accuracy"] == pytest.approx(accuracy["cnn_teacher"], rel=1e-4)
    assert row["gap_closed"] == pytest.approx(gain / (accuracy["cnn_teacher"] - accuracy["baseline"]), rel=1e-4)
    assert row["ratio"] == pytest.approx(accuracy["distill"] / accuracy["cnn_teacher"], rel=1e-4)


def test_a_bad_teacher_closes_no_gap(tmp_path):
    content = results.read_results(teacher_study(tmp_path))
    content["conditions"]["cnn_teacher"]["summary"]["test"]["accuracy"]["mean"] = 0.5
    row = gains.gains(content, "test").iloc[0]
    assert row["ratio"] > 1 and np.isnan(row["gap_closed"])
    content["conditions"]["cnn_teacher"]["summary"]["test"]["accuracy"]["mean"] = 0.0  # as of a smoke run's few images
    row = gains.gains(content, "test").iloc[0]
    assert np.isnan(row["ratio"]) and np.isnan(row["gap_closed"]) and row["teacher_accuracy"] == 0


def test_agreement_of_neighbours_is_no_teachers_accuracy(tmp_path):
    content = results.read_results(teacher_study(tmp_path))
    for run in content["conditions"]["cnn_teacher"]["runs"]:
        run["readout"] = "20 nearest of 100 training images"
    assert gains.gains(content, "test").empty


def test_a_damaged_robustness_file_is_named(robustness, tmp_path):
    content = json.loads(robustness.read_text())
    del content["conditions"]["distill"]["runs"][0]["clean"]["confusion"]
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"r\.json: conditions\.distill\.runs\[0\]\.clean\.confusion: missing"):
        results.read_robustness(tmp_path / "r.json")
