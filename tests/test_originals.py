"""The presets of the original study hold the published values."""

from pathlib import Path

import pytest

from graft import config
from graft.config import parts
from graft.config.options import Config, Part
from graft.config.schema import to_steps
from graft.tasks._task import Task
from graft.training.terms import weight_at
from small import ROOT

CONFIGS = ROOT / "configs"
ORIGINALS = sorted(CONFIGS.glob("original/*.yaml"))


def original(name: str, *overrides: str) -> Config:
    return config.load([CONFIGS / f"original/{name}.yaml"], overrides)


# Preset: epochs, images per GPU, rate, weight decay, warm-up, last rate, SWA rate, patience, parameters.
PUBLISHED = {
    "cifar": (200, 128, 0.1, 5e-4, 10, 1e-4, 5e-4, 10, 17_629_514),
    "cifar_improved": (40, 2048, 0.8, 5e-4, 5, 1e-5, 5e-4, 15, 17_629_514),
    "mnist": (10, 64, 1e-3, 5e-4, 5, 1e-4, 5e-4, 10, 709_034),
    "mnist_improved": (20, 4096, 0.08, 5e-4, 2, 1e-5, 5e-4, 20, 709_034),
    "mnist_test": (3, 64, 1e-3, 5e-4, 1, 1e-4, 0, 0, 709_034),
    "resnet18_cifar": (200, 512, 0.1, 5e-4, 5, 1e-5, 1e-3, 20, 11_173_962),
    "convnext_v2_cifar": (100, 512, 1e-3, 0.05, 5, 1e-6, 1e-4, 15, 27_870_000),
    "vit_cifar": (100, 1024, 2e-3, 0.05, 10, 1e-5, 0, 20, 4_338_346),
    "vit_mnist": (50, 1024, 1e-3, 0.05, 5, 1e-5, 0, 15, 3_921_325),
    "deit_cifar": (100, 4096, 4e-3, 0.05, 10, 1e-5, 0, 20, 4_340_660),
    "deit_mnist": (50, 1024, 1e-3, 0.05, 5, 1e-5, 0, 15, 3_923_639),
    "deit_resnet18_distill": (200, 1024, 5e-4, 0.05, 10, 1e-6, 1e-4, 20, 5_365_076),
    "deit_convnext_distill": (200, 1024, 5e-4, 0.05, 10, 1e-6, 1e-4, 20, 5_365_076),
    "deit_ss_distill_cifar": (100, 256, 1e-3, 0.05, 10, 1e-5, 0, 20, 4_340_660),
    "deit_ss_distill_cifar_ablation_ce_only": (100, 256, 1e-3, 0.05, 10, 1e-5, 0, 20, 4_340_660),
    "deit_ss_distill_cka_cifar": (200, 2048, 1e-3, 0.05, 10, 1e-6, 1e-4, 20, 5_365_076),
    "deit_ss_distill_cka_cls_cifar": (200, 512, 5e-4, 0.05, 10, 1e-6, 0, 20, 5_365_076),
    "deit_ss_distill_gram_ablation": (200, 512, 5e-4, 0.05, 10, 1e-6, 1e-4, 20, 5_365_076),
}


def test_all_presets_are_there():
    assert {path.stem for path in ORIGINALS} == PUBLISHED.keys() and len(PUBLISHED) == 18


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_values(name):
    epochs, batch, lr, decay, warmup, min_lr, swa_lr, patience, parameters = PUBLISHED[name]
    cfg = original(name)
    train, optim = cfg.train, cfg.optim
    assert (train.duration, train.batch_size, train.stop_after) == (f"{epochs}ep", batch, patience)
    assert (optim.lr, optim.weight_decay, optim.warmup, optim.min_lr) == (lr, decay, f"{warmup}ep", min_lr)
    assert (train.average, train.swa_lr) == ("swa" if swa_lr else "none", swa_lr)
    assert (cfg.seed, optim.schedule, optim.clip, optim.decay, train.precision) == (42, "cosine", 1.0, "all", "bf16")
    assert train.eval_every == "1ep", "patience counts epochs"
    assert cfg.objective[0].args == {"smoothing": 0.1, "smooth_soft": False}
    grey = cfg.task.name == "mnist"
    task = Task(cfg.task.name, "", {}, [str(k) for k in range(10)], 1 if grey else 3, 28 if grey else 32,
                [0.5] * (1 if grey else 3), [0.25] * (1 if grey else 3), {})
    args = cfg.student.args | ({"pretrained": False} if "pretrained" in cfg.student.args else {})
    part = Part(cfg.student.name, args)
    built = sum(p.numel() for p in parts.build("students", part, task).parameters())
    assert built == parameters or (name == "convnext_v2_cifar" and abs(built - parameters) < 5000)


AUTO = ["crop", "flip", "autoaugment", "cutout"]
RAND = ["crop", "flip", "color_jitter", "randaugment", "cutout"]


@pytest.mark.parametrize("name, expected", [
    ("cifar", ["crop", "flip", "color_jitter", "cutout"]), ("mnist", []),
    ("mnist_improved", ["rotation", "affine", "cutout"]),
    ("resnet18_cifar", [*AUTO, "cutmix"]), ("vit_cifar", [*RAND, "mixup"]), ("deit_cifar", [*RAND, "mixup"]),
    ("deit_mnist", ["rotation", "affine", "randaugment", "cutout"]), ("deit_resnet18_distill", [*AUTO, "cutmix"]),
    ("deit_ss_distill_cifar", [*RAND, "mixup"]), ("deit_ss_distill_cka_cifar", [*AUTO, "mix"]),
    ("deit_ss_distill_cka_cls_cifar", AUTO), ("deit_ss_distill_gram_ablation", AUTO),
])
def test_presets_have_the_published_augmentation(name, expected):
    assert [part.name for part in original(name).augment] == expected


def test_the_headline_run_of_exp3_is_the_preset_with_the_overrides_of_its_comment():
    text = (CONFIGS / "original/deit_ss_distill_cka_cifar.yaml").read_text()
    mixing = next(line[1:].strip().strip("'") for line in text.splitlines() if line.startswith("#   'augment="))
    cfg = original("deit_ss_distill_cka_cifar", mixing, "train.batch_size=512", "optim.lr=5.0e-4")
    assert "train.batch_size=512" in text and "optim.lr=5.0e-4" in text
    assert cfg.augment == original("deit_ss_distill_cka_cls_cifar").augment


@pytest.mark.parametrize("name, start, end", [
    ("deit_cifar", 0.0, 0.6), ("deit_mnist", 0.0, 0.5), ("deit_resnet18_distill", 0.5, 0.5),
    ("deit_convnext_distill", 0.5, 0.5),
])
def test_presets_share_the_weight_between_labels_and_teacher(name, start, end):
    """(1 - alpha) ce + alpha kd with alpha 0 for five epochs, then from `start` to `end` along a cosine."""
    terms, per_epoch, total = original(name).objective, 10, 10 * int(original(name).train.duration[:-2])
    at = lambda step: [weight_at(term, step, total, per_epoch) for term in terms]  # noqa: E731
    assert [term.name for term in terms] == ["ce", "kd"]
    assert at(0) == at(49) == [1.0, 0.0]
    assert at(50) == pytest.approx([1 - start, start]) and at(total - 1) == pytest.approx([1 - end, end])
    assert all(sum(at(step)) == pytest.approx(1) for step in range(total))
    middle = at(50 + (total - 51) // 2)[1]
    assert middle == pytest.approx((start + end) / 2, abs=0.01)
    assert terms[1].args["mode"] == ("soft" if start else "hard") and terms[1].args["tau"] == (4.0 if start else 3.0)


def test_presets_name_their_teachers():
    of = {path.stem: config.load([path]).teacher for path in ORIGINALS}
    runs = {name: Path(teacher.args["path"]) for name, teacher in of.items() if teacher.name == "run"}
    assert {name: path.name for name, path in runs.items()} == {
        "deit_cifar": "cifar_improved", "deit_mnist": "mnist_improved", "deit_resnet18_distill": "resnet18_cifar",
        "deit_convnext_distill": "convnext_v2_cifar"}
    assert all(path.parent == Path("experiments/original") and path.name in PUBLISHED for path in runs.values())
    for name in (name for name in of if "ss_distill" in name):
        assert of[name].view == "unaligned" and of[name].args["norm_layers"] and of[name].args["size"] == 224


@pytest.mark.parametrize("name, expected", [
    ("deit_ss_distill_cifar", {"token": (1.0, [6, 11], 0), "correlation": (0.1, [], 10)}),
    ("deit_ss_distill_cifar_ablation_ce_only", {"token": (0.0, [6, 11], 0), "correlation": (0.0, [], 10)}),
    ("deit_ss_distill_cka_cifar", {"token": (0.5, [3, 6, 9, 11], 0), "correlation": (0.05, [], 10),
                                   "cka": (0.5, [3, 6, 9, 11], 5)}),
    ("deit_ss_distill_cka_cls_cifar", {"token": (0.5, [8, 9, 10, 11], 0), "correlation": (0.05, [], 10),
                                       "cka": (1.0, [8, 9, 10, 11], 5)}),
    ("deit_ss_distill_gram_ablation", {"token": (0.5, [3, 6, 9, 11], 0), "correlation": (0.05, [], 10),
                                       "gram": (0.5, [3, 6, 9, 11], 0)}),
])
def test_presets_have_the_published_structural_terms(name, expected):
    terms = {term.name: term for term in original(name).objective[1:]}
    assert {key: (term.weight, term.layers, to_steps(term.warmup, 1)) for key, term in terms.items()} == expected
    assert all(term.tokens == ("cls" if name.endswith("cls_cifar") else "patch") for term in terms.values())
    assert all(term.args.get("project", "both") == "both" for term in terms.values())
    if cka := terms.get("cka"):
        assert (cka.args["estimator"], cka.args["normalize"], cka.args["eps_inside"]) == ("biased", True, True)
