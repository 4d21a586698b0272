"""A run goes on only with the code that it was made with, or when that is said."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from graft import config
from graft.errors import UserError
from graft.runtime import checkpoint, provenance, sources
from small import BASE, ROOT, TINY, environment, run_main, tiny

LOSS = '''"""A loss of one's own."""
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor


def loss(logits: Tensor, targets: Tensor, *, factor: Annotated[float, "> 0", "of the loss"] = 1.0) -> Tensor:
    return factor * F.cross_entropy(logits.float(), targets, reduction="none")
'''


def of(*files: str) -> set[str]:
    return set(sources.of_run(config.load([ROOT / "configs" / file for file in files])))


def test_the_sources_are_those_that_the_run_computes_with():
    vit = of("base/digits_vit.yaml")
    assert {"train_baseline.py", "tasks/digits.py", "students/vit.py", "students/_backbone.py", "losses/ce.py",
            "augment/crop.py", "training/run.py", "training/update.py", "keyed.py"} <= vit
    assert not {"losses/cka.py", "students/cnn.py", "training/journal.py", "training/record.py",
                "config/schema.py"} & vit
    assert not [name for name in vit if name.split("/")[0] in ("config", "runtime", "reporting", "probes")]
    assert {"train_distill.py", "teachers/run.py", "losses/kd.py"} <= of("base/digits_vit.yaml",
                                                                          "distill/digits_cnn.yaml")


def test_comments_and_layout_do_not_count_and_a_helper_does(tmp_path, monkeypatch):
    shutil.copytree(sources.ROOT, tmp_path / "graft", ignore=shutil.ignore_patterns("__pycache__"))
    cfg = config.load([BASE])
    monkeypatch.setattr(sources, "ROOT", tmp_path / "graft")

    def now() -> dict[str, str]:
        sources._imported.cache_clear()
        sources._digest.cache_clear()
        return sources.of_run(cfg)

    before = now()
    vit, helper = (tmp_path / "graft/students" / name for name in ("vit.py", "_backbone.py"))
    vit.write_text("# a comment\n" + vit.read_text().replace('"""ViT', '"""Vision Transformer', 1) + "\n\n# the end\n")
    (tmp_path / "graft/reporting/tables.py").write_text("changed = True\n")
    assert now() == before
    helper.write_text(helper.read_text() + "\nEXTRA = 1\n")
    assert sources.differences(before, now()) == ["students/_backbone.py"]
    sources._imported.cache_clear()
    sources._digest.cache_clear()


def test_changed_code_is_refused_unless_it_is_said_and_then_recorded(tmp_path, monkeypatch, capsys):
    cfg = tiny(tmp_path / "x", "train.duration=2st", "train.checkpoint_every=1st")
    run_main(cfg)
    info = json.loads((cfg.run_dir / "checkpoint-2/trainer.json").read_text())
    assert info["sources"] == sources.of_run(cfg) and info["code_changes"] == []
    shutil.rmtree(cfg.run_dir / "checkpoint-2")
    real = sources._digest
    monkeypatch.setattr(sources, "_digest", lambda file: "0" if file.name in ("vit.py", "ce.py") else real(file))
    with pytest.raises(UserError, match=r"with other code \(losses/ce.py, students/vit.py; if that is meant"):
        run_main(cfg)
    run_main(replace(cfg, code_changed=True))
    assert "note: goes on although the checkpoint was made with other code" in capsys.readouterr().out
    change = [{"step": 1, "files": ["losses/ce.py", "students/vit.py"]}]
    assert json.loads((cfg.run_dir / "checkpoint-2/trainer.json").read_text())["code_changes"] == change
    assert json.loads((cfg.run_dir / "metadata.json").read_text())["attempts"][-1]["code_changes"] == change
    run_main(cfg)  # as it is now
    assert checkpoint.final(cfg.run_dir)[1]["code_changes"] == change


def test_the_commit_says_what_is_not_in_it(tmp_path, monkeypatch):
    package = tmp_path / "graft/runtime"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    said = []
    for change in (None, package / "new.py", package / "provenance.py", tmp_path / "elsewhere.py"):
        if change:
            change.write_text("x = 1")
        said.append(provenance.code_sha.__wrapped__()[40:])
    assert said == ["", "+untracked", "+dirty+untracked", "+dirty+untracked"]


@pytest.mark.slow
def test_a_run_on_a_loss_that_changed_afterwards_does_not_say_done(tmp_path):
    """The loss is in no commit: nothing but its source tells."""
    shutil.copytree(ROOT / "src/graft", tmp_path / "src/graft", ignore=shutil.ignore_patterns("__pycache__"))
    own = tmp_path / "src/graft/losses/mine.py"

    def train(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(tmp_path / "src/graft/train_baseline.py"), "--base_config", str(BASE),
                   "--output_dir", str(tmp_path / "x"), *TINY, "train.duration=2st", "objective=[{name: mine}]", *words]
        return subprocess.run(command, text=True, capture_output=True, cwd=ROOT,
                              env={**environment(), "PYTHONPATH": str(tmp_path / "src")})

    own.write_text(LOSS)
    assert train().returncode == 0
    own.write_text("# now with a comment\n" + LOSS)
    assert train().returncode == 0
    own.write_text(LOSS.replace("factor * F", "2 * factor * F"))
    refused = train()
    assert refused.returncode == 2 and "with other code (losses/mine.py;" in refused.stderr
    assert train("--code_changed").returncode == 0
