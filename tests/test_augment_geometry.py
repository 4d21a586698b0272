"""Warps against torchvision, the geometry a view carries, and token maps that follow it."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from graft.augment import Augment, affine, crop, flip, resized_crop, rotation
from graft.augment._boxes import proposals
from graft.augment._ops import GEOMETRIC, apply_ops
from graft.augment._warp import inverse_affine, move_tokens, warp
from graft.config.options import Part
from graft.keyed import Draw
from graft.outputs import View
from oracle import nearly_equal, ties

SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 20, 28)]
B = 48


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(1, 256, (B, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def with_geometry(images: torch.Tensor) -> View:
    return View(images, torch.zeros(len(images), dtype=torch.int64),
                torch.eye(3, dtype=torch.float64).repeat(len(images), 1, 1),
                torch.ones(len(images), *images.shape[-2:], dtype=torch.bool))


def coordinates(height: int, width: int) -> torch.Tensor:
    """Images whose channels are 7 times a pixel's column and row, so that a view says where it came from."""
    column = torch.arange(width).expand(height, width)
    row = torch.arange(height)[:, None].expand(height, width)
    return torch.stack([column, row, torch.full_like(row, 200)]).mul(7).clamp(max=255).byte().repeat(B, 1, 1, 1)


def stored_place(view: View, stored: tuple[int, int]) -> torch.Tensor:
    """Column and row of the stored image for each pixel of the view, (B, 2, H, W), by `view.matrix`."""
    (height, width), (stored_height, stored_width) = view.inputs.shape[-2:], stored
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)]).double().flatten(1)
    places = (view.matrix.double() @ points)[:, :2].unflatten(2, (height, width))
    return places + torch.tensor([(stored_width - 1) / 2, (stored_height - 1) / 2])[:, None, None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rotation_and_affine_equal_torchvision(shape, interpolation):
    images, draw = noise(*shape), Draw(0, 1, torch.arange(B))
    ones = torch.full((B, 1, *shape[1:]), 255, dtype=torch.uint8)
    turned = rotation.apply(with_geometry(images), draw, degrees=180.0, interpolation=interpolation)
    angles = -(2 * draw("rotation")[:, 0] - 1) * 180
    assert angles.min() < -150 and angles.max() > 150
    warped = affine.apply(with_geometry(images), draw, translate=0.3, scale=(0.6, 1.5), shear=30.0,
                          interpolation=interpolation)
    u = draw("affine", 4)
    height, width = shape[1:]
    moves = np.stack([np.round((2 * u[:, 0] - 1) * 0.3 * width), np.round((2 * u[:, 1] - 1) * 0.3 * height)], 1)
    want = {"turned": [], "turned visible": [], "warped": [], "warped visible": []}
    tied = {"turned": torch.stack([ties(matrix, height, width) for matrix in turned.matrix]),
            "warped": torch.stack([ties(matrix, height, width) for matrix in warped.matrix])}
    assert max(mask.float().mean() for mask in tied.values()) < 0.01
    for i in range(B):
        options = {"interpolation": F.InterpolationMode(interpolation)}
        transform = {"angle": 0.0, "translate": moves[i].tolist(), "scale": 0.6 + 0.9 * u[i, 2],
                     "shear": [30 * (2 * u[i, 3] - 1), 0.0]}
        want["turned"].append(F.rotate(images[i], angles[i], **options))
        want["turned visible"].append(F.rotate(ones[i], angles[i], **options)[0] == 255)
        want["warped"].append(F.affine(images[i], **transform, **options))
        want["warped visible"].append(F.affine(ones[i], **transform, **options)[0] == 255)
    got = {"turned": turned.inputs, "turned visible": turned.visible, "warped": warped.inputs,
           "warped visible": warped.visible}
    for name, value in got.items():
        # bilinear: another order of the same sums rounds some pixels the other way
        share, free = (1e-3, None) if interpolation == "bilinear" else (0, tied[name.split()[0]])
        if free is not None and value.ndim == 4:
            free = free[:, None]
        nearly_equal(value, torch.stack(want[name]), share=share, what=name, free=free)


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_and_flip_are_exact_and_carry_their_geometry(shape):
    images, draw = noise(*shape), Draw(0, 1, torch.arange(B))
    height, width = shape[1:]
    view = flip.apply(crop.apply(with_geometry(images), draw, padding=3), draw)
    padded = F.pad(images, [3])
    shifts = np.floor(draw("crop", 2) * 7).astype(int)
    flipped = draw("flip")[:, 0] < 0.5
    assert 0 < flipped.sum() < B and {*shifts.flatten()} == set(range(7))
    places = stored_place(view, (height, width))
    for i, (dx, dy) in enumerate(shifts):
        want = padded[i, :, 6 - dy:6 - dy + height, 6 - dx:6 - dx + width]
        assert torch.equal(view.inputs[i], want.flip(-1) if flipped[i] else want)
        column, row = places[i].round().long()
        assert (places[i] - torch.stack([column, row])).abs().max() < 1e-5
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        assert torch.equal(view.visible[i], inside)
        assert torch.equal(view.inputs[i][:, inside], images[i][:, row[inside], column[inside]])
        assert not view.inputs[i][:, ~inside].any()


def test_crop_shifts_uniformly_and_flip_obeys_its_probability():
    index = torch.arange(20_000)
    images = torch.zeros(20_000, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 3] = 255
    moved = crop.apply(View(images, index), Draw(0, 0, index), padding=2).inputs.float().mean((0, 1)) / 255
    assert moved[2:7, 1:6].sum() == pytest.approx(1, abs=1e-5)
    assert (moved[2:7, 1:6] - 1 / 25).abs().max() < 0.006
    for p in (0.0, 0.3, 1.0):
        images = flip.apply(View(images, index), Draw(0, 0, index), p=p).inputs
        share = (images[:, 0, 4, 5] > 0).float().mean()
        assert share == pytest.approx(p, abs=0.02 if 0 < p < 1 else 0)
        images = torch.where((images[:, :, 4:5, 5:6] > 0), images.flip(-1), images)


@pytest.mark.parametrize("size", [(32, 32), (24, 30)])
def test_matrix_of_a_chain_says_where_each_visible_pixel_came_from(size):
    chain = (Part("affine", {"translate": 0.1, "scale": [0.8, 1.2], "shear": 15.0, "interpolation": "bilinear"}),
             Part("resized_crop", {"scale": [0.4, 0.9]}), Part("flip"),
             Part("rotation", {"degrees": 40.0, "interpolation": "bilinear"}), Part("crop"))
    view = Augment(chain, 0)(coordinates(*size), torch.zeros(B, dtype=torch.int64), torch.arange(B), 0,
                             num_classes=2, geometry=True)
    assert view.matrix.dtype == torch.float32
    error = (view.inputs[:, :2] * 255 / 7 - stored_place(view, size)).abs().amax(1)
    assert view.visible.float().mean() > 0.5
    # three resamplings round to whole levels, 1/7 of a pixel; the rim of the resized crop is cut off by less than 1/2
    assert error[view.visible].mean() < 0.1 and error[view.visible].max() < 0.6


def test_nearest_neighbour_operations_move_a_pixel_by_at_most_half():
    images = coordinates(32, 32)
    values = {"Rotate": 30.0, "TranslateX": -9.7, "TranslateY": 4.2}
    for name in GEOMETRIC:
        view = apply_ops(with_geometry(images), np.full(B, name), np.full(B, values.get(name, -0.27)))
        error = (view.inputs[:, :2].double() / 7 - stored_place(view, (32, 32))).abs().amax(1)
        assert error[view.visible].max() < 0.5 + 1e-5
        assert torch.equal(view.visible, view.inputs[:, 2] > 0)
        assert not view.visible.all()


def test_operations_touch_only_their_rows():
    images = noise(3, 12, 12)
    names = np.where(np.arange(B) % 3 == 0, "Rotate", "Identity")
    view = apply_ops(with_geometry(images), names, np.full(B, 20.0))
    alone = torch.from_numpy(names == "Identity")
    assert torch.equal(view.inputs[alone], images[alone]) and view.visible[alone].all()
    assert torch.equal(view.matrix[alone], torch.eye(3, dtype=torch.float64).expand(int(alone.sum()), 3, 3))
    assert not (view.visible[~alone].flatten(1).all(1)).any()


@pytest.mark.parametrize("shape, size", [((3, 32, 32), 0), ((3, 32, 32), 16), ((1, 28, 28), 0), ((1, 8, 8), 12),
                                         ((3, 20, 28), 0)])
def test_resized_crop_equals_torchvision_and_carries_its_geometry(shape, size):
    images, draw = noise(*shape), Draw(0, 1, torch.arange(B))
    _, height, width = shape
    scale, ratio = (0.1, 1.0), (0.5, 2.0)
    view = resized_crop.apply(with_geometry(images), draw, scale=scale, ratio=ratio, size=size)
    boxes, found = proposals(draw("resized_crop", 22), scale, ratio, height, width, (height, width))
    assert found.mean() > 0.9 and view.visible.all()
    target = [size or height, size or width]
    for image, got, (top, bottom, left, right) in zip(images[found], view.inputs[found], boxes[found]):
        want = F.resized_crop(image.float(), top, left, bottom - top, right - left, target, antialias=True)
        # the same weights in float64; half a level for the rounding
        assert (got - want).abs().max() < 0.5 + 1e-3
    where = resized_crop.apply(with_geometry(coordinates(height, width)), draw, scale=scale, ratio=ratio, size=size)
    error = (where.inputs[:, :2].double() / 7 - stored_place(where, (height, width))).abs()
    # at the border of the box the sample is cut off, by less than the half of a reduction's step
    assert error[..., 2:-2, 2:-2].max() < 0.5


def test_a_large_image_is_cropped_as_torchvision_crops_bytes():
    images, draw = noise(3, 72, 80), Draw(0, 1, torch.arange(B))
    scale, ratio = (0.1, 1.0), (0.5, 2.0)
    view = resized_crop.apply(with_geometry(images), draw, scale=scale, ratio=ratio, size=64)
    boxes, found = proposals(draw("resized_crop", 22), scale, ratio, 72, 80, (72, 80))
    for image, got, (top, bottom, left, right) in zip(images[found], view.inputs[found], boxes[found]):
        assert torch.equal(got, F.resized_crop(image, top, left, bottom - top, right - left, [64, 64], antialias=True))
    # and as smaller ones are, but for how a level is rounded
    double = resized_crop._product(images, boxes, (64, 64))[found]
    assert (view.inputs[found] - double).abs().max() < 1.01


def test_resized_crop_hides_what_was_hidden():
    view = with_geometry(torch.full((B, 1, 16, 16), 255, dtype=torch.uint8))
    draw = Draw(0, 0, torch.arange(B))
    view = resized_crop.apply(crop.apply(view, draw, padding=6), draw, scale=(0.3, 0.8))
    assert torch.equal(view.visible, view.inputs[:, 0] == 255) and 0.2 < view.visible.float().mean() < 0.95


def test_proposals_use_the_whole_ranges_and_every_place():
    uniform = Draw(0, 0, torch.arange(20_000))("x", 22)
    boxes, found = proposals(uniform, (0.2, 0.5), (0.5, 2.0), 32, 32, (32, 32))
    top, bottom, left, right = boxes.T
    tall, wide = bottom - top, right - left
    area, ratio = tall * wide / 32**2, tall / wide
    assert found.all() and top.min() == left.min() == 0 and bottom.max() == right.max() == 32
    assert 0.18 < area.min() < 0.21 and 0.49 < area.max() < 0.53
    assert ratio.min() < 0.55 and ratio.max() > 1.8
    assert area.mean() == pytest.approx(0.35, abs=0.01)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.01)
    for end, length in ((bottom, tall), (right, wide)):
        assert (end == 32).mean() == pytest.approx((1 / (33 - length)).mean(), abs=0.01)
    _, never = proposals(uniform[:100], (1.0, 1.0), (2.0, 2.0), 32, 32, (32, 32))
    assert not never.any()
    images = noise(1, 10, 20)
    whole = resized_crop.apply(View(images, images), Draw(0, 0, torch.arange(B)), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    want = F.resize(images[..., 5:15].float(), [10, 20], antialias=True)
    assert (whole.inputs - want).abs().max() < 0.501


def patch_means(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Tokens (B, T, C) of a teacher that averages each patch: it commutes with shifts by whole patches."""
    return torch.nn.functional.avg_pool2d(images.float(), patch).flatten(2).mT.contiguous()


@pytest.mark.parametrize("mirror", [False, True])
def test_moved_tokens_are_the_tokens_of_a_flipped_and_shifted_image(mirror):
    images = noise(3, 32, 32)
    view = with_geometry(images)
    steps = np.random.default_rng(0).integers(-3, 4, (B, 2)) * 4
    view = warp(view, inverse_affine(translate_x=steps[:, 0], translate_y=steps[:, 1]))
    if mirror:
        view = flip.apply(view, Draw(0, 0, torch.arange(B)), p=1.0)
    moved, visible = move_tokens(patch_means(images, 4), view.matrix.float(), view.visible, (8, 8), (32, 32))
    want = patch_means(view.inputs, 4)
    assert torch.equal(moved[visible], want[visible])
    assert torch.equal(visible.sum(1), torch.from_numpy(np.prod(8 - np.abs(steps) // 4, axis=1)))
    assert not want[~visible].any()
    _, without_mask = move_tokens(patch_means(images, 4), view.matrix.float(), None, (8, 8), (32, 32))
    assert torch.equal(without_mask, visible)


def test_moved_tokens_of_a_ramp_agree_below_a_patch():
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    ramp = torch.stack([4 * x, 3 * y + x, 7 * y]).byte().repeat(B, 1, 1, 1)
    steps = np.random.default_rng(1).integers(-7, 8, (B, 2))
    view = warp(with_geometry(ramp), inverse_affine(translate_x=steps[:, 0], translate_y=steps[:, 1]))
    moved, visible = move_tokens(patch_means(ramp, 4), view.matrix.float(), view.visible, (8, 8), (32, 32))
    assert (moved - patch_means(view.inputs, 4))[visible].abs().max() < 1e-3
    # a token on the rim of the map has no neighbour to interpolate with, though its pixels are visible
    assert torch.equal(visible.sum(1), torch.from_numpy(np.prod(8 - np.ceil(np.abs(steps) / 4), axis=1)).long())
    turned = rotation.apply(with_geometry(ramp), Draw(0, 0, torch.arange(B)), degrees=30.0, interpolation="bilinear")
    moved, visible = move_tokens(patch_means(ramp, 4), turned.matrix.float(), turned.visible, (8, 8), (32, 32))
    assert (moved - patch_means(turned.inputs, 4))[visible].abs().max() < 0.5  # rounding to levels
    assert 0.4 < visible.float().mean() < 1


def test_tokens_stay_bitwise_where_the_view_is_the_image():
    tokens = torch.randn(B, 20, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    view = with_geometry(noise(3, 20, 16))
    moved, visible = move_tokens(tokens, view.matrix.float(), view.visible, (5, 4), (20, 16))
    assert moved.dtype == torch.bfloat16 and torch.equal(moved, tokens) and visible.all()
    view.visible[3, 19, 15] = False
    _, visible = move_tokens(tokens, view.matrix.float(), view.visible, (5, 4), (20, 16))
    assert not visible[3, 19] and visible.sum() == B * 20 - 1
    _, visible = move_tokens(tokens[:, :1], view.matrix.float(), None, (1, 1), (20, 16))
    assert visible.all()
