"""The report by what a reader sees of it: numbers of results.json, what is missing, examples; and that it loads nothing
and takes every name as text. The browser is Debian's chromium; without it that part is skipped."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import eval_checkpoints
import report as report_script
from graft.errors import UserError
from graft.reporting import claims, results, tables
from graft.reporting import report as made
from small import ROOT, run_main, tiny

BROWSER = shutil.which("chromium")
EVIL = "<img src=http://x/y onerror=\"document.title='taken'\">"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--no-first-run", "--virtual-time-budget=2000", "--enable-logging=stderr",
         "--host-resolver-rules=MAP * ~NOTFOUND"]
# What a reader does: sorts a table by its fifth column, filters examples by what a condition got wrong.
READER = """
const head = document.querySelector("#table th:nth-child(5) button"); head.click();
const column = (n) => [...document.querySelector("#table tbody").rows].map((row) => row.cells[n].textContent.trim());
document.body.dataset.up = JSON.stringify(column(4)); head.click();
document.body.dataset.down = JSON.stringify(column(4));
const filter = document.querySelector("select[name=wrong]");
if (filter) { filter.value = "smoothed"; filter.dispatchEvent(new Event("change")); }
"""


class Cells(HTMLParser):
    """The text of table cells, row by row, by section id; tags and attributes of all elements."""

    def __init__(self, page: str):
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self.section, self.inside, self.seen = "", False, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th") and self.section:
            self.rows[self.section][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[self.section][-1][-1] += data


def report(monkeypatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["report", *words])
    report_script.main()
    return Path(words[words.index("--out") + 1]).read_text()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two conditions of two seeds, scored; the name of one is HTML."""
    base = tmp_path_factory.mktemp("experiments") / "small"
    for condition, extra in {"baseline": [], "smoothed": ["objective.ce.smoothing=0.3"]}.items():
        for seed in (0, 1):
            run_main(tiny(base / condition, "train.duration=10st", *extra, seed=seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["eval", "--base_dir", str(base), "--conditions", "baseline", "smoothed",
                                    "--splits", "test", "--condition_labels", f"smoothed={EVIL}",
                                    "--output", str(base / "results.json")])
        eval_checkpoints.main()
    return base


def shown_table(path: Path, split: str = "test") -> list[list[str]]:
    frame = tables.table(results.read_results(path))
    frame, attrs = frame[frame["split"] == split], frame.attrs
    frame.attrs = attrs
    return tables.display(frame).to_numpy().tolist()


@pytest.mark.parametrize("name", ["demo", "demo_language"])
def test_a_published_study_has_the_numbers_of_its_results(name, tmp_path, monkeypatch):
    page = report(monkeypatch, "--study", name, "--base_dir", f"assets/{name}", "--out", str(tmp_path / "r.html"))
    cells, expected = Cells(page), shown_table(ROOT / f"assets/{name}/results.json")
    assert cells.rows["table"][1:1 + len(expected)] == expected
    content = results.read_results(ROOT / f"assets/{name}/results.json")
    for condition in content["conditions"].values():
        if versus := condition["vs_baseline"].get("test", {}).get("accuracy"):
            assert f"<dd>{100 * versus['difference']:+.2f} points</dd>" in page
    links = [attrs.get(key) for _, attrs in cells.seen for key in ("src", "href") if key in attrs]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert "no rows" in page  # said: the published copy has none


def test_verdicts_say_what_the_intervals_do(tmp_path, monkeypatch):
    page = report(monkeypatch, "--study", "demo_language", "--base_dir", "assets/demo_language", "--out",
                  str(tmp_path / "r.html"))
    said = dict(re.findall(r"<p>(\S+ is more accurate than \S+)</p><p class=\"verdict\">(\w+)", page))
    assert said["kd_only_shuffled is more accurate than baseline"] == "contradicted"
    assert said["kd_only is more accurate than kd_only_shuffled"] == "supported"
    assert said["distill is more accurate than baseline"] == "undecided"
    # against the baseline, against the untrained model, and in a contrast
    assert page.count("<p class=\"note\">kd_only_shuffled: what do deranged examples give?") == 3


def test_main_comparisons_come_first():
    content = results.read_results(ROOT / "assets/cifar10_small/results.json")
    cards = claims.of_results(content, "test", str)
    assert list(cards) == ["Main comparisons, fixed beforehand", "Against the baseline", "Contrasts"]
    main = {tuple(card["about"]) for card in cards["Main comparisons, fixed beforehand"]}
    assert main == {(a,) if b == "baseline" else (a, b) for a, b in content["primary"]}
    assert sum(map(len, cards.values())) == 18 + len([one for one in content["contrasts"] if (
        one["split"], one["metric"]) == ("test", "accuracy")])


def test_names_are_text_and_examples_are_those_of_most_disagreement(study, tmp_path, monkeypatch):
    page = report(monkeypatch, "--study", "small", "--base_dir", str(study), "--out", str(tmp_path / "r.html"),
                  "--examples", "6")
    cells = Cells(page)
    assert EVIL not in page and html.escape(EVIL).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert all(attrs["src"].startswith("data:image/") for tag, attrs in cells.seen if tag == "img")
    content = results.read_results(study / "results.json")
    right = {name: np.mean([results.example_rows(study / run["examples"])["correct"] for run in condition["runs"]], 0)
             for name, condition in content["conditions"].items()}
    spread = np.abs(right["baseline"] - right["smoothed"])
    places = [int(i) for i in re.findall(r"<h3>Image (\d+):", page)]
    assert len(places) == 6 and sorted(spread[places]) == sorted(np.sort(spread)[-6:])
    pictures = [attrs for tag, attrs in cells.seen if tag == "img"]
    assert len(pictures) == 6 * 3 and all(attrs["alt"] for attrs in pictures)  # the image, and where each arm looked
    assert "small.yaml: no file of the study" in page


def test_a_study_that_is_half_done_says_what_is_missing(study, tmp_path, monkeypatch):
    base = tmp_path / "half"
    shutil.copytree(study / "baseline/seed0", base / "baseline/seed0")
    (base / "baseline/seed1").mkdir()
    page = report(monkeypatch, "--study", "demo", "--base_dir", str(base), "--out", str(tmp_path / "r.html"))
    missing = page[page.index('<section id="missing">'):]
    for text in ("results.json: not made", "forensics.json: not made", "distill: not scored on test",
                 "seed1: did not finish"):
        assert text in missing, text
    assert "Nothing is scored yet" in page and "training loss" in page

    shutil.copytree(study, tmp_path / "other")  # rows that are not those of results.json
    shutil.copy(study / "smoothed/seed0/eval/test-10.parquet", tmp_path / "other/baseline/seed0/eval/test-10.parquet")
    page = report(monkeypatch, "--study", "small", "--base_dir", str(tmp_path / "other"), "--out",
                  str(tmp_path / "r.html"))
    assert "other rows than results.json was made from" in page


def without(content: dict, *path: str | int) -> dict:
    at = content
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return content


@pytest.mark.parametrize(("stem", "path"), [
    ("forensics", ("data", "fingerprint")), ("forensics", ("hypotheses", 0, "reason")),
    ("forensics", ("conditions", "distill", "runs", 0, "checkpoint_sha256")),
    ("forensics", ("conditions", "distill", "summary", "avg_entropy", "ci95")),
    ("robustness", ("data", "n", "clean")),
    ("robustness", ("conditions", "distill", "runs", 0, "clean", "per_class", 0)),
    ("results", ("baseline",)), ("results", ("conditions", "distill", "summary", "test"))])
def test_a_file_without_a_value_that_the_page_reads(stem, path, tmp_path):
    for name in ("results", "forensics", "robustness"):
        content = json.loads((ROOT / f"assets/demo/{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(without(content, *path) if name == stem else content))
    if stem == "results" and path != ("baseline",):
        with pytest.raises(UserError, match=r"results\.json: conditions.distill.summary.test: missing"):
            made.read("demo", tmp_path, "test", None)
        return
    found = made.read("demo", tmp_path, "test", None)
    assert made.render(found, {"cards": [], "filters": [], "notes": []})
    left_out = [f"left out: {tmp_path}/{stem}.json: {'.'.join(map(str, path[:2]))}"[:60]] * (stem != "results")
    assert [line[:60] for line in found.missing if line.startswith("left out")] == left_out


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium (apt-get install chromium)")
def test_in_a_browser(study, tmp_path, monkeypatch):
    page = report(monkeypatch, "--study", "small", "--base_dir", str(study), "--out", str(tmp_path / "r.html"))
    sha = base64.b64encode(hashlib.sha256(READER.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{sha}' ").replace(
        "</body>", f"<script>{READER}</script></body>")
    (tmp_path / "r.html").write_text(page)
    log = tmp_path / "net.json"
    done = subprocess.run([BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
                           "--dump-dom", f"file://{tmp_path / 'r.html'}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    cells = Cells(done.stdout)
    assert sorted(cells.rows["table"][1:3]) == sorted(shown_table(study / "results.json"))
    body = next(attrs for tag, attrs in cells.seen if tag == "body")
    up, down = (json.loads(body[f"data-{way}"]) for way in ("up", "down"))
    assert [float(cell.split()[0]) for cell in up] == sorted(float(cell.split()[0]) for cell in up)
    assert down == up[::-1]
    examples = [attrs for tag, attrs in cells.seen if attrs.get("class", "").startswith("example")]
    assert examples and all(("hidden" in one) != ("smoothed" in json.loads(one["data-wrong"])) for one in examples)
    assert "taken" not in done.stdout[:done.stdout.index("<style>")]
    asked = set(re.findall(r'"url":"(\w+://[^/"]+)', log.read_text()))
    own = re.compile(r"://[\w.]+\.google(apis)?\.com$")  # what the browser itself asks for
    assert not [url for url in asked if not own.search(url)], asked


def test_reliability_is_of_all_seeds_and_no_bin_of_few_predictions():
    from graft.reporting.page import sections

    def run(*bins):
        return {"clean": {"reliability": [{"low": low, "n": n, "confidence": confidence, "accuracy": right}
                                          for low, n, confidence, right in bins]}}

    points = sections._reliability([run((0.0, 9, 0.1, 1.0), (0.5, 10, 0.5, 0.4), (0.9, 0, None, None)),
                                    run((0.5, 30, 0.6, 0.8))])
    assert points == [pytest.approx((57.5, 70.0))]
    assert sections._blocks(["patch.0", "patch.11", "patch.final", "stage"]) == ["block 1", "block 12", "patch.final",
                                                                              "stage"]
