"""Figures of what is compared: the drawn numbers are those of the JSON, and what is missing is named."""

import json
from pathlib import Path

import pandas as pd
import pytest

import gen_dose_fig
import gen_forest_fig
from graft.errors import UserError
from graft.reporting import figures, results
from test_figures import call
from test_forensics_figures import content  # noqa: F401

ROOT = "assets/demo/results.json"


@pytest.fixture
def scores():
    return json.loads(Path(ROOT).read_text())


def test_forest_has_every_comparison_with_its_interval(scores, monkeypatch, tmp_path):
    call(monkeypatch, gen_forest_fig, "--results", ROOT, "--out", tmp_path)
    drawn = pd.read_csv(tmp_path / "differences.csv").set_index("comparison")
    versus = {name: condition["vs_baseline"]["test"]["accuracy"] for name, condition in scores["conditions"].items()
              if condition.get("vs_baseline")}
    assert {*drawn.index[drawn["kind"] == "vs_baseline"]} == {*versus} and scores["baseline"] not in drawn.index
    for name, found in versus.items():
        assert drawn.loc[name, ["difference", "low", "high"]].tolist() == pytest.approx(
            [100 * found["difference"], *(100 * end for end in found["ci95"])], rel=1e-5)


def test_forest_fills_what_is_decided(monkeypatch, tmp_path):
    table = pd.DataFrame([
        {"kind": "vs_baseline", "comparison": name, "split": "test", "difference": 2.0, "low": low, "high": 3.0,
         "p_holm": p, "scope": scope, "seeds": 3}
        for name, low, p, scope in (("sure", 1.0, 0.01, "seeds and examples"), ("holm", 1.0, 0.2, "seeds and examples"),
                                    ("wide", -1.0, 0.3, "seeds and examples"), ("one", 1.0, 0.01, "examples"))])
    with figures.style():
        ax, = gen_forest_fig.draw(table, "baseline").axes
    marks = [line for line in ax.lines if line.get_marker() in ("o", "x")]
    assert [line.get_markerfacecolor() for line in marks[:3]] == ["C0", "white", "white"]
    assert marks[3].get_marker() == "x"


def test_forest_without_comparisons(scores, monkeypatch, tmp_path):
    for condition in scores["conditions"].values():
        condition["vs_baseline"] = {}
    results.write_json(tmp_path / "results.json", scores)
    with pytest.raises(UserError, match="no condition is compared with a baseline"):
        call(monkeypatch, gen_forest_fig, "--results", tmp_path / "results.json", "--out", tmp_path)


def test_dose_response_joins_imposed_runs(content, scores, monkeypatch, tmp_path):  # noqa: F811
    imposed = ["distill", "baseline"]
    mean = {"mean": 1.0, "ci95": [None, None], "seeds": 1}
    content["imposed"] = [{"condition": name, "attention_distance": mean, "accuracy": None} for name in imposed]
    del content["conditions"]["one"]
    results.write_json(tmp_path / "forensics.json", content)
    results.write_json(tmp_path / "results.json", scores)
    flags = ("--forensics", tmp_path / "forensics.json", "--out", tmp_path)
    call(monkeypatch, gen_dose_fig, *flags)
    drawn = pd.read_csv(tmp_path / "dose_response.csv")
    accuracy = {run["seed"]: run["metrics"]["accuracy"]["value"]
                for run in scores["conditions"]["distill"]["runs"] if run["split"] == "test"}
    own = drawn[drawn["condition"] == "distill"]
    assert set(own["dose"]) == {0} and set(drawn[drawn["condition"] == "baseline"]["dose"]) == {1}
    assert own["accuracy"].tolist() == pytest.approx([100 * accuracy[seed] for seed in own["seed"]], rel=1e-5)
    runs = content["conditions"]["distill"]["runs"]
    assert own["distance"].tolist() == pytest.approx(
        [sum(run["layer_distance"]) / len(run["layer_distance"]) for run in runs], rel=1e-5)
    assert own["trace"].tolist() == [run["hessian"]["trace"]["value"] for run in runs]
    with figures.style():
        first, second = gen_dose_fig.draw(drawn, 4.1, "test", ["distill"]).axes
    assert [line.get_label() for line in first.lines[2:]] == ["(other conditions)", "distill"]
    assert list(first.lines[1].get_xdata()) == pytest.approx(
        [drawn[drawn["condition"] == name]["distance"].mean() for name in imposed])
    assert first.get_ylabel() == "test accuracy, %" and second.get_ylabel() == "Hessian trace"
    del content["imposed"]
    results.write_json(tmp_path / "forensics.json", content)
    with pytest.raises(UserError, match="imposed: missing; expected one that was written with --doses"):
        call(monkeypatch, gen_dose_fig, *flags)
