"""The Hydra sweep: every condition is a command line whose configuration loads."""

import pytest
from hydra import compose, initialize_config_dir

import sweep
from graft import config
from graft.errors import UserError
from small import ROOT


def composed(*overrides: str):
    with initialize_config_dir(str(ROOT / "configs/hydra"), version_base="1.3"):
        return compose("sweep", list(overrides))


def test_every_condition_is_a_run_that_loads():
    for condition in composed().conditions:
        words = sweep.command(composed(f"condition={condition}", "seed=3", 'extra=["optim.lr=0.5"]'))
        script = next(word for word in words if word.startswith("src/graft/"))
        files = [word for word in words if word.startswith("configs/") and "/accelerate/" not in word]
        cfg = config.load(files, [words[-1]], seed=int(words[words.index("--seed") + 1]))
        assert (cfg.seed, cfg.optim.lr) == (3, 0.5)
        assert script == f"src/graft/train_{cfg.method}.py" or script == "src/graft/train_ablation.py"
        assert words[words.index("--output_dir") + 1] == f"experiments/cifar10/{condition}"


def test_a_name_keeps_variants_apart():
    words = sweep.command(composed("condition=ssl_cka", "name=ssl_cka-half", 'extra=["objective.cka.weight=0.5"]'))
    assert "experiments/cifar10/ssl_cka-half" in words and words[-1] == "objective.cka.weight=0.5"


def test_an_unknown_condition_is_named():
    with pytest.raises(UserError, match="unknown: 'ssl'; one of: baseline, "):
        sweep.command(composed("condition=ssl"))
