"""What a study needs is looked for before its first job: everything that is missing is said at once, a line each."""

import sys
from pathlib import Path

import pytest

from graft.config.study.line import from_command_line
from graft.errors import UserError
from lib import preflight
from small import ROOT
from small_lm import lm, sums

STUDY = """
base:
  task: {{name: {task}}}
  student: {student}
  train: {{duration: 1st, batch_size: 8}}
conditions: {{baseline: {{}}, again: {{set: [train.batch_size=16]}}}}
"""


@pytest.fixture
def nothing_done(tmp_path: Path, monkeypatch):
    """A project whose runs are all to come."""
    for name in ("configs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def missing(tmp_path: Path, nothing_done, monkeypatch, capsys):
    """The lines that the real program writes for a study with this task and student; none if nothing is missing."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("EVAL_ARGS", "GRAFT_VLLM_PYTHON"):
        monkeypatch.delenv(name, raising=False)

    def run(task: str, student: str) -> list[str]:
        path = tmp_path / "mine.yaml"
        path.write_text(STUDY.format(task=task, student=student))
        monkeypatch.setattr(sys, "argv", ["preflight.py", str(path)])
        capsys.readouterr()
        try:
            preflight.main()
        except SystemExit as ended:
            assert ended.code == UserError.exit_code
            lines = capsys.readouterr().err.splitlines()
            assert lines and all(line.startswith("error: ") for line in lines), lines
            return lines
        assert capsys.readouterr().err == ""
        return []

    return run


def of_model(folder: str) -> tuple[str, str]:
    return (f"gsm8k, root: {sums()}, tokenizer: {folder}", f"{{name: causal_lm, model: {folder}}}")


def test_what_is_there_is_not_said(missing):
    assert missing("digits", "{name: vit, patch: 1, dim: 16, depth: 2, heads: 2}") == []
    assert missing(*of_model(lm())) == []


def test_missing_data_and_weights_are_said_together_and_once(missing, tmp_path):
    lines = missing(f"imagefolder, root: {tmp_path}/birds, size: 32",
                    f"{{name: timm, arch: resnet10t, checkpoint: {tmp_path}/no.safetensors}}")
    assert len(lines) == 2, "two conditions need the same"
    assert f"imagefolder: no data in {tmp_path}/birds: expected train/<class>/" in lines[0]
    assert f"student.checkpoint: {tmp_path}/no.safetensors: no such file" in lines[1]


def test_a_missing_model_is_said_for_tokenizer_and_weights(missing, tmp_path):
    assert [line.split(":")[1] for line in missing(*of_model(str(tmp_path / "nowhere")))] == [
        " task.tokenizer", " student.model"]


@pytest.mark.parametrize("words", ["--engine vllm", "--engine=vllm"])
def test_a_missing_package_is_said(missing, tmp_path, monkeypatch, words):
    """vLLM counts wherever the scripts that score would go to it, not only in this environment."""
    student = "{name: vit, patch: 1, dim: 16, depth: 2, heads: 2}"
    monkeypatch.setattr("graft.evaluation.engines.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("graft.evaluation.engines.VLLM_PYTHON", tmp_path / "python")
    monkeypatch.setenv("EVAL_ARGS", words)
    assert missing("digits", student) == [
        "error: EVAL_ARGS: --engine vllm: vllm is not installed; bash scripts/setup_vllm.sh"]
    (tmp_path / "python").touch()
    assert missing("digits", student) == []


def test_what_the_study_makes_itself_is_not_looked_for(nothing_done, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["preflight.py", "demo_language"])
    _, graph = from_command_line()
    assert graph.jobs["baseline/seed0"].config.student.args["model"].startswith("experiments/demo_language/")
    assert [key for key, _ in preflight.checks(graph)] == []
