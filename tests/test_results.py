"""results.json: what is written is what was scored, and what must not be compared is refused."""

import argparse
import copy
import io
import json
import os
import sys

import numpy as np
import pandas as pd
import pytest

import eval_checkpoints
import write_results
from graft.errors import UserError
from graft.probes import hypotheses
from graft.reporting import claims, comparisons, components, results, stats, tables

DATA = {"id": "digits", "fingerprint": "f", "fingerprints": {"val": "f1", "test": "f1"}, "classes": 4}
N = 120


def scored(seed, accuracy, n=N):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 4
    prediction = np.where(rng.random(n) < accuracy, label, (label + 1) % 4)
    return {"index": np.arange(n), "label": label, "prediction": prediction, "confidence": rng.random(n),
            "nll": rng.random(n) + (prediction != label), "label_rank": (prediction != label).astype(int)}


def make_run(base_dir, condition, seed, rows, split="test", fingerprint="f1"):
    path = f"{condition}/seed{seed}/eval/{split}-10.parquet"
    results.write_examples(base_dir / path, rows, fingerprint)
    return {"condition": condition, "seed": seed, "step": 10, "split": split, "n": len(rows["label"]),
            "metrics": results.metrics(rows), "examples": path, "checkpoint_sha256": "0" * 64, "weights": "model"}


@pytest.fixture
def runs(tmp_path):
    level = {"baseline": 0.6, "distill": 0.9, "random_teacher": 0.6}
    return [make_run(tmp_path, name, seed, scored(hash_of(name, seed, split), accuracy), split)
            for name, accuracy in level.items() for seed in (0, 1, 2) for split in ("val", "test")]


def hash_of(name, seed, split):
    return sum(map(ord, name)) * 100 + seed * 10 + len(split)


def test_json_survives_and_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "x.json"
    results.write_json(path, {"b": np.float64(0.5), "a": np.int64(3), "ü": [None]})
    first = path.read_bytes()
    assert json.loads(first) == {"b": 0.5, "a": 3, "ü": [None]} and first.index(b'"a"') < first.index(b'"b"')
    results.write_json(path, {"ü": [None], "a": 3, "b": 0.5})
    assert path.read_bytes() == first
    with pytest.raises(UserError, match=r"x\.json.*nan"):
        results.write_json(path, {"a": float("nan")})
    assert path.read_bytes() == first and os.listdir(path.parent) == ["x.json"]
    odd = {"a": [[1, -2.5e-07], []], "b": [1, None], "c": "[\n 1,\n 2\n]"}
    results.write_json(path, odd)
    assert json.loads(path.read_text()) == odd and "  [1, -2.5e-07]," in path.read_text().splitlines()


def test_rows_come_back_sorted_with_their_data(tmp_path):
    rows = scored(0, 0.7)
    order = np.random.default_rng(0).permutation(N)
    results.write_examples(tmp_path / "r.parquet", {k: v[order] for k, v in rows.items()}, "f1")
    frame = results.example_rows(tmp_path / "r.parquet")
    assert list(frame) == list(results.COLUMNS) and frame.attrs["fingerprint"] == "f1"
    for name, column in rows.items():
        np.testing.assert_array_equal(frame[name], column)
    np.testing.assert_array_equal(frame["correct"], rows["label"] == rows["prediction"])


def test_rows_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"none\.parquet: cannot be read"):
        results.example_rows(tmp_path / "none.parquet")
    pd.DataFrame({"index": [1]}).to_parquet(tmp_path / "few.parquet")
    with pytest.raises(UserError, match="missing label, prediction"):
        results.example_rows(tmp_path / "few.parquet")


def test_assemble_counts_compares_and_adjusts(tmp_path, runs):
    found = results.assemble("demo", DATA, runs, tmp_path, code_sha="abc")
    results.write_json(tmp_path / "results.json", found)
    assert results.read_results(tmp_path / "results.json") == json.loads(json.dumps(found))
    distill = found["conditions"]["distill"]
    own = [run["metrics"]["accuracy"]["value"] for run in runs
           if run["condition"] == "distill" and run["split"] == "test"]
    rows = values_of(tmp_path, runs, "distill")
    assert own == rows.mean(1).tolist() and distill["summary"]["test"]["accuracy"] == stats.seed_summary(
        own, stats.SHARE, components.least_variance(rows.astype(float), True))
    assert len(distill["runs"]) == 6 and "condition" not in distill["runs"][0]
    assert found["conditions"]["baseline"]["vs_baseline"] == {}
    for split in ("val", "test"):
        family = {name: found["conditions"][name]["vs_baseline"][split]["accuracy"]
                  for name in ("distill", "random_teacher")}
        small, large = sorted(f["p"] for f in family.values())
        assert sorted(f["p_holm"] for f in family.values()) == pytest.approx([min(1, 2 * small), max(2 * small, large)])
        assert family["distill"]["ci95"][0] > 0 and family["distill"]["paired_seeds"]
        assert family["distill"]["difference"] == pytest.approx(
            distill["summary"][split]["accuracy"]["mean"]
            - found["conditions"]["baseline"]["summary"][split]["accuracy"]["mean"])
    assert distill["vs_baseline"]["test"]["nll"]["difference"] < 0


def test_metrics_count():
    rows = {"label": np.array([0, 1, 2, 3]), "prediction": np.array([0, 1, 0, 0]), "nll": np.array([0.1, 0.2, 2, 4]),
            "label_rank": np.array([0, 0, 1, 3])}
    found = results.metrics(rows, [1, 2, 4])
    assert {name: found[name]["n_correct"] for name in found if name != "nll"} == {"accuracy": 2, "top2": 3, "top4": 4}
    assert found["accuracy"]["ci95"] == list(stats.wilson(2, 4)) and found["top2"]["value"] == 0.75
    assert found["nll"] == {"value": pytest.approx(6.3 / 4)}


@pytest.mark.parametrize(("left_out", "paired"), [([("distill", 1)], [0, 2]), ([("baseline", 0)], [1, 2]),
                                                  ([("distill", 0), ("baseline", 2)], [])])
def test_seeds_that_both_have_are_paired(tmp_path, runs, left_out, paired):
    """Where two or more are left; else all are independent ones."""
    fewer = [run for run in runs if (run["condition"], run["seed"]) not in left_out]
    found = results.assemble("demo", DATA, fewer, tmp_path)["conditions"]["distill"]["vs_baseline"]["test"]["accuracy"]
    assert found["paired_seeds"] is bool(paired) and found["seeds"] == [2, 2]
    used = [run for run in fewer if run["seed"] in paired or not paired]
    expected = stats.paired_difference(*(values_of(tmp_path, used, name) for name in ("distill", "baseline")),
                                       paired_seeds=bool(paired))
    assert found["ci95"] == pytest.approx(expected["ci95"]) and found["difference"] == pytest.approx(
        expected["difference"])


def test_primary_comparisons_are_a_family_of_their_own(tmp_path, runs):
    def adjusted(**primary):
        found = results.assemble("demo", DATA, runs, tmp_path, **primary)
        return found, [found["conditions"][name]["vs_baseline"]["test"]["accuracy"]
                       for name in ("distill", "random_teacher")]

    content, own = adjusted(primary=[("distill", "baseline")])
    assert content["primary"] == [["distill", "baseline"]]
    assert [one["p_holm"] for one in own] == pytest.approx([one["p"] for one in own])
    with pytest.raises(argparse.ArgumentTypeError, match="expected two conditions as a:b, got 'distill:'"):
        eval_checkpoints.main_comparison("distill:")
    assert [eval_checkpoints.main_comparison(word) for word in ("distill", "a:b")] == [("distill", ""), ("a", "b")]
    content, both = adjusted()
    assert "primary" not in content and min(one["p_holm"] for one in both) == pytest.approx(
        min(1, 2 * min(one["p"] for one in own)))


def test_without_baseline(tmp_path, runs):
    with pytest.raises(UserError, match=r"baseline: expected one of baseline, distill.*'base'"):
        results.assemble("demo", DATA, runs, tmp_path, "base")
    found = results.assemble("demo", DATA, runs, tmp_path, "")
    assert all(condition["vs_baseline"] == {} for condition in found["conditions"].values())


def refuse(tmp_path, runs, match):
    with pytest.raises(UserError, match=match) as caught:
        results.assemble("demo", DATA, runs, tmp_path)
    assert "\n" not in str(caught.value)


def test_what_must_not_be_compared_is_refused(tmp_path, runs):
    rows = scored(1, 0.9)
    refuse(tmp_path, [*runs, make_run(tmp_path, "x", 0, rows, fingerprint="f2")], "scored on data f2, expected f1")
    refuse(tmp_path, [*runs, make_run(tmp_path, "x", 0, scored(1, 0.9, 100))], r"other examples .*\(100 and 120\)")
    refuse(tmp_path, [*runs, make_run(tmp_path, "x", 0, {**rows, "index": rows["index"] + 1})], "other examples")
    refuse(tmp_path, [*runs, make_run(tmp_path, "x", 0, {**rows, "label": rows["label"][::-1]})], "other .*labels")
    refuse(tmp_path, [*runs, runs[-1]], "a second run of random_teacher, seed 2, test")
    lying = copy.deepcopy(runs)
    lying[1]["metrics"]["accuracy"]["n_correct"] += 1
    refuse(tmp_path, lying, r"seed0.*test.*n_correct")


@pytest.mark.parametrize(("change", "match"), [
    (lambda r: r.update(schema_version=2), r"schema_version: expected 1, got 2"),
    (lambda r: r.pop("study"), r"study: missing"),
    (lambda r: r["data"].update(fingerprint=5), r"data\.fingerprint: expected str, got '5'"),
    (lambda r: r["conditions"]["distill"]["runs"][1].pop("seed"), r"conditions\.distill\.runs\[1\]\.seed: missing"),
    (lambda r: r["conditions"]["distill"]["summary"]["test"].pop("accuracy"), r"summary\.test\.accuracy: missing"),
    (lambda r: r["conditions"]["distill"]["summary"]["test"]["nll"].update(ci95=[0.1]), r"nll\.ci95: expected 2"),
    (lambda r: r["conditions"]["distill"]["runs"][0].update(n=True), r"runs\[0\]\.n: expected int, got 'True'"),
    (lambda r: r["conditions"]["distill"]["runs"][0].update(n=0), r"runs\[0\]\.n: expected at least 1, got '0'"),
    (lambda r: r["conditions"]["distill"]["runs"][0]["metrics"]["accuracy"].update(value=1.5),
     r"runs\[0\]\.metrics\.accuracy\.value: expected a number in \[0, 1\], got '1.5'"),
    (lambda r: r["data"].update(classes=[]), r"data\.classes: expected some"),
    (lambda r: r["data"].update(sizes={"train": "\\input{/etc/passwd}"}), r"data\.sizes\.train: expected int"),
    (lambda r: r["conditions"]["distill"].update(differs=[["teacher.path", "-"]]), r"differs\[0\]: expected 3 values"),
    (lambda r: r["conditions"]["distill"].update(runs=[]), r"distill\.summary\.test: no run was scored on it"),
    (lambda r: r.update(order=["baseline", "gone"]), r"order: expected each of baseline, .* once, got baseline, gone"),
    (lambda r: r.update(order=None), r"order: expected list"),
    (lambda r: r.update(conditions=[]), r"conditions: expected dict")])
def test_a_wrong_file_is_named_with_its_key(tmp_path, runs, change, match):
    path = tmp_path / "results.json"
    content = results.assemble("demo", DATA, [run for run in runs if run["split"] == "test"], tmp_path)
    change(content)
    results.write_json(path, content)
    with pytest.raises(UserError, match=match) as caught:
        results.read_results(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "match"), [
    (b'{"schema_version": 1, "a": NaN}', "a: expected a finite number, got nan"),
    (b'{"schema_version": 1, "a": {"b": [0, 1e999]}}', r"a\.b\[1\]: expected a finite number, got inf"),
    (b'{"a": ' + b"9" * 400 + b"}", "a: expected a number up to 2\\*\\*63, got one of 1329 bits"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    (b'{"a": "\xff"}', r"not UTF-8 \(byte 7\)"),
    (b'{"a": ["\\ud800"]}', r"a\[0\]: expected Unicode text"),
    (b'{"a": 1, "a": 2}', "key 'a' is there twice"),
    (b"[" * 100_000, "not JSON"),
    (b"[" * 200 + b"]" * 200, "nested more than 100 times"),
    (b'{"a": 1', "not JSON"), (b"", "not JSON")])
@pytest.mark.parametrize("read", ["read_results", "read_robustness", "read_forensics"])
def test_bytes_numbers_and_texts_are_checked(tmp_path, read, text, match):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=match) as caught:
        getattr(results, read)(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_files_that_are_not_results(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        results.read_results(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("[1")
    with pytest.raises(UserError, match="not JSON"):
        results.read_results(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(UserError, match="schema_version: expected 1, got None"):
        results.read_results(tmp_path / "x.json")


def test_tables_from_the_command_line(tmp_path, runs, monkeypatch, capsys):
    runs = [*runs, make_run(tmp_path, "one_50%", 0, scored(5, 0.1))]
    results.write_json(tmp_path / "results.json", results.assemble("demo", DATA, runs, tmp_path))
    monkeypatch.setattr(sys, "argv", ["write_results.py", "--results", str(tmp_path / "results.json"),
                                      "--out", str(tmp_path / "out")])
    write_results.main()
    markdown = (tmp_path / "out" / "table.md").read_text().splitlines()
    cells = {tuple(line.split(" | ")[:2]): line.split(" | ") for line in markdown if line.startswith("|")}
    assert "[" not in cells["| one_50%", "test"][4] and cells["| one_50%", "test"][4].endswith("(1 seed)")
    assert cells["| one_50%", "test"][5].endswith("(1 seed)") and "(1 seed)" not in cells["| distill", "test"][5]
    assert cells["| distill", "test"][8] == "25.00 |"
    frame = pd.read_csv(io.StringIO((tmp_path / "out" / "table.csv").read_text()))
    assert frame["condition"][0] == "baseline" and len(frame) == 7
    own = [run["metrics"]["accuracy"]["value"] for run in runs
           if run["condition"] == "distill" and run["split"] == "val"]
    row = frame[(frame["condition"] == "distill") & (frame["split"] == "val")].iloc[0]
    assert row["accuracy"] == pytest.approx(np.mean(own)) and row["seeds"] == 3
    assert f"{100 * row['accuracy']:.2f} [" in cells["| distill", "val"][4]
    latex = (tmp_path / "out" / "table.tex").read_text()
    assert r"\toprule" in latex and r"one\_50\%" in latex and r"accuracy \%" in latex and "$<$ 0.001" in latex
    assert " < " not in latex
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_what_only_text_has_is_checked_too(tmp_path, runs):
    found = results.assemble("demo", DATA, runs, tmp_path, code_sha="abc")
    found["conditions"]["distill"]["curve"] = [{"seed": 0}]
    results.write_json(tmp_path / "results.json", found)
    with pytest.raises(UserError, match=r"conditions\.distill\.curve\[0\]\.step: missing"):
        results.read_results(tmp_path / "results.json")


def test_a_share_of_a_gap_that_may_be_none_is_not_shown(tmp_path, runs):
    found = results.assemble("demo", DATA, runs, tmp_path, code_sha="abc")
    for name, share in (("distill", [None, None]), ("random_teacher", [0.1, 0.9])):
        found["conditions"][name]["gap_closed"] = {"test": {"accuracy": {
            "value": 3.66 if name == "distill" else 0.5, "ci95": share, "scope": "examples"}}}
    shown = tables.to_markdown(tables.table(found))
    assert "366.00" not in shown and "50.00 [10.00, 90.00]" in shown


def untrained(tmp_path, split="test"):
    return [make_run(tmp_path, name, 42, scored(900 + i, 0.3 + 0.4 * i), split) for i, name in enumerate(results.GAP)]


def values_of(tmp_path, runs, name, split="test"):
    return np.stack([results.example_rows(tmp_path / run["examples"])["correct"] for run in runs
                     if (run["condition"], run["split"]) == (name, split)])


def test_arms_against_the_untrained_model(tmp_path, runs):
    """Difference and variance over seeds by hand: the one run of the untrained model stands against every seed."""
    runs = [*runs, make_run(tmp_path, "short", 0, scored(7, 0.7)), *untrained(tmp_path)]
    found = results.assemble("demo", DATA, runs, tmp_path, references=results.GAP)["conditions"]
    assert [name for name in found if "vs_untrained" not in found[name]] == list(results.GAP)
    family = {name: found[name]["vs_untrained"]["test"]["accuracy"] for name in found if name not in results.GAP}
    assert stats.holm([one["p"] for one in family.values()]) == [one["p_holm"] for one in family.values()]
    assert set(found["distill"]["vs_untrained"]) == {"test"} and "nll" in found["distill"]["vs_untrained"]["test"]
    arm, base = values_of(tmp_path, runs, "distill"), values_of(tmp_path, runs, results.GAP[0])
    one = family["distill"]
    assert one["difference"] == pytest.approx(arm.mean() - base.mean())
    assert one["se_seed"]**2 == pytest.approx(max(arm.mean(1).var(ddof=1) / 3,
                                                  components.least_variance(arm.astype(float), True)))
    assert (one["scope"], one["seeds"]) == ("seeds and examples", [3, 1])
    assert family["short"]["scope"] == "examples" and family["short"]["se_seed"] is None
    own = results.assemble("icl", DATA, untrained(tmp_path), tmp_path, results.GAP[0])["conditions"]
    assert set(own[results.GAP[1]]["vs_baseline"]) == {"test"} and "vs_untrained" not in own[results.GAP[1]]


def test_contrasts_are_a_family_of_their_own(tmp_path, runs):
    pairs = [("distill", "random_teacher"), ("random_teacher", "distill"), ("distill", "base_0shot")]
    runs = [*runs, *untrained(tmp_path)]
    found = results.assemble("demo", DATA, runs, tmp_path, references=results.GAP, contrasts=pairs)
    results.write_json(tmp_path / "results.json", found)
    assert results.read_results(tmp_path / "results.json")["contrasts"] == json.loads(json.dumps(found["contrasts"]))
    of = {(one["a"], one["b"]): one for one in found["contrasts"]
          if (one["split"], one["metric"]) == ("test", "accuracy")}
    assert list(of) == pairs and len(found["contrasts"]) == 2 * 2 + 3 * 2  # base_0shot has no val
    first, second, third = of.values()
    exact = stats.paired_difference(*(values_of(tmp_path, runs, name) for name in pairs[0]))
    assert {key: first[key] for key in exact} == exact and second["difference"] == -first["difference"]
    assert [one["p_holm"] for one in of.values()] == stats.holm([one["p"] for one in of.values()])
    untrained_p = found["conditions"]["distill"]["vs_untrained"]["test"]["accuracy"]["p"]
    assert third["p"] == untrained_p and third["scope"] == "seeds and examples"
    with pytest.raises(UserError, match=r"contrasts: expected one of baseline, .*, got 'nope'"):
        results.assemble("demo", DATA, runs, tmp_path, contrasts=[("distill", "nope")])
    assert "contrasts" not in results.assemble("demo", DATA, runs, tmp_path)


@pytest.mark.parametrize(("change", "match"), [
    (lambda r: r["contrasts"][0].pop("b"), r"contrasts\[0\]\.b: missing"),
    (lambda r: r["contrasts"][1].update(ci95=[0.1]), r"contrasts\[1\]\.ci95: expected 2 values"),
    (lambda r: r["conditions"]["distill"]["vs_untrained"]["test"]["nll"].pop("scope"),
     r"conditions\.distill\.vs_untrained\.test\.nll\.scope: missing")])
def test_comparisons_are_checked(tmp_path, runs, change, match):
    found = results.assemble("demo", DATA, [*runs, *untrained(tmp_path)], tmp_path, references=results.GAP,
                             contrasts=[("distill", "random_teacher")])
    change(found)
    results.write_json(tmp_path / "results.json", found)
    with pytest.raises(UserError, match=match):
        results.read_results(tmp_path / "results.json")


def test_contrasts_are_a_second_table(tmp_path, runs, monkeypatch):
    def write(*contrasts):
        results.write_json(tmp_path / "results.json",
                           results.assemble("demo", DATA, runs, tmp_path, contrasts=contrasts))
        monkeypatch.setattr(sys, "argv", ["write_results.py", "--results", str(tmp_path / "results.json"), "--out",
                                          str(tmp_path / "out"), "--into", str(tmp_path / "text.md")])
        write_results.main()
        return results.read_results(tmp_path / "results.json")
    (tmp_path / "text.md").write_text("a\n<!-- results demo -->\nold\n<!-- /results demo -->\nb\n")
    content = write(("distill", "random_teacher"))
    one = next(one for one in content["contrasts"] if (one["split"], one["metric"]) == ("test", "accuracy"))
    first, second = (tmp_path / "text.md").read_text().split("\n\n")
    assert "| val |" not in first + second and "| distill | test | 3 |" in first
    assert second.splitlines()[0] == "| contrast | split | difference, points | p (Holm) | detectable, points |"
    low, high = (f"{100 * end:+.2f}" for end in one["ci95"])
    assert second.splitlines()[2].startswith(
        f"| distill - random_teacher | test | {100 * one['difference']:+.2f} [{low}, {high}] | ")
    assert second.splitlines()[3:] == ["<!-- /results demo -->", "b"]
    assert tables.shown(content) in (tmp_path / "out/table.md").read_text()
    assert r"distill $-$ random\_teacher & test" in (tmp_path / "out/table.tex").read_text()
    frame = pd.read_csv(tmp_path / "out/contrasts.csv")
    assert list(frame["split"]) == ["val", "test"] and frame["p_holm"][1] == pytest.approx(one["p_holm"])
    write()
    assert not (tmp_path / "out/contrasts.csv").exists() and "contrast" not in (tmp_path / "text.md").read_text()
    text = "a\n<!-- contrasts demo -->\nold\n<!-- /contrasts demo -->\nb\n"
    (tmp_path / "text.md").write_text(text)
    write(("distill", "random_teacher"))
    (tmp_path / "text.md").write_text(text)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--split", "val"])
    write_results.main()  # what is inserted is of the test split, whatever the tables are of
    assert "| distill - random_teacher | test |" in (tmp_path / "text.md").read_text()


def test_no_flipped_bit_changes_a_row_in_silence(tmp_path):
    rows = {name: np.arange(200) % 7 if name != "nll" else np.linspace(0, 1, 200) for name in results.COLUMNS}
    path = tmp_path / "rows.parquet"
    results.write_examples(path, {**rows, "index": np.arange(200)}, "f" * 64)
    good, content = results.example_rows(path), path.read_bytes()
    refused = 0
    for place in range(0, len(content), 11):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1:])
        try:
            assert results.example_rows(path).equals(good)
        except UserError:
            refused += 1
    assert refused > 100


def test_latex_aligns_values_and_keeps_what_a_comparison_needs(tmp_path, runs, monkeypatch):
    results.write_json(tmp_path / "results.json", results.assemble("demo", DATA, runs, tmp_path))
    monkeypatch.setattr(sys, "argv", ["write_results", "--results", str(tmp_path / "results.json"), "--out",
                                      str(tmp_path), "--split", "test"])
    write_results.main()
    assert set(pd.read_csv(tmp_path / "table.csv")["split"]) == {"test"}
    assert "| val |" not in (tmp_path / "table.md").read_text()
    first, _, head, _, *rows = (tmp_path / "table.tex").read_text().splitlines()[:7]
    assert first == r"\begin{tabular}{lrrr@{ }lr@{ }lrr}" and r"\multicolumn{2}{c}{accuracy \%}" in head
    cells = [cell.strip() for cell in rows[1].removesuffix(r" \\").split("&")]
    frame = tables.table(results.read_results(tmp_path / "results.json"))
    own = frame[(frame["split"] == "test") & (frame["condition"] == "distill")].iloc[0]
    assert cells[0] == "distill" and cells[3] == f"{100 * own['accuracy']:.2f}"
    assert cells[5:7] == [f"+{100 * own['difference']:.2f}",
                          f"[+{100 * own['difference_low']:.2f}, +{100 * own['difference_high']:.2f}]"]
    assert all(row.count("&") == 8 for row in rows)
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "val"])
    results.write_json(tmp_path / "results.json", results.assemble(
        "demo", DATA, [run for run in runs if run["split"] == "test"], tmp_path))
    with pytest.raises(UserError, match="no condition is scored on val"):
        write_results.main()


def test_the_untrained_model_has_no_seed_in_any_of_its_contexts(tmp_path):
    """Against its one run every seed of a condition counts, whatever the context is called."""
    rng = np.random.default_rng(0)
    same = rng.random(300)
    names = ("base_kshot", "base_instruction")
    rows = {("trained", "test"): {seed: pd.DataFrame({"correct": same < 0.5 + seed / 10}) for seed in range(3)},
            **{(name, "test"): {0: pd.DataFrame({"correct": same < 0.3})} for name in names}}
    kshot, named = (comparisons.differences(rows, [("trained", name)])[0] for name in names)
    assert kshot["scope"] == named["scope"] == "seeds and examples" and kshot["ci95"] == named["ci95"]


def test_heads_are_compared_by_the_class_token(tmp_path, monkeypatch):
    """A student of two heads is read by their mean; beside it stands the difference where all are read alike."""
    def rows(seed, accuracy, by_class):
        found = scored(seed, accuracy)
        return found | {f"accuracy_{name}": (found["prediction"] if name == "avg" else by_class) == found["label"]
                        for name in ("cls", "dist", "avg")}

    runs = [make_run(tmp_path, name, seed, rows(seed, accuracy, scored(seed + 9, head)["prediction"]))
            for name, accuracy, head in (("baseline", 0.6, 0.6), ("distill", 0.9, 0.7)) for seed in (0, 1, 2)]
    content = results.assemble("demo", DATA, runs, tmp_path)
    own = content["conditions"]["distill"]
    by_class = own["vs_baseline"]["test"]["accuracy_cls"]["difference"]
    assert by_class == pytest.approx(own["summary"]["test"]["accuracy_cls"]["mean"]
                                     - content["conditions"]["baseline"]["summary"]["test"]["accuracy_cls"]["mean"])
    shown = tables.display(tables.table(content)).set_index("condition")["class token, points"]
    assert shown["baseline"] == "" and shown["distill"].startswith(f"{100 * by_class:+.2f} [")
    assert "class token alone" in write_results.notes(content)
    assert "class token" not in tables.to_latex(tables.table(content))


def test_verdicts_are_a_table():
    values = {"distill": 2.0, "baseline": 3.0}
    distance = {name: {seed: np.full(9, value) + np.arange(9) / 100 + seed / 50 for seed in (0, 1)}
                for name, value in values.items()}
    told = hypotheses.of_the_original({"cnn": "distill", "baseline": "baseline"}, distance, {}, {
        name: {seed: np.arange(9) < 5 + seed + (name == "distill") for seed in (0, 1)} for name in values}, 0.01)
    lines = claims.verdicts({"hypotheses": told}, lambda name: name.upper())
    assert list(lines["verdict"]) == ["**undecided**"] * 3
    assert lines["step"].iloc[0] == "no attention_distance for the role ssl"
    told = [hypotheses.order("curse", "attention_distance", {"cnn": "distill", "baseline": "baseline"},
                             "cnn < baseline", distance, hypotheses.of_images),
            hypotheses.equal("same", "accuracy", {"a": "distill", "b": "baseline"}, ("a", "b"),
                             {name: {seed: np.arange(9) < 5 + seed for seed in (0, 1)} for name in values}, 0.01)]
    lines = claims.verdicts({"hypotheses": told}, lambda name: name.upper())
    assert lines["difference"].iloc[0].startswith("BASELINE − DISTILL: +1.000 patches")
    assert lines["step"].iloc[1] == "a = b within 1 point"
    assert lines["difference"].iloc[1].startswith("DISTILL − BASELINE: +0.00 points [")
