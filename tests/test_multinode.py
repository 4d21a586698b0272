"""Several machines, as two launchers on one: the very lines of configs/accelerate/multinode.yaml, over loopback."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from small import BASE, ROOT, TINY, environment, launch, weights

MULTINODE = ROOT / "configs/accelerate/multinode.yaml"
RUN = ["train.checkpoint_every=2st", "train.eval_every=2st", "train.duration=4st", "train.keep=5"]
LOOPBACK = {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launchers(where: Path) -> list[list[str]]:
    """A tiny run's command on each of two machines that are this one, one process on each."""
    lines = re.findall(r"^#   accelerate launch (.*) SCRIPT", MULTINODE.read_text(), re.MULTILINE)
    assert [re.search(r"--machine_rank (\d)", line)[1] for line in lines] == ["0", "1"]
    overrides = [word for word in TINY if word.split("=")[0] not in {item.split("=")[0] for item in RUN}] + RUN
    rest = ["--num_processes", "2", "--main_process_port", str(free_port()), str(ROOT / "src/graft/train_baseline.py"),
            "--base_config", str(BASE), "--output_dir", str(where), *overrides]
    return [[sys.executable, "-m", "accelerate.commands.launch", *line.replace("NODE0", "127.0.0.1").split(), *rest]
            for line in lines]


def as_one_machine(where: Path, one: Path) -> None:
    """The run is bit by bit that of two processes on one machine, which lies in `one` afterwards."""
    done = launch("train_baseline.py", one, *RUN, processes=2)
    assert done.returncode == 0, done.stderr
    for step in (2, 4):
        assert weights(where / "seed0", step) == weights(one / "seed0", step)


@pytest.mark.slow
def test_two_machines_of_one_process_train_as_one_machine_of_two(tmp_path):
    where = tmp_path / "machines/x"
    machines = [subprocess.Popen(command, cwd=ROOT, text=True, env={**environment(), **LOOPBACK},
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in launchers(where)]
    said = [machine.communicate(timeout=1800) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "on 2 × cpu" in said[0][0] and "done at step 4" in said[0][0] and "step" not in said[1][0]
    as_one_machine(where, tmp_path / "one/x")
