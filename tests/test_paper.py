"""The paper: numbers are those of the JSON files, sentences say no more than the intervals, and it compiles."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import gen_paper_numbers as paper
from graft.errors import UserError
from graft.probes import hypotheses
from graft.reporting import reading, results
from small import ROOT
from test_results import make_run, scored

DATA = {"id": "digits_%", "fingerprint": "f" * 64, "fingerprints": {"test": "f1"}, "classes": ["0", "1", "2", "3"],
        "sizes": {"train": 40, "val": 8, "test": 120}}
TEXT = (ROOT / "paper/main.tex").read_text()


def forensics_of(content):
    """What the paper needs of a forensics.json, with real hypotheses on invented distances."""
    rng = np.random.default_rng(0)
    distance = {name: {seed: rng.normal(level, 0.01, 50) for seed in (0, 1)}
                for name, level in {"cnn_arm": 3.0, "baseline": 4.0, "ssl_arm": 4.5}.items()}
    trace = {name: {0: level, 1: level + 5} for name, level in {"cnn_arm": 100.0, "baseline": 99.0}.items()}
    mean = {"mean": 4.0, "ci95": [3.5, 4.5], "seeds": 2}
    summary = {key: mean for key, _, _ in paper.FORENSICS.values() if key != "hessian_trace"}
    roles = {"cnn": "cnn_arm", "baseline": "baseline", "ssl": "ssl_arm"}
    return {"data": {"id": DATA["id"], "fingerprint": DATA["fingerprint"], "split": "test",
                     "n": {"attention": 120, "cka": 110, "hessian": 0}},
            "thresholds": {"relative": 1.5, "share_of_uniform": 0.3626},
            "references": {"uniform": {"mean_distance": 4.13648, "entropy": 4.1589},
                           "random_init": {"summary": summary}},
            "conditions": {name: {"summary": summary, "runs": [dict(run) for run in condition["runs"]]}
                           for name, condition in content["conditions"].items()},
            "hypotheses": hypotheses.of_the_original(roles, distance, trace, {}, 0.01)}


@pytest.fixture
def content(tmp_path):
    level = {"baseline": 0.6, "cnn_arm": 0.9, "ssl_arm": 0.62}
    runs = [make_run(tmp_path, name, seed, scored(seed + 7 * i, accuracy))
            for i, (name, accuracy) in enumerate(level.items()) for seed in (0, 1)]
    return results.assemble("a_b", DATA, runs, tmp_path, code_sha="0123456789abcdef+dirty")


def macro(text, name):
    return re.search(rf"\\newcommand{{\\{name}}}{{(.*)}}\n", text)[1]


def test_macros_are_the_numbers_of_the_files(content):
    text = paper.macros(content, forensics_of(content), None, False)
    assert macro(text, "Study") == r"a\_b" and macro(text, "DataSet") == r"digits\_\%"
    assert macro(text, "TestImages") == "120" and macro(text, "Seeds") == "2" and macro(text, "Chance") == "$25.0$"
    assert macro(text, "UniformDistance") == "$4.1365$" and macro(text, "CkaImages") == "110"
    assert macro(text, "Commit") == r"\texttt{0123456789ab} with uncommitted changes"
    for name in ("robustness", "teachers", "curvature"):
        assert rf"\newif\if{name}\{name}false" in text


@pytest.mark.parametrize(("low", "high", "p", "scope", "says", "never"), [
    (-0.02, 0.06, 0.4, "seeds and examples", "No difference is shown", "accurate"),
    (0.01, 0.03, 0.01, "seeds and examples", "is more accurate", "zero"),
    (-0.03, -0.01, 0.0001, "seeds and examples", "is less accurate", "zero"),
    (0.001, 0.03, 0.08, "seeds and examples", "it does not hold", "accurate"),
    (0.01, 0.03, 0.001, "examples", "of these checkpoints, not of the method", "accurate")])
def test_a_sentence_says_what_its_interval_allows(low, high, p, scope, says, never):
    versus = {"difference": (low + high) / 2, "ci95": [low, high], "p_holm": p, "detectable": 0.05, "scope": scope}
    [text] = paper.findings([("new", "old", versus)])
    assert says in text and never not in text
    assert f"new minus old ${50 * (low + high):+.2f}$ {{[}}${100 * low:+.2f}$, ${100 * high:+.2f}${{]}}" in text
    decides = "" if scope == "examples" else "($5.00$)" if low < 0 < high else (
        "($< 0.001$)" if p < 0.001 else f"(${p:.3f}$)")
    assert text.endswith(f"{{]}} {decides}.".replace(" .", "."))
    assert paper.findings([("new", "old", versus), ("b", "c", versus)])[0].startswith(text[:-1] + "; b minus c")


def test_main_comparisons_are_all_told_and_of_the_others_what_is_decided(content):
    def text():
        return paper.all_findings(content)
    versus = {name: content["conditions"][name]["vs_baseline"]["test"]["accuracy"] for name in ("cnn_arm", "ssl_arm")}
    assert "fixed beforehand" not in text() and text().count(" minus ") == 2
    content["primary"] = [["ssl_arm", "baseline"]]
    versus["cnn_arm"].update(ci95=[-0.1, 0.5])
    assert text().endswith("Decided of the 1 other comparisons: none.\n") and text().count(" minus ") == 1
    versus["cnn_arm"].update(ci95=[0.1, 0.5], p_holm=0.01)
    main, others = (part.replace(r"\allowbreak{}", "") for part in text().split("Decided of the 1 other comparisons:"))
    assert r"ssl\_arm" in main and r"cnn\_arm" not in main and r"cnn\_arm" in others and "more accurate" in others


def test_a_conditions_table_names_what_sets_a_term_apart(content):
    for name, estimator in {"cnn_arm": "unbiased", "ssl_arm": "biased"}.items():
        content["conditions"][name]["differs"] = [["objective.cka.weight", "-", 1.0], [
            "objective.cka.estimator", "-", estimator], ["objective.cka.layers", "-", "1"]]
    rows = [line for line in paper.conditions_table(content).splitlines() if "cka" in line]
    assert len(rows) == 2 and sum("estimator" in row for row in rows) == 1 and not any("layers" in row for row in rows)


def test_no_text_of_a_file_is_a_command(content):
    """Every text and key that a file may bring reaches LaTeX escaped, in one line."""
    evil = "\\input{x}\n\n$^_#&~%"
    content["study"] = content["data"]["id"] = content["code_sha"] = content["data"]["fingerprint"] = evil
    content["conditions"] = {("baseline" if name == "baseline" else name + evil): one
                             for name, one in content["conditions"].items()}
    content["order"] = list(content["conditions"])
    content["conditions"]["cnn_arm" + evil]["differs"] = [
        ["teacher.path", "-", evil], [f"objective.{evil.replace('.', '')}.weight", "-", evil]]
    forensics = forensics_of(content)
    forensics["data"]["split"] = evil
    forensics["hypotheses"][0] |= {"name": evil, "claim": evil, "reason": evil, "statistic": evil, "verdict": evil}
    texts = [paper.macros(content, forensics, None, False), paper.conditions_table(content),
             paper.forensics_table(forensics, content), paper.verdict_table(forensics),
             paper.told(content, paper.to_baseline(content))]
    for text in texts:
        assert "\\input" not in text and "\n\n" not in text and r"\textbackslash{}input\{x\}" in text


def test_numbers_and_names_in_latex():
    assert paper.escape("a_b%<c\\") == r"a\_b\%$<$c\textbackslash{}"
    assert paper.number(-0.0001, 2) == "$0.00$" and paper.number(None, 2) == paper.number(float("nan"), 1) == "---"
    assert paper.interval({"mean": 0.5, "ci95": [None, None]}, 1, 100) == "$50.0$"
    assert paper.interval({"mean": 0.9, "ci95": [0.25, 1.0], "cut": ["high"]}, 0, 100) == "$90$ {[}$25$, $100$*{]}"
    assert paper.interval({"mean": 0.5, "ci95": [0.25, 0.75]}, 0, 100) == "$50$ {[}$25$, $75${]}"


def test_verdicts_are_those_of_the_hypotheses(content):
    rows = [line.split(" & ") for line in paper.verdict_table(forensics_of(content)).splitlines() if "&" in line][1:]
    assert [row[0] for row in rows] == ["locality curse", "", "sharper minima", "structure equals logits"]
    assert r"\textbf{supported}" in rows[0][-1]
    assert [row[2] for row in rows[:2]] == ["cnn $<$ baseline", "baseline $<$ ssl"]
    assert float(rows[0][3].split("$")[1]) == pytest.approx(1, abs=0.01)  # the baseline's 4 patches minus the cnn's 3
    assert "no hessian trace for the role ssl" in rows[2][4].replace(r"\_", " ") and "undecided" in rows[2][-1]


def test_other_checkpoints_and_other_data_are_refused(content, tmp_path):
    forensics = forensics_of(content)
    reading.check_same(content, forensics, tmp_path / "f.json")
    forensics["conditions"]["cnn_arm"]["runs"][1]["checkpoint_sha256"] = "1" * 64
    with pytest.raises(UserError, match=r"f\.json: cnn_arm, seed 1: another checkpoint"):
        reading.check_same(content, forensics, tmp_path / "f.json")
    with pytest.raises(UserError, match="other data"):
        reading.check_same(content, {**forensics, "data": {"fingerprint": "x"}}, tmp_path / "f.json")


def test_every_macro_table_figure_and_source_of_the_text_exists():
    script = (ROOT / "scripts/paper.sh").read_text()
    generator = (ROOT / "scripts/gen_paper_numbers.py").read_text()
    for name in re.findall(r"\\includegraphics\[[^]]*\]{(\w+)}", TEXT):
        assert re.search(rf"(figure|forensics|beyond) {name} scripts/\w+\.py", script), name
    for name in re.findall(r"\\input{generated/(\w+)}", TEXT):
        assert name == "table" or f'"{name}":' in generator or f'files["{name}"]' in generator, name
    known = {"DeclareMathOperator", "FloatBarrier", "KL", "HSIC", "CKA", "Bigl", "Bigr"}
    for name in set(re.findall(r"\\([A-Z][A-Za-z]+)", TEXT)) - known:
        assert f'"{name}":' in generator, name
    cited = {key for keys in re.findall(r"\\cite{([\w,]+)}", TEXT) for key in keys.split(",")}
    assert cited == set(re.findall(r"@\w+{(\w+),", (ROOT / "paper/refs.bib").read_text()))
    labels, referred = (set(re.findall(pattern, TEXT)) for pattern in (r"\\label{([\w:]+)}", r"\\ref{([\w:]+)}"))
    assert referred <= labels


def test_no_result_is_typed():
    body = TEXT.partition(r"\begin{document}")[2]
    body = re.sub(r"\\includegraphics\[[^]]*\]|95\\,\\%|80\\,\\?\s*\\%|\\texttt{\w+}", "", body)
    assert not re.findall(r"\d+\.\d+|\d{2,}", re.sub(r"\\cite{[^}]*}", "", body))


def run(root, **environment):
    return subprocess.run(["bash", root / "scripts/paper.sh"], capture_output=True, text=True, cwd=root,
                          env={**os.environ, "GRAFT_PYTHON": sys.executable, **environment})


def test_missing_latex_and_missing_results_are_named(tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    done = run(ROOT, PATH=str(tmp_path / "bin"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "apt-get install latexmk texlive-latex-extra texlive-fonts-recommended" in done.stderr
    for tool in ("latexmk", "pdflatex", "kpsewhich"):
        (tmp_path / "bin" / tool).write_text("#!/bin/bash\n")
        (tmp_path / "bin" / tool).chmod(0o755)
    done = run(ROOT, PATH=f"{tmp_path / 'bin'}", STUDY="nothing")
    assert done.returncode == 2
    assert done.stderr == "error: experiments/nothing/results.json: scripts/eval_checkpoints.py writes it\n"


@pytest.mark.slow
def test_the_published_study_compiles(tmp_path):
    published = ROOT / "assets/cifar10_small"
    if not shutil.which("latexmk"):
        pytest.skip("needs latexmk")
    for name in ("src", "scripts", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "paper").mkdir()
    for name in ("main.tex", "refs.bib"):
        shutil.copy(ROOT / "paper" / name, tmp_path / "paper")
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "paper/main.pdf").read_bytes().startswith(b"%PDF")
    first = (tmp_path / "paper/main.pdf").read_bytes()
    assert run(tmp_path).returncode == 0 and (tmp_path / "paper/main.pdf").read_bytes() == first
    count = sum(len(c["runs"]) for c in json.loads((published / "forensics.json").read_text())["conditions"].values())
    assert count and "Overfull" not in (tmp_path / "paper/main.log").read_text()


def test_the_language_section_is_the_numbers_of_its_file(tmp_path):
    content = results.read_results(ROOT / "assets/demo_language/results.json")
    files = paper.language(content, "there")
    mean = content["conditions"]["base_0shot"]["summary"]["test"]["accuracy"]["mean"]
    assert macro(files["language"], "ZeroShot") == f"${100 * mean:.1f}$" and r"\languagetrue" in files["language"]
    contrasts = [one for one in content["contrasts"] if (one["split"], one["metric"]) == ("test", "accuracy")]
    assert files["language_findings"].count(" minus ") == len(contrasts) > 0
    assert f"${100 * contrasts[0]['difference']:+.2f}$ {{[}}" in files["language_findings"]
    used = set(re.findall(r"\\(Language\w+|ZeroShot|KShot)", TEXT))
    assert used == {name for name in re.findall(r"\\newcommand{\\(\w+)}", files["language"])}
    del content["conditions"]["base_kshot"]
    with pytest.raises(UserError, match="there: no base_kshot on test"):
        paper.language(content, "there")
