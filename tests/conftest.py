"""Shared by all tests: small runs of the real training scripts on the CPU."""

import os
import signal
from pathlib import Path

os.environ.setdefault("ACCELERATE_USE_CPU", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # a shell's background jobs inherit them as ignored
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

import pytest

from small import ROOT


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches go to the test's folder; configs are found wherever pytest was started."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)
