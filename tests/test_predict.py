"""Prediction of files and folders with real runs, and what Grad-CAM shows, for a CNN and for ViTs."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import eval_robustness
import predict
from graft import config
from graft.config import parts
from graft.config.options import Part
from graft.errors import UserError
from graft.evaluation import predictions, rebuild, robustness
from graft.evaluation.scoring import score
from graft.probes import saliency
from graft.probes._images import fixed_index
from graft.probes.corruptions import corrupt
from graft.runtime import checkpoint
from small import ROOT, run_main, tiny
from test_students import a_task, student

VITS = [{}, {"distilled": True}, {"stem": "conv"}]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny ViT and a tiny CNN, trained for a few steps on digits."""
    folder = tmp_path_factory.mktemp("study")
    cfgs = {"vit": tiny(folder / "vit"), "cnn": tiny(folder / "cnn")}
    cfgs["cnn"] = replace(cfgs["cnn"], student=Part("cnn", {"arch": "small", "variant": "cifar", "drop_path": 0.0,
                                                            "pretrained": False}))
    for cfg in cfgs.values():
        run_main(cfg)
    return folder


@pytest.fixture
def digits(tmp_path):
    """The first test images as PNG files, twice as large as the task's."""
    cfg = tiny(tmp_path)
    split = parts.build("tasks", cfg.task).splits["test"]
    for i in range(3):
        image = Image.fromarray(split.images[i, 0].numpy())
        (tmp_path / "images/deep").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "images" / ("deep" if i == 2 else ".") / f"{i}.png")
    return tmp_path / "images"


def call(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def model_of(run_dir):
    cfg = rebuild.trained(run_dir).config
    task = parts.build("tasks", cfg.task)
    model = parts.build("students", cfg.student, task)
    model.load_state_dict(checkpoint.load_model(run_dir)[0])
    return model.eval(), task


@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_files_and_folders(monkeypatch, runs, digits, tmp_path, capsys, kind):
    run_dir = runs / kind / "seed0"
    call(monkeypatch, predict, digits, digits / "0.png", "--run", run_dir, "--explain", "--out", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [str(digits / name) for name in ("0.png", "1.png", "deep/2.png")]
    model, task = model_of(run_dir)
    scored = score(model, task.splits["test"], torch.device("cpu"), 100)
    for i, row in enumerate(rows):
        assert row["class"] == task.classes[scored["prediction"][i]]
        assert row["confidence"] == pytest.approx(scored["confidence"][i], rel=1e-5)
        confidences = [other["confidence"] for other in row["top"]]
        assert len(confidences) == 5 and confidences == sorted(confidences, reverse=True)
        assert confidences[0] == row["confidence"] and sum(confidences) <= 1
        with Image.open(row["explanation"]) as image:
            assert image.width > 500 and np.asarray(image.convert("L")).std() > 10
    assert rows[0]["class"] in capsys.readouterr().out


def test_averaged_views_and_inversion(monkeypatch, runs, digits, tmp_path, capsys):
    out = {}
    for name, flags in {"plain": [], "tta": ["--tta"], "inverted": ["--invert"]}.items():
        call(monkeypatch, predict, digits / "0.png", "--run", runs / "vit/seed0", "--out", tmp_path / name, *flags)
        out[name] = json.loads((tmp_path / name / "predictions.jsonl").read_text())
    assert out["tta"]["confidence"] != out["plain"]["confidence"] != out["inverted"]["confidence"]
    assert out["tta"]["tta"] and not out["plain"]["tta"]
    pixels = predictions.read_image(digits / "0.png", a_task(1, 8), False)
    assert torch.equal(pixels, 255 - predictions.read_image(digits / "0.png", a_task(1, 8), True))
    capsys.readouterr()
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    call(monkeypatch, predict, tmp_path / "white.png", "--run", runs / "vit/seed0", "--out", tmp_path / "white")
    assert "mean brightness is 1.00, the run was trained on 0.3" in capsys.readouterr().out


def test_images_become_what_the_task_has(tmp_path):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30, 0] = 200  # the centred square is red
    Image.fromarray(wide).save(tmp_path / "wide.png")
    colour = predictions.read_image(tmp_path / "wide.png", a_task(3, 20), False)
    assert colour.shape == (3, 20, 20) and (colour[0] == 200).all() and not colour[1:].any()
    grey = predictions.read_image(tmp_path / "wide.png", a_task(1, 20), False)
    assert grey.shape == (1, 20, 20) and (grey == 60).all()  # 0.299 * 200
    assert predictions.read_image(tmp_path / "wide.png", a_task(3, 8), False).shape == (3, 8, 8)
    turned = Image.fromarray(np.repeat(np.arange(0, 200, 20, np.uint8)[:, None], 10, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    turned.save(tmp_path / "turned.png", exif=exif)
    assert predictions.read_image(tmp_path / "turned.png", a_task(1, 10), False)[0, 0, 0] == 180


def test_what_is_wrong_is_named(monkeypatch, tmp_path, runs):
    with pytest.raises(UserError, match=r"nothing\.png: no such file"):
        predictions.find_images([tmp_path / "nothing.png"])
    with pytest.raises(UserError, match="/dev/zero: expected an image file, got a pipe, a device or a folder"):
        predictions.find_images([Path("/dev/zero")])
    with pytest.raises(UserError, match=r"no images \(\.bmp, "):
        predictions.find_images([tmp_path])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png: is not an image"):
        call(monkeypatch, predict, tmp_path / "text.png", "--run", runs / "vit/seed0")
    with pytest.raises(UserError, match=r"is no run's folder"):
        call(monkeypatch, predict, tmp_path / "text.png", "--run", tmp_path)
    with pytest.raises(UserError, match="no finished run"):
        predictions.newest_run(tmp_path)
    for name, second in {"a/seed0": 2, "b/seed0": 3, "c/seed0": 1, "b/seed0_old": 5, "d/seed0": 6}.items():
        shutil.copytree(runs / "vit/seed0", tmp_path / "study" / name)
        (tmp_path / "study" / name / "status.json").write_text(
            json.dumps({"state": "done", "time": f"2026-01-01T00:00:0{second}+00:00"}))
    (tmp_path / "study/d/seed0/status.json").write_text('{"state": "do')
    assert predictions.newest_run(tmp_path) == tmp_path / "study/b/seed0"


# ------------------------------------------------------------------------------------------------ Grad-CAM

class _OneStage(nn.Module):
    """A linear CNN whose Grad-CAM is known: 1x1 convolution, mean, head."""

    def __init__(self):
        super().__init__()
        self.stage, self.head = nn.Conv2d(1, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
        self.num_classes, self.feature_info = 2, [{"module": "stage"}]
        self.stage.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        self.head.weight.data = torch.eye(2)

    def forward_intermediates(self, x, indices):
        x = self.stage(x)
        return x, [x for _ in indices]

    def forward_head(self, x, pre_logits=False):
        return x.mean((2, 3)) if pre_logits else self.head(x.mean((2, 3)))


def test_grad_cam_by_hand():
    """Class 0 is the mean brightness: its map is the image, and class 1, its opposite, has no evidence in it."""
    model = saliency.Backbone(_OneStage(), mean=[0.0], std=[1.0], image_size=4)
    image = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(saliency.grad_cam(model, image, torch.tensor([0]))[0], image[0, 0] / image.max())
    assert not saliency.grad_cam(model, image, torch.tensor([1])).any()


@pytest.mark.parametrize(("name", "args"), [*[("vit", args) for args in VITS], ("cnn", {"arch": "small"})])
def test_grad_cam_has_no_side_effects_and_depends_on_image_alone(name, args):
    task = a_task(1, 8)
    sizes = {"patch": 2, "dim": 24, "depth": 3, "heads": 2} if name == "vit" else {}
    model = student(name, task, **sizes, **args).train()
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        cam = saliency.grad_cam(model, images, torch.tensor([0, 3, 5]))
    assert cam.shape == (3, 8, 8) and not cam.requires_grad and cam.isfinite().all()
    assert ((cam >= 0) & (cam <= 1)).all()
    assert set(cam.amax((1, 2)).tolist()) <= {0.0, 1.0} and cam.any()
    alone = saliency.grad_cam(model, images[1:2], torch.tensor([3]))
    torch.testing.assert_close(alone[0], cam[1], atol=1e-4, rtol=1e-3)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_grad_cam_of_a_vit_is_that_of_its_last_blocks_input():
    """Recomputed from the blocks themselves, prefix tokens dropped by hand; a frozen model works too."""
    model = student("vit", a_task(1, 8), patch=2, dim=24, depth=3, heads=2, distilled=True).eval()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    vit = model.model
    tokens = vit.blocks[:2](vit._pos_embed(vit.patch_embed((images - model.mean) / model.std)))
    tokens = tokens.detach().requires_grad_()
    logit = vit.head(vit.norm(vit.blocks[2](tokens))[:, 0])[:, 4].sum()
    gradient, = torch.autograd.grad(logit, tokens)
    cam = (tokens * gradient[:, 2:].mean(1, keepdim=True))[:, 2:].sum(-1).clamp(min=0).view(2, 1, 4, 4).detach()
    expected = nn.functional.interpolate(cam, (8, 8), mode="bilinear")[:, 0]
    expected = expected / expected.amax((1, 2), keepdim=True)
    found = saliency.grad_cam(model.requires_grad_(False), images, torch.tensor([4, 4]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arch", ["test_vit", "test_vit2", "test_vit3", "test_resnet", "test_convnext", "test_nfnet",
                                  "swin_tiny_patch4_window7_224"])
def test_grad_cam_of_timm_models(arch):
    """With and without class token and registers, channels first and last."""
    model = student("timm", a_task(3, 64), arch=arch).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for k in range(10):
        cam = saliency.grad_cam(model, images, torch.tensor([k, k]))
        assert cam.shape == (2, 64, 64) and cam.isfinite().all() and cam.min() >= 0
        if cam.any():
            return
    raise AssertionError("no evidence for any class")


def test_grad_cam_refuses_blocks_that_need_positions_too():
    model = student("timm", a_task(3, 56), arch="eva02_tiny_patch14_224").eval()
    with pytest.raises(UserError, match="Eva: its last block needs more than its tokens"):
        saliency.grad_cam(model, torch.rand(1, 3, 56, 56), torch.tensor([0]))


def test_feature_maps_are_the_most_varied_channels_in_place():
    model = student("vit", a_task(1, 8), patch=2, dim=24, depth=3, heads=2).eval()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = saliency.feature_maps(model, images, layers=2, channels=3)
    assert list(maps) == ["patch.0", "patch.2"]
    with torch.no_grad():
        tokens = model(images, ["patch.2"]).features["patch.2"]
    best = int(tokens[1].var(0).argmax())
    assert maps["patch.2"].shape == (2, 3, 4, 4)
    assert torch.equal(maps["patch.2"][1, 0].flatten(), tokens[1, :, best])


# --------------------------------------------------------------------------------------------- robustness

def test_robustness_of_runs(monkeypatch, runs, tmp_path, capsys):
    call(monkeypatch, eval_robustness, "--base_dir", runs, "--conditions", "vit", "cnn", "--baseline", "vit",
         "--output", tmp_path / "robustness.json")
    content = json.loads((tmp_path / "robustness.json").read_text())
    assert content["schema_version"] == 1 and set(content["conditions"]) == {"vit", "cnn"}
    for kind, condition in content["conditions"].items():
        run, = condition["runs"]
        model, task = model_of(runs / kind / "seed0")
        scored = score(model, task.splits["test"], torch.device("cpu"), 360)
        assert run["clean"]["accuracy"] == pytest.approx((scored["prediction"] == scored["label"]).mean())
        assert run["clean"]["nll"] == pytest.approx(scored["nll"].mean(), rel=1e-6)
        levels = [level["accuracy"] for levels in run["corruptions"].values() for level in levels.values()]
        assert len(levels) == 25 and run["corrupted_accuracy"] == pytest.approx(np.mean(levels))
        assert len(set(levels)) > 5 and run["tta"]["views"] == 5 and run["teacher"] is None
        assert condition["summary"]["ece"]["mean"] == run["clean"]["ece"]
    first, other = (content["conditions"][name]["runs"][0] for name in ("cnn", "vit"))
    against = content["conditions"]["cnn"]["vs_baseline"]
    assert "vs_baseline" not in content["conditions"]["vit"] and against["corrupted_accuracy"][
        "difference"] == pytest.approx(first["corrupted_accuracy"] - other["corrupted_accuracy"])
    assert against["ece"]["difference"] == pytest.approx(first["clean"]["ece"] - other["clean"]["ece"])
    assert "| vit |" in capsys.readouterr().out and content["data"]["n"] == {"clean": 360, "corrupted": 360}

    words = ("--base_dir", runs, "--conditions", "vit", "--images", 40, "--output", tmp_path / "some.json")
    call(monkeypatch, eval_robustness, *words)
    some = json.loads((tmp_path / "some.json").read_text())
    assert some["data"]["n"] == {"clean": 360, "corrupted": 40}
    whole, part = (one["conditions"]["vit"]["runs"][0] for one in (content, some))
    assert part["clean"] == whole["clean"]
    model, task = model_of(runs / "vit/seed0")
    split, index = task.splits["test"], fixed_index(task.splits["test"], 40).sort().values
    (images, labels), = split.batches([index])
    noisy = corrupt(images, "gaussian_noise", 3, index)
    with torch.no_grad():
        right = (model.eval()(noisy.float() / 255).logits.argmax(1) == labels).float().mean()
    assert part["corruptions"]["gaussian_noise"]["3"]["accuracy"] == pytest.approx(float(right))
    monkeypatch.setattr(robustness.Evaluator, "measure", lambda *a: pytest.fail("it is there"))
    call(monkeypatch, eval_robustness, *words)
    assert json.loads((tmp_path / "some.json").read_text()) == some
    monkeypatch.setattr(robustness.sources, "of_measurement", lambda *a: "other code")
    with pytest.raises(pytest.fail.Exception, match="it is there"):
        call(monkeypatch, eval_robustness, *words)
    with pytest.raises(UserError, match="nope: no finished run"):
        call(monkeypatch, eval_robustness, "--base_dir", runs, "--conditions", "nope", "--output", tmp_path / "x.json")


def test_robustness_of_other_images_is_not_put_beside(monkeypatch, runs, tmp_path):
    base = shutil.copytree(runs, tmp_path / "study")
    run_main(tiny(base / "other", "task.split_seed=1"))
    words = ("--base_dir", base, "--split", "val", "--images", 8, "--output", tmp_path / "x.json", "--conditions")
    call(monkeypatch, eval_robustness, *words, "vit")
    with pytest.raises(UserError, match="other/seed0: has other val data than the runs before it"):
        call(monkeypatch, eval_robustness, *words, "vit", "other")


def test_mirror_images_are_averaged_only_where_training_mirrored(tmp_path):
    assert not rebuild.mirrors(tiny(tmp_path))
    assert rebuild.mirrors(tiny(tmp_path, "augment=[{name: flip}]"))
    assert not rebuild.mirrors(tiny(tmp_path, "augment=[{name: flip, p: 0.0}]"))


def test_a_language_run_is_refused_where_images_are_looked_at():
    language, images = (config.load([ROOT / f"configs/base/{name}.yaml"]) for name in ("gsm8k_qwen1b7", "digits_vit"))
    with pytest.raises(UserError, match=r"x/seed0: a language run \(task gsm8k\); this script looks at images"):
        rebuild.refuse_text(language, Path("x/seed0"))
    rebuild.refuse_text(images, Path("x/seed0"))
