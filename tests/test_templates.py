"""The templates of configs/study/: what each plans, and that a copy pointed at data made on the spot runs to its end.

A copy has smaller models and fewer conditions, because nine tenths of the time goes into starting programs; which
conditions there are is asked of the plan, which starts none.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import small_lm
from graft.config import study
from graft.config.study.graph import Asked, Graph
from graft.reporting import results
from small import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The scripts in a folder of their own, so that nothing is written into this one."""
    for name in ("configs", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    return tmp_path


@pytest.mark.parametrize("template, conditions, makes, contrasts, with_weights", [
    ("images", ["baseline", "cnn", "random_teacher", "shuffled_logits"], ["cnn_teacher"],
     ["cnn:random_teacher", "cnn:shuffled_logits"], ["dinov2", "shuffled_features"]),
    ("text", ["baseline", "distill", "kd_only", "kd_only_zeroshot", "kd_only_shuffled"],
     ["icl", "cache-fewshot", "cache-zeroshot_teacher", "cache-shuffled_answers"],
     ["kd_only:kd_only_zeroshot", "kd_only:kd_only_shuffled"], []),
])
def test_a_template_plans_the_baseline_and_the_controls(monkeypatch, template, conditions, makes, contrasts,
                                                        with_weights):
    monkeypatch.chdir(ROOT)
    template = study.load(f"configs/study/example_{template}.yaml")
    graph = Graph(template, Asked())
    assert [name for name in dict.fromkeys(job.split("/")[0] for job in graph.jobs)] == [*makes, *conditions]
    assert {job.config.seed for name, job in graph.jobs.items() if name.startswith("baseline")} == {0, 1, 2}
    assert template.contrasts == contrasts and list(graph.left_out) == with_weights
    whole = Graph(template, Asked(environment={"DINOV2_CHECKPOINT": "hub"}))
    assert not whole.left_out and {f"{name}/seed2" for name in (*conditions, *with_weights)} <= whole.jobs.keys()


def smoke(project: Path, template: str, name: str, *changes: tuple[str, str], only: tuple[str, ...]
          ) -> tuple[dict, str]:
    """The results of a template's smoke run with other lines in it, and what was said."""
    text = (ROOT / f"configs/study/{template}.yaml").read_text()
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    (project / f"{name}.yaml").write_text(text)
    environment = {**os.environ, "GRAFT_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "SLOTS": "2",
                   "GRAFT_CACHE": str(project / "cache")}
    environment.pop("DINOV2_CHECKPOINT", None)
    done = subprocess.run(["bash", "scripts/study.sh", f"{name}.yaml", "--smoke", "--only", *only], cwd=project,
                          text=True, capture_output=True, timeout=5400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return results.read_results(project / f"experiments/{name}-smoke/results.json"), done.stdout + done.stderr


@pytest.mark.slow
def test_images(project):
    draw = np.random.default_rng(0)
    for kind in ("one", "other"):
        (project / "birds/train" / kind).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(draw.integers(0, 255, (24, 24, 3), np.uint8)).save(project / f"birds/train/{kind}/{i}.png")
    content, said = smoke(project, "example_images", "my_birds", ("data/my_birds", "birds"),
                          ("deit_tiny_patch16_224", "test_vit"), ("resnet18", "test_resnet"),
                          only=("baseline", "cnn", "shuffled_logits"))
    assert list(content["conditions"]) == ["baseline", "cnn", "shuffled_logits", "cnn_teacher"]
    assert [f"{one['a']}:{one['b']}" for one in content["contrasts"] if one["metric"] == "accuracy"] == [
        "cnn:shuffled_logits"]
    assert "left out: dinov2 shuffled_features; set DINOV2_CHECKPOINT to a file, or to hub" in said
    assert "| CNN, another image | val |" in said, "the table is shown, with display names"
    assert (project / "experiments/my_birds-smoke/figures/accuracy.png").exists()


@pytest.mark.slow
def test_text(project):
    rows = [{"q": f"What is {i} plus {2 * i}?", "a": str(3 * i)} for i in range(60)]
    (project / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content, said = smoke(project, "example_text", "my_sums", ("data/my_questions.jsonl", "sums.jsonl"),
                          ("question: question, answer: answer", "question: q, answer: a"),
                          ("Qwen/Qwen3-0.6B", small_lm.lm()), ("shots: 8", "shots: 2"),
                          ("shots: [0, 4, 8]", "shots: [0, 2]"), only=("baseline", "kd_only"))
    assert list(content["conditions"]) == ["baseline", "kd_only", "base_0shot", "base_kshot"]
    assert content["conditions"]["kd_only"]["label"] == "examples" and "| examples | val |" in said
