"""Figures of the language study: the drawn numbers are those of the JSON and of metrics.jsonl."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import gen_ablation_fig
import gen_checkpoint_fig
import gen_curves_fig
import gen_summary_fig
from graft.errors import UserError
from graft.evaluation import answers
from graft.reporting import estimates, figures, results, stats
from test_figures import call

SCRIPTS = {gen_ablation_fig: "ablation", gen_checkpoint_fig: "checkpoint", gen_summary_fig: "summary"}
DATA = {"id": "gsm8k", "fingerprint": "f1", "fingerprints": {"val": "f1", "test": "f1"}}
LEVELS = {"baseline": 0.5, "distill": 0.7, "wrong_shots": 0.3}
SIZES = {"val": 60, "test": 80}
STEPS = (10, 20, 30)


def answered(rng, n, level):
    """Rows of answers of which about `level` are right."""
    right = rng.random(n) < level
    gold = np.array([str(i) for i in range(n)])
    return pd.DataFrame({"index": np.arange(n), "id": np.arange(n), "gold": gold, "correct": right,
                         "prediction": np.where(right, gold, ""), "prediction_flexible": gold, "correct_flexible": True,
                         "text": "#### 1", "tokens": 5, "ended": True})[list(results.TEXT_COLUMNS)]


def make_study(folder, levels=LEVELS, seeds=3, study="gsm8k_tiny", base=(0.2, 0.8), steps=STEPS, sizes=None):
    """A results.json as eval_checkpoints.py --icl assembles it; `seeds`: how many, or by condition."""
    def entry(name, seed, step, split, level):
        rng = np.random.default_rng([*map(ord, name), seed, step, len(split)])
        rows = answered(rng, (sizes or SIZES)[split], level)
        path = f"{name}/seed{seed}/eval/{split}-{step}.parquet"
        results.write_examples(folder / path, rows, "f1")
        return {"condition": name, "seed": seed, "step": step, "split": split, "n": len(rows), "examples": path,
                "metrics": answers.metrics(rows), "checkpoint_sha256": "0" * 64, "weights": "adapter_model"}

    runs, curve = [], []
    for name, level in levels.items():
        for seed in range(seeds if isinstance(seeds, int) else seeds[name]):
            points = [entry(name, seed, step, "val", level * (0.6 + 0.4 * step / steps[-1])) for step in steps]
            curve += points
            runs += [points[-1], entry(name, seed, steps[-1], "test", level)]
    for name, level in zip(results.GAP, base):
        runs += [entry(name, 42, 0, split, level) for split in SIZES]
    folder.mkdir(parents=True, exist_ok=True)
    results.write_json(folder / "results.json", results.assemble(study, DATA, runs, folder, references=results.GAP,
                                                                 curve=curve))
    return folder / "results.json"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three seeds of two conditions, one seed of the third."""
    return make_study(tmp_path_factory.mktemp("study"), seeds={"baseline": 3, "distill": 3, "wrong_shots": 1})


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Call a script; returns the folder and what it wrote as a table."""
    def draw(script, *words, out="out"):
        call(monkeypatch, script, "--results", *words, "--out", tmp_path / out)
        return tmp_path / out, pd.read_csv(tmp_path / out / f"{SCRIPTS[script]}.csv")
    return draw


def percent(*values):
    """What the files hold of fractions: percent with six digits."""
    return pytest.approx([100 * value for value in values], rel=1e-5)


def summed_up(content, name, split):
    one = content["conditions"][name]["summary"][split]["accuracy"]
    return percent(one["mean"], *one["ci95"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_equal_bytes_size_and_conditions(draw, study, script, capsys):
    first, table = draw(script, study, "--conditions", "wrong_shots", "distill", out="a")
    second, _ = draw(script, study, "--conditions", "wrong_shots", "distill", out="b")
    for suffix in ("pdf", "svg", "png", "csv"):
        file = f"{SCRIPTS[script]}.{suffix}"
        assert (first / file).read_bytes() == (second / file).read_bytes()
    with Image.open(first / f"{SCRIPTS[script]}.png") as image:
        assert image.width == round(300 * figures.PAGE)
    # the baseline is in every panel of the checkpoints
    drawn = [name for name in dict.fromkeys(table["condition"]) if name not in results.GAP]
    assert drawn in (["wrong_shots", "distill"], ["baseline", "distill", "wrong_shots"])
    with pytest.raises(UserError, match="no nope; there are: baseline, distill, wrong_shots") as caught:
        draw(script, study, "--conditions", "distill", "nope", out="none")
    assert "\n" not in str(caught.value) and not (first.parent / "none").exists()
    assert "distill" in set(draw(script, study, "--conditions", "distill", "nope", "--allow_missing")[1]["condition"])
    assert "missing: nope" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{study}: dev"):
        draw(script, study, "--split", "dev")


def test_ablation_has_the_numbers_of_the_results(draw, study):
    content = results.read_results(study)
    _, table = draw(gen_ablation_fig, study)
    means = table[table["seed"].isna()].set_index("condition")
    assert list(means.index) == [*LEVELS, *results.GAP] and set(table["split"]) == {"test"}
    for name in ("baseline", "distill"):
        assert list(means.loc[name, ["accuracy", "low", "high"]]) == summed_up(content, name, "test")
        assert tuple(means.loc[name, ["seeds", "interval"]]) == (3, "seeds")
    for name in ("wrong_shots", *results.GAP):  # of one run the chance of its questions
        run = next(run for run in content["conditions"][name]["runs"] if run["split"] == "test")
        exact = stats.wilson(run["metrics"]["accuracy"]["n_correct"], SIZES["test"])
        assert list(means.loc[name, ["low", "high"]]) == percent(*exact)
        assert tuple(means.loc[name, ["seeds", "interval"]]) == (1, "questions")
    for name in LEVELS:
        closed = content["conditions"][name]["gap_closed"]["test"]["accuracy"]
        assert list(means.loc[name, ["gap_closed", "gap_low", "gap_high"]]) == percent(closed["value"], *closed["ci95"])
    assert means.loc[list(results.GAP), "gap_closed"].isna().all()
    dots = table[table["seed"].notna() & (table["condition"] == "distill")]["accuracy"]
    assert list(dots) == percent(*(run["metrics"]["accuracy"]["value"] for run in
                                   content["conditions"]["distill"]["runs"] if run["split"] == "test"))


def test_ablation_panels(draw, study, monkeypatch):
    drawn = []
    monkeypatch.setattr(gen_ablation_fig, "draw", lambda *a, real=gen_ablation_fig.draw: drawn.append(real(*a))
                        or drawn[-1])
    _, table = draw(gen_ablation_fig, study)
    means = table[table["seed"].isna()].set_index("condition")
    accuracy, share = drawn[0].axes
    assert [label.get_text() for label in accuracy.get_yticklabels()] == list(LEVELS)
    lines = {line.get_label(): line.get_xdata()[0] for line in accuracy.lines if line.get_label() in results.GAP}
    assert lines == pytest.approx(means.loc[list(results.GAP), "accuracy"].to_dict(), rel=1e-5)
    bands = [(band.get_x(), band.get_x() + band.get_width()) for band in accuracy.patches]
    np.testing.assert_allclose(bands, means.loc[list(results.GAP), ["low", "high"]], rtol=1e-5)
    for ax, columns in ((accuracy, ["low", "high"]), (share, ["gap_low", "gap_high"])):
        ends = [bar.lines[2][0].get_segments()[0][:, 0] for bar in ax.containers]
        np.testing.assert_allclose(ends, means.loc[list(LEVELS), columns], rtol=1e-5)
    hollow = [line.get_markerfacecolor() == "white" for line in share.lines if line.get_markersize() == 4.5]
    assert hollow == [False, False, True]


@pytest.mark.parametrize("flexible_gap", [True, False])
def test_flexible_shares_are_drawn_where_they_differ(study, flexible_gap):
    content = results.read_results(study)
    for i, name in enumerate(("baseline", "distill")):
        content["conditions"][name]["gap_closed"]["test"]["accuracy_flexible"] = {
            "value": 0.4 + i, "ci95": [0.3 + i, 0.6 + i] if flexible_gap else [None, None], "scope": "examples"}
    found, gaps = estimates.estimates(content, "test"), gen_ablation_fig.shares(content, "test")
    rows = pd.DataFrame([found[name] for name in LEVELS]).join(gaps, on="condition")
    with figures.style():
        share = gen_ablation_fig.draw(rows, gen_ablation_fig.seed_values(content, list(LEVELS), "test"), found,
                                      "test").axes[1]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in share.lines if line.get_markersize() == 4.5]
    strict = [100 * content["conditions"][name]["gap_closed"]["test"]["accuracy"]["value"] for name in LEVELS]
    assert [x for x, _ in marks] == pytest.approx([*strict, *[40, 140] * flexible_gap])
    assert [round(y) for _, y in marks] == [0, 1, 2, *[0, 1] * flexible_gap]
    assert len({y for _, y in marks}) == len(marks) and ("flexible" in share.get_xlabel()) == flexible_gap


def test_equal_shares_are_drawn_once(study):
    content = results.read_results(study)
    for name in LEVELS:
        closed = content["conditions"][name]["gap_closed"]["test"]
        closed["accuracy_flexible"] = closed["accuracy"]
    rows = gen_ablation_fig.shares(content, "test")
    assert gen_ablation_fig.shown_shares(rows) == [""]
    rows["gap_low"] = float("nan")
    assert gen_ablation_fig.shown_shares(rows) == ["flexible_"]


def test_without_a_gap_there_are_no_shares(draw, tmp_path, capsys):
    path = make_study(tmp_path, {"baseline": 0.3}, 1, base=(0.3, 0.3))
    folder, table = draw(gen_ablation_fig, path)
    with Image.open(folder / "ablation.png") as image:
        assert image.width == round(300 * figures.COLUMN)
    assert "no shares: the interval of the k-shot gap is not above 0" in capsys.readouterr().err
    path = make_study(tmp_path, {"baseline": 0.3}, 2, base=())
    _, table = draw(gen_ablation_fig, path)
    assert set(table["condition"]) == {"baseline"} and table["gap_closed"].isna().all()
    assert "test: missing: base_0shot\n" in capsys.readouterr().err
    assert set(draw(gen_checkpoint_fig, path)[1]["condition"]) == {"baseline"}


def test_checkpoints_are_means_over_the_seeds_at_common_steps(draw, study, tmp_path):
    content = results.read_results(study)
    curve = content["conditions"]["distill"]["curve"]
    curve.remove(next(one for one in curve if (one["seed"], one["step"]) == (1, 20)))
    results.write_json(tmp_path / "results.json", content)
    _, table = draw(gen_checkpoint_fig, tmp_path / "results.json")
    means, points = (part.set_index(["condition", "step"]) for _, part in table.groupby(table["seed"].notna()))
    assert set(table["split"]) == {"val"}
    assert list(means.loc["distill"].index) == [10, 30] and len(points.loc["distill"]) == 8
    at = [one["metrics"]["accuracy"]["value"] for one in curve if one["step"] == 10]
    summary = content["conditions"]["distill"]["curve_summary"]["val"]
    exact = summary["10"]["accuracy"]
    assert exact["mean"] == pytest.approx(np.mean(at)) and list(summary) == ["10", "20", "30"]
    assert list(means.loc[("distill", 10), ["accuracy", "low", "high"]]) == percent(exact["mean"], *exact["ci95"])
    assert list(points.loc[("distill", 10), "accuracy"]) == percent(*at)
    assert list(means.loc[("distill", 30), ["accuracy", "low", "high"]]) == summed_up(content, "distill", "val")
    one = content["conditions"]["wrong_shots"]["curve"][1]["metrics"]["accuracy"]
    assert list(means.loc[("wrong_shots", 20), ["accuracy", "low", "high"]]) == percent(one["value"], *one["ci95"])
    untrained = content["conditions"]["base_kshot"]["summary"]["val"]["accuracy"]["mean"]
    assert means.loc["base_kshot", "accuracy"].tolist() == percent(untrained)


def test_checkpoint_panels(study):
    means, points = gen_checkpoint_fig.curves(results.read_results(study), "val")
    found = {"base_0shot": {"accuracy": 20.0, "low": 15.0, "high": 26.0}}
    with figures.style():
        panels = gen_checkpoint_fig.draw(means, points, list(LEVELS), found, "baseline", "val").axes
    assert [panel.get_title() for panel in panels] == list(LEVELS)
    for name, panel in zip(LEVELS, panels, strict=True):
        assert {line.get_label() for line in panel.lines if line.get_label()[0] != "_"} == {"base_0shot", "baseline"}
        (band,), (bars,) = panel.patches, panel.containers
        assert (band.get_y(), band.get_y() + band.get_height()) == (15, 26)
        own = means[means["condition"] == name]
        np.testing.assert_allclose(bars.lines[0].get_ydata(orig=False), own["accuracy"])
        ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
        np.testing.assert_allclose(ends, own[["low", "high"]])
        thin = [line for line in panel.lines if line.get_linewidth() == 0.5]
        assert len(thin) == own["seeds"].iloc[0] and all(list(line.get_xdata()) == list(STEPS) for line in thin)


def test_summary_groups_the_studies(draw, study, tmp_path):
    other = make_study(tmp_path / "other", {"kd_only": 0.4, "baseline": 0.5}, 2, study="math_tiny", base=(0.1,))
    _, table = draw(gen_summary_fig, study, other)
    assert list(zip(table["study"], table["condition"])) == [
        *(("gsm8k_tiny", name) for name in (*results.GAP, "baseline", "distill")),
        *(("math_tiny", name) for name in ("base_0shot", "baseline", "kd_only"))]
    rows = table.set_index(["study", "condition"])[["accuracy", "low", "high"]]
    assert list(rows.loc[("math_tiny", "kd_only")]) == summed_up(results.read_results(other), "kd_only", "test")
    assert list(rows.loc[("gsm8k_tiny", "distill")]) == summed_up(results.read_results(study), "distill", "test")
    with pytest.raises(UserError, match=f"{other}: test: no distill; there are: kd_only, baseline, base_0shot"):
        draw(gen_summary_fig, study, other, "--conditions", "distill", "baseline")
    with pytest.raises(UserError, match=r"study: a second one of the name 'gsm8k_tiny'"):
        draw(gen_summary_fig, study, study)
    alone = make_study(tmp_path / "alone", {"baseline": 0.5}, 1, base=())
    content = results.read_results(alone)
    content.update(order=["x"], conditions={"x": content["conditions"]["baseline"]})
    results.write_json(alone, content)
    with pytest.raises(UserError, match=r"none of base_0shot, base_kshot, baseline, distill, kd_only; there are: x"):
        draw(gen_summary_fig, alone)


def test_summary_marks(study):
    found = estimates.estimates(results.read_results(study), "test")
    table = pd.DataFrame([{"study": "a", **found["baseline"]}, {"study": "b", **found["base_0shot"]},
                          {"study": "b", **found["baseline"]}])
    with figures.style():
        ax, = gen_summary_fig.draw(table, ["base_0shot", "baseline"], "test").axes
    marks = [(line.get_marker(), round(line.get_ydata()[0]), line.get_markerfacecolor() == "white")
             for line in ax.lines if line.get_markersize() == 4.5 and len(line.get_ydata())]
    assert marks == [("s", 0, False), ("o", 1, True), ("s", 1, False)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    ends = [bar.lines[2][0].get_segments()[0][:, 0] for bar in ax.containers]
    np.testing.assert_allclose(ends, table[["low", "high"]])


def test_intervals_leave_the_axes_and_middles_do_not():
    nan = float("nan")
    assert estimates.limits([40, 60], [45, 55]) == pytest.approx((39.2, 60.8))
    assert estimates.limits([40, 60], [-300, 64, nan]) == pytest.approx((30 - 1.36, 64 + 1.36))
    assert estimates.limits([1, 99, nan], [-300, 300]) == (-4, 104)
    assert estimates.limits([0, 100], [-300, 110], -1e9, 1e9) == pytest.approx((-56.4, 116.4))


@pytest.mark.parametrize("script", SCRIPTS)
def test_bad_input_is_one_line(draw, tmp_path, script):
    (tmp_path / "results.json").write_text("[1")
    with pytest.raises(UserError, match=r"results\.json: not JSON") as caught:
        draw(script, tmp_path / "results.json")
    assert "\n" not in str(caught.value)


def test_no_checkpoints_were_scored(draw, study):
    with pytest.raises(UserError, match="test: scored checkpoints: no condition to draw; there are: none"):
        draw(gen_checkpoint_fig, study, "--split", "test")


def test_losses_with_their_interval(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    kd = rng.random((3, 2))
    for seed, values in enumerate(kd):
        for name, more in {"baseline": {}, "kd_only": {"train/topk": 1.0}}.items():
            lines = [{"step": step, "train/ce": value, **{key: value + 5 for key in more}, "val/nll": 2 * value}
                     for step, value in zip((10, 20), values)]
            folder = tmp_path / name / f"seed{seed}"
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    losses = ["--keys", "train/ce", "train/topk", "val/nll", "--band", "ci95", "--name", "losses"]
    call(monkeypatch, gen_curves_fig, "--base_dir", tmp_path, "--out", tmp_path / "out", *losses)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        f"losses.{suffix}" for suffix in ("pdf", "svg", "png", "csv")}
    table = pd.read_csv(tmp_path / "out" / "losses.csv").set_index(["condition", "key", "step"])
    assert set(table.loc["baseline"].index.get_level_values("key")) == {"train/ce", "val/nll"}
    exact = stats.seed_summary(5 + kd[:, 1])
    drawn = table.loc[("kd_only", "train/topk", 20)]
    assert list(drawn[["mean", "low", "high"]]) == pytest.approx([exact["mean"], *exact["ci95"]], rel=1e-5)
    assert "min" not in table and (table["seeds"] == 3).all()
    call(monkeypatch, gen_curves_fig, "--base_dir", tmp_path, "--out", tmp_path / "out")
    assert list(pd.read_csv(tmp_path / "out" / "curves.csv")["key"].unique()) == ["train/ce", "val/nll", "train/topk"]
    more = ["--base_dir", tmp_path, "--out", tmp_path / "few", "--conditions", "baseline", *losses]
    with pytest.raises(UserError, match=r"no values of train/topk; there are: train/ce, val/nll"):
        call(monkeypatch, gen_curves_fig, *more)
    call(monkeypatch, gen_curves_fig, *more, "--allow_missing")
    assert "missing: train/topk" in capsys.readouterr().err


def test_looks_of_a_full_grid_differ():
    assert len({(look["color"], look["marker"], str(look["linestyle"])) for look in map(figures.look, range(30))}) == 30
