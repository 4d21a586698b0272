"""The Hydra sweep: every condition of a study is a command line whose configuration loads."""

import json
import shutil
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

import sweep
from graft import config
from graft.config import study
from graft.config.study.job import command
from graft.errors import UserError
from small import ROOT, TINY, environment


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def composed(*overrides: str):
    with initialize_config_dir(str(ROOT / "configs/hydra"), version_base="1.3"):
        return compose("sweep", list(map(sweep.quoted, overrides)))


@pytest.mark.parametrize("name, base", [("demo", "experiments/demo"), ("demo_language", "experiments/demo_language")])
def test_every_condition_is_a_run_that_loads(name, base):
    for condition in study.load(name).conditions:
        job, _ = sweep.job_of(composed(f"study={name}", f"condition={condition}", "seed=3", "set=[optim.lr=0.5]"))
        words = command(job, "python", "1gpu")
        files = [word for word in words if word.startswith("configs/") and "/accelerate/" not in word]
        cfg = config.load(files, [words[-1]], seed=int(words[words.index("--seed") + 1]))
        assert (cfg.seed, cfg.optim.lr) == (3, 0.5)
        assert words[words.index("--output_dir") + 1] == f"{base}/{condition}"
        assert words[:2] == ["python", job.script], "one process is Python itself"
        several = command(job, "python", "2gpu", 2)
        assert several[several.index("--config_file") + 1] == "configs/accelerate/2gpu.yaml"


@pytest.mark.slow
def test_a_sweep_of_processes_on_this_machine(tmp_path):
    """Two at once by submitit, in a copy of the project: runs lie where the study puts them."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install hydra-submitit-launcher")
    for name in ("configs", "src", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "own.yaml").write_text("study: own\nbase: configs/base/digits_vit.yaml\nconditions: {baseline: {}}\n")
    words = ",".join(word for word in TINY if not word.startswith("train.log"))
    done = subprocess.run(
        [sys.executable, "scripts/sweep.py", "--multirun", "hydra/launcher=submitit_local", "study=own.yaml",
         "hydra.launcher.timeout_min=5", "condition=baseline", "seed=0,1", f"set=[{words},train.duration=2st]"],
        cwd=tmp_path, env={**environment(), "PYTHONPATH": str(tmp_path / "src")}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        status = json.loads((tmp_path / f"experiments/own/baseline/seed{seed}/status.json").read_text())
        assert (status["state"], status["step"]) == ("done", 2)


@pytest.mark.parametrize("word, found", [
    ("set=[optim.lr=1e-4]", 'set=["optim.lr=1e-4"]'), ("set=[]", "set=[]"), ("seed=0,1", "seed=0,1"),
    ("set=[a=[1,2],b=3],[]", 'set=["a=[1,2]","b=3"],[]'), ('set=["a=1"]', 'set=["a=1"]'),
])
def test_settings_need_no_quotes(word, found):
    assert sweep.quoted(word) == found


def test_a_name_keeps_variants_apart():
    job, _ = sweep.job_of(composed("study=demo", "condition=distill", "name=distill-half",
                                   "set=[objective.kd.weight=0.25]"))
    assert "experiments/demo/distill-half" in job.words and job.words[-1] == "objective.kd.weight=0.25"
    assert str(job.folder) == "experiments/demo/distill-half/seed0" and job.needs == ("cnn_teacher/seed0",)


@pytest.mark.parametrize("words, said", [
    (["condition=ssl"], "condition: unknown: 'ssl'; did you mean"), (["study=none"], "none.yaml: no such study"),
    (["condition=dinov2_cka"], "condition: dinov2_cka: set DINOV2_CHECKPOINT"), (["seed=x"], "seed: expected"),
    (["study=demo", "name=distill"], "name: must be"), (["set=[optim.lrr=1]"], "optim.lrr: unknown key"),
])
def test_what_is_wrong_is_named(words, said, monkeypatch):
    monkeypatch.delenv("DINOV2_CHECKPOINT", raising=False)
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        sweep.job_of(composed(*words))


@pytest.mark.parametrize("words", [["set=[optim.lr=1"], ["stdy=demo"]])
def test_what_hydra_cannot_read_is_one_line(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweep.py", *words])
    with pytest.raises(UserError) as error:
        sweep.main()
    assert "\n" not in str(error.value)


def test_runs_that_are_done_or_another_or_lack_their_teacher(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(sweep.subprocess, "run", lambda words, cwd: started.append(words))
    cfg = composed("study=demo", "condition=baseline")
    job, graph = sweep.job_of(cfg)
    other, _ = sweep.job_of(composed("study=demo", "condition=baseline", "set=[optim.lr=0.5]"))
    teacher, swept = (sweep.job_of(composed("study=demo", "condition=distill", *words))
                      for words in ([], ["set=[optim.lr=0.5]"]))
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.chdir(tmp_path)

    def left_by(which):
        (which.folder / "checkpoint-9").mkdir(parents=True, exist_ok=True)
        (which.folder / "checkpoint-9/trainer.json").write_text(json.dumps(
            {"config_sha256": which.digest, "config": which.config.identity()}))
        (which.folder / "status.json").write_text('{"state": "done"}')

    monkeypatch.setattr(sweep, "job_of", lambda cfg: (job, graph))
    left_by(job)
    sweep.run(cfg)
    assert capsys.readouterr().out == "experiments/demo/baseline/seed0: done, skipped\n"
    left_by(other)
    with pytest.raises(UserError, match=r"is another run \(optim.lr: 0.5 -> 0.003\)"):
        sweep.run(cfg)
    monkeypatch.setattr(sweep, "job_of", lambda cfg: teacher)
    with pytest.raises(UserError, match=r"needs cnn_teacher/seed0, which is not done: bash scripts/study.sh "
                                        r"configs/study/demo\.yaml --only cnn_teacher --seeds 0$"):
        sweep.run(composed("study=demo", "condition=distill"))
    assert not started
    left_by(teacher[1].jobs["cnn_teacher/seed0"])
    monkeypatch.setattr(sweep.subprocess, "run", lambda words, cwd: started.append(words) or done)
    monkeypatch.setattr(sweep, "job_of", lambda cfg: swept)
    sweep.run(composed("study=demo", "condition=distill"))
    assert started[0][-1] == "optim.lr=0.5", "what is swept is the run's; its teacher stays the study's"
