"""Hydra multirun over conditions and seeds: one `accelerate launch` a job, one after the other.

    python scripts/sweep.py --multirun condition=baseline,resnet18 seed=0,1,2
    python scripts/sweep.py --multirun condition=ssl_cka seed=0 'extra=["objective.cka.weight=0.5"]' name=ssl_cka-half

Conditions are in configs/hydra/sweep.yaml. A job whose run is done is skipped; a failed one fails the sweep, which
goes on with the others only under `hydra.launcher`s that do. For several GPUs use scripts/cifar10.sh or your queue.
"""

import json
import subprocess
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from graft.errors import UserError, exit_cleanly

ROOT = Path(__file__).parent.parent


def command(cfg: DictConfig) -> list[str]:
    """The command line of one job. Raises UserError for a condition that configs/hydra/sweep.yaml does not have."""
    if cfg.condition not in cfg.conditions:
        raise UserError(f"condition: unknown: {cfg.condition!r}; one of: {', '.join(cfg.conditions)}")
    entry = cfg.conditions[cfg.condition]
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
             f"configs/accelerate/{cfg.accelerate}.yaml", f"src/graft/{entry.script}.py", "--base_config", entry.base]
    if entry.configs:
        words += ["--config", *entry.configs]
    return [*words, "--output_dir", f"experiments/{cfg.study}/{cfg.name or cfg.condition}", "--seed", str(cfg.seed),
            *cfg.extra]


@hydra.main(version_base="1.3", config_path="../configs/hydra", config_name="sweep")
def main(cfg: DictConfig) -> None:
    """Run one job of the sweep."""
    def job() -> None:
        words = command(cfg)
        status = ROOT / words[words.index("--output_dir") + 1] / f"seed{cfg.seed}" / "status.json"
        if status.exists() and json.loads(status.read_text())["state"] == "done":
            print(f"{status.parent}: done, skipped")
            return
        code = subprocess.run(words, cwd=ROOT).returncode
        if code:
            raise UserError(f"{cfg.condition} seed {cfg.seed}: exit code {code}; see {status}")

    exit_cleanly(job)


if __name__ == "__main__":
    main()
