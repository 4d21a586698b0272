"""Studies side by side: paired over the same items, and what is not the same is said."""

import json
import sys

import numpy as np
import pytest

import compare
from graft.errors import UserError, exit_cleanly
from graft.reporting import changes, results, stats
from test_results import DATA, make_run, scored

LEVELS = {"baseline": 0.6, "distill": 0.9}


def study(folder, levels, first_seed=0, data=DATA, fingerprint="f1", seeds=3):
    """A results.json with so many seeds a condition and the rows beside it."""
    runs = [make_run(folder, name, seed, scored(first_seed + seed + 10 * i, level), fingerprint=fingerprint)
            for i, (name, level) in enumerate(levels.items()) for seed in range(seeds)]
    results.write_json(folder / "results.json", results.assemble(folder.name, data, runs, folder))
    return folder / "results.json"


def of(*paths):
    return changes.compare(changes.read(list(paths), "test"), "test")


def test_the_same_items_are_paired_and_a_change_is_found(tmp_path):
    a, b = study(tmp_path / "a", LEVELS), study(tmp_path / "b", LEVELS | {"distill": 0.6, "new": 0.5}, 100)
    found = {one["condition"]: one for one in of(a, b)["comparisons"]}
    assert list(found) == ["baseline", "distill"] and all(one["paired"] for one in found.values())
    rows = [np.stack([results.example_rows(path.parent / f"distill/seed{seed}/eval/test-10.parquet")["correct"]
                      for seed in range(3)]) for path in (a, b)]
    exact = stats.paired_difference(rows[1], rows[0])
    assert found["distill"]["ci95"] == exact["ci95"] and found["distill"]["difference"] == exact["difference"] < 0
    assert (found["distill"]["verdict"], found["baseline"]["verdict"]) == ("lower", "no change found")
    assert found["distill"]["p_holm"] == pytest.approx(2 * exact["p"]) and of(a, b)["only"] == {"A": [], "B": ["new"]}


def test_what_cannot_be_paired_is_independent_and_says_why(tmp_path):
    a, b = study(tmp_path / "a", LEVELS), study(tmp_path / "b", LEVELS | {"distill": 0.5}, 100)
    paired = of(a, b)["comparisons"][1]
    (b.parent / "distill/seed1/eval/test-10.parquet").unlink()
    unpaired = of(a, b)["comparisons"]
    assert [one["why_not"] for one in unpaired] == ["", "rows are missing"]
    assert unpaired[1]["difference"] == pytest.approx(paired["difference"]) and unpaired[1]["verdict"] == "lower"
    assert np.ptp(unpaired[1]["ci95"]) > np.ptp(paired["ci95"])
    other = study(tmp_path / "c", LEVELS, 200, DATA | {"fingerprints": {"val": "f1", "test": "f2"}}, "f2")
    assert {one["why_not"] for one in of(a, other)["comparisons"]} == {"another test split"}


def test_independent_intervals_cover_the_difference():
    """1,000 pairs of studies, three seeds each on 200 items of their own, seeds of standard deviation 2 points."""
    rng = np.random.default_rng(0)

    def runs():
        items, levels = rng.random(200) < 0.3, np.clip(0.75 + rng.normal(0, 0.02, 3), 0, 1)  # some items are hard
        rights = (rng.random((3, 200)) < np.clip(levels[:, None] - 0.3 * items + 0.09, 0, 1)).mean(1)
        return [{"n": 200, "metrics": {"accuracy": {"value": value}}} for value in rights]

    covered = [low <= 0 <= high for low, high in (changes.unpaired_difference(runs(), runs())["ci95"]
                                                 for _ in range(1000))]
    assert np.mean(covered) > 0.95


def test_one_seed_speaks_of_checkpoints():
    one = [{"n": 100, "metrics": {"accuracy": {"value": 0.5}}}]
    found = changes.unpaired_difference(one, one * 3)
    assert found["scope"] == "examples" and found["ci95"][1] == pytest.approx(
        1.96 * (2 * (0.25 / 100 + 1 / 100**2)) ** 0.5, rel=1e-4)


def test_another_seed_is_no_change_of_a_method(tmp_path):
    """With one seed a side the items alone are behind the interval; the same checkpoints are another matter."""
    a, b = (study(tmp_path / name, {"baseline": level}, first, seeds=1)
            for name, level, first in (("a", 0.3, 0), ("b", 0.9, 7)))
    assert of(a, b)["comparisons"][0]["verdict"] == "higher"  # the digests are the same
    content = json.loads(b.read_text())
    for run in content["conditions"]["baseline"]["runs"]:
        run["checkpoint_sha256"] = "another"
    b.write_text(json.dumps(content))
    one, = of(a, b)["comparisons"]
    assert one["p_holm"] < 1e-6 and one["ci95"][0] > 0 and one["verdict"] == "undecided (1 seed)"


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        exit_cleanly(compare.main)
    return caught.value.code


def test_the_command_shows_and_writes(tmp_path, monkeypatch, capsys):
    a, b = study(tmp_path / "a", LEVELS), study(tmp_path / "b", LEVELS | {"distill": 0.5}, 100)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(a), str(b), "--json", str(tmp_path / "c.json"), "--markdown",
                                      str(tmp_path / "c.md")])
    compare.main()
    shown = capsys.readouterr().out
    written = json.loads((tmp_path / "c.json").read_text())
    assert f"A: a ({a}; digits;" in shown and "paired" in shown and "lower" in shown
    assert f"{100 * written['comparisons'][1]['difference']:+.2f} [" in shown
    assert (tmp_path / "c.md").read_text().count("| distill |") == 2
    assert {one["condition"] for one in written["effects"]} == {"distill"} and len(written["effects"]) == 2


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    a, b = study(tmp_path / "a", LEVELS), study(tmp_path / "b", {"else": 0.5, "other": 0.5, "baseline": 0.5})
    content = json.loads(b.read_text())
    del content["conditions"]["baseline"]
    b.write_text(json.dumps(content | {"baseline": "else", "order": ["else", "other"]}))
    (tmp_path / "none.json").write_text('{"study": "x"}')
    for arguments, words in (([a], "expected two or more"), ([a, a], "is there twice"),
                             ([a, tmp_path / "none.json"], "none.json: "), ([a, tmp_path / "x"], "No such file"),
                             ([a, b], "no condition is scored on test in another file too"),
                             ([a, b, "--split", "val"], "no condition is scored on val")):
        assert call(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
    with pytest.raises(UserError, match="up to 26"):
        changes.read([tmp_path / str(i) for i in range(27)], "test")
