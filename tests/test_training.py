"""The real training scripts, small: golden steps, parity between arms, independence of the batch's division."""

import copy
import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from graft import config
from graft.config import parts
from graft.errors import NonFinite, UserError
from graft.runtime import checkpoint
from graft.training.optim import lr_at
from small import BASE, assert_same_training, launch, run_main, tiny, weights

AUGMENT = "augment=[{name: flip}, {name: crop, padding: 1}, {name: cutmix, alpha: 1.0}]"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A finished run to learn from: 5 steps of a small CNN."""
    folder = tmp_path_factory.mktemp("teacher") / "cnn"
    run_main(tiny(folder, "student={name: cnn, arch: small}", "train.duration=5st"))
    return folder / "seed0"


def distill(teacher: Path, weight: float = 0.5) -> list[str]:
    return [f"teacher={{name: run, path: {teacher}}}",
            f"objective=[{{name: ce, smoothing: 0.1}}, {{name: kd, weight: {weight}, tau: 2.0}}]"]


def structural(teacher: Path) -> list[str]:
    return [f"teacher={{name: run, path: {teacher}, view: aligned}}", "student.patch=4", "train.compile=none",
            "objective=[{name: ce}, {name: token, weight: 0.5}, {name: gram, weight: 0.5}]"]


# Loss, gradient norm and learning rate of three steps. If a change moves these on purpose, say why in the
# commit; if it was a refactoring, it was not one.
GOLDEN = {
    "baseline": [(2.570721, 3.698318), (2.549052, 2.739309), (2.407253, 1.14157)],
    "distill": [(2.630061, 3.926528), (2.626555, 3.13325), (2.451958, 1.269485)],
    "ss_distill": [(2.959368, 4.004829), (2.928728, 2.98382), (2.863607, 1.857439)],
    "ssl_teacher": [(2.008453, 12.581083), (1.402796, 4.723248), (1.518087, 8.412326)],
}


def close(rows: list[dict], golden: list[tuple[float, float]]) -> None:
    found = [(row["train/loss"], row["train/grad_norm"]) for row in rows if "train/loss" in row]
    assert found == [pytest.approx(pair, rel=2e-4) for pair in golden], found


def test_golden_baseline(tmp_path):
    close(run_main(tiny(tmp_path / "x", AUGMENT)), GOLDEN["baseline"])


def test_golden_distill(tmp_path, teacher):
    close(run_main(tiny(tmp_path / "x", *distill(teacher), method="distill")), GOLDEN["distill"])


def test_golden_ss_distill(tmp_path, teacher):
    close(run_main(tiny(tmp_path / "x", *structural(teacher), method="ss_distill")), GOLDEN["ss_distill"])


def test_golden_ssl_teacher(tmp_path):
    close(run_main(tiny(tmp_path / "x", "ssl.prototypes=32", "ssl.hidden=32", "ssl.bottleneck=16",
                        method="ssl_teacher")), GOLDEN["ssl_teacher"])


def test_an_ablation_is_the_method_with_the_printed_lines_changed(tmp_path, teacher, capsys):
    method = tmp_path / "method.yaml"
    method.write_text(f"method: distill\nteacher: {{name: run, path: {teacher}}}\n"
                      "objective: [{name: ce}, {name: kd, weight: 0.5}]\n")
    ablation = tmp_path / "ablation.yaml"
    ablation.write_text("objective: {kd: {weight: 0.25}}\n")
    from dataclasses import replace
    plain = tiny(tmp_path / "x")
    files = (str(BASE), str(method), str(ablation))
    overrides = ("student.dim=16", "student.depth=2", "student.heads=2", "task.subset=160", "train.batch_size=32",
                 "optim.warmup=1st", "train.duration=2st", "train.tensorboard=false", "train.log_every=1")
    cfg = replace(config.load(files, overrides, output_dir=plain.output_dir), files=files, overrides=overrides)
    script = importlib.import_module("graft.train_ablation")
    script.print_difference(cfg)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [["objective.kd.weight", "0.5", "->", "0.25"]]
    script.main(cfg)
    with pytest.raises(UserError, match="changes nothing"):
        script.print_difference(replace(cfg, files=(*files, str(ablation))))


def test_distillation_of_weight_zero_is_the_baseline_bit_for_bit(tmp_path, teacher):
    run_main(tiny(tmp_path / "a", AUGMENT))
    cfg = tiny(tmp_path / "b", AUGMENT, *distill(teacher, weight=0.0), method="distill")
    run_main(cfg)
    assert weights(tmp_path / "a/seed0") == weights(tmp_path / "b/seed0")


def test_a_term_that_starts_later_leaves_the_steps_before_it_alone(tmp_path, teacher):
    long = "train.duration=4st"
    late = ["objective=[{name: ce, smoothing: 0.1}, {name: kd, weight: 0.5, warmup: 3st}]"]
    plain, later = run_main(tiny(tmp_path / "a", long)), run_main(
        tiny(tmp_path / "b", *distill(teacher)[:1], *late, long, method="distill"))
    losses = [[row["train/loss"] for row in rows if "train/loss" in row] for rows in (plain, later)]
    assert losses[0][:3] == losses[1][:3] and losses[0][3] != losses[1][3]


def divided(tmp_path: Path, teacher: Path, *extra: str) -> list[str]:
    """What must not depend on how the batch of 32 is divided.

    Drop-path would, its masks are drawn per micro-batch. SGD, because Adam blows rounding up to full steps where the
    gradient is zero but for rounding, as it is for the keys' bias.
    """
    return [AUGMENT, *distill(teacher), "student.drop_path=0", "train.duration=4st", "optim.name=sgd", "optim.lr=0.1",
            *extra]


def test_accumulation_does_not_change_the_training(tmp_path, teacher):
    run_main(tiny(tmp_path / "a", *divided(tmp_path, teacher), method="distill"))
    run_main(tiny(tmp_path / "b", *divided(tmp_path, teacher, "train.accumulate=4"), method="distill"))
    assert_same_training(tmp_path / "a/seed0", tmp_path / "b/seed0")


def test_accumulation_does_not_change_a_self_supervised_teacher(tmp_path):
    """Its average and its centre move once a step, not once a micro-batch."""
    words = ["ssl.prototypes=32", "ssl.hidden=32", "ssl.bottleneck=16", "train.duration=4st", "optim.name=sgd",
             "optim.lr=0.1", "student.drop_path=0"]
    for name, accumulate in (("a", 1), ("b", 4)):
        run_main(tiny(tmp_path / name, *words, f"train.accumulate={accumulate}", method="ssl_teacher"))
    assert_same_training(tmp_path / "a/seed0", tmp_path / "b/seed0")


def test_an_average_has_the_statistics_of_its_model():
    from graft.train_ssl_teacher import follow
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = copy.deepcopy(model)
    model(torch.randn(16, 3) + 5)
    follow([average], [model], 0.9)
    assert torch.equal(average[1].running_mean, model[1].running_mean) and average[1].running_mean.abs().sum() > 0


@pytest.mark.slow
def test_two_processes_do_not_change_the_training(tmp_path, teacher):
    rows = run_main(tiny(tmp_path / "a", *divided(tmp_path, teacher), method="distill"))
    overrides = [*divided(tmp_path, teacher, "train.accumulate=2"), "method=distill"]
    done = launch("train_distill.py", tmp_path / "b", *overrides, processes=2)
    assert done.returncode == 0, done.stderr
    assert "on 2 × cpu" in done.stdout
    assert_same_training(tmp_path / "a/seed0", tmp_path / "b/seed0")
    from graft.training.journal import read
    other = read(tmp_path / "b/seed0/metrics.jsonl")
    assert [r["lr"] for r in rows if "lr" in r] == [r["lr"] for r in other if "lr" in r]
    for one, two in zip(rows, other):
        assert one == {k: pytest.approx(v, rel=1e-3) if "second" not in k else one[k] for k, v in two.items()}


@pytest.mark.parametrize("schedule", ["cosine", "step", "exponential", "cyclic", "constant", "plateau"])
def test_learning_rate_is_a_function_of_the_step(schedule):
    cfg = config.load([BASE], [f"optim.schedule={schedule}", "optim.warmup=10st", "optim.lr=0.4", "optim.min_lr=0.04",
                               "optim.period=20st", "optim.gamma=0.5"])
    rates = [lr_at(step, cfg.optim, cfg.train, 10, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.04 * (k + 1) for k in range(10)])
    last = {"cosine": 0.04, "step": 0.4 * 0.5**4, "exponential": 0.4 * 0.5 ** (89 / 20), "constant": 0.4,
            "cyclic": 0.04 + 0.36 * 0.1, "plateau": 0.4}
    assert rates[-1] == pytest.approx(last[schedule])
    if schedule == "cosine":  # the closed form, and torch's own scheduler over the same steps
        reference = torch.optim.SGD([torch.zeros(1)], lr=0.4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=89, eta_min=0.04)
        for rate in rates[10:]:
            assert rate == pytest.approx(reference.param_groups[0]["lr"])
            reference.step()
            scheduler.step()


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
def test_a_non_finite_loss_stops_before_the_update(tmp_path, teacher, monkeypatch, optimizer):
    """NaN teacher logits in the third step: the message names the step and the term, the weights stay as they were."""
    overrides = [*distill(teacher), "train.duration=6st", "train.checkpoint_every=2st", f"optim.name={optimizer}"]
    real, calls = parts.build, []

    def poisoned(kind, part, *given):
        built = real(kind, part, *given)
        if kind == "teachers":
            forward = built.forward

            def breaking(*args, **kwargs):
                out = forward(*args, **kwargs)
                calls.append(1)
                if len(calls) == 3:
                    out.logits[0, 0] = float("nan")
                return out
            built.forward = breaking
        return built

    monkeypatch.setattr(parts, "build", poisoned)
    cfg = tiny(tmp_path / "x", *overrides, method="distill")
    with pytest.raises(NonFinite, match=r"^step 2: not finite .* kd=nan .*last checkpoint: step 2$"):
        run_main(cfg)
    assert (cfg.run_dir / "status.json").read_text().count('"failed"') == 1
    assert all(b"nan" not in name.encode() for name in weights(cfg.run_dir))
    # and the same command goes on from there
    monkeypatch.setattr(parts, "build", real)
    assert run_main(cfg)[-1]["step"] == 6


def test_weights_that_an_update_overflowed_are_not_saved(tmp_path):
    """The gradients were finite; with no validation nothing else looks."""
    from graft.runtime import checkpoint
    cfg = tiny(tmp_path / "x", "task.val_fraction=0", "train.duration=2st", "train.checkpoint_every=1st",
               "optim.lr=1e39", "optim.schedule=constant", "optim.warmup=0")
    with pytest.raises(NonFinite, match=r"^step 1: model\.\S+ is not finite .*last checkpoint: step none$"):
        run_main(cfg)
    status = json.loads((cfg.run_dir / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3) and not checkpoint.steps(cfg.run_dir)
    good = {"model": {"w": torch.ones(2), "n": torch.ones((), dtype=torch.int64), "none": torch.ones(0)}}
    checkpoint.save(tmp_path, 1, good, {"state": {0: {"exp_avg": torch.ones(3)}}}, {}, 2)
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = torch.tensor([1.0, bad, 2.0])
        for tensors, optimizer, name in (
                ({**good, "average": {"w": broken}}, {}, "average.w"),
                (good, {"state": {0: {"exp_avg": broken.bfloat16()}}}, "optim.state.0.exp_avg")):
            with pytest.raises(NonFinite, match=f"^step 2: {name} is not finite .*last checkpoint: step 1$"):
                checkpoint.save(tmp_path, 2, tensors, optimizer, {}, 2)
    assert sorted(path.name for path in tmp_path.glob("*check*")) == ["checkpoint-1"]
    checkpoint.save(tmp_path, 2, {"model": {"w": torch.full((4,), 3e38)}}, {}, {}, 2)  # large, and finite


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_averaged_weights_are_scored_and_exported(tmp_path, average):
    from graft.runtime import checkpoint
    cfg = tiny(tmp_path / "x", f"train.average={average}", "train.duration=10st", "train.swa_start=50%",
               "train.eval_every=5st", "student={name: cnn, arch: small}")
    rows = run_main(cfg)
    assert "val_average/accuracy" in rows[-1]
    state, info = checkpoint.load_model(cfg.run_dir)
    last, _ = checkpoint.load_model(cfg.run_dir, "last")
    assert info["weights"] == "average"
    assert any(not torch.equal(state[k], last[k]) for k in state)


def test_an_average_has_batchnorm_statistics_for_odd_batches_too(tmp_path):
    run_main(tiny(tmp_path / "x", "student={name: cnn, arch: small}", "train.average=ema", "train.batch_size=53"))
    tensors, _, _ = checkpoint.load(checkpoint.newest(tmp_path / "x/seed0"))
    measured = {name: value for name, value in tensors["average"].items() if name.endswith("running_var")}
    assert len(measured) == 3 and all((value - 1).abs().max() > 0.1 for value in measured.values())


def test_swa_is_the_mean_of_the_epochs_weights():
    from graft.training.optim import Average
    cfg = config.load([BASE], ["train.average=swa", "train.swa_start=4st"])
    model = torch.nn.Linear(1, 1)
    average = Average(model, cfg.train, 3, 12)
    for step in range(1, 13):
        torch.nn.init.constant_(model.weight, float(step))
        average.update(model, step)
        assert average.ready(step) == (step >= 6)
        assert step > 6 or average.model.weight.item() == step, "until then it is the weights, never the initial ones"
    assert average.model.weight.item() == pytest.approx((6 + 9 + 12) / 3)
    for start, length in (("4st", 5), ("200%", 12), ("0st", 2)):
        cfg = config.load([BASE], ["train.average=swa", f"train.swa_start={start}"])
        with pytest.raises(UserError, match=f"train.swa_start: {start}: .* of {length}; expected an earlier start"):
            Average(model, cfg.train, 3, length)


def test_bf16_trains(tmp_path, teacher):
    rows = run_main(tiny(tmp_path / "x", *structural(teacher), "train.precision=bf16", method="ss_distill"))
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses == [pytest.approx(loss, rel=0.02) for loss, _ in GOLDEN["ss_distill"]]


def test_tensorboard_is_a_view_of_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    cfg = tiny(tmp_path / "x", "train.tensorboard=true")
    rows = run_main(cfg)
    board = EventAccumulator(str(cfg.run_dir / "tensorboard"))
    board.Reload()
    assert [e.value for e in board.Scalars("train/loss")] == pytest.approx([r["train/loss"] for r in rows if "lr" in r])
    assert board.Scalars("final/accuracy")[0].value == pytest.approx(rows[-1]["val/accuracy"])
    assert set(board.Tags()["images"]) == {"val/confusion", "val/class_attention"}
    assert list((cfg.run_dir / "tensorboard").iterdir()) == [next((cfg.run_dir / "tensorboard").glob("events*"))]


def test_early_stopping_and_plateau(tmp_path):
    cfg = tiny(tmp_path / "x", "train.duration=30st", "train.eval_every=1st", "train.stop_after=2", "optim.lr=1e-9",
               "optim.min_lr=1e-10", "train.min_delta=10.0", "optim.schedule=plateau", "optim.patience=1")
    rows = run_main(cfg)
    assert rows[-1]["step"] == 3  # the first is the best, two after it are no better
    assert run_main(cfg)[-1]["step"] == 3, "a run that stopped early is done"


def test_without_a_validation_split_nothing_is_scored(tmp_path):
    rows = run_main(tiny(tmp_path / "x", "task.val_fraction=0", "train.eval_every=1st"))
    assert not any(key.startswith("val") for row in rows for key in row)
    with pytest.raises(UserError, match="val_fraction: 0 leaves nothing to decide early stopping"):
        run_main(tiny(tmp_path / "y", "task.val_fraction=0", "train.eval_every=1st", "train.stop_after=2"))


@pytest.mark.parametrize("overrides, says", [
    (["train.batch_size=1024"], "is more than the 160 training images"),
    (["optim.warmup=1ep"], "not shorter than the 3 steps"),
])
def test_what_only_the_data_can_tell(tmp_path, overrides, says):
    with pytest.raises(UserError, match=says):
        run_main(tiny(tmp_path / "x", *overrides))


@pytest.mark.parametrize("overrides, says", [
    (["train.batch_size=1", "student={name: cnn, arch: small}"], "BatchNorm needs at least 2 images in a micro-batch"),
    (["train.batch_size=20", "train.accumulate=4", "augment=[{name: mixup}]"], "per micro-batch, got 5"),
    (["augment=[{name: cutmix}, {name: flip}]"], "flip comes after an operation that mixes"),
    (["objective=[{name: ce}, {name: attention, target: uniform, layers: [0], warmup: 9st}]", "train.duration=8st"],
     "objective.1.warmup: 9st is not shorter than the 8 steps of the run; attention would never count"),
    (["augment=[{name: resized_crop, scale: [0.5, 0.2]}]"], r"resized_crop.scale: expected"),
])
def test_what_the_first_step_would_refuse_a_dry_run_refuses(tmp_path, overrides, says):
    for dry in (True, False):
        with pytest.raises(UserError, match=says):
            run_main(replace(tiny(tmp_path / "x", *overrides), dry_run=dry))


def test_a_dry_run_sees_that_a_file_is_in_the_folders_place(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UserError, match=r"output_dir: .*x: is a file"):
        run_main(replace(tiny(tmp_path / "x"), dry_run=True))
    assert (tmp_path / "x").read_text() == "mine"


def test_dry_run_touches_nothing(tmp_path, capsys):
    from dataclasses import replace
    run_main_of = importlib.import_module("graft.train_baseline").main
    run_main_of(replace(tiny(tmp_path / "x"), dry_run=True))
    assert not (tmp_path / "x").exists()
