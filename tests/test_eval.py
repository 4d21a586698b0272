"""Scoring runs: every example once, only what is missing again, comparisons only where they are fair."""

import argparse
import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch

import eval_checkpoints
import gen_curves_fig
from graft.config import parts
from graft.errors import UserError
from graft.evaluation import rebuild, scores
from graft.evaluation.scoring import score
from graft.reporting import results
from small import ROOT, environment, run_main, tiny


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    base = tmp_path_factory.mktemp("experiments") / "small"
    for condition, extra in {"baseline": [], "smoothed": ["objective.ce.smoothing=0.3"]}.items():
        for seed in (0, 1):
            run_main(tiny(base / condition, "train.duration=10st", *extra, seed=seed))
    return base


def evaluate(study, monkeypatch, *extra: str) -> dict:
    output = study / "results.json"
    monkeypatch.setattr(sys, "argv", ["eval", "--base_dir", str(study), "--conditions", "baseline", "smoothed",
                                      "--output", str(output), *extra])
    eval_checkpoints.main()
    return results.read_results(output)


def test_results_are_complete_and_true(study, monkeypatch, capsys):
    found = evaluate(study, monkeypatch)
    assert set(found["conditions"]) == {"baseline", "smoothed"}
    run = found["conditions"]["baseline"]["runs"][1]
    assert (run["split"], run["n"], run["step"], run["weights"]) == ("test", 360, 10, "model")
    rows = results.example_rows(study / run["examples"])
    # an oracle that shares no code with the scorer: the student on the test images, one by one
    cfg = tiny(study / "baseline")
    task = parts.build("tasks", cfg.task)
    from graft.runtime import checkpoint
    student = parts.build("students", cfg.student, task).eval()
    student.load_state_dict(checkpoint.load_model(study / "baseline/seed0")[0])
    split = task.splits["test"]
    with torch.no_grad():
        logits = torch.cat([student(split.images[i : i + 1].float() / 255).logits for i in range(360)])
    assert run["metrics"]["accuracy"]["n_correct"] == int((logits.argmax(1) == split.labels).sum())
    assert run["metrics"]["nll"]["value"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, split.labels).item(), rel=1e-4)
    assert (rows["label_rank"] == torch.argsort(logits, 1, descending=True).argsort(1)
            .gather(1, split.labels[:, None])[:, 0].numpy()).all()
    smoothed = found["conditions"]["smoothed"]
    assert smoothed["differs"] == [["objective.ce.smoothing", 0.1, 0.3]] and smoothed["recipe_differs"] == []
    means = [found["conditions"][name]["summary"]["test"]["accuracy"]["mean"] for name in ("smoothed", "baseline")]
    assert smoothed["vs_baseline"]["test"]["accuracy"]["difference"] == pytest.approx(means[0] - means[1])
    assert "| smoothed | test |" in capsys.readouterr().out


def test_a_distilled_student_is_read_in_three_ways(tmp_path, monkeypatch):
    base = tmp_path / "study"
    run_main(tiny(base / "baseline", "train.duration=10st", "student.distilled=true", "student.inference=avg"))
    monkeypatch.setattr(sys, "argv", ["eval", "--base_dir", str(base), "--conditions", "baseline", "--splits", "test",
                                      "--output", str(base / "results.json")])
    eval_checkpoints.main()
    baseline = results.read_results(base / "results.json")["conditions"]["baseline"]
    task = parts.build("tasks", tiny(tmp_path).task)
    from graft.evaluation import rebuild
    student, _ = rebuild.student(rebuild.trained(base / "baseline/seed0"))
    split, tokens = task.splits["test"], []
    with torch.no_grad():
        for i in range(360):  # an oracle that shares no code with the scorer
            image = (split.images[i:i + 1].float() / 255 - student.mean) / student.std
            tokens.append(student.model.forward_features(image))
        tokens = torch.cat(tokens)
        cls, dist = student.model.head(tokens[:, 0]), student.model.head_dist(tokens[:, 1])
    metrics = baseline["runs"][0]["metrics"]
    for name, logits in {"cls": cls, "dist": dist, "avg": cls + dist}.items():
        assert metrics[f"accuracy_{name}"]["n_correct"] == int((logits.argmax(1) == split.labels).sum()), name
        assert f"accuracy_{name}" in baseline["summary"]["test"]
    assert metrics["accuracy_avg"] == metrics["accuracy"]


def test_only_what_is_missing_is_scored_again(study, monkeypatch):
    first = evaluate(study, monkeypatch)
    (study / "smoothed/seed1/eval/test-10.parquet").unlink()
    scored = []
    monkeypatch.setattr(scores, "score", lambda *args: scored.append(args) or score(*args))
    second = evaluate(study, monkeypatch)
    assert len(scored) == 1 and first == second


def test_a_kept_score_that_disagrees_with_its_rows_is_made_again(study, monkeypatch, capsys):
    scorer = scores.Scorer(argparse.Namespace(
        base_dir=study, weights="auto", splits=["test"], limit=0, task_root="", allow_other_data=False))
    first, scored = scorer.score("smoothed", study / "smoothed/seed1"), []
    kept = study / "smoothed/seed1/eval/test-10.json"
    text = kept.read_text()
    monkeypatch.setattr(scores, "score", lambda *args: scored.append(args) or score(*args))
    entry = json.loads(text)
    entry["metrics"]["accuracy"]["value"] += 0.01
    kept.write_text(json.dumps(entry))
    assert scorer.score("smoothed", study / "smoothed/seed1") == first and kept.read_text() == text and not scored
    assert "test-10.json: disagrees with its rows; judged again from them" in capsys.readouterr().out
    for damaged in (text[:100], "[]", "[" * 100_000, text.replace('"step": 10', '"step": 1' + "0" * 5000),
                    json.dumps({**json.loads(text), "examples": "../elsewhere.parquet"}),
                    json.dumps({**json.loads(text), "data_fingerprint": "another"}),
                    json.dumps({**json.loads(text), "checkpoint_sha256": "another"})):
        kept.write_text(damaged)
        assert scorer.score("smoothed", study / "smoothed/seed1") == first and scored.pop() and not scored
    kept.with_suffix(".parquet").write_bytes(b"PAR1")
    assert scorer.score("smoothed", study / "smoothed/seed1") == first and scored.pop() and kept.read_text() == text


def test_a_folder_that_was_set_aside_is_no_seed(study):
    """Nor is it a second run of the seed that its checkpoint names, or another line of its curves."""
    before = rebuild.runs_of(study, "baseline"), gen_curves_fig.logs(study / "baseline")
    shutil.copytree(study / "baseline/seed0", study / "baseline/seed0_old")
    assert (rebuild.runs_of(study, "baseline"), gen_curves_fig.logs(study / "baseline")) == before
    assert [run.name for run in before[0]] == ["seed0", "seed1"] == [log.parent.name for log in before[1]]
    shutil.rmtree(study / "baseline/seed0_old")


def test_a_reference_that_was_trained_on_fewer_images_stands_beside_the_others(study, monkeypatch, capsys):
    run_main(tiny(study / "few", "train.duration=4st", "task.subset=64"))
    found = evaluate(study, monkeypatch, "--conditions", "baseline", "--references", "few")
    few, baseline = (found["conditions"][name]["runs"][-1] for name in ("few", "baseline"))
    assert few["data_fingerprint"] == baseline["data_fingerprint"] == found["data"]["fingerprints"]["test"]
    assert few["train_fingerprint"] != baseline["train_fingerprint"] == found["data"]["fingerprints"]["train"]
    assert "note: few was trained on other items than baseline" in capsys.readouterr().out
    run_main(tiny(study / "other", "train.duration=4st", "task.split_seed=3"))
    with pytest.raises(UserError, match=r"other/seed0/eval/val-4\.parquet: scored on data"):
        evaluate(study, monkeypatch, "--conditions", "baseline", "other")


def test_a_missing_condition_is_named(study, monkeypatch):
    with pytest.raises(UserError, match=r"small/ghost: no finished run; conditions there: baseline.*smoothed"):
        evaluate(study, monkeypatch, "--conditions", "baseline", "ghost")
    found = evaluate(study, monkeypatch, "--conditions", "baseline", "ghost", "--allow_missing")
    assert set(found["conditions"]) == {"baseline"}


def test_a_reference_is_scored_and_not_compared(study, monkeypatch):
    found = evaluate(study, monkeypatch, "--conditions", "baseline", "--references", "smoothed")
    assert found["conditions"]["smoothed"]["vs_baseline"] == {} and found["order"] == ["baseline", "smoothed"]


def test_contrasts(study, monkeypatch, capsys):
    found = evaluate(study, monkeypatch, "--contrasts", "baseline:smoothed", "baseline:smoothed")
    versus = found["conditions"]["smoothed"]["vs_baseline"]["test"]["accuracy"]
    own = [one for one in found["contrasts"] if (one["split"], one["metric"]) == ("test", "accuracy")]
    assert [(one["a"], one["b"], one["difference"]) for one in own] == [("baseline", "smoothed", -versus["difference"])]
    assert "| baseline - smoothed | test |" in capsys.readouterr().out
    scored = []
    monkeypatch.setattr(scores.Scorer, "score", lambda *args: scored.append(args))
    with pytest.raises(UserError, match=r"--contrasts baseline:ghost: .* baseline, smoothed, got 'ghost'"):
        evaluate(study, monkeypatch, "--contrasts", "baseline:ghost")
    for word in ("baseline", "a:a", "a:b:c", ":b"):
        with pytest.raises(SystemExit):
            evaluate(study, monkeypatch, "--contrasts", word)
    assert not scored and "expected two conditions as a:b, got 'a:a'" in capsys.readouterr().err


def test_contrasts_of_what_is_missing_are_left_out(study, monkeypatch, capsys):
    found = evaluate(study, monkeypatch, "--conditions", "baseline", "ghost", "--allow_missing", "--contrasts",
                     "baseline:ghost", "ghost:unknown")
    assert "contrasts" not in found
    said = capsys.readouterr().out
    assert "left out contrast baseline:ghost: no ghost\n" in said and "ghost:unknown: no ghost and no unknown" in said


def test_another_recipe_is_called_one(study, monkeypatch, capsys, tmp_path):
    run_main(tiny(study / "longer", "train.duration=12st"))
    evaluate(study, monkeypatch, "--conditions", "baseline", "longer")
    assert "note: longer differs from baseline also in train.duration" in capsys.readouterr().out


def test_seeds_of_another_recipe_are_no_seeds_of_a_condition(study, tmp_path, monkeypatch):
    base = shutil.copytree(study, tmp_path / "small")
    run_main(tiny(base / "smoothed", "train.duration=10st", "objective.ce.smoothing=0.2", seed=2))
    says = "smoothed/seed2: was trained with objective.ce.smoothing 0.2, .*seed0 with 0.3; expected seeds of one recipe"
    with pytest.raises(UserError, match=says):
        evaluate(base, monkeypatch)


def test_a_student_of_another_teacher_than_lies_there_is_not_scored(tmp_path, monkeypatch):
    """Its teacher was trained anew with the same name; the seeds after that learn from another."""
    base, words = tmp_path / "small", ["train.duration=6st"]
    kd = [*words, f"teacher={{name: run, path: {base / 'teacher/seed0'}}}",
          "objective=[{name: ce, weight: 0.5}, {name: kd, weight: 0.5}]"]
    run_main(tiny(base / "teacher", *words))
    run_main(tiny(base / "baseline", *words))
    run_main(tiny(base / "smoothed", *kd, method="distill"))
    evaluate(base, monkeypatch)
    shutil.rmtree(base / "teacher")
    evaluate(base, monkeypatch)  # it is gone, and another was never there
    run_main(tiny(base / "teacher", *words, "optim.lr=0.01"))
    with pytest.raises(UserError, match="smoothed/seed0: learned from another teacher than run "):
        evaluate(base, monkeypatch)


def test_an_unfinished_run_is_not_scored(study, monkeypatch):
    from graft.runtime import checkpoint
    cfg = tiny(study / "unfinished", "train.duration=10st")
    run_main(cfg)
    path = checkpoint.path_of(cfg.run_dir, 10)
    info = json.loads((path / "trainer.json").read_text()) | {"final": False, "total_steps": 20}
    (path / "trainer.json").write_text(json.dumps(info))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["trainer.json"] = {"size": (path / "trainer.json").stat().st_size,
                                "sha256": checkpoint.sha256(path / "trainer.json")}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not finished, its newest checkpoint is step 10 of 20"):
        evaluate(study, monkeypatch, "--conditions", "baseline", "unfinished")


@pytest.mark.slow
def test_two_processes_score_every_example_once(study, monkeypatch):
    found = evaluate(study, monkeypatch)
    for file in study.glob("*/seed*/eval/*"):
        file.unlink()
    # 360 test and 144 validation images over 2 processes in batches of 7: neither divides
    done = subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                           "configs/accelerate/cpu2.yaml", "scripts/eval_checkpoints.py",
                           "--base_dir", str(study), "--conditions", "baseline", "smoothed", "--output",
                           str(study / "two.json")], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = results.read_results(study / "two.json")
    for name, condition in two["conditions"].items():
        for ours, theirs in zip(condition["runs"], found["conditions"][name]["runs"], strict=True):
            assert ours["metrics"]["accuracy"] == theirs["metrics"]["accuracy"] and ours["n"] == theirs["n"]
            a, b = (pd.read_parquet(study / run["examples"]) for run in (ours, theirs))
            assert (a["index"] == b["index"]).all() and (a["prediction"] == b["prediction"]).all()
