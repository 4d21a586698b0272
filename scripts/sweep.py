"""Hydra multirun over conditions of a study, seeds and settings: one job after the other.

    python scripts/sweep.py --multirun study=cifar10 condition=baseline,resnet18 seed=0,1,2
    python scripts/sweep.py --multirun study=gsm8k_qwen1b7 condition=distill,kd_only seed=0,1 \\
        'set=[optim.lr=1e-4]' 'name=${condition}-lr1e-4'

    python scripts/sweep.py --multirun hydra/launcher=submitit_slurm hydra.launcher.timeout_min=1440 \\
        hydra.launcher.max_num_timeout=9 hydra.launcher.gpus_per_node=1 condition=baseline,resnet18

The last gives them to Slurm, all at once (`submitit_local`: to this machine); a job that reaches its limit saves, is
queued again and goes on, so often. `study` is one of configs/study/ or a file of your own, `set` goes over the run, and
`name` is its folder in experiments/<study>, where that is not the condition's. A run that is done is skipped if it is
the run that is asked for, else refused; what a run needs (its teacher, its cache) must be done: scripts/study.sh makes
it, and runs whole studies.
"""

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from graft.config import study
from graft.config.schema import NAME, NAME_RULE, nearest
from graft.config.study.graph import Asked, Graph
from graft.config.study.job import Job, command
from graft.errors import UserError, exit_cleanly
from graft.runtime import runs

ROOT = Path(__file__).parent.parent


def quoted(word: str) -> str:
    """`set=[a=1,b=[2,3]]` as Hydra's grammar wants it, `set=["a=1","b=[2,3]"]`; what has quotes stays as it is."""
    if not word.startswith("set=[") or set(word) & set("'\""):
        return word
    found, depth = "", 0
    for letter in word.removeprefix("set="):
        depth -= letter == "]"
        outer = {"[": '["', "]": '"]'} if depth == 0 else {",": '","'} if depth == 1 else {}
        found += outer.get(letter, letter)
        depth += letter == "["
    return f"set={found}".replace('[""]', "[]")


def job_of(cfg: DictConfig) -> tuple[Job, Graph]:
    """The run that is asked for, and its study's. Raises UserError for an unknown study or condition, or a bad key."""
    words = cfg.set if OmegaConf.is_list(cfg.set) else [cfg.set]
    if not isinstance(cfg.seed, int):
        raise UserError(f"seed: expected an integer, got {cfg.seed!r}")
    whole = study.load(str(cfg.study))
    if cfg.condition not in whole.conditions:
        raise UserError(f"condition: unknown: {cfg.condition!r}{nearest(str(cfg.condition), list(whole.conditions))}")
    graph = Graph(whole, Asked((cfg.condition,), (cfg.seed,), tuple(map(str, words)), environment=dict(os.environ)))
    if cfg.condition in graph.left_out:
        raise UserError(f"condition: {cfg.condition}: {graph.left_out[cfg.condition]}")
    job = graph.jobs[f"{cfg.condition}/seed{cfg.seed}"]
    return (apart(job, graph, str(cfg.name)) if cfg.name else job), graph


def apart(job: Job, graph: Graph, name: str) -> Job:
    """The run in a folder of its own beside the study's conditions."""
    if not NAME.fullmatch(name) or name in graph.study.conditions or name in graph.study.teachers:
        raise UserError(f"name: must be {NAME_RULE}, and none that the study has, got {name!r}")
    out = graph.at / name
    at = job.words.index("--output_dir") + 1
    words = (*job.words[:at], str(out), *job.words[at + 1:])
    return replace(job, name=f"{name}/seed{job.config.seed}", words=words, folder=out / f"seed{job.config.seed}")


def require(need: str, job: Job, graph: Graph) -> None:
    """Raise UserError unless what a run starts from is done; a study makes it. `set` is not the teacher's."""
    plain = Graph(graph.study, replace(graph.asked, set=())).jobs.get(need)
    made = plain if plain is not None and plain.kind == "run" else graph.jobs[need]
    there = runs.state(made)
    if there.name == "other":
        raise UserError(f"{job.name}: needs {need}, and {made.folder} is another one ({there.note})")
    if there.name != "done":
        own = [word for word in graph.asked.set if word in made.words]
        words = ["--only", need.split("/")[0], "--seeds", str(job.config.seed), *(["--set", *own] if own else [])]
        raise UserError(f"{job.name}: needs {need}, which is not done: bash scripts/study.sh {graph.study.file} "
                        f"{shlex.join(words)}")


def run(cfg: DictConfig) -> None:
    """Start the run, unless it is done. Raises UserError if it must not be started, or fails."""
    job, graph = job_of(cfg)
    found = runs.state(job)
    if found.name == "done":
        print(f"{job.folder}: done, skipped")
        return
    if found.name == "other":
        raise UserError(f"{job.folder}: is another run ({found.note}); it is left as it is: give a name=, or remove it")
    for need in job.needs:
        require(need, job, graph)
    runs.prepare(graph.layers.files)
    code = subprocess.run(command(job, sys.executable, str(cfg.accelerate), int(cfg.processes)), cwd=ROOT).returncode
    if code:
        raise UserError(f"{job.name}: exit code {code}; see {job.folder}/status.json")


@hydra.main(version_base="1.3", config_path="../configs/hydra", config_name="sweep")
def _sweep(cfg: DictConfig) -> None:
    exit_cleanly(lambda: run(cfg))


def main() -> None:
    """Run the sweep; what Hydra cannot read ends in one line too."""
    os.chdir(ROOT)
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # at which a run saves
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or it would write a traceback of its own
    sys.argv[1:] = map(quoted, sys.argv[1:])
    try:
        _sweep()
    except Exception as error:  # Hydra's and its grammar's have no common base
        if not type(error).__module__.startswith(("hydra", "omegaconf", "antlr4")):
            raise
        raise UserError(" ".join(str(error).split())) from None


if __name__ == "__main__":
    exit_cleanly(main)
