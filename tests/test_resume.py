"""Killed, interrupted, damaged, doubled: a run ends bit-identical to one that was left alone, or says why not.

Children are forked from a server that has imported torch once, so a kill costs a second, not ten.
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from graft.config.options import Config
from graft.errors import Locked, NoValidCheckpoint, UserError, exit_cleanly
from graft.runtime import checkpoint
from graft.runtime.lock import LEASE_SECONDS
from small import ROOT, command, environment, hold, launch, logged, run_main, tiny, weights

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["graft.train_baseline", "small", "sklearn.datasets", "graft.tasks.digits",
                             "graft.students.vit", "graft.losses.ce"])
EVERYTHING = ["augment=[{name: flip}, {name: crop, padding: 1}, {name: mixup, alpha: 0.8}]", "student.drop_path=0.3",
              "student.dropout=0.1", "train.average=ema", "train.duration=60st", "train.checkpoint_every=4st",
              "train.eval_every=15st"]


def child(cfg: Config, sabotage: str, wait_at: int) -> None:
    """The real `main` in a process of its own; `sabotage` says what to break first, `wait_at` see `hold`."""
    import torch
    torch.set_num_threads(1)
    if wait_at:
        hold(cfg, wait_at)
    if sabotage == "no step seed":
        torch.manual_seed = lambda seed: None
    if sabotage.startswith("largest file "):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sabotage.removeprefix("largest file ")),) * 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if sabotage.startswith("exit at "):
        exit_inside_save(int(sabotage.removeprefix("exit at ")))
    exit_cleanly(lambda: run_main(cfg))


def exit_inside_save(point: int) -> None:
    """End the process, as a power cut would, at the n-th of the calls a save makes (of its second save)."""
    calls = [0]

    def counted(real):
        def wrapper(*args, **kwargs):
            calls[0] += 1
            if calls[0] == CALLS_OF_A_SAVE + point:
                os._exit(9)
            return real(*args, **kwargs)
        return wrapper

    checkpoint.save_file = counted(checkpoint.save_file)
    checkpoint.torch.save = counted(checkpoint.torch.save)
    checkpoint.sync = counted(checkpoint.sync)
    checkpoint.os.rename = counted(checkpoint.os.rename)


# save_file, torch.save, four syncs of files (model, optim, trainer, manifest), one of the folder, rename, its sync.
CALLS_OF_A_SAVE = 9


def start(cfg: Config, sabotage: str = "", wait_at: int = 0) -> multiprocessing.Process:
    process = FORK.Process(target=child, args=(cfg, sabotage, wait_at))
    process.start()
    return process


def wait_for(condition, process: multiprocessing.Process, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.is_alive():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def storm(cfg: Config, seed: int, sabotage: str = "") -> int:
    """Kill the run again and again until one attempt gets through; returns the number of kills."""
    chance, kills = random.Random(seed), 0
    while True:
        before = logged(cfg.run_dir)
        # Some attempts are killed early, so that resuming twice from one checkpoint happens too.
        target = before + chance.randint(1, 7)
        process = start(cfg, sabotage, wait_at=target + 1)
        wait_for(lambda target=target, before=before: logged(cfg.run_dir) >= target or logged(cfg.run_dir) < before - 4,
                 process)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.join()
        if process.exitcode == 0:
            return kills
        kills += 1
        assert kills < 100


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
def test_kill_storm_ends_bit_identical(tmp_path, accumulate):
    overrides = [*EVERYTHING, f"train.accumulate={accumulate}"]
    run_main(tiny(tmp_path / "whole", *overrides))
    cfg = tiny(tmp_path / "killed", *overrides)
    kills = storm(cfg, accumulate)
    assert kills >= 10
    assert weights(tmp_path / "whole/seed0") == weights(cfg.run_dir)


@pytest.mark.slow
def test_kill_storm_without_step_seeds_is_noticed(tmp_path):
    """The negative control: with dropout from a generator that is not restored, the same comparison must fail."""
    run_main(tiny(tmp_path / "whole", *EVERYTHING))
    cfg = tiny(tmp_path / "killed", *EVERYTHING)
    storm(cfg, 0, sabotage="no step seed")
    assert weights(tmp_path / "whole/seed0") != weights(cfg.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_saves_at_the_edge_of_the_step(tmp_path, number):
    overrides = [*EVERYTHING, "train.checkpoint_every=0"]
    run_main(tiny(tmp_path / "whole", *overrides))
    cfg = tiny(tmp_path / "stopped", *overrides)
    process = start(cfg, wait_at=11)
    wait_for(lambda: logged(cfg.run_dir) >= 9, process)
    os.kill(process.pid, number)
    if number == signal.SIGTERM:  # launchers repeat it
        os.kill(process.pid, number)
    process.join(600)
    assert process.exitcode == 143
    status = json.loads((cfg.run_dir / "status.json").read_text())
    assert status["state"] == "preempted" and checkpoint.steps(cfg.run_dir) == [status["step"]]
    assert 9 <= status["step"] < 60
    run_main(cfg)
    assert weights(tmp_path / "whole/seed0") == weights(cfg.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("point", [1, 2, 3, 6, 7, 8, 9])
def test_a_power_cut_inside_a_save_loses_nothing(tmp_path, point):
    cfg = tiny(tmp_path / "x", "train.duration=6st", "train.checkpoint_every=2st")
    process = start(cfg, f"exit at {point}")
    process.join(600)
    assert process.exitcode == 9
    newest = checkpoint.newest_valid(cfg.run_dir)
    assert newest is not None and newest.name == ("checkpoint-4" if point == 9 else "checkpoint-2")
    run_main(cfg)
    assert not list(cfg.run_dir.glob(".tmp*"))
    run_main(tiny(tmp_path / "whole", "train.duration=6st", "train.checkpoint_every=2st"))
    assert weights(tmp_path / "whole/seed0") == weights(cfg.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("size, board, says", [
    (9000, False, "could not be written (a file could not be written: File too large); "),  # model.safetensors
    (48 << 10, False, "could not be written (a file could not be written: the disk is full"),  # optim.pt
    (8000, False, "the log cannot be written: a file: File too large"),  # metrics.jsonl
    (8000, True, "the log cannot be written: a file: File too large"),  # TensorBoard's events
])
def test_a_full_disk_stops_the_run_with_one_line(tmp_path, size, board, says):
    log = ["train.checkpoint_every=0", "train.duration=80st"] if size == 8000 else []
    cfg = tiny(tmp_path / "x", "train.duration=20st", "train.checkpoint_every=2st", f"train.tensorboard={board}", *log)
    process = start(cfg, f"largest file {size}")
    process.join(600)
    assert process.exitcode == 74
    status = json.loads((cfg.run_dir / "status.json").read_text())
    assert status["state"] == "failed" and status["exit_code"] == 74 and says in status["message"]
    assert not list(cfg.run_dir.glob(".*tmp*"))


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory) -> Path:
    cfg = tiny(tmp_path_factory.mktemp("run") / "x", "train.duration=6st", "train.checkpoint_every=2st",
               "train.average=ema", "train.keep=3")
    run_main(cfg)
    return cfg.run_dir


def copy(run: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", str(run), str(to)], check=True)
    return to


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
    elif how == "flip":
        # in a manifest: a digit of the first digest, because a flip in its white space changes nothing
        content[content.index(b'"sha256": "') + 11 if file.name == "manifest.json" else len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: int(len(content) * float(how))])


FILES = ["model.safetensors", "average.safetensors", "optim.pt", "trainer.json", "manifest.json"]


@pytest.mark.parametrize("how", ["0", "0.1", "0.5", "0.999", "flip", "delete"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, three_checkpoints, name, how, capsys):
    run = copy(three_checkpoints, tmp_path / "run")
    damage(run / "checkpoint-6" / name, how)
    assert checkpoint.newest_valid(run) == run / "checkpoint-4"
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 and "bad-checkpoint-6.1" in out[0]
    assert name in out[0] or (name, how) == ("manifest.json", "flip")  # the digest it lists is another file's
    assert (run / "bad-checkpoint-6.1").is_dir() and not (run / "checkpoint-6").exists()


def test_every_checkpoint_damaged_is_no_silent_restart(tmp_path, three_checkpoints):
    run = copy(three_checkpoints, tmp_path / "run")
    for step in checkpoint.steps(run):
        damage(checkpoint.path_of(run, step) / "model.safetensors", "0.5")
    for _ in range(2):  # also the second time, when they are set aside already
        with pytest.raises(NoValidCheckpoint, match="no intact checkpoint") as caught:
            checkpoint.newest_valid(run)
        assert caught.value.exit_code == 5


def test_resuming_after_damage_gives_the_same_weights(tmp_path, three_checkpoints):
    overrides = ["train.duration=6st", "train.checkpoint_every=2st", "train.average=ema", "train.keep=3"]
    cfg = tiny(tmp_path / "x", *overrides)
    (tmp_path / "x").mkdir()
    copy(three_checkpoints, cfg.run_dir)
    damage(cfg.run_dir / "checkpoint-6/optim.pt", "flip")
    run_main(cfg)
    assert weights(cfg.run_dir) == weights(three_checkpoints)


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    cfg = tiny(tmp_path / "x", "train.duration=12st", "train.checkpoint_every=2st", "train.eval_every=2st",
               "optim.lr=1e-9", "optim.min_lr=1e-10", "train.min_delta=10.0")
    run_main(cfg)
    assert checkpoint.steps(cfg.run_dir) == [2, 10, 12]


def test_weights_can_be_read_by_the_group(three_checkpoints):
    umask = os.umask(0)
    os.umask(umask)
    for file in (three_checkpoints / "checkpoint-6").iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_running_job_keeps_others_out(tmp_path):
    cfg = tiny(tmp_path / "x", "train.duration=100000st")
    process = start(cfg)
    wait_for(lambda: logged(cfg.run_dir) >= 1, process)
    with pytest.raises(Locked, match="another job is running here") as caught:
        run_main(cfg)
    assert caught.value.exit_code == 4
    process.kill()
    process.join()
    started = time.monotonic()
    run_main(tiny(tmp_path / "x", "train.duration=2st", "train.batch_size=16"))  # no checkpoint was made yet
    assert time.monotonic() - started < LEASE_SECONDS, "a dead owner on this host is not waited for"


@pytest.mark.parametrize("change, says", [
    (["optim.lr=0.5"], r"another configuration \(optim.lr: 0.006 -> 0.5\)"),
    (["resume=never"], "has checkpoints and --resume never"),
])
def test_another_run_may_not_continue_here(tmp_path, change, says):
    cfg = tiny(tmp_path / "x")
    run_main(cfg)
    before = (cfg.run_dir / "status.json").read_text()
    with pytest.raises(UserError, match=says):
        run_main(tiny(tmp_path / "x", *change))
    assert (cfg.run_dir / "status.json").read_text() == before, "a mistaken command must not undo a finished run"


def test_keys_without_influence_may_change_on_a_resume(tmp_path):
    overrides = ["train.duration=4st", "train.checkpoint_every=2st"]
    cfg = tiny(tmp_path / "x", *overrides)
    run_main(cfg)
    shutil.rmtree(cfg.run_dir / "checkpoint-4")
    run_main(tiny(tmp_path / "x", "train.duration=4st", "train.checkpoint_every=1st", "train.keep=5", "train.workers=1",
                  "train.log_every=2", "resume=must"))
    assert checkpoint.steps(cfg.run_dir) == [2, 3, 4]
    run_main(tiny(tmp_path / "whole", *overrides))
    assert weights(cfg.run_dir) == weights(tmp_path / "whole/seed0")


def test_must_resume(tmp_path):
    with pytest.raises(UserError, match="--resume must was given and there is no checkpoint"):
        run_main(tiny(tmp_path / "x", "resume=must"))


def test_a_finished_run_is_left_as_it_is(tmp_path):
    cfg = tiny(tmp_path / "x")
    rows, before = run_main(cfg), weights(cfg.run_dir)
    assert run_main(cfg) == rows and weights(cfg.run_dir) == before


def test_a_finished_run_needs_no_optimizer(tmp_path):
    """Its last checkpoint may be without; the one before, to which a damaged last one falls back, never is."""
    def trained(name: str, kept: str) -> bytes:
        run_main(tiny(tmp_path / name, "train.duration=4st", "train.checkpoint_every=2st",
                      f"train.keep_optimizer={kept}"))
        return (tmp_path / name / "seed0/checkpoint-4/model.safetensors").read_bytes()

    whole = trained("a", "true")
    assert trained("b", "false") == whole
    sizes = {(name, step): (tmp_path / f"{name}/seed0/checkpoint-{step}/optim.pt").stat().st_size
             for name in "ab" for step in (2, 4)}
    assert sizes["b", 4] < 2000 < sizes["b", 2] == sizes["a", 2] == sizes["a", 4]
    assert trained("b", "false") == whole  # done: nothing happens
    damage(tmp_path / "b/seed0/checkpoint-4/model.safetensors", "flip")
    assert trained("b", "false") == whole


def test_log_has_every_step_once_after_a_resume(tmp_path):
    cfg = tiny(tmp_path / "x", *EVERYTHING, "train.duration=9st")
    process = start(cfg)
    wait_for(lambda: logged(cfg.run_dir) >= 7, process)
    process.kill()
    process.join()
    rows = [row for row in run_main(cfg) if "lr" in row]
    assert [row["step"] for row in rows] == list(range(1, 10))


@pytest.mark.slow
def test_two_processes_killed_and_resumed_are_bit_identical(tmp_path):
    overrides = [*EVERYTHING, "train.accumulate=4", "train.duration=150st"]
    assert launch("train_baseline.py", tmp_path / "whole", *overrides, processes=2).returncode == 0
    target = tmp_path / "killed/seed0"
    for stop_at, number in ((9, signal.SIGKILL), (19, signal.SIGTERM)):
        launcher = subprocess.Popen(command("train_baseline.py", tmp_path / "killed", *overrides, processes=2),
                                    env=environment() | {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1"},
                                    cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while logged(target) < stop_at:
            assert launcher.poll() is None
            time.sleep(0.01)
        launcher.send_signal(number)
        launcher.wait(600)
        deadline = time.monotonic() + 300  # workers follow a killed launcher, and save before they go
        while (target / ".lock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        files = sorted(p.name for p in target.iterdir())
        time.sleep(1)
        assert sorted(p.name for p in target.iterdir()) == files, "an orphan is still writing"
        assert json.loads((target / "status.json").read_text())["state"] == "preempted"
    refused = launch("train_baseline.py", tmp_path / "killed", *overrides, processes=1)
    assert refused.returncode != 0 and "was made by 2 processes, this is 1" in refused.stderr
    assert launch("train_baseline.py", tmp_path / "killed", *overrides, processes=2).returncode == 0
    assert weights(tmp_path / "whole/seed0") == weights(target)
