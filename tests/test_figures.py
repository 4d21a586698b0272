"""Figures: equal bytes for equal numbers, embedded fonts, and the drawn numbers are the input's."""

import argparse
import json
import sys

import pandas as pd
import pytest
from PIL import Image

import gen_accuracy_fig
import gen_curves_fig
from graft.errors import UserError, exit_cleanly
from graft.reporting import figures, quantities, results, tables
from test_results import DATA, make_run, scored

ACCURACY = {"baseline": [0.6, 0.62, 0.58], "distill": [0.7, 0.75, 0.8], "one": [0.5]}


@pytest.fixture
def study(tmp_path):
    """A results.json and metrics.jsonl files; distill logs a term more, one of its seeds is shorter."""
    runs = [make_run(tmp_path, name, seed, scored(seed, level))
            for name, levels in ACCURACY.items() for seed, level in enumerate(levels)]
    results.write_json(tmp_path / "results.json", results.assemble("demo", DATA, runs, tmp_path))
    for run in runs:
        name, seed = run["condition"], run["seed"]
        lines = []
        for step in range(0, 60 if (name, seed) == ("distill", 1) else 100, 10):
            lines.append({"step": step, "train/loss": step + seed, "train/ce": 1.0, "lr": 0.1})
            lines[-1].update({"train/kd": 2.0} if name == "distill" else {})
            lines.append({"step": step, "val/accuracy": step / 100})
        folder = tmp_path / name / f"seed{seed}"
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    return tmp_path


def call(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def accuracy_figure(monkeypatch, study, out, *more):
    call(monkeypatch, gen_accuracy_fig, "--results", study / "results.json", "--out", out, *more)


def curves_figure(monkeypatch, study, out, *more):
    call(monkeypatch, gen_curves_fig, "--base_dir", study, "--out", out, *more)


@pytest.mark.parametrize(("make", "name"), [(accuracy_figure, "accuracy"), (curves_figure, "curves")])
def test_equal_bytes_and_embedded_truetype(monkeypatch, study, make, name):
    make(monkeypatch, study, study / "a")
    make(monkeypatch, study, study / "b")
    for suffix in ("pdf", "svg", "png", "csv"):
        first, second = ((study / out / f"{name}.{suffix}").read_bytes() for out in "ab")
        assert first == second and len(first) > 100
    pdf = (study / "a" / f"{name}.pdf").read_bytes()
    assert b"/Type3" not in pdf and b"/CreationDate" not in pdf
    svg = (study / "a" / f"{name}.svg").read_text()
    assert "<dc:date>" not in svg and ">distill</text>" in svg  # text that can be searched and edited
    with Image.open(study / "a" / f"{name}.png") as image:
        width = {"accuracy": figures.COLUMN, "curves": figures.PAGE}[name]
        assert image.width == round(300 * width) and image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_accuracy_numbers_are_those_of_the_results(monkeypatch, study):
    accuracy_figure(monkeypatch, study, study / "out", "--conditions", "one", "distill")
    drawn = pd.read_csv(study / "out" / "accuracy.csv")
    content = results.read_results(study / "results.json")["conditions"]
    means = drawn[drawn["seed"].isna()].set_index("condition")
    assert list(means.index) == ["one", "distill"]
    assert means.loc["distill", "accuracy"] == pytest.approx(
        100 * content["distill"]["summary"]["test"]["accuracy"]["mean"], rel=1e-5)
    assert pd.isna(means.loc["one", "low"]) and means.loc["one", "seeds"] == 1
    dots = drawn[drawn["seed"].notna() & (drawn["condition"] == "distill")]["accuracy"]
    assert list(dots) == pytest.approx([100 * run["metrics"]["accuracy"]["value"]
                                        for run in content["distill"]["runs"]], rel=1e-5)


def test_accuracy_artists(study):
    """Band, interval, seed dots and chance are on the page, not only in the file."""
    rows = pd.DataFrame([{"condition": "baseline", "seeds": 2, "accuracy": 60.0, "low": 55.0, "high": 65.0},
                         {"condition": "x", "seeds": 1, "accuracy": 70.0, "low": None, "high": None}])
    seeds = pd.DataFrame({"condition": ["baseline", "baseline", "x"], "accuracy": [59.0, 61.0, 70.0]})
    with figures.style():
        ax, = gen_accuracy_fig.draw(rows, seeds, "baseline", "test accuracy, % (chance 10)").axes
    band, = ax.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (55, 65)
    assert len(ax.containers) == 1  # no interval for one seed
    dots, = [line for line in ax.lines if line.get_marker() == "."]  # of one seed the mean says all
    assert list(dots.get_xdata()) == [59.0, 61.0] and len(set(dots.get_ydata())) == 2
    assert [label.get_text() for label in ax.get_yticklabels()] == ["baseline", "x\n(1 seed)"]
    assert "chance 10" in ax.get_xlabel()


def test_curves_are_mean_and_range_at_common_steps(monkeypatch, study):
    curves_figure(monkeypatch, study, study / "out")
    drawn = pd.read_csv(study / "out" / "curves.csv")
    assert set(drawn["key"]) == {"val/accuracy", "train/loss", "train/ce", "train/kd"}
    loss = drawn[(drawn["condition"] == "distill") & (drawn["key"] == "train/loss")]
    assert list(loss["step"]) == [0, 10, 20, 30, 40, 50] and (loss["seeds"] == 3).all()
    assert (loss["mean"] == loss["step"] + 1).all() and (loss["max"] - loss["min"] == 2).all()
    curves_figure(monkeypatch, study, study / "out", "--keys", "lr", "--conditions", "one")
    assert set(pd.read_csv(study / "out" / "curves.csv")["key"]) == {"lr"}
    with pytest.raises(UserError, match=r"no values of val/nll; there are: .*train/loss"):
        curves_figure(monkeypatch, study, study / "out", "--keys", "val/nll")


@pytest.mark.parametrize("make", [accuracy_figure, curves_figure])
def test_a_missing_condition_is_named(monkeypatch, study, make, capsys):
    with pytest.raises(SystemExit) as caught:
        exit_cleanly(lambda: make(monkeypatch, study, study / "out", "--conditions", "baseline", "nope"))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "no nope; there are: baseline, distill, one" in error and error.count("\n") == 1
    assert not (study / "out").exists()
    make(monkeypatch, study, study / "out", "--conditions", "baseline", "nope", "--allow_missing")
    assert "missing: nope" in capsys.readouterr().err and len(list((study / "out").iterdir())) == 4
    with pytest.raises(UserError, match="no condition to draw"):
        make(monkeypatch, study, study / "out", "--conditions", "nope", "--allow_missing")


def test_abbreviated_flags_are_refused(monkeypatch, study):
    with pytest.raises(SystemExit) as caught:
        accuracy_figure(monkeypatch, study, study / "out", "--cond", "baseline")
    assert caught.value.code == 2


def test_looks_differ():
    assert len({(look["color"], look["marker"], str(look["linestyle"])) for look in map(figures.look, range(10))}) == 10
    assert len({str(figures.look(i)["linestyle"]) for i in range(10)}) == 10


def test_names_with_a_dollar_are_no_formula(tmp_path):
    with figures.style():
        figure, (ax,) = figures.axes(3, 2)
        ax.plot([1, 1000], [1, 2], label="a$_{$b$")
        ax.set_title("x$\\frac$ y$")
        ax.set_xscale("log")
        figures.logarithmic(ax.xaxis)
        figures.legend(figure, *ax.get_legend_handles_labels())
        args = argparse.Namespace(results=tmp_path / "results.json", out=tmp_path, name="f", style="paper")
        figures.save(figure, args, pd.DataFrame({"a": [1]}))
        assert {label.get_text() for label in ax.get_xticklabels()} >= {"10⁰", "10³"}


def test_display_names_are_shown_and_keys_stay(monkeypatch, study):
    content = results.read_results(study / "results.json")
    content["conditions"]["distill"]["label"] = "distilled"
    results.write_json(study / "results.json", content | {"metric_labels": {"accuracy": "exact match"}})
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    accuracy_figure(monkeypatch, study, study / "a")
    curves_figure(monkeypatch, study, study / "a")
    bars, curves = drawn[0], drawn[-1]
    bars.draw_without_rendering()
    assert [text.get_text() for text in bars.axes[0].get_yticklabels()] == ["baseline", "distilled", "one\n(1 seed)"]
    assert bars.axes[0].get_xlabel().startswith("test exact match, %")
    assert "distilled" in [text.get_text() for text in curves.legends[0].get_texts()]
    assert "distilled" not in (study / "a/accuracy.csv").read_text()
    shown = tables.shown(results.read_results(study / "results.json"))
    assert "| distilled | test |" in shown and "| exact match % |" in shown and "| distill |" not in shown


def test_a_slide_has_the_pixels_of_a_page_and_larger_text(monkeypatch, study):
    drawn = []
    savefig = figures.Figure.savefig
    monkeypatch.setattr(figures.Figure, "savefig",
                        lambda figure, *a, **b: drawn.append(figure) or savefig(figure, *a, **b))
    for name in figures.STYLES:
        accuracy_figure(monkeypatch, study, study / name, "--style", name)
    paper, talk = drawn[0], drawn[-1]
    for name in figures.STYLES:
        with Image.open(study / name / "accuracy.png") as image:
            assert image.width == round(300 * figures.COLUMN)
    assert talk.get_figwidth() == pytest.approx(0.8 * paper.get_figwidth())
    assert paper.axes[0].xaxis.label.get_fontsize() == talk.axes[0].xaxis.label.get_fontsize()


@pytest.mark.parametrize("name", ["a", "a condition's name that is rather long"])
def test_legend_and_foot_fit_into_the_width_whatever_the_display_names(tmp_path, name):
    names = [f"{name} {i}" for i in range(5)]
    args = argparse.Namespace(results=tmp_path / "results.json", out=tmp_path, name="f", style="paper")
    with figures.style():
        figure, (ax,) = figures.axes(figures.COLUMN, 2)
        handles = [ax.errorbar(0, i, xerr=1, **figures.look(i)) for i in range(5)]
        figures.legend(figure, handles, names)
        figures.foot(figure, "words " * 30)
        figures.save(figure, args, pd.DataFrame({"a": [1]}))
        figure.draw_without_rendering()
        legend, = figure.legends
        boxes = [legend.get_window_extent(), figure.supxlabel(figure.get_supxlabel()).get_window_extent()]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
    rows = len({round(text.get_window_extent().y0) for text in legend.get_texts()})
    assert rows == (1 if name == "a" else 5) and figure.get_figheight() > 2 + 0.13 * rows
    assert ax.get_window_extent().height > 100 * 1.3  # it is the figure that grew


def test_panels_leave_few_empty_places():
    assert [figures.across(n) for n in range(1, 13)] == [1, 2, 3, 4, 3, 3, 4, 4, 3, 4, 4, 4]
    assert [figures.across(n, 3) for n in (1, 2, 3, 4, 5)] == [1, 2, 3, 2, 3]


@pytest.mark.parametrize(("key", "title", "scale"), [
    ("val/accuracy", "validation accuracy, %", 100), ("val/top5", "validation top-5 accuracy, %", 100),
    ("val/accuracy_cls", "validation accuracy cls, %", 100), ("val/nll", "validation NLL, nats", 1),
    ("train/topk", "loss term topk", 1), ("train/loss", "training loss", 1), ("lr", "learning rate", 1),
    ("images_per_second", "images per second", 1)])
def test_logged_values_have_names_and_shares_are_in_percent(key, title, scale):
    assert quantities.quantity(key) == (title, scale)


def test_curves_show_names_and_percent_and_the_file_keeps_keys(monkeypatch, study):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    curves_figure(monkeypatch, study, study / "out", "--keys", "val/accuracy", "train/ce")
    accuracy, loss = drawn[0].axes
    assert (accuracy.get_title(), loss.get_title()) == ("validation accuracy, %", "loss term ce")
    assert max(accuracy.lines[0].get_ydata()) == pytest.approx(90) and max(loss.lines[0].get_ydata()) == 1
    drawn = pd.read_csv(study / "out" / "curves.csv")
    assert drawn[drawn["key"] == "val/accuracy"]["mean"].max() == pytest.approx(0.9)


def test_panels_that_share_their_rows_show_their_display_names():
    with figures.style():
        figure, axes = figures.axes(figures.PAGE, 2, 1, 2, sharey=True)
        axes[0].set_yticks([0, 1], ["a", "b"])
        figures.rename(figure, {"a": "labels alone"})
        figure.draw_without_rendering()
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["labels alone", "b"]


def test_a_condition_is_renamed_where_it_is_named():
    with figures.style():
        figure, (ax,) = figures.axes(figures.COLUMN, 2)
        texts = ["uniform\n(1 seed)", "cnn − uniform", "distance (dotted: uniform)", "test accuracy, %", "uniform_2"]
        drawn = [ax.text(0, i, text) for i, text in enumerate(texts)]
        figures.rename(figure, {"uniform": "imposed", "cnn": "a uniform CNN"}, {"accuracy": "exact match"})
    assert [text.get_text() for text in drawn] == [
        "imposed\n(1 seed)", "a uniform CNN − imposed", texts[2], "test exact match, %", "uniform_2"]
