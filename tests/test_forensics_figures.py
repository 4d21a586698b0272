"""Figures of forensics on an invented study: the drawn numbers are the input's, and what is missing is named."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import gen_cka_fig
import gen_forensics_fig
import gen_hessian_fig
import gen_layer_fig
import gen_locality_fig
from graft.errors import UserError
from graft.reporting import figures, results, spectra
from test_figures import call

SCRIPTS = {gen_locality_fig: ("locality_spectrum", figures.COLUMN),
           gen_layer_fig: ("layer_progression", figures.COLUMN), gen_cka_fig: ("cka_heatmap", figures.PAGE),
           gen_forensics_fig: ("forensics_summary", figures.PAGE),
           gen_hessian_fig: ("hessian_spectrum", figures.COLUMN)}
SEEDS = {"baseline": 2, "distill": 3, "one": 1}
INIT = spectra.INIT


def cka(matrix, null=0.01):
    matrix = np.array(matrix)
    names = [[f"patch.{i}" for i in range(side)] for side in matrix.shape]
    return {"kernel": "linear", "n": 40, "layers_1": names[0], "layers_2": names[1], "cka": matrix.tolist(),
            "null": {"max_abs": null}}


def run(seed, level, teacher):
    """Two blocks of three heads; everything moves with `level` and the seed."""
    heads = [[level + 0.1 * seed, level + 1, level - 0.5], [level + 2, level + 0.2, level]]
    eigenvalue = np.linspace(-level, 10 * level, 30)
    return {
        "seed": seed, "checkpoint_sha256": str(seed), "grid": [8, 8],
        "layer_distance": [float(np.mean(layer)) for layer in heads],
        "per_layer_stats": {str(i): {"mean_distance": layer} for i, layer in enumerate(heads)},
        "avg_cls_dispersion": 5 * level + seed, "cls_collapse_ratio": 0.0, "collapsed_heads_ratio_relative": level / 10,
        "cka": {"self": cka([[1, 0.5 + seed / 10], [0.5 + seed / 10, 1]], 0.01 + seed / 100),
                "teacher": cka([[0.1, 0.2, 0.3], [0.4, 0.5, level / 10]]) if teacher else None},
        "hessian": {"n": 16, "parameters": 100, "trace": {"value": 100 * level + seed, "standard_error": 2.5 + seed},
                    "eigenvalues": {"values": [10 * level, 5 * level]},
                    "spectrum": {"eigenvalue": eigenvalue.tolist(), "density": np.exp(-eigenvalue**2).tolist()}}}


@pytest.fixture
def content():
    """Forensics of three conditions with 2, 3 and 1 seeds; only distill has a teacher."""
    untrained = [run(seed, 3.5, teacher=False) for seed in range(2)]
    for one in untrained:
        del one["hessian"]
    return {"schema_version": 1, "study": "demo",
            "data": {"fingerprint": "f", "n": {"attention": 40, "cka": 40, "hessian": 16}},
            "thresholds": {"relative": 1.5, "cls_collapse_warning": 0.5},
            "references": {"uniform": {"mean_distance": 4.1365, "cls_dispersion": 10.5},
                           "random_init": {"runs": untrained},
                           "teacher_cka": {"distill": {"random_init": cka([[0.1, 0.3, 0.2]] * 2)}}},
            "conditions": {name: {"runs": [run(seed, 2 + i / 2, name == "distill") for seed in range(seeds)]}
                           for i, (name, seeds) in enumerate(SEEDS.items())}}


@pytest.fixture
def draw(monkeypatch, tmp_path, content):
    """Draw the content as it is at that moment; returns the folder."""
    def draw(script, *more, out="out"):
        results.write_json(tmp_path / "forensics.json", content)
        call(monkeypatch, script, "--forensics", tmp_path / "forensics.json", "--out", tmp_path / out, *more)
        return tmp_path / out
    return draw


def read(folder, name):
    return pd.read_csv(folder / f"{name}.csv")


@pytest.mark.parametrize("script", SCRIPTS)
def test_equal_bytes_sizes_and_conditions(draw, script, capsys):
    name, width = SCRIPTS[script]
    first, second = (draw(script, "--conditions", "one", "distill", out=out) for out in "ab")
    for suffix in ("pdf", "svg", "png", "csv"):
        assert (first / f"{name}.{suffix}").read_bytes() == (second / f"{name}.{suffix}").read_bytes()
    with Image.open(first / f"{name}.png") as image:
        assert image.width == round(300 * width)
    assert [one for one in dict.fromkeys(read(first, name)["condition"]) if one != INIT] == ["one", "distill"]
    with pytest.raises(UserError, match="no nope; there are: baseline, distill, one"):
        draw(script, "--conditions", "one", "nope", out="none")
    assert not (first.parent / "none").exists()
    assert set(read(draw(script, "--conditions", "one", "nope", "--allow_missing"), name)["condition"]) <= {"one", INIT}
    assert "missing: nope" in capsys.readouterr().err


def test_locality_sorts_each_seed_by_itself(draw):
    drawn = read(draw(gen_locality_fig), "locality_spectrum")
    # level 2, seeds 0 and 1: the first head moves from 2.0 to 2.1 and stays in the middle
    own = drawn[drawn["condition"] == "baseline"]
    assert list(own["rank"]) == [1, 2, 3, 4, 5, 6] and set(own["seeds"]) == {2}
    assert list(own["min"]) == [1.5, 2, 2, 2.2, 3, 4]
    assert list(own["max"]) == [1.5, 2, 2.1, 2.2, 3, 4]
    assert list(own["mean"]) == [1.5, 2, 2.05, 2.2, 3, 4]
    assert set(drawn["condition"]) == {*SEEDS, INIT} and set(drawn["uniform"]) == {4.1365}


def test_lines_bands_and_references_are_on_the_page(content):
    found = spectra.groups(content, ["baseline", "one"], "here")
    table = pd.concat([spectra.spectrum(runs).assign(condition=name) for name, runs in found.items()])
    with figures.style():
        _, (low, high) = figures.axes(4, 2, 1, 2)
        spectra.draw_spectrum(low, table, uniform=4.1365, collapsed=1.6)
        spectra.draw_spectrum(high, table, uniform=4.1365, collapsed=1.5)
    labels = [line.get_label() for line in low.lines]
    assert labels == ["baseline", "one (1 seed)", INIT, "if uniform (4.136)", "collapsed (< 1.60)"]
    assert [line.get_label() for line in high.lines] == labels[:-1]  # no head is below 1.5
    assert low.lines[3].get_ydata()[0] == 4.1365 and len(low.collections) == 3
    assert list(low.lines[0].get_ydata()) == pytest.approx([1.5, 2, 2.05, 2.2, 3, 4])


def test_layers(draw):
    drawn = read(draw(gen_layer_fig), "layer_progression").set_index(["condition", "block"])
    first = [np.mean([2.5 + 0.1 * seed, 3.5, 2.0]) for seed in range(3)]
    assert list(drawn.loc[("distill", 1), ["mean", "min", "max"]]) == pytest.approx(
        [np.mean(first), first[0], first[2]], rel=1e-5)
    assert drawn.loc[("distill", 2), "mean"] == pytest.approx(np.mean([4.5, 2.7, 2.5]), rel=1e-5)
    assert (INIT, 2) in drawn.index


@pytest.mark.parametrize("script", [gen_locality_fig, gen_layer_fig, gen_forensics_fig])
def test_other_grids_are_refused(draw, content, script):
    content["conditions"]["one"]["runs"][0]["grid"] = [14, 14]
    with pytest.raises(UserError, match="one: expected the 8x8 patches of the reference, got 14x14"):
        draw(script)
    draw(script, "--conditions", "distill")


def test_cka_is_the_mean_over_seeds_beside_null_and_reference(draw):
    drawn = read(draw(gen_cka_fig), "cka_heatmap").set_index(["condition", "pair", "layer_1", "layer_2"])
    assert set(drawn.index.droplevel(["layer_1", "layer_2"])) == {
        *((name, "self") for name in (*SEEDS, INIT)), ("distill", "teacher")}
    own = drawn.loc[("distill", "self", "patch.0", "patch.1")]
    assert own["cka"] == pytest.approx(0.6) and own["null_max_abs"] == pytest.approx(0.03) and own["seeds"] == 3
    teacher = drawn.loc[("distill", "teacher", "patch.1", "patch.2")]
    assert teacher["cka"] == pytest.approx(0.25) and teacher["mean_random_init"] == pytest.approx(0.2)


def test_cka_panels(content):
    rows = gen_cka_fig.rows_of_panels(content, list(SEEDS))
    with figures.style():
        figure = gen_cka_fig.draw(rows, "note")
    panels = figure.axes[:-1]
    assert [panel.get_title().split("\n")[0] for panel in panels] == [*SEEDS, INIT, "distill"]
    assert panels[-1].get_title().split("\n")[1:] == ["mean 0.29, null ±0.010", "init 0.20"]
    assert panels[-1].get_xlabel() == "teacher's block" and panels[0].get_xlabel() == "block"
    mesh, = panels[-1].collections
    np.testing.assert_allclose(mesh.get_array(), [[0.1, 0.2, 0.3], [0.4, 0.5, 0.25]])
    assert [text.get_text() for text in panels[-1].texts] == ["0.10", "0.20", "0.30", "0.40", "0.50", "0.25"]


def test_cka_of_a_dead_block_is_grey_and_out_of_the_mean(content):
    content["conditions"]["distill"]["runs"][1]["cka"]["self"]["cka"][0] = [None, None]
    row = gen_cka_fig.rows_of_panels(content, ["distill"])[0]
    assert np.isnan(row[0]["cka"]).tolist() == [[True, True], [False, False]]
    assert gen_cka_fig.average(row[0]["cka"]) == pytest.approx((0.6 + 1) / 2)
    assert math.isnan(gen_cka_fig.average(np.full((2, 2), np.nan)))
    note = gen_cka_fig.describe([row], "linear", 40)
    assert "grey: no variation" in note and "mean of 2 to 3 seeds" in note
    with figures.style():
        figure = gen_cka_fig.draw([row], note)
    assert [text.get_text() for text in figure.axes[0].texts] == ["?", "?", "0.60", "1.00"]


def test_summary_means_and_errors(draw):
    drawn = read(draw(gen_forensics_fig), "forensics_summary")
    traces = drawn[(drawn["panel"] == "hessian_trace") & (drawn["condition"] == "distill")]
    mean, seeds = traces[traces["seed"].isna()].iloc[0], traces[traces["seed"].notna()]
    half = 4.302653 / math.sqrt(3)  # t(0.975, 2 df); 250, 251 and 252 have standard deviation 1
    assert [mean["mean"], mean["low"], mean["high"]] == pytest.approx([251, 251 - half, 251 + half], rel=1e-5)
    assert list(seeds["value"]) == [250, 251, 252] and list(seeds["error"]) == [2.5, 3.5, 4.5]
    assert INIT not in set(drawn[drawn["panel"] == "hessian_trace"]["condition"])
    collapsed = drawn[(drawn["panel"] == "collapsed_heads") & drawn["seed"].isna()].set_index("condition")
    assert collapsed["mean"].to_dict() == pytest.approx({"baseline": 20, "distill": 25, "one": 30, INIT: 35})
    assert "locality_spectrum" in set(drawn["panel"])


def texts(content, chosen):
    found = spectra.groups(content, chosen, "here")
    seeds = pd.concat([gen_forensics_fig.by_seed(found, panel) for panel in gen_forensics_fig.PANELS])
    heads = pd.concat([spectra.spectrum(runs).assign(condition=name) for name, runs in found.items()])
    with figures.style():
        panels = gen_forensics_fig.draw(content, found, seeds, heads).axes
    return [[text.get_text() for text in panel.texts] for panel in panels], panels


def test_summary_panels_say_what_was_not_measured(draw, content, capsys):
    written, panels = texts(content, list(SEEDS))
    assert written == [[], [], [], []] and "\n" not in panels[2].get_xlabel()
    assert len(panels[0].containers) == 2 + 3  # intervals of two conditions, standard errors of three
    assert any(list(line.get_xdata()) == [10.5, 10.5] for line in panels[2].lines)
    del content["conditions"]["baseline"]["runs"][0]["hessian"]
    with pytest.raises(UserError, match="not measured: hessian_trace of baseline; --allow_missing"):
        draw(gen_forensics_fig)
    for condition in content["conditions"].values():
        for one in condition["runs"]:
            one.pop("hessian", None)
    content["conditions"]["one"]["runs"][0]["avg_cls_dispersion"] = None
    content["conditions"]["distill"]["runs"][0]["cls_collapse_ratio"] = 0.6
    written, panels = texts(content, list(SEEDS))
    assert written == [["not measured"] * 3, [], ["not measured"], []]
    assert "sees itself alone in up to 60% of heads" in panels[2].get_xlabel()
    with pytest.raises(UserError, match=r"not measured: hessian_trace of baseline, .*cls_dispersion of one; --allow"):
        draw(gen_forensics_fig)
    draw(gen_forensics_fig, "--allow_missing")
    assert "missing: hessian_trace of baseline" in capsys.readouterr().err


def test_hessian_density_and_missing_curvature(draw, content):
    drawn = read(draw(gen_hessian_fig), "hessian_spectrum")
    own = drawn[(drawn["condition"] == "one") & (drawn["seed"] == 0)]
    curve = own[own["kind"] == "density"]
    assert list(curve["density"]) == pytest.approx(np.exp(-np.linspace(-3, 30, 30)**2), rel=1e-4, abs=1e-300)
    assert list(own[own["kind"] == "top"]["eigenvalue"]) == [30, 15]
    for other in content["conditions"]["distill"]["runs"][1:]:
        del other["hessian"]["spectrum"]
    drawn = read(draw(gen_hessian_fig), "hessian_spectrum")
    assert set(drawn[drawn["condition"] == "distill"]["seed"]) == {0}  # the runs that have one
    del content["conditions"]["one"]["runs"][0]["hessian"]
    with pytest.raises(UserError, match="Hessian spectrum: no one; there are: baseline, distill"):
        draw(gen_hessian_fig)
    drawn = read(draw(gen_hessian_fig, "--allow_missing"), "hessian_spectrum")
    assert set(drawn["condition"]) == {"baseline", "distill"}


def test_hessian_panels(content):
    runs = content["conditions"]["distill"]["runs"]
    with figures.style():
        panel, = gen_hessian_fig.draw(gen_hessian_fig.densities("distill", runs), ["distill"], 16).axes
    assert panel.get_yscale() == "log" and "16 images" in panel.get_xlabel()
    assert [text.get_text() for text in panel.texts] == ["distill (3 seeds)"]
    curves = [line for line in panel.lines if line.get_marker() != "|"]
    assert len(curves) == 3 and len({str(line.get_linestyle()) for line in curves}) == 3


def test_hessian_of_different_images_is_refused(draw, content):
    content["conditions"]["distill"]["runs"][0]["hessian"]["n"] = 32
    with pytest.raises(UserError, match=r"hessian.n: expected one number of images, got \[16, 32\]"):
        draw(gen_hessian_fig)


def test_a_damaged_file_is_named(tmp_path, monkeypatch, content):
    del content["conditions"]["one"]["runs"][0]["per_layer_stats"]
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"f.json: conditions.one.runs\[0\].per_layer_stats: missing"):
        call(monkeypatch, gen_layer_fig, "--forensics", tmp_path / "f.json", "--out", tmp_path)
