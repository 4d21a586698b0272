"""Every file in configs/ loads where it belongs; the fair grid is fair."""

import json
from pathlib import Path

import pytest

from graft import config
from graft.config import study
from small import ROOT

CONFIGS = ROOT / "configs"
BASES, ORIGINALS = sorted(CONFIGS.glob("base/*.yaml")), sorted(CONFIGS.glob("original/*.yaml"))
DELTAS = [path for kind in ("distill", "ss_distill", "ablation") for path in sorted(CONFIGS.glob(f"{kind}/*.yaml"))]
FAIR = "base/cifar10_deit.yaml"


def command(path: Path) -> list[str]:
    """The words of the launch command in a file's comment; none in the demos', which scripts/demo*.sh start."""
    comment = " ".join(line.strip("# \\") for line in path.read_text().splitlines() if line.startswith("#"))
    return comment[comment.index("accelerate launch"):].split() if "accelerate launch" in comment else []


def files_of(words: list[str]) -> list[Path]:
    options = words[words.index("--base_config"):words.index("--output_dir")]
    return [ROOT / word for word in options if word.endswith(".yaml")]


def conditions() -> dict[str, list[Path]]:
    """The files of every condition of the studies, by its folder."""
    found = {}
    for whole in map(study.load, study.names()):
        for name, condition in whole.conditions.items():
            names = [whole.base, *(whole.deltas.get(word, word) for word in condition.configs)]
            if all(isinstance(file, str) for file in names):  # else they stand in the study's file
                found[f"experiments/{whole.study}/{name}"] = [ROOT / file for file in names]
    return found


def over(path: Path) -> list[list[Path]]:
    """What a delta is laid over: by the command at its head, and in the studies, which agree."""
    lists = [files[:files.index(path)] for files in [*CONDITIONS.values(), files_of(command(path) or NONE)]
             if path in files]
    return [files for i, files in enumerate(lists) if files not in lists[:i]]


NONE = ["--base_config", "--output_dir"]
CONDITIONS = conditions()
NOT_RUN = {"fewshot_teacher", "kl_tau2"}  # deltas that no study has


def test_every_file_is_one_of_these():
    others = {path.parent.name for path in CONFIGS.rglob("*.yaml")
              if path not in [*BASES, *ORIGINALS, *DELTAS]}
    assert others <= {"accelerate", "hydra", "queue", "smoke", "study"} and len(BASES) >= 10 and len(DELTAS) >= 20


@pytest.mark.parametrize("path", [*BASES, *ORIGINALS], ids=lambda path: path.stem)
def test_complete_files_load_alone_and_under_the_smoke_config(path):
    cfg = config.load([path])
    smoke = config.load([path, CONFIGS / "smoke/cpu.yaml"])
    assert smoke.train.duration == "4st" and smoke.train.precision == "fp32" and smoke.train.compile == "none"
    changed = {key.split(".")[0] for key, _, _ in config.difference(cfg, smoke)}
    assert changed <= {"task", "optim", "train", "ssl", "evaluate"}, "the smoke run is the same method"


@pytest.mark.parametrize("path", DELTAS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_deltas_change_what_they_are_laid_over(path):
    assert over(path), f"{path}: no study has it, and no command is at its head"
    for below in over(path):
        assert config.difference(config.load(below), config.load([*below, path])), below


@pytest.mark.parametrize("path", [*BASES, *ORIGINALS, *DELTAS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_launch_commands_in_the_comments(path):
    """The command at the head of a file starts this file, with the script of its method, as its study does."""
    words = command(path)
    if not words:
        assert "digits" in path.stem or "strings" in path.stem, "only the demos are started by a script"
        return
    files = files_of(words)
    assert files[-1] == path
    cfg = config.load(files)
    script = words[4]
    assert (ROOT / script).is_file()
    assert script == f"src/graft/train_{'ablation' if path.parent.name == 'ablation' else cfg.method}.py"
    if path in DELTAS and path.stem not in NOT_RUN:
        assert CONDITIONS[words[words.index("--output_dir") + 1]] == files


# ----------------------------------------------------------------------------------------- fair grid

FAIR_DELTAS = [path for path in DELTAS if CONFIGS / FAIR in [files[0] for files in over(path)]]


@pytest.mark.parametrize("path", FAIR_DELTAS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_arms_of_the_grid_differ_in_their_subject_only(path):
    below = next(files for files in over(path) if files[0] == CONFIGS / FAIR)
    changed = {key for key, _, _ in config.difference(config.load([CONFIGS / FAIR]), config.load([*below, path]))}
    if path.stem == "ce_longer":
        assert changed == {"train.duration"}
        return
    assert {key.split(".")[0] for key in changed} <= {"method", "teacher", "objective"}


def test_the_grid_is_complete():
    found = {kind: {path.stem for path in FAIR_DELTAS if path.parent.name == kind} for kind in
             ("distill", "ss_distill", "ablation")}
    assert found == {
        "distill": {"resnet18", "convnextv2", "adaptive_cnn", "hard_resnet18"},
        "ss_distill": {"dinov2_cka", "dinov2_gram", "dinov2_token", "dinov2_correlation", "ssl_cka", "ssl_token"},
        "ablation": {"ce_only", "ce_longer", "shuffled_logits", "gram", "cls_only", "random_teacher",
                     "shuffled_features", "unaligned_views", "as_published"}}


def test_every_ablation_lies_over_every_method_it_is_for():
    """Controls over any method with a teacher; those of CKA over the methods that have it."""
    grid = {path: config.load([CONFIGS / FAIR, path]) for path in FAIR_DELTAS if path.parent.name == "ss_distill"}
    for method, cfg in grid.items():
        for ablation in ("ce_only", "gram", "random_teacher", "shuffled_features", "unaligned_views", "cls_only",
                         "as_published"):
            if ablation in ("cls_only", "as_published") and "cka" not in {term.name for term in cfg.objective}:
                continue
            config.load([CONFIGS / FAIR, method, CONFIGS / f"ablation/{ablation}.yaml"])


def test_students_and_teachers_of_the_grid_share_data_and_split():
    tasks = {path.stem: config.load([path]).task for path in BASES
             if path.stem.startswith("cifar10_") and not path.stem.startswith("cifar10_small")}
    assert len(tasks) == 5 and len({json.dumps(task.args, sort_keys=True) for task in tasks.values()}) == 1
    student, ssl = (config.load([CONFIGS / f"base/cifar10_{name}.yaml"]).student.args for name in ("deit", "ssl"))
    assert {key for key in student if student[key] != ssl[key]} == {"distilled"}, "one token grid"
    mnist = [config.load([CONFIGS / f"base/mnist_{name}.yaml"]).task for name in ("deit", "adaptive_cnn")]
    assert mnist[0] == mnist[1]
