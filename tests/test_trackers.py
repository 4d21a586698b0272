"""Trackers are views of metrics.jsonl: the real ones hold what it holds, and whatever they do the run is done."""

import importlib.util
import threading
import time

import pytest
from accelerate import tracking

from graft.training import trackers
from small import run_main, tiny, weights

pytestmark = pytest.mark.slow


def needs(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed (pip install 'graft[trackers]')")


@pytest.fixture
def fake(monkeypatch):
    """An installed "trackio" that does what the test says at its n-th line."""
    def install(act):
        class Fake(tracking.GeneralTracker):
            name, requires_logging_directory, tracker = "trackio", False, None
            seen = []  # noqa: RUF012

            def __init__(self, run_name, **kwargs):
                super().__init__()

            def log(self, values, step=None, **kwargs):
                self.seen.append((step, values))
                act(len(self.seen))

        real = importlib.util.find_spec
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", Fake)
        monkeypatch.setattr(importlib.util, "find_spec",
                            lambda name, *a: real("json") if name == "trackio" else real(name, *a))
        return Fake
    return install


def fail(n):
    if n == 2:
        raise SystemExit("the server says\nno")


def hang(n):
    threading.Event().wait(60)


@pytest.mark.parametrize(("act", "words", "lines"), [
    (lambda n: None, "", None), (fail, "warning: trackio: the server says no; the run goes on without it", 2),
    (hang, "warning: trackio: not done after 0 s; left behind", 1)])
def test_what_a_tracker_does_is_no_matter_to_the_run(tmp_path, fake, monkeypatch, capsys, act, words, lines):
    plain = tiny(tmp_path / "study/plain")
    run_main(plain)
    capsys.readouterr()
    if act is hang:
        def close(self, real=trackers.Trackers.close):
            while not double.seen:
                time.sleep(0.01)
            real(self)

        monkeypatch.setattr(trackers, "WAIT", 0.2)
        monkeypatch.setattr(trackers.Trackers, "close", close)
    double = fake(act)
    cfg = tiny(tmp_path / "study/tracked", "train.trackers=[trackio]")
    rows = run_main(cfg)
    out = capsys.readouterr().out
    assert "done at step 3" in out and out.count("warning: trackio") == bool(words) and words in out
    assert weights(cfg.run_dir) == weights(plain.run_dir) and cfg.sha256 == plain.sha256
    assert len(double.seen) == (lines or len(rows))
    merged = [{"step": step, **values} for step, values in double.seen]
    assert merged == rows[:len(merged)]


def test_one_that_is_not_installed_is_named_before_the_first_step(tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else real(name, *a))
    rows = run_main(tiny(tmp_path / "x", "train.trackers=[wandb, tensorboard]"))
    out = capsys.readouterr().out
    assert out.count("warning: train.trackers: wandb is not installed (pip install 'graft[trackers]')") == 1
    assert len(rows) == 4 and list((tmp_path / "x/seed0/tensorboard").glob("events*"))


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_what_the_log_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "WAIT", 900)
    import mlflow
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")  # what the run sets is gone after the test
        monkeypatch.delenv(name)
    cfg = tiny(tmp_path / "study/baseline", "train.trackers=[mlflow]", "optim.lr=0.002")
    rows = run_main(cfg)
    assert "warning: mlflow" not in capsys.readouterr().out
    client = mlflow.MlflowClient((tmp_path / "study/trackers/mlruns").as_uri())
    experiment, = (one for one in client.search_experiments() if one.name == "study")
    run, = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "baseline-seed0" and run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.002"
    for key in ("train/loss", "val/accuracy", "lr"):
        found = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]
        assert sorted(found) == [(row["step"], row[key]) for row in rows if key in row]


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_holds_what_the_log_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "WAIT", 900)
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = tiny(tmp_path / "study/baseline", "train.trackers=[wandb]")
    rows = run_main(cfg)
    assert "warning: wandb" not in capsys.readouterr().out
    file, = (tmp_path / "study/trackers/wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    for key in ("train/loss", "val/accuracy"):
        assert key.encode() in content
        assert all(repr(row[key]).encode() in content for row in rows if key in row)
