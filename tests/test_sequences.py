"""What the sequences in scripts/ start, with a stub in Python's place."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graft import config
from graft.config import Config
from graft.training import objective
from small import ROOT

# Stands for Python: notes the commands, says that each run is done, and hands everything else on.
STUB = """#!/usr/bin/env bash
if [[ "$1" == - ]]; then exec {python} "$@"; fi
printf -v line '%s\\t' "$@"
echo "$line" >>{log}  # one write: runs may overlap
while [[ $# -gt 0 ]]; do
    case "$1" in --output_dir) dir=$2 ;; --seed) seed=$2 ;; esac
    shift
done
if [[ -n "${{dir:-}}" ]]; then
    state=done
    [[ "$dir" == */"${{FAIL:-nothing}}" ]] && state=failed
    echo "{{\\"state\\": \\"$state\\"}}" >"$dir/seed$seed/status.json"
    [[ $state == done ]]
fi
"""


def run_sequence(script: str, tmp_path: Path, **environment: str) -> tuple[int, list[list[str]], str]:
    """Exit code, commands and error output of a sequence in a copy of the project where each run ends at once."""
    if not (tmp_path / "bin").exists():
        (tmp_path / "bin").mkdir()
        (tmp_path / "configs").symlink_to(ROOT / "configs")
        # Copied, because a sequence works in the folder above its own.
        shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    log = tmp_path / "commands"
    log.unlink(missing_ok=True)
    stubs = {"python": STUB.format(python=sys.executable, log=log), "nvidia-smi": "#!/bin/sh\nexit 1\n"}
    for name, text in stubs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    theirs = ("SEEDS", "SMOKE", "TRAIN_ARGS", "CNNS", "DINOV2_CHECKPOINT", "SLOTS", "FAIL", "ONLY", "TEACHER_ARGS")
    kept = {key: value for key, value in os.environ.items() if key not in theirs}
    done = subprocess.run(["bash", str(tmp_path / f"scripts/{script}")], text=True, capture_output=True, timeout=120,
                          env={**kept, "GRAFT_PYTHON": str(tmp_path / "bin/python"),
                               "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **environment})
    commands = [line.strip("\t").split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    return done.returncode, commands, done.stderr + done.stdout


def started(commands: list[list[str]]) -> list[tuple[str, Config, list[str]]]:
    """`(script, configuration, files)` of each training run, loaded as the script would."""
    runs = []
    for words in commands:
        if "accelerate.commands.launch" not in words:
            continue
        script = next(word for word in words if word.startswith("src/graft/"))
        rest = words[words.index(script) + 1:]
        files = [rest[rest.index("--base_config") + 1]]
        files += [word for word in rest if word.startswith("configs/") and word.endswith(".yaml") and word != files[0]]
        overrides = [word for word in rest if "=" in word]
        cfg = config.load(files, overrides, seed=int(rest[rest.index("--seed") + 1]),
                          output_dir=rest[rest.index("--output_dir") + 1])
        runs.append((Path(script).stem.removeprefix("train_"), cfg, files))
    return runs


def check(runs: list[tuple[str, Config, list[str]]], study: str) -> None:
    done = set()
    for script, cfg, files in runs:
        assert script in ("ablation", cfg.method), files
        assert Path(cfg.output_dir).parent == Path("experiments") / study
        if cfg.teacher.name == "run" and objective.needs_teacher(cfg.objective):
            folder = Path(cfg.teacher.args["path"])
            assert folder in done or folder / "seed0" in done, f"{files}: teacher {folder} was not trained before"
        done.add(cfg.run_dir)
    assert len(done) == len(runs), "a run was started twice"


def sequences() -> list[str]:
    return [path.name for path in sorted(ROOT.glob("scripts/*.sh"))
            if path.name != "language.sh" and re.search(r"(lib|language)\.sh\"", path.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("script", sequences())
def test_sequences_start_runs_that_load_after_their_teachers(script, tmp_path):
    code, commands, said = run_sequence(script, tmp_path)
    assert code == 0, said
    study = next(line[len("STUDY="):].split()[0] for line in (ROOT / "scripts" / script).read_text().splitlines()
                 if line.startswith("STUDY="))
    runs = started(commands)
    assert len(runs) > 5
    check(runs, study)
    code, again, _ = run_sequence(script, tmp_path)
    assert code == 0 and not started(again), "what is done is skipped"


@pytest.mark.slow
def test_cifar10_sequence_in_its_variants(tmp_path):
    checkpoint = tmp_path / "dinov2.safetensors"
    checkpoint.touch()
    code, commands, said = run_sequence("cifar10.sh", tmp_path, SMOKE="1", DINOV2_CHECKPOINT=str(checkpoint),
                                        TRAIN_ARGS="train.compile=default task.root=/data")
    assert code == 0, said
    runs = started(commands)
    check(runs, "cifar10-smoke")
    assert all(cfg.train.duration == "4st" and cfg.train.compile == "default" and cfg.seed == 0 for _, cfg, _ in runs)
    arms = {Path(cfg.output_dir).name for _, cfg, _ in runs}
    grid = {path.stem for kind in ("distill", "ss_distill", "ablation") for path in ROOT.glob(f"configs/{kind}/*.yaml")
            if "# over: base/cifar10_deit.yaml" in path.read_text()}
    assert len(grid) == 18 and grid | {"baseline"} <= arms
    dinov2 = [cfg for _, cfg, _ in runs if cfg.teacher.name == "dinov2"]
    assert len(dinov2) == 4 and all(cfg.teacher.args["checkpoint"] == str(checkpoint) for cfg in dinov2)
    ablations = [files for script, _, files in runs if script == "ablation" and "ce_longer" not in files[1]]
    assert len(ablations) == 7 and all(files[-1].startswith("configs/ablation/") for files in ablations)

    code, commands, said = run_sequence("cifar10.sh", tmp_path, SEEDS="3", CNNS="convnextv2", FAIL="ssl_teacher")
    runs = started(commands)
    assert code == 1 and "SKIPPED what needs ssl_teacher" in said and "left out: dinov2_cka" in said
    assert {Path(cfg.output_dir).name for _, cfg, _ in runs} == {
        "ssl_teacher", "convnextv2_teacher", "baseline", "ce_longer", "convnextv2"}
    assert not any("eval_checkpoints" in word for words in commands for word in words), "a failure is not scored over"


@pytest.mark.slow
def test_language_sequence_reads_the_caches_it_builds(tmp_path):
    arms = ["kd_only", "kd_only_zeroshot", "zeroshot_teacher", "published_position", "label_smoothing"]
    code, commands, said = run_sequence("gsm8k_qwen1b7.sh", tmp_path, SMOKE="1", ONLY=" ".join(arms),
                                        TRAIN_ARGS="student.model=tiny", TEACHER_ARGS="teacher.k=16")
    assert code == 0, said
    runs = started(commands)
    check(runs, "gsm8k_qwen1b7-smoke")
    assert {Path(cfg.output_dir).name for _, cfg, _ in runs} == {"baseline", "distill", *arms}
    first = next(i for i, words in enumerate(commands) if "src/graft/train_distill.py" in words)
    built = {}
    for words in commands[:first]:
        if words[0] == "scripts/cache_teacher.py":
            files = [word for word in words if word.endswith(".yaml")]
            cfg = config.load(files, [word for word in words if "=" in word])
            built[cfg.teacher.args["path"]] = cfg
    assert len(built) == 3, "kd_only reads the method's, kd_only_zeroshot that of zeroshot_teacher"
    silent, = (cfg for _, cfg, _ in runs if Path(cfg.output_dir).name == "kd_only_zeroshot")
    assert silent.teacher.args["context"] == "zeroshot" and not silent.objective[0].used
    score, = (words for words in commands if words[0] == "scripts/eval_checkpoints.py")
    contrasts = score[score.index("--contrasts") + 1:]
    assert contrasts[:3] == ["distill:zeroshot_teacher", "distill:label_smoothing", "kd_only:kd_only_zeroshot"]
    for _, cfg, _ in runs:
        if objective.needs_teacher(cfg.objective):
            cache = built[cfg.teacher.args["path"]]
            assert cfg.teacher.args["serve"] == "cache" and cfg.task == cache.task and cfg.student == cache.student
            same = ("context", "shots", "fewshot_seed", "max_length", "k", "precision", "cache_dtype", "model")
            assert all(cfg.teacher.args[key] == cache.teacher.args[key] for key in same), cfg.output_dir
            term, = (term for term in cfg.objective if term.name == "topk")
            cached, = (term for term in cache.objective if term.name == "topk")
            assert term.args["position"] == cached.args["position"]


@pytest.mark.slow
def test_language_sequence_scores_what_did_not_fail(tmp_path):
    code, commands, said = run_sequence("gsm8k_qwen1b7.sh", tmp_path, SMOKE="1", ONLY="kd_only", FAIL="kd_only")
    assert code == 1 and "failed: kd_only/seed0" in said
    score, = (words for words in commands if words[0] == "scripts/eval_checkpoints.py")
    assert "--allow_missing" in score and score[score.index("--icl") + 1] == "experiments/gsm8k_qwen1b7-smoke/icl.json"
