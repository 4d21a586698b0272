"""A run among others and on a disk that fails: locks, launchers, signals, errors, damaged side files."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graft.errors import DiskProblem, Locked, NonFinite, Preempted, UserError, disk_problem, ending, exit_cleanly
from graft.runtime import checkpoint, lock
from graft.runtime.files import read_json, write_text
from graft.runtime.lock import RunLock
from graft.runtime.signals import ACCELERATE, TORCHRUN, StopSignal
from graft.runtime.status import write_status
from graft.training import journal
from small import ROOT, launch, run_main, tiny, weights

ELSEWHERE = ("filelock/2\npid=999999\nhost=node17\nmode=lease\ntoken=64e28609c778c812e605a6d1e8eac0bf\n"
             "duration={}\nstart=1\n")


# ------------------------------------------------------------------------------------------- locks

@pytest.mark.parametrize("content", [ELSEWHERE.format(0.5), ELSEWHERE.format(180.0)[:40], "garbage", "", "\x80\x81"])
def test_a_lock_whose_owner_may_be_dead_is_waited_for_and_then_removed(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)  # instead of three minutes
    (tmp_path / ".lock").write_bytes(content.encode("latin1"))
    os.utime(tmp_path / ".lock", (time.time() + 60,) * 2)  # not old yet, however slow this machine is
    said, started = [], time.monotonic()
    held = RunLock(tmp_path, said.append)
    assert time.monotonic() - started > 0.7
    who = "pid 999999 on node17" if content == ELSEWHERE.format(0.5) else "a lock that cannot be read"
    assert len(said) == 2 and f"locked by {who}; waiting 1 s for a sign of life" in said[0]
    assert f"no sign of life from {who}" in said[1] and "removed" in said[1]
    assert not held.lost
    held.release()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("content", [ELSEWHERE.format(180.0), "garbage", ""])
def test_a_lock_that_was_left_long_ago_is_not_waited_for(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    os.utime(tmp_path / ".lock", (time.time() - 86400,) * 2)
    said = []
    RunLock(tmp_path, said.append).release()
    assert not any("waiting" in line for line in said)


@pytest.mark.parametrize("content", [ELSEWHERE.format(180.0), "garbage"])
def test_an_owner_elsewhere_that_gives_a_sign_of_life_keeps_its_folder(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    os.utime(tmp_path / ".lock", (time.time() - 1,) * 2)
    with pytest.raises(Locked, match="another job is running here"):
        RunLock(tmp_path, lambda line: os.utime(tmp_path / ".lock"))  # once it says that it waits
    assert (tmp_path / ".lock").read_text() == content


def test_a_signal_ends_the_waiting(tmp_path):
    (tmp_path / ".lock").write_text(ELSEWHERE.format(180.0))
    with pytest.raises(Preempted, match="while waiting for its lock"):
        RunLock(tmp_path, lambda line: None, stopped=lambda: True)


@pytest.mark.parametrize("steal", ["replace", "remove"])
def test_a_run_whose_lock_is_lost_stops_at_once_and_leaves_the_folder_alone(tmp_path, monkeypatch, steal):
    cfg = tiny(tmp_path / "x", "train.duration=8st", "train.checkpoint_every=2st")
    seen = []

    def write(self, step: int, values: dict, real=journal.Journal.write) -> None:
        real(self, step, values)
        if step == 5:  # suspended for longer than its lease, say
            (cfg.run_dir / ".lock").unlink()
            if steal == "replace":
                (cfg.run_dir / ".lock").write_text(ELSEWHERE.format(180.0))
                write_status(cfg.run_dir, "running", 77)
        seen.append(step)

    monkeypatch.setattr(journal.Journal, "write", write)
    with pytest.raises(Locked, match="the lock was lost") as caught:
        run_main(cfg)
    assert caught.value.exit_code == 4 and seen[-1] <= 6
    assert checkpoint.steps(cfg.run_dir) == [2, 4]
    if steal == "replace":
        assert read_json(cfg.run_dir / "status.json")["step"] == 77, "the status is the other job's"
        assert (cfg.run_dir / ".lock").read_text() == ELSEWHERE.format(180.0), "so is the lock"


@pytest.mark.slow
def test_two_processes_kept_out_by_a_lock_end_together_with_one_line(tmp_path):
    (tmp_path / "x/seed0").mkdir(parents=True)
    held = RunLock(tmp_path / "x/seed0")
    done = launch("train_baseline.py", tmp_path / "x", processes=2)
    held.release()
    assert f"error: {tmp_path}/x/seed0: another job is running here (pid {os.getpid()} on " in done.stderr
    assert "exitcode  : 4 " in done.stderr
    assert done.stderr.count("another job is running here") == 1
    assert "RuntimeError" not in done.stderr and "DistBackendError" not in done.stderr


# ------------------------------------------------------------------------------- launchers, signals

WORKER = """
import os, subprocess, sys, time
from graft.runtime.signals import follow_launcher
alive, when, *launcher = sys.argv[1:]

def wait(until):
    while not until():
        time.sleep(0.01)

if not launcher:  # the launcher: starts the worker and dies, before or after that has begun
    subprocess.Popen([sys.executable, __file__, alive, when, str(os.getpid())], start_new_session=True)
    wait(lambda: when == "early" or os.path.exists(alive + ".begun"))
    os._exit(0)
orphaned = lambda: os.getppid() != int(launcher[0])
wait(lambda: when == "later" or orphaned())
follow_launcher()
open(alive + ".begun", "w").close()
wait(orphaned)
time.sleep(1)  # the signal, if there is one, is on its way
open(alive, "w").close()
"""


@pytest.mark.parametrize("when", ["early", "later"])
@pytest.mark.parametrize("marks", [(), ACCELERATE, (TORCHRUN,)])
def test_a_worker_ends_with_its_launcher_and_a_plain_process_survives(tmp_path, when, marks):
    (tmp_path / "worker.py").write_text(WORKER)
    kept = {k: v for k, v in os.environ.items() if k not in (*ACCELERATE, TORCHRUN)}
    environ = kept | {"PYTHONPATH": str(ROOT / "src"), } | dict.fromkeys(marks, "x")
    # The pipe's end is inherited by the worker, so this returns when both have ended.
    done = subprocess.run([sys.executable, tmp_path / "worker.py", tmp_path / "alive", when], env=environ, text=True,
                          capture_output=True, timeout=600)
    assert (tmp_path / "alive").exists() == (not marks)
    gone = "error: the launcher that started this process is gone"
    assert done.stderr.strip() == (gone if marks and when == "early" else "")


def test_a_hangup_that_was_ignored_stays_so_but_not_under_torchrun(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for torchrun in (False, True):
            monkeypatch.setenv(TORCHRUN, "none") if torchrun else monkeypatch.delenv(TORCHRUN, raising=False)
            stop = StopSignal()
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGQUIT)
            stop.restore()
            assert stop.number == (signal.SIGHUP if torchrun else signal.SIGQUIT)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_script_of_another_checkout_is_refused(tmp_path):
    for file in ("src/graft/__init__.py", "scripts/bench/x.py", "elsewhere/x.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("import graft; print(graft.__file__)")
    environ = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    for file, code in (("scripts/bench/x.py", 2), ("elsewhere/x.py", 0)):
        done = subprocess.run([sys.executable, tmp_path / file], env=environ, text=True, capture_output=True)
        assert done.returncode == code
        assert bool(code) == (f"another checkout, {ROOT / 'src/graft'}; use this one's with PYTHONPATH={tmp_path}/src"
                              in done.stderr) and len(done.stderr.splitlines()) == bool(code)


def test_away_from_a_terminal_every_line_of_the_log_is_said(tmp_path, capsys):
    run_main(tiny(tmp_path / "x", "train.duration=6st", "train.log_every=2"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 2/6", "step 4/6", "step 6/6"]
    assert all("loss " in line and " images/s, " in line and line.endswith(" left") for line in lines)


# ------------------------------------------------------------------------------------ disk and errors

def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error, code", [
    (OSError(errno.ENOSPC, "x"), 74), (OSError(errno.EDQUOT, "x", "/a/b"), 74), (OSError(errno.EIO, "x"), 74),
    (OSError(errno.EFBIG, "x"), 74), (RuntimeError("Error: I/O error: No space left on device (os error 28)"), 74),
    (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 44992 vs 44884"), 74),
    (OSError(errno.EACCES, "Permission denied", "/a/b"), 2), (UserError("a\nb"), 2), (Locked("x"), 4),
    (BrokenPipeError(errno.EPIPE, "x"), 141),
])
def test_errors_end_in_one_line_and_their_code(error, code, capsys):
    def main() -> None:
        raise error
    with pytest.raises(SystemExit) as caught:
        exit_cleanly(main)
    assert caught.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (code != 141) and all(line.startswith("error: ") for line in lines)


def test_a_fault_of_our_own_is_no_disk_problem():
    assert ending(KeyError("x")) is None and ending(OSError("no errno, no file")) is None
    try:
        with contextlib.suppress(KeyError):
            raise KeyError
        raise RuntimeError("unexpected position")
    except RuntimeError as error:
        assert disk_problem(error) is None
    chained = ValueError("a library's own words")
    chained.__cause__ = OSError(errno.ENOSPC, "x", "/a")
    assert disk_problem(chained) == "/a: No space left on device"


def test_a_log_that_cannot_be_written_ends_the_run_at_the_steps_edge(tmp_path, monkeypatch):
    cfg = tiny(tmp_path / "x", "train.duration=8st", "train.checkpoint_every=2st")

    def write(self, step: int, values: dict, real=journal.Journal.write) -> None:
        if step == 5:
            self.file.write = no_space
        real(self, step, values)

    monkeypatch.setattr(journal.Journal, "write", write)
    with pytest.raises(DiskProblem, match=r"x/seed0: the log cannot be written: .*No space left"):
        run_main(cfg)
    status = read_json(cfg.run_dir / "status.json")
    assert status["state"] == "failed" and status["exit_code"] == 74 and checkpoint.steps(cfg.run_dir) == [2, 4]
    monkeypatch.undo()
    assert [row["step"] for row in run_main(tiny(tmp_path / "x", "train.duration=8st", "train.checkpoint_every=2st"))
            if "lr" in row] == list(range(1, 9))


@pytest.mark.parametrize("first", [None, NonFinite("first")])
def test_what_fails_at_the_end_never_hides_the_first_error(tmp_path, monkeypatch, first):
    cfg = tiny(tmp_path / "x")
    closed = []

    def close(self, real=journal.Journal.close) -> None:
        closed.append(True)
        monkeypatch.setattr(journal.os, "fsync", no_space)
        try:
            real(self)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(journal.Journal, "close", close)
    if first:
        monkeypatch.setattr("graft.training.update.Update.settle", lambda self, leave=0: (_ for _ in ()).throw(first))
    with pytest.raises((DiskProblem, NonFinite)) as caught:
        run_main(cfg)
    assert closed and caught.value.exit_code == (3 if first else 74)
    assert read_json(cfg.run_dir / "status.json")["exit_code"] == caught.value.exit_code
    assert not (cfg.run_dir / ".lock").exists()


# --------------------------------------------------------------------------------- damaged side files

def test_small_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"a\.json"):
        write_text(tmp_path / "a.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "old"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: expected the name of a file, got a device or a pipe"):
        write_text(tmp_path / "pipe", "new")


DAMAGE = [b"", b"{", b"[1]", b"5", b'{"x": 1}', b"\x80\x81", b"[" * 100000, b'{"attempts": 5, "state": 7}']


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    cfg = tiny(tmp_path_factory.mktemp("run") / "x", "train.duration=4st", "train.checkpoint_every=2st")
    run_main(cfg)
    return cfg.run_dir


@pytest.mark.parametrize("content", DAMAGE)
def test_damaged_side_files_are_set_aside_and_the_run_goes_on(tmp_path, run, content, capsys):
    cfg = tiny(tmp_path / "x", "train.duration=4st", "train.checkpoint_every=2st")
    (tmp_path / "x").mkdir()
    subprocess.run(["cp", "-r", run, cfg.run_dir], check=True)
    subprocess.run(["rm", "-r", cfg.run_dir / "checkpoint-4"], check=True)
    names = ("metadata.json", "status.json", "metrics.jsonl")
    for name in names:
        (cfg.run_dir / name).write_bytes(content + b"\n")
    rows = run_main(cfg)
    assert weights(cfg.run_dir) == weights(run) and [row["step"] for row in rows if "lr" in row] == [3, 4]
    out = capsys.readouterr().out.splitlines()
    for name in names:
        wrong = name == "metrics.jsonl" or b"attempts" not in content  # that one has the keys, of another type
        said = [line for line in out if f"bad-{name}.1" in line and "set aside" in line]
        assert len(said) == (cfg.run_dir / f"bad-{name}.1").exists() <= 1 and (said or not wrong)
    assert len(json.loads((cfg.run_dir / "metadata.json").read_text())["attempts"]) == 1
    assert read_json(cfg.run_dir / "status.json")["state"] == "done"


def test_a_line_of_the_log_cut_by_a_kill_is_no_damage(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lr": 2.0}\n{"step": 2, "l')
    journal.Journal(tmp_path, 5, False).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "lr": 2.0}\n' and not capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"stfp": 2}\n{"step": 3}\n')
    assert journal.read(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 3}]
    assert "1 damaged lines left out" in capsys.readouterr().out


def test_no_bit_of_a_manifest_is_more_than_one_line(run):
    manifest = run / "checkpoint-2/manifest.json"
    content = manifest.read_bytes()
    try:
        for place in range(len(content)):
            manifest.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1:])
            with contextlib.suppress(UserError):  # white space and the like may change
                checkpoint.verify(manifest.parent)
        for whole in ("[]", '["model.safetensors", "optim.pt", "trainer.json"]', "5", "[" * 100000):
            manifest.write_text(whole)
            with pytest.raises(UserError, match=r"manifest\.json"):
                checkpoint.verify(manifest.parent)
    finally:
        manifest.write_bytes(content)
