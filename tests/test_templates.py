"""The templates of configs/study/: each, copied and pointed at data made on the spot, runs to its results.json."""

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
from graft.reporting import results
from small import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The scripts in a folder of their own, so that nothing is written into this one."""
    for name in ("configs", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    return tmp_path


def smoke(project: Path, template: str, name: str, *changes: tuple[str, str], only: tuple[str, ...] = ()
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
    words = ["--smoke", *(["--only", *only] if only else [])]
    done = subprocess.run(["bash", "scripts/study.sh", f"{name}.yaml", *words], cwd=project, text=True,
                          capture_output=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return results.read_results(project / f"experiments/{name}-smoke/results.json"), done.stdout + done.stderr


@pytest.mark.slow
def test_images(project):
    draw = np.random.default_rng(0)
    for kind in ("one", "other"):
        (project / "birds/train" / kind).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(draw.integers(0, 255, (24, 24, 3), np.uint8)).save(project / f"birds/train/{kind}/{i}.png")
    content, said = smoke(project, "example_images", "my_birds", ("data/my_birds", "birds"))
    assert list(content["conditions"]) == ["baseline", "cnn", "random_teacher", "shuffled_logits", "cnn_teacher"]
    assert [f"{one['a']}:{one['b']}" for one in content["contrasts"] if one["metric"] == "accuracy"] == [
        "cnn:random_teacher", "cnn:shuffled_logits"]
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
                          ("shots: [0, 4, 8]", "shots: [0, 2]"), only=("baseline", "kd_only", "kd_only_zeroshot"))
    assert list(content["conditions"]) == ["baseline", "kd_only", "kd_only_zeroshot", "base_0shot", "base_kshot"]
    assert content["conditions"]["kd_only_zeroshot"]["label"] == "no examples" and "| examples | val |" in said
