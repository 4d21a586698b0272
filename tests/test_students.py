"""Students: sizes, features by name, heads, and what is said when something does not fit."""

from dataclasses import replace

import numpy as np
import pytest
import timm as timm_library
import torch
from safetensors.torch import save_file
from torch import nn

from graft.config.options import Part
from graft.config.parts import build
from graft.errors import UserError
from graft.tasks._task import ResidentSplit, Task

TINY = {"patch": 4, "dim": 24, "depth": 3, "heads": 2, "drop_path": 0.0}


def a_task(channels: int = 3, size: int = 32, classes: int = 10, n: int = 12) -> Task:
    """Random images, the same in all three splits."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    split = ResidentSplit(images, torch.arange(n) % classes)
    names = ("train", "val", "test")
    return Task("random", "random", dict.fromkeys(names, f"{channels}-{size}-{n}"),
                [f"class {k}" for k in range(classes)], channels, size, [0.4, 0.5, 0.6][:channels],
                [0.2, 0.25, 0.3][:channels], dict.fromkeys(names, split))


def student(name: str, task: Task, **args):
    return build("students", Part(name, args), task)


def images(task: Task, batch: int = 2) -> torch.Tensor:
    return task.splits["train"].images[:batch].float() / 255


def normalised(task: Task, x: torch.Tensor) -> torch.Tensor:
    shape = (1, -1, 1, 1)
    return (x - torch.tensor(task.mean).view(shape)) / torch.tensor(task.std).view(shape)


MNIST = {"patch": 2, "mlp_ratio": 2.0, "stem": "conv", "grayscale_to_rgb": True}


@pytest.mark.parametrize(("name", "channels", "size", "args", "expected"), [
    ("vit", 3, 32, {"distilled": True}, 5_365_076),
    ("vit", 3, 32, {"distilled": True, "mlp_ratio": 2.0, "stem": "conv"}, 4_340_660),
    ("vit", 3, 32, {"mlp_ratio": 2.0, "stem": "conv"}, 4_338_346),
    ("vit", 1, 28, {**MNIST, "distilled": True}, 3_923_639),
    ("vit", 1, 28, MNIST, 3_921_325),
    ("cnn", 3, 32, {"arch": "resnet18"}, 11_173_962),
    ("cnn", 3, 32, {"arch": "convnextv2_tiny"}, 27_870_730),
    ("cnn", 1, 28, {"arch": "adaptive_cnn", "variant": "mnist"}, 709_034),
    ("cnn", 3, 32, {"arch": "adaptive_cnn", "variant": "cifar"}, 17_629_514),
])
def test_parameter_counts_of_the_study(name, channels, size, args, expected):
    model = student(name, a_task(channels, size), **args)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(("name", "channels", "size", "args", "depth", "grids", "dims"), [
    ("vit", 3, 32, {**TINY, "distilled": True}, 3, [8, 8, 8, 8], [24, 24, 24, 24]),
    ("vit", 1, 8, {**TINY, "patch": 2}, 3, [4, 4, 4, 4], [24, 24, 24, 24]),
    ("cnn", 3, 32, {"arch": "resnet18"}, 4, [32, 16, 8, 4, 4], [64, 128, 256, 512, 512]),
    ("cnn", 3, 32, {"arch": "convnextv2_tiny"}, 4, [16, 8, 4, 2, 2], [96, 192, 384, 768, 768]),
    ("cnn", 1, 28, {"arch": "adaptive_cnn", "variant": "mnist"}, 3, [14, 7, 4, 4], [32, 64, 128, 128]),
    ("cnn", 1, 8, {"arch": "small"}, 3, [8, 4, 2, 2], [16, 32, 64, 64]),
    ("timm", 3, 32, {"arch": "resnet18"}, 4, [8, 4, 2, 1, 1], [64, 128, 256, 512, 512]),
    ("timm", 3, 32, {"arch": "vit_tiny_patch16_224"}, 12, [2] * 13, [192] * 13),
    ("timm", 1, 28, {"arch": "vit_tiny_patch16_224", "patch": 7, "drop_path": 0.1}, 12, [4] * 13, [192] * 13),
])
def test_every_feature_has_the_shape_the_model_says(name, channels, size, args, depth, grids, dims):
    task = a_task(channels, size)
    model = student(name, task, **args)
    names = [str(i) for i in range(depth)] + ["final"]
    out = model(images(task), [f"{kind}.{i}" for kind in ("patch", "cls") for i in names])
    assert out.logits.shape == out.distill_logits.shape == (2, 10)
    assert model.depth == depth and model.grid == (grids[-1], grids[-1]) and model.num_classes == 10
    for i, grid, dim in zip(names, grids, dims, strict=True):
        assert out.features[f"patch.{i}"].shape == (2, grid * grid, dim)
        assert out.features[f"cls.{i}"].shape == (2, 1, dim)
        assert model.grid_of_feature(f"patch.{i}") == (grid, grid)
        assert model.feature_dim(f"patch.{i}") == model.feature_dim(f"cls.{i}") == dim
    assert set(model(images(task), ["cls.0"]).features) == {"cls.0"}


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224",
                                  "hiera_tiny_224", "vit_pwee_patch16_reg1_gap_256"])
def test_one_pass_gives_what_timm_gives(arch):
    size = timm_library.get_pretrained_cfg(arch).input_size[-1]
    task = a_task(3, size)
    model = student("timm", task, arch=arch).eval()
    x = normalised(task, images(task, 1))
    with torch.no_grad():
        out = model(images(task, 1), ["patch.0", "patch.final", "cls.final"])
        final = model.model.forward_features(x)
        torch.testing.assert_close(out.logits, model.model(x))
        pooled = model.model.forward_head(final, pre_logits=True)
    torch.testing.assert_close(out.features["cls.final"][:, 0], pooled)
    if final.ndim == 4:
        channels_last = arch.startswith("swin")
        final = final.flatten(1, 2) if channels_last else final.flatten(2).transpose(1, 2)
    torch.testing.assert_close(out.features["patch.final"], final[:, model.num_prefix_tokens:])


def test_block_outputs_are_before_the_final_norm_and_maps_go_row_by_row():
    task = a_task()
    vit = student("vit", task, **TINY, distilled=True).eval()
    out = vit(images(task), ["patch.1", "cls.1", "patch.2", "cls.2", "patch.final"])
    tokens = vit.model.blocks[:2](vit.model._pos_embed(vit.model.patch_embed(normalised(task, images(task)))))
    torch.testing.assert_close(out.features["cls.1"], tokens[:, :1])
    torch.testing.assert_close(out.features["patch.1"], tokens[:, 2:])
    torch.testing.assert_close(vit.model.norm(out.features["patch.2"]), out.features["patch.final"])
    cnn = student("cnn", task, arch="small").eval()
    out = cnn(images(task), ["patch.0", "cls.0"])
    maps = cnn.model.stages[0](normalised(task, images(task)))
    torch.testing.assert_close(out.features["patch.0"][:, 32 * 3 + 5], maps[:, :, 3, 5])
    torch.testing.assert_close(out.features["cls.0"][:, 0], maps.mean((2, 3)))


def test_heads_of_a_distilled_vit():
    task = a_task()
    for inference in ("cls", "dist", "avg"):
        torch.manual_seed(0)
        model = student("vit", task, **TINY, distilled=True, inference=inference)
        assert model.num_prefix_tokens == 2
        tokens = model.model.forward_features(normalised(task, images(task)))
        cls, dist = model.model.head(tokens[:, 0]), model.model.head_dist(tokens[:, 1])
        expected = {"cls": cls, "dist": dist, "avg": (cls + dist) / 2}[inference]
        trained, scored = model.train()(images(task)), model.eval()(images(task))
        torch.testing.assert_close(trained.logits, cls)
        torch.testing.assert_close(trained.distill_logits, dist)
        torch.testing.assert_close(scored.logits, expected)
        torch.testing.assert_close(scored.distill_logits, dist)
        torch.testing.assert_close(scored.readings, {"cls": cls, "dist": dist, "avg": (cls + dist) / 2})
        assert not torch.allclose(cls, dist) and not trained.readings


def test_class_token_dropout_reads_the_mean_patch_token_in_training_only():
    task = a_task()
    model = student("vit", task, **TINY, cls_token_dropout=0.999)
    tokens = model.model.forward_features(normalised(task, images(task)))
    torch.testing.assert_close(model(images(task)).logits, model.model.head(tokens[:, 1:].mean(1)))
    torch.testing.assert_close(model.eval()(images(task)).logits, model.model.head(tokens[:, 0]))


def test_vit_initialisation_is_that_of_deit():
    torch.manual_seed(0)
    model = student("vit", a_task(), distilled=True).model
    for weight in (model.pos_embed, model.blocks[5].mlp.fc1.weight, model.head_dist.weight, model.cls_token,
                   model.dist_token):
        assert 0.017 < weight.std().item() < 0.023
    assert model.head.bias.abs().max() == 0 and model.patch_embed.proj.bias.abs().max() == 0
    assert model.patch_embed.proj.weight.std().item() == pytest.approx((2 / (192 * 16)) ** 0.5, rel=0.05)


def test_vit_takes_smaller_crops():
    task = a_task()
    for stem in ("patch", "conv"):
        model = student("vit", task, **TINY, stem=stem, distilled=True)
        out = model(images(task)[:, :, :16, :16], ["patch.final", "patch.1"])
        assert out.features["patch.final"].shape == out.features["patch.1"].shape == (2, 16, 24)


@pytest.mark.parametrize(("name", "args"), [
    ("vit", {**TINY, "patch": 2, "stem": "conv"}), ("vit", {**TINY, "patch": 2, "grayscale_to_rgb": True}),
    ("cnn", {"arch": "small"}), ("cnn", {"arch": "resnet18"})])
def test_grey_images_of_8_pixels_train(name, args):
    task = a_task(1, 8)
    model = student(name, task, **args)
    out = model(images(task, 4), ["patch.0"])
    (out.logits.square().mean() + out.features["patch.0"].square().mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert next(model.parameters()).grad.abs().sum() > 0


def test_a_feature_alone_sends_gradient_to_the_blocks_before_it_and_no_further():
    task = a_task()
    model = student("vit", task, **TINY)
    model(images(task), ["patch.1"]).features["patch.1"].square().mean().backward()
    reached = [model.model.blocks[i].mlp.fc1.weight.grad is not None for i in range(3)]
    assert reached == [True, True, False] and model.model.head.weight.grad is None


def test_normalisation_travels_with_the_weights():
    task = a_task()
    model = student("vit", task, **TINY).eval()
    other = student("vit", replace(task, mean=[0.0] * 3), **TINY).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images(task)).logits, model(images(task)).logits)


@pytest.mark.parametrize(("name", "args", "message"), [
    ("vit", {**TINY, "patch": 5}, "student.patch: must divide the image size 32, got 5"),
    ("vit", {**TINY, "heads": 5}, "student.heads: must divide student.dim 24, got 5"),
    ("vit", {**TINY, "inference": "avg"}, "student.inference: avg needs student.distilled: true"),
    ("cnn", {"arch": "resnet18", "pretrained": True}, "no pretrained weights for resnet18"),
    ("cnn", {"arch": "resnet18", "drop_path": 0.1}, "student.drop_path: is for convnextv2_tiny, not for resnet18"),
    ("timm", {"arch": "resnet81"}, "timm has no model 'resnet81'; did you mean resnet"),
    ("timm", {"arch": "resnet18.a1_in1"}, "has no weights 'a1_in1'; did you mean a1_in1k"),
    ("timm", {"arch": "vit_tiny_patch16_224", "patch": 12}, "patches of 12x12 pixels do not divide images of 32x32"),
    ("timm", {"arch": "resnet18", "patch": 4}, "resnet18: cannot be built: ResNet.__init__() got an unexpected"),
    ("timm", {"arch": "resnet18", "checkpoint": "/nowhere.safetensors"}, "/nowhere.safetensors: no such file"),
])
def test_what_cannot_be_built_is_said_in_one_line(name, args, message):
    with pytest.raises(UserError) as error:
        student(name, a_task(), **args)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_timm_takes_its_options():
    model = student("timm", a_task(), arch="vit_tiny_patch16_224", patch=8, drop_path=0.2, dropout=0.3).model
    assert model.patch_embed.patch_size == (8, 8) and model.head_drop.p == 0.3
    assert [block.drop_path1.drop_prob for block in model.blocks[1:]] == pytest.approx(np.linspace(0, 0.2, 12)[1:])
    with pytest.raises(UserError, match="patches of 16x16 pixels do not divide images of 28x28"):
        student("timm", a_task(1, 28), arch="vit_tiny_patch16_224")


def test_unknown_feature_and_impossible_image_size():
    with pytest.raises(UserError, match=r"patch.3' does not exist; this model has patch.0 to patch.2, patch.final"):
        student("vit", a_task(), **TINY)(images(a_task()), ["patch.3"])
    with pytest.raises(UserError, match="cannot process images of 8 x 8 pixels"):
        student("cnn", a_task(1, 8), arch="convnextv2_tiny")


def test_local_weights_are_loaded_strictly_and_another_head_is_replaced(tmp_path):
    task = a_task(classes=10)
    source = timm_library.create_model("resnet10t", num_classes=7)
    save_file(source.state_dict(), tmp_path / "seven.safetensors")
    torch.save({"state_dict": timm_library.create_model("resnet10t", num_classes=10).state_dict()},
               tmp_path / "ten.pth")
    seven = student("timm", task, arch="resnet10t", checkpoint=str(tmp_path / "seven.safetensors"))
    assert seven.num_classes == 10 and isinstance(seven.model.fc, nn.Linear)
    torch.testing.assert_close(seven.model.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
    ten = student("timm", task, arch="resnet10t", checkpoint=str(tmp_path / "ten.pth"))
    weights = torch.load(tmp_path / "ten.pth", weights_only=True)["state_dict"]
    torch.testing.assert_close(ten.model.fc.weight, weights["fc.weight"])
    with pytest.raises(UserError, match=r"is no resnet18: .*missing: .*conv1.weight") as error:
        student("timm", task, arch="resnet18", checkpoint=str(tmp_path / "seven.safetensors"))
    assert "\n" not in str(error.value)
    torch.save({"state_dict": nn.Linear(1, 1)}, tmp_path / "pickled.pth")
    with pytest.raises(UserError, match="cannot be read as safetensors or a weights-only"):
        student("timm", task, arch="resnet10t", checkpoint=str(tmp_path / "pickled.pth"))
