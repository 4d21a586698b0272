"""Attention statistics: exact on made-up attention, the same matrices as timm's own, and nothing kept per image."""

import copy
import json
import math
import weakref

import numpy as np
import pytest
import timm
import torch
from torch import nn

from graft.errors import UserError
from graft.outputs import Outputs
from graft.probes import attention, receptive_field
from graft.probes.attention import Geometry
from test_students import TINY, a_task, images, student


def scores_of(patch: np.ndarray, prefix: int = 2, kept: float = 0.5) -> torch.Tensor:
    """Scores (1, 1, N, N) whose patch block is `patch` (T, T) times `kept`; the rest goes to the first token."""
    n = prefix + len(patch)
    full = np.zeros((n, n))
    full[prefix:, prefix:] = patch * (kept if prefix else 1)
    full[prefix:, :1] += 1 - full[prefix:].sum(1, keepdims=True)
    full[:prefix] = 1 / n
    return torch.from_numpy(full).log().float()[None, None]


def window(side: int) -> np.ndarray:
    """Every patch looks evenly at itself and its neighbours on a side x side grid."""
    place = np.stack(np.divmod(np.arange(side * side), side), 1)
    near = (np.abs(place[:, None] - place[None]).max(-1) <= 1).astype(float)
    return near / near.sum(1, keepdims=True)


@pytest.mark.parametrize(("side", "patch", "distance", "entropy"), [
    (8, np.eye(64), 0.0, 0.0),
    (8, np.full((64, 64), 1 / 64), 4.1365, math.log(64)),
    (14, np.full((196, 196), 1 / 196), 7.281, math.log(196)),
    (7, np.full((49, 49), 1 / 49), 3.610, math.log(49)),
    # neighbours of 36 inner, 24 edge and 4 corner patches
    (8, window(8), (36 * (4 + 4 * 2**0.5) / 9 + 24 * (3 + 2 * 2**0.5) / 6 + 4 * (2 + 2**0.5) / 4) / 64, None),
    (8, np.roll(np.eye(64), 8, 1), (56 * 1 + 8 * 7) / 64, 0.0),  # one row down: sharp heads have no entropy
])
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_made_up_attention(side, patch, distance, entropy, prefix):
    found = attention.image_statistics(scores_of(patch, prefix), Geometry((side, side), prefix, prefix > 0))
    assert float(found["mean_distance"]) == pytest.approx(distance, abs=1e-3)
    if entropy is not None:
        assert float(found["entropy"]) == pytest.approx(entropy, abs=1e-5)
    assert float(found["patch_mass"]) == pytest.approx(0.5 if prefix else 1.0)
    assert ("cls_self_attn" in found) == (prefix > 0)


def test_class_token():
    tokens = Geometry((8, 8), 1, True)
    full = np.full((65, 65), 1 / 65)
    found = attention.image_statistics(torch.from_numpy(full).log()[None, None], tokens)
    assert float(found["cls_dispersion"]) == pytest.approx(10.5)
    assert float(found["cls_self_attn"]) == pytest.approx(1 / 65)
    corners = np.full((65, 65), 1 / 65)
    corners[0] = 0
    corners[0, [0, 1, 64]] = 0.9, 0.05, 0.05  # itself, and two opposite corners: ±3.5 in both directions
    found = attention.image_statistics(torch.from_numpy(corners).log()[None, None], tokens)
    assert float(found["cls_dispersion"]) == pytest.approx(2 * 3.5**2)
    assert float(found["cls_self_attn"]) == pytest.approx(0.9)


def test_random_attention_on_an_oblong_grid_against_loops():
    (h, w), prefix = (2, 3), 2
    scores = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    found = attention.image_statistics(scores, Geometry((h, w), prefix, True))
    places = [(i // w, i % w) for i in range(h * w)]
    for b in range(2):
        for head in range(3):
            whole = np.exp(scores[b, head].numpy())
            whole /= whole.sum(1, keepdims=True)
            p = whole[prefix:, prefix:] / whole[prefix:, prefix:].sum(1, keepdims=True)
            distance = sum(p[i, j] * math.dist(places[i], places[j]) for i in range(6) for j in range(6)) / 6
            c = whole[0, prefix:] / whole[0, prefix:].sum()
            spread = sum(np.cov(np.array(places).T, aweights=c, ddof=0).diagonal())
            expected = {"mean_distance": distance, "entropy": -(p * np.log(p)).sum() / 6,
                        "left": (1 - p.diagonal()).mean(), "patch_mass": whole[prefix:, prefix:].sum() / 6,
                        "cls_dispersion": spread, "cls_self_attn": whole[0, 0]}
            assert {name: float(value[b, head]) for name, value in found.items()} == pytest.approx(expected)


def test_uniform_references_are_those_of_uniform_attention():
    for grid, prefix in (((8, 8), 2), ((2, 5), 1), ((3, 3), 0)):
        tokens = Geometry(grid, prefix, prefix > 0)
        n = prefix + math.prod(grid)
        found = attention.image_statistics(torch.zeros(1, 1, n, n, dtype=torch.float64), tokens)
        found["distance_without_self"] = found["mean_distance"] / found.pop("left")
        expected = {name: value for name, value in attention.uniform(tokens).items() if value is not None}
        assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
    assert attention.uniform(Geometry((8, 8), 2, True))["mean_distance"] == pytest.approx(4.1365, abs=1e-4)
    for side, threshold in ((8, 1.5), (14, 1.5 * 7.281 / 4.1365)):
        limits = attention.collapse_thresholds(Geometry((side, side), 0, False))
        assert limits["relative"] == pytest.approx(threshold, rel=1e-4) and limits["distance"] == 1.5


SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 3}


def unfused(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Attention as timm's own unfused code path computes it."""
    model, found = copy.deepcopy(model), []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, given, out: found.append(out))
    with torch.no_grad():
        model(x)
    return found


@pytest.mark.parametrize(("arch", "options", "size", "prefix"), [
    ("deit_tiny_distilled_patch16_224", {"img_size": 32, "patch_size": 4}, 32, 2),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 28}, 28, 5),
    ("vit_base_patch16_siglip_224", {"img_size": 32, "patch_size": 8}, 32, 0),  # attention pooling at the end
    ("vit_relpos_small_patch16_224", {"img_size": 32, "patch_size": 8}, 32, 0),
    ("beit_base_patch16_224", {"img_size": 32, "patch_size": 8}, 32, 1),  # relative position biases
    ("eva02_tiny_patch14_224", {"img_size": 28, "patch_size": 7}, 28, 1),  # rotary positions
    ("vit_tiny_patch16_224", {"img_size": (32, 16), "patch_size": 4, "qk_norm": True}, (32, 16), 1),
])
def test_same_matrices_as_timm(arch, options, size, prefix):
    torch.manual_seed(0)
    model = timm.create_model(arch, **SMALL, **options).eval()
    for parameter in model.parameters():  # away from nearly uniform attention
        parameter.data += 0.3 * torch.randn_like(parameter)
    h, w = (size, size) if isinstance(size, int) else size
    x = torch.randn(2, 3, h, w)
    expected, found = unfused(model, x), attention.matrices(model, x)
    assert len(found) == 2 and attention.geometry(model, x).prefix == prefix
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert ours.std() > 0.01 and len({tuple(row) for row in ours.flatten(0, 2).tolist()}) > 2
    patch = options.get("patch_size", 14)
    assert attention.head_statistics(model, [x]).tokens.grid == (h // patch, w // patch)


def a_student(**args):
    torch.manual_seed(1)
    model = student("vit", a_task(n=12), **{**TINY, "init_std": 0.3, **args})
    return model, images(a_task(n=12), 12)


def test_batches_do_not_matter_and_the_model_is_left_as_it_was():
    model, x = a_student(distilled=True)
    whole = attention.head_statistics(model.train(), [x])
    assert model.training and whole.n == 12 and whole.values["entropy"].shape == (3, 2)
    parts = attention.head_statistics(model, x.split(5))
    for name, value in whole.values.items():
        torch.testing.assert_close(parts.values[name], value, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(parts.image_distance, whole.image_distance, atol=1e-6, rtol=1e-6)
    assert float(whole.image_distance.mean()) == pytest.approx(float(whole.values["mean_distance"].mean()))
    one = attention.head_statistics(model, [x[3:4]])
    assert float(one.image_distance) == pytest.approx(float(whole.image_distance[3]), abs=1e-6)


def test_looking_changes_no_output_and_keeps_one_layer_at_a_time():
    model, x = a_student()
    model.eval()
    seen: list[weakref.ref] = []

    def see(layer, scores):
        assert layer == len(seen) and not any(ref() is not None for ref in seen)
        seen.append(weakref.ref(scores))

    out = []
    model.register_forward_hook(lambda module, given, result: out.append(result.logits))
    with torch.no_grad():
        attention.look(model, x, see)
        model(x)
    assert len(seen) == 3
    torch.testing.assert_close(out[0], out[1], atol=1e-5, rtol=1e-5)


def test_summary_counts_collapsed_heads():
    tokens = Geometry((8, 8), 1, True)
    local = {"mean_distance": 1.0, "distance_without_self": 1.2, "entropy": 2.0, "patch_mass": 0.5,
             "cls_dispersion": 3.0, "cls_self_attn": 0.95}
    wide = {**local, "mean_distance": 4.0, "cls_self_attn": 0.1, "distance_without_self": math.nan}
    heads = attention.Heads(tokens, 5, {name: torch.tensor([[local[name], local[name]], [local[name], wide[name]]])
                                        for name in local}, torch.zeros(5))
    found = attention.summary(heads)
    json.dumps(found, allow_nan=False)
    assert found["collapsed_heads_ratio"] == found["cls_collapse_ratio"] == 0.75 and len(found["warnings"]) == 1
    assert found["avg_attention_distance"] == pytest.approx(1.75) and found["layer_distance"] == [1.0, 2.5]
    assert found["per_layer_stats"]["1"]["distance_without_self"] == [pytest.approx(1.2), None]
    assert found["avg_distance_without_self"] == pytest.approx(1.2)
    coarse = attention.Heads(Geometry((4, 4), 0, False), 5, {k: v for k, v in heads.values.items() if "cls" not in k},
                             torch.zeros(5))
    found = attention.summary(coarse)  # 1.5 patches is far on a 4x4 grid: the threshold there is 0.68
    assert found["collapsed_heads_ratio"] == 0.75 and found["collapsed_heads_ratio_relative"] == 0
    assert found["cls_collapse_ratio"] is None and not found["warnings"]


def test_what_cannot_be_measured_is_named():
    model, x = a_student()
    task = a_task(n=12)
    with pytest.raises(UserError, match=r"no blocks\[i\]\.attn"):
        attention.head_statistics(student("cnn", task, arch="resnet18"), [x])
    with pytest.raises(UserError, match="Cait"):
        attention.head_statistics(timm.create_model("cait_xxs24_224", num_classes=2, img_size=32, depth=2), [x])
    with pytest.raises(UserError, match="at least 1 images, got 0"):
        attention.head_statistics(model, [])
    model.model.blocks[1].attn.fused_attn = False
    with pytest.raises(UserError, match="2 of 3 blocks used fused attention"):
        attention.head_statistics(model, [x])
    model.model.blocks[1].attn.fused_attn = True
    model.model.blocks[0].attn.qkv.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        attention.head_statistics(model, [x])


class Linear(nn.Module):
    """Tokens (B, T, 1) on a 2x2 grid: each a fixed weighting of the pixels."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight  # (T, H, W)

    def grid_of_feature(self, name):
        return (2, 2)

    def forward(self, x, features=()):
        return Outputs(None, features={name: torch.einsum("bchw,thw->bt", x, self.weight)[..., None]
                                       for name in features})


def test_receptive_field_of_known_maps():
    x = torch.rand(3, 2, 4, 4)
    own = torch.zeros(4, 4, 4)
    own[3, 2:, 2:] = 1.0  # the central token of a 2x2 grid is its last
    found = receptive_field.receptive_field(Linear(own), x.split(2), ["patch.0"])["patch.0"]
    assert found["n"] == 3 and torch.tensor(found["map"]).equal(own[3] / 4)
    assert found["radius"] == pytest.approx(math.sqrt(0.5))
    everywhere = receptive_field.receptive_field(Linear(torch.ones(4, 4, 4)), [x], ["patch.0"])["patch.0"]
    assert everywhere["relative"] == pytest.approx(1) and everywhere["uniform"] > found["radius"]
    weight = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    squared = receptive_field.receptive_field(Linear(weight), [x], ["patch.0"])["patch.0"]["map"]
    torch.testing.assert_close(torch.tensor(squared), weight[3].square() / weight[3].square().sum())
    assert receptive_field.receptive_field(Linear(torch.zeros(4, 4, 4)), [x], ["patch.0"])["patch.0"]["radius"] is None


def test_receptive_field_of_a_student_is_the_squared_jacobian():
    model, x = a_student(dim=4, heads=1, depth=1)
    x = x[:2]
    jacobian = torch.autograd.functional.jacobian(
        lambda pixels: model.eval()(pixels, ["patch.0"]).features["patch.0"][:, 4 * 8 + 4].sum(0), x)
    expected = jacobian.square().sum((0, 1, 2))  # over the token's 4 numbers, images, channels
    expected = expected / expected.sum()
    many = x.repeat(64, 1, 1, 1)  # other random signs for every repetition
    found = receptive_field.receptive_field(model, many.split(32), ["patch.0"])["patch.0"]
    assert float((torch.tensor(found["map"]) - expected).abs().sum()) < 0.2
    place = torch.arange(32) + 0.5 - 18  # patch (4, 4) of 4 pixels has its centre at 18
    away = (place[:, None].square() + place.square()).sqrt()
    assert found["radius"] == pytest.approx(float((expected * away).sum()), rel=0.05)
