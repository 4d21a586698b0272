"""Forensics scripts on tiny runs: what is written is what the probes say of the saved weights, and verdicts follow."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t

import analyze
import analyze_locality
import eval_checkpoints
from graft import keyed
from graft.config import parts
from graft.errors import UserError
from graft.evaluation import forensics, rebuild
from graft.probes import attention, hypotheses, similarity
from graft.reporting import stats
from graft.runtime import checkpoint
from graft.training.run import Run
from small import run_main, tiny


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Two seeds without a teacher, two that learned from a small CNN, and one of another student."""
    base = tmp_path_factory.mktemp("experiments") / "small"
    run_main(tiny(base / "cnn_teacher", "student={name: cnn, arch: small}"))
    logits = ["method=distill", f"teacher={{name: run, path: {base}/cnn_teacher/seed0}}",
              "objective=[{name: ce}, {name: kd, weight: 0.5, tau: 2.0}]"]
    for seed in (0, 1):
        run_main(tiny(base / "baseline", seed=seed))
        run_main(tiny(base / "distill", *logits, seed=seed))
    run_main(tiny(base / "coarse", "student.patch=4"))
    return base


def call(main, monkeypatch, *argv) -> dict:
    monkeypatch.setattr(sys, "argv", ["script", *map(str, argv)])
    main()
    return json.loads(Path(argv[argv.index("--output") + 1]).read_text())


def locality(study, tmp_path, monkeypatch, *argv) -> dict:
    return call(analyze_locality.main, monkeypatch, "--base_dir", study, "--output", tmp_path / "forensics.json",
                "--images", 50, "--cka_images", 60, "--batch_size", 32, *argv)


def rebuilt(study: Path, condition: str, seed: int, *overrides: str):
    """A run's student and the fixed images, without the scripts."""
    cfg = tiny(study / condition, *overrides, seed=seed)
    task = parts.build("tasks", cfg.task)
    student = parts.build("students", cfg.student, task)
    student.load_state_dict(checkpoint.load_model(study / condition / f"seed{seed}")[0])
    images = task.splits["test"].images.float() / 255
    return student, images[keyed.permutation(keyed.key("probe images"), len(images))]


def test_forensics_of_a_study(study, tmp_path, monkeypatch, capsys):
    found = locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "distill", "--cnn", "distill")
    assert found["schema_version"] == 1 and found["roles"] == {"baseline": "baseline", "cnn": "distill"}
    assert found["data"]["n"] == {"attention": 50, "cka": 60} and found["data"]["split"] == "test"
    student, images = rebuilt(study, "distill", 1)
    heads = attention.head_statistics(student, [images[:50]])
    run = found["conditions"]["distill"]["runs"][1]
    assert (run["seed"], run["n"], run["step"], run["grid"], run["prefix_tokens"]) == (1, 50, 3, [8, 8], 2)
    for name in ("mean_distance", "entropy", "cls_dispersion", "cls_self_attn"):
        assert run["per_layer_stats"]["1"][name] == pytest.approx(heads.values[name][1].tolist(), abs=1e-5)
    teacher, _ = rebuilt(study, "cnn_teacher", 0, "student={name: cnn, arch: small}")
    own = similarity.cka(student, student, [images[:60]])
    assert run["cka"]["self"]["cka"][0] == pytest.approx(own["cka"][0], abs=1e-5) and run["cka"]["self"]["n"] == 60
    theirs = similarity.cka(student, teacher, [images[:60]])
    assert run["cka"]["teacher"]["cka"] == [pytest.approx(row, abs=1e-5) for row in theirs["cka"]]
    assert found["conditions"]["baseline"]["runs"][0]["cka"]["teacher"] is None
    summary = found["conditions"]["distill"]["summary"]
    averages = [r["avg_attention_distance"] for r in found["conditions"]["distill"]["runs"]]
    assert summary["avg_attention_distance"] == stats.seed_summary(averages)
    assert averages[1] == pytest.approx(float(heads.image_distance.mean()), abs=1e-5)
    monkeypatch.setattr("graft.evaluation.locality.entry", lambda *a: pytest.fail("it was measured"))
    assert locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "distill", "--cnn", "distill") == found
    curved = locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "--hessian", 4)["conditions"]
    assert all("hessian" in run for run in curved["baseline"]["runs"]), "besides what was measured before"
    with pytest.raises(pytest.fail.Exception, match="it was measured"):
        locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "--split", "val")
    last = f"patch.{student.depth - 1}"
    radius = [r["receptive_field"]["layers"][last]["radius"] for r in found["conditions"]["distill"]["runs"]]
    assert summary["receptive_field_radius"] == stats.seed_summary(radius, stats.POSITIVE) and 0 < radius[0] < 4
    assert found["references"]["uniform"]["receptive_field_radius"] == pytest.approx(3.0939, abs=1e-4)
    assert found["references"]["uniform"]["mean_distance"] == pytest.approx(4.1365, abs=1e-4)
    assert set(found["references"]["teacher_cka"]["distill"]) == {"random_init", "baseline"}
    out = capsys.readouterr().out
    assert "| (uniform) | | 4.136 | 1 | 4.159 |" in out and "sharper_minima: cnn > baseline > ssl" in out


def test_curvature_is_of_what_claims_are_about(study, tmp_path, monkeypatch):
    found = locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "distill", "coarse", "--cnn", "distill",
                     "--hessian", 4)
    runs = {name: condition["runs"] for name, condition in found["conditions"].items()}
    assert [["hessian" in run for run in runs[name]] for name in found["order"]] == [[True] * 2, [True] * 2, [False]]
    assert [["spectrum" in run["hessian"] for run in runs[name]] for name in ("baseline", "distill")] == [
        [True, False]] * 2
    assert set(runs["distill"][1]["hessian"]) == set(runs["distill"][0]["hessian"]) - {
        "spectrum", "eigenvalues", "min_eigenvalue"}
    assert ["hessian_trace" in found["conditions"][name]["summary"] for name in found["order"]] == [True, True, False]
    asked = locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "coarse", "--hessian", 4,
                     "--hessian_conditions", "coarse")["conditions"]
    assert [["hessian" in run for run in asked[name]["runs"]] for name in asked] == [[False] * 2, [True]]
    with pytest.raises(UserError, match="--hessian_conditions: cnn is not among --conditions"):
        locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "--hessian_conditions", "cnn")


class Stop(Exception):
    """Raised where a run would begin to train."""


def test_the_untrained_reference_is_what_the_run_started_from(study, tmp_path, monkeypatch):
    started = {}

    def start(self, task, student, objective):
        started.update(student.state_dict())
        raise Stop

    runs = forensics.Runs(forensics.Settings((), "test", 9, 9, 0, "linear", 9, torch.device("cpu")), "auto")
    cfg = rebuild.trained(study / "distill/seed1").config
    state = torch.get_rng_state()
    untrained = runs.untrained(cfg).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(Run, "start", start)
    with pytest.raises(Stop):
        run_main(tiny(tmp_path / "again", seed=1))
    assert untrained.keys() == started.keys()
    assert all(torch.equal(untrained[name], value) for name, value in started.items())


def test_one_run_with_curvature(study, tmp_path, monkeypatch, capsys):
    pytest.importorskip("curvlinops")
    found = call(analyze.main, monkeypatch, "--run", study / "coarse/seed0", "--metrics", "hessian", "attention",
                 "--hessian_images", 16, "--images", 20, "--output", tmp_path / "a.json", "--split", "val")
    assert found["hessian"]["n"] == 16 and found["hessian"]["trace"]["standard_error"] > 0
    assert found["grid"] == [2, 2] and "cka" not in found and found["data"]["n"] == {"hessian": 16, "attention": 20}
    field = found["receptive_field"]["layers"]["patch.1"]
    assert 0 < field["radius"] < 8 and field["n"] == 20
    assert "hessian trace:" in capsys.readouterr().out


def test_the_same_images_whatever_the_batches(study, tmp_path, monkeypatch):
    several = [call(analyze.main, monkeypatch, "--run", study / "baseline/seed0", "--images", 40, "--cka_images", 40,
                    "--output", tmp_path / "a.json", "--batch_size", size) for size in (7, 64)]
    assert several[0]["avg_entropy"] == pytest.approx(several[1]["avg_entropy"], abs=1e-6)
    assert several[0]["cka"]["self"]["cka"][0] == pytest.approx(several[1]["cka"]["self"]["cka"][0], abs=1e-5)


def test_what_is_missing_is_named(study, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="nothing: no finished run"):
        locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "nothing")
    found = locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "nothing", "--allow_missing")
    assert list(found["conditions"]) == ["baseline"] and "left out nothing" in capsys.readouterr().out
    with pytest.raises(UserError, match="--ssl: ss_distill is not among --conditions"):
        locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "--ssl", "ss_distill")
    with pytest.raises(UserError, match="is no run's folder"):
        call(analyze.main, monkeypatch, "--run", study / "baseline", "--output", tmp_path / "a.json")
    with pytest.raises(UserError, match="--images: expected at least 1, got 0"):
        call(analyze.main, monkeypatch, "--run", study / "baseline/seed0", "--output", "a.json", "--images", 0)
    for words, match in ((["--hessian_images", -6, "--metrics", "hessian"], "--hessian_images: .* at least 1, got -6"),
                         (["--device", "nope"], "--device: nope: not here"),
                         (["--device", "cuda:99"], "--device: cuda:99: not here"),
                         (["--device", "meta"], "--device: meta: not here")):
        with pytest.raises(UserError, match=match) as caught:
            call(analyze.main, monkeypatch, "--run", study / "baseline/seed0", "--output", "a.json", *words)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--hessian: expected at least 0, got -6"):
        locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "--hessian", -6)
    with pytest.raises(UserError, match=r"no blocks\[i\]\.attn"):
        call(analyze.main, monkeypatch, "--run", study / "cnn_teacher/seed0", "--output", "a.json")


def test_another_student_is_pointed_out(study, tmp_path, monkeypatch, capsys):
    found = locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "coarse")
    warnings = found["conditions"]["coarse"]["warnings"]
    assert warnings == ["its student is another than that of the random_init reference"]
    assert found["conditions"]["coarse"]["runs"][0]["grid"] == [2, 2]
    assert "warning: coarse: its student" in capsys.readouterr().out


def test_accuracy_claim_from_results(study, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["eval", "--base_dir", str(study), "--conditions", "baseline", "distill",
                                      "--output", str(study / "results.json")])
    eval_checkpoints.main()
    found = locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "distill", "--cnn", "distill", "--ssl",
                     "baseline", "--results", study / "results.json", "--margin", "1.0")
    claim = found["hypotheses"][2]
    assert claim["name"] == "structure_equals_logits" and claim["legs"][0]["seeds"] == [2, 2]
    correct = hypotheses.correctness(study / "results.json", "test")
    difference = np.mean([correct["baseline"][s].mean() - correct["distill"][s].mean() for s in (0, 1)])
    assert claim["legs"][0]["difference"] == pytest.approx(difference)
    content = json.loads((study / "results.json").read_text())
    for run in content["conditions"]["distill"]["runs"]:
        run["checkpoint_sha256"] = "1" * 64
    (study / "old.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="small: distill, seed 0: another checkpoint than that of results"):
        locality(study, tmp_path, monkeypatch, "--conditions", "baseline", "distill", "--results", study / "old.json")


ROLES = {"cnn": "kd", "baseline": "base", "ssl": "dino"}


def example_values(means: dict[str, float], seeds=3, n=40, noise=0.01):
    rng = np.random.default_rng(0)
    return {name: {seed: mean + noise * rng.standard_normal(n) for seed in range(seeds)}
            for name, mean in means.items()}


@pytest.mark.parametrize(("means", "verdict"), [
    ({"kd": 3.0, "base": 3.5, "dino": 3.9}, "supported"),
    ({"kd": 3.9, "base": 3.5, "dino": 3.9}, "contradicted"),  # one leg is wrong
    ({"kd": 3.5, "base": 3.5, "dino": 3.9}, "undecided"),
])
def test_verdicts_of_an_order(means, verdict):
    distance = example_values(means)
    trace = {name: {seed: -float(values.mean()) for seed, values in of.items()} for name, of in distance.items()}
    found = hypotheses.of_the_original(ROLES, distance, trace, {}, 0.01)
    assert [h["verdict"] for h in found] == [verdict, verdict, "undecided"]
    first, second = found[0]["legs"]
    assert first["claim"] == "cnn < baseline" and (first["more"], first["less"]) == ("base", "kd")
    assert first["difference"] == pytest.approx(means["base"] - means["kd"], abs=0.01)
    assert second["difference"] == pytest.approx(means["dino"] - means["base"], abs=0.01)
    legs = found[1]["legs"]  # cnn > baseline > ssl
    assert legs[0]["claim"] == "cnn > baseline" and (legs[0]["more"], legs[0]["less"]) == ("kd", "base")
    per_seed = [trace["kd"][seed] - trace["base"][seed] for seed in range(3)]
    assert legs[0]["ci95"] == pytest.approx(stats.seed_summary(per_seed)["ci95"])


def test_unpaired_and_single_seeds():
    a, b = {0: 3.0, 1: 3.1, 2: 3.2}, {5: 1.0, 6: 1.2}
    found = hypotheses.of_seeds(a, b)
    s1, s2 = 0.1**2 / 3, 0.02 / 2  # Welch by hand: variances 0.01 and 0.02
    df = (s1 + s2) ** 2 / (s1**2 / 2 + s2**2 / 1)
    half = t.ppf(0.975, df) * (s1 + s2) ** 0.5
    assert not found["paired_seeds"] and found["ci95"] == pytest.approx([2 - half, 2 + half])
    single = example_values({"kd": 3.0, "base": 3.5, "dino": 3.9}, seeds=1)
    claim = hypotheses.of_the_original(ROLES, single, {}, {}, 0.01)[0]
    assert claim["verdict"] == "undecided" and "one seed" in claim["reason"]
    assert claim["legs"][0]["difference"] == pytest.approx(0.5, abs=0.01)
    nothing = hypotheses.of_the_original({"baseline": "base"}, example_values({"base": 3.0}), {}, {}, 0.01)
    assert [h["verdict"] for h in nothing] == ["undecided"] * 3
    assert nothing[0]["reason"] == "no attention_distance for the role cnn, ssl"


@pytest.mark.parametrize(("a", "b"), [
    ({0: 4.0, 1: 5.0}, {0: 5.0, 1: 6.0}),  # the same difference twice
    ({0: 0.1, 1: 0.2}, {0: 0.2, 1: 0.3}),  # up to rounding
    ({0: 4.0, 1: 4.0}, {5: 6.0, 6: 6.5, 7: 7.0}),  # unpaired, one side without spread
    ({0: 4.0, 1: 4.0, 2: 4.0}, {3: 6.0, 4: 6.0})])
def test_seeds_without_spread_decide_nothing(a, b):
    roles = {"cnn": "kd", "baseline": "base"}
    claim = hypotheses.order("x", "t", roles, "cnn < baseline", {"kd": a, "base": b}, hypotheses.of_seeds)
    assert claim["verdict"] == "undecided" and "without spread" in claim["reason"]
    assert claim["legs"][0]["ci95"] == [None, None] and claim["legs"][0]["scope"] == "checkpoints"
    images = {name: {seed: np.full(9, value) for seed, value in of.items()} for name, of in (("kd", a), ("base", b))}
    claim = hypotheses.order("x", "t", roles, "cnn < baseline", images, hypotheses.of_images)
    assert claim["verdict"] == "undecided" and "without spread" in claim["reason"]


@pytest.mark.parametrize(("difference", "verdict"), [(0.0, "supported"), (0.2, "contradicted"), (0.01, "undecided")])
def test_verdicts_of_equality(difference, verdict):
    rng = np.random.default_rng(1)
    base = rng.random(5000) < 0.9
    worse = base & (rng.random(5000) >= difference)
    correct = {"dino": dict.fromkeys(range(3), base), "kd": dict.fromkeys(range(3), worse)}
    claim = hypotheses.of_the_original(ROLES, {}, {}, correct, 0.01)[2]
    assert claim["verdict"] == verdict and claim["legs"][0]["margin"] == 0.01
