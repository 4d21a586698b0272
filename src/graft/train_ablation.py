"""Run an ablation: a method with one thing changed, through the method's own `main`.

The last --config is the ablation, those before it are the method. The difference that it makes is printed
before anything starts, so the ablation is the method with the printed lines changed, and nothing else.

    accelerate launch --config_file configs/accelerate/1gpu.yaml src/graft/train_ablation.py \\
        --base_config configs/base/cifar10_deit.yaml \\
        --config configs/ss_distill/dinov2_cka.yaml configs/ablation/shuffled_features.yaml \\
        --output_dir experiments/cifar10/shuffled_features --seed 0
"""

import importlib
import os

from graft.config import difference, load
from graft.config.command_line import command_line
from graft.config.options import Config
from graft.errors import UserError, exit_cleanly
from graft.runtime.signals import follow_launcher


def print_difference(cfg: Config) -> None:
    """The keys in which the ablation differs from the method. Raises UserError if there are none."""
    if len(cfg.files) < 2:
        raise UserError("--config: an ablation needs the method's configs and, last, its own")
    method = load(cfg.files[:-1], cfg.overrides, seed=cfg.seed)
    changed = difference(method, cfg)
    if not changed:
        raise UserError(f"{cfg.files[-1]}: changes nothing in {' + '.join(cfg.files[:-1])}")
    if int(os.environ.get("RANK", 0)) == 0:
        width = max(len(key) for key, _, _ in changed)
        print(f"ablation {cfg.files[-1]} of {' + '.join(cfg.files[:-1])}:")
        for key, old, new in changed:
            print(f"  {key:<{width}}  {old} -> {new}", flush=True)


def main(cfg: Config) -> None:
    """Hand the configuration to the `main` of its method."""
    importlib.import_module(f"graft.train_{cfg.method}").main(cfg)


if __name__ == "__main__":
    follow_launcher()
    CONFIG = command_line(__doc__, None)
    exit_cleanly(lambda: print_difference(CONFIG))
    exit_cleanly(lambda: main(CONFIG))
