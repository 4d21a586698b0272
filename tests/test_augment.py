"""The augmentation of a batch: determinism, holes, mixing, and every operation on every kind of image."""

import numpy as np
import pytest
import torch
from scipy import stats

from graft.augment import Augment, cutmix, cutout, mix, mixup, random_erasing, to_float
from graft.augment._boxes import proposals
from graft.config.options import Part
from graft.config.schema import check, part_fields, part_names, part_tensors
from graft.errors import UserError
from graft.keyed import Draw
from graft.outputs import View

NAMES = part_names("augment")
MIXING = [name for name in NAMES if "num_classes" in part_tensors("augment", name)]


def part(name: str, **arguments) -> Part:
    return Part(name, {key: field.default for key, field in part_fields("augment", name).items()} | arguments)


def data(n: int, channels: int = 3, side: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 10, (n,), generator=generator), torch.randperm(n, generator=generator) + 1000


def test_every_operation_is_a_part_with_valid_defaults():
    assert {"crop", "flip", "autoaugment", "mixup", "cutmix", "mix"} <= set(NAMES) and len(NAMES) == 14
    for name in NAMES:
        for field in part_fields("augment", name).values():
            assert check(field.default, field) == field.default and field.help


@pytest.mark.parametrize("channels, side", [(1, 8), (1, 28), (3, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_works_with_and_without_geometry(name, channels, side):
    images, labels, index = data(16, channels, side)
    before = images.clone()
    augment = Augment((part(name),), 0)
    plain = augment(images, labels, index, 3, num_classes=10)
    view = augment(images, labels, index, 3, num_classes=10, geometry=True)
    assert torch.equal(images, before)
    assert plain.matrix is None and plain.visible is None
    assert torch.equal(plain.inputs, view.inputs) and torch.equal(plain.targets, view.targets)
    assert view.inputs.shape == images.shape and view.inputs.dtype == torch.float32
    assert view.inputs.min() >= 0 and view.inputs.max() <= 1
    assert view.matrix.shape == (16, 3, 3) and view.matrix.dtype == torch.float32
    assert view.visible.shape == (16, side, side) and view.visible.dtype == torch.bool
    assert not torch.equal(view.inputs, to_float(images))


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name):
    images, labels, index = data(32)
    augment = Augment((part("crop"), part(name)), 7)
    whole = augment(images, labels, index, 2, num_classes=10, geometry=True)
    # pairs stay together, because a mixing operation mixes neighbours
    pairs = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    for chosen in (torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten(), torch.tensor([6, 7])):
        part_of = augment(images[chosen], labels[chosen], index[chosen], 2, num_classes=10, geometry=True)
        for field in ("inputs", "targets", "matrix", "visible"):
            assert torch.equal(getattr(part_of, field), getattr(whole, field)[chosen]), field
    for other in (augment(images, labels, index, 3, num_classes=10),
                  augment(images, labels, index + 32, 2, num_classes=10),
                  Augment((part("crop"), part(name)), 8)(images, labels, index, 2, num_classes=10)):
        same = (other.inputs == whole.inputs).flatten(1).all(1)
        assert same.float().mean() < 0.2


def test_an_operation_listed_twice_draws_twice():
    images, labels, index = data(64)
    once = Augment((part("flip"),), 0)(images, labels, index, 0, num_classes=10).inputs
    twice = Augment((part("flip"), part("flip")), 0)(images, labels, index, 0, num_classes=10).inputs
    back = (twice == to_float(images)).flatten(1).all(1)
    assert 16 < back.sum() < 48 and not torch.equal(once, twice)


def test_without_operations_only_the_scale_changes():
    images, labels, index = data(3)
    view = Augment((), 0)(images, labels, index, 0, num_classes=10, geometry=True)
    assert torch.equal(view.inputs, images.float() / 255) and torch.equal(view.targets, labels)
    assert torch.equal(view.matrix, torch.eye(3).expand(3, 3, 3)) and view.visible.all()


def test_cutout_centres_are_uniform_and_holes_are_cut_off_at_the_border():
    n, side, size = 20_000, 12, 6
    images = torch.zeros(n, 1, side, side, dtype=torch.uint8)
    holes = cutout.apply(View(images, images), Draw(0, 0, torch.arange(n)), size=size, fill=(1.0,)).inputs[:, 0] > 0
    # pixel k is covered by the centres c with c - 3 <= k < c + 3
    line = torch.tensor([sum(c - 3 <= k < c + 3 for c in range(side)) / side for k in range(side)])
    assert (holes.float().mean(0) - line[:, None] * line).abs().max() < 0.02
    assert {*holes.flatten(1).sum(1).tolist()} == {a * b for a in (3, 4, 5, 6) for b in (3, 4, 5, 6)}
    three = cutout.apply(View(images, images), Draw(0, 0, torch.arange(n)), size=2, holes=3, fill=(1.0,)).inputs
    assert three.flatten(1).count_nonzero(1).max() == 12


def test_holes_have_the_colour_asked_for_and_stay_visible():
    images, labels, index = data(64)
    for name in ("cutout", "random_erasing"):
        augment = Augment((part(name, fill=[0.4914, 0.4822, 0.4465]),), 0)
        view = augment(images, labels, index, 0, num_classes=10, geometry=True)
        changed = (view.inputs != to_float(images)).any(1)
        assert changed.any() and view.visible.all()
        colours = view.inputs.permute(0, 2, 3, 1)[changed]
        assert (colours - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 0.5 / 255 + 1e-6
        with pytest.raises(UserError, match=rf"{name}\.fill: expected 1 or 3 numbers, got 2"):
            Augment((part(name, fill=[0.1, 0.2]),), 0)(images, labels, index, 0, num_classes=10)


def test_random_erasing_erases_the_rectangles_it_draws():
    n, side = 5000, 32
    images = torch.zeros(n, 1, side, side, dtype=torch.uint8)
    draw = Draw(0, 0, torch.arange(n))
    erased = random_erasing.apply(View(images, images), draw, p=0.4, fill=(1.0,)).inputs[:, 0] > 0
    uniform = draw("random_erasing", 23)
    boxes, found = proposals(uniform[:, 1:], (0.02, 0.33), (0.3, 3.3), side, side, (side - 1, side - 1))
    happens = found & (uniform[:, 0] < 0.4)
    assert happens.mean() == pytest.approx(0.4, abs=0.03)
    want = torch.zeros_like(erased)
    for i in np.flatnonzero(happens):
        top, bottom, left, right = boxes[i]
        want[i, top:bottom, left:right] = True
    assert torch.equal(erased, want)


def partner(x: torch.Tensor) -> torch.Tensor:
    return x[torch.arange(len(x)) ^ 1]


def soft_labels(labels: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    one_hot = torch.eye(10)[labels]
    return share[:, None] * one_hot + (1 - share[:, None]) * partner(one_hot)


def visible_view(images: torch.Tensor, labels: torch.Tensor) -> View:
    shape = (len(images), *images.shape[-2:])
    return View(images, labels, torch.eye(3).repeat(len(images), 1, 1), torch.ones(shape, dtype=torch.bool))


def test_mixup_is_the_weighted_mean_with_the_neighbour():
    images, labels, index = data(2000, 1, 8)
    draw = Draw(0, 0, index)
    view = mixup.apply(visible_view(images, labels), draw, 10, alpha=0.8)
    share = torch.from_numpy(stats.beta.ppf(draw("mixup")[:, 0], 0.8, 0.8))
    want = share[:, None, None, None] * images / 255 + (1 - share[:, None, None, None]) * partner(images) / 255
    assert torch.allclose(view.inputs.double(), want, atol=1e-6) and not view.visible.any()
    assert torch.allclose(view.targets.double(), soft_labels(labels, share).double(), atol=1e-6)
    assert stats.kstest(share.numpy(), stats.beta(0.8, 0.8).cdf).pvalue > 0.01


def test_cutmix_pastes_a_box_and_shares_labels_by_its_area():
    images, labels, index = data(2000, 3, 16)
    images[0::2] = images[0::2] // 2
    images[1::2] = images[1::2] // 2 + 128
    draw = Draw(0, 0, index)
    view = cutmix.apply(visible_view(images, labels), draw, 10, alpha=1.0)
    own, other = to_float(images), to_float(partner(images))
    assert torch.equal(view.inputs, torch.where(view.visible[:, None], own, other))
    pasted = ~view.visible
    rows, columns = pasted.any(2).sum(1), pasted.any(1).sum(1)
    assert torch.equal(pasted.flatten(1).sum(1), rows * columns)  # a rectangle
    share = view.visible.float().mean((1, 2))
    assert torch.allclose(view.targets, soft_labels(labels, share), atol=1e-6)
    drawn = stats.beta.ppf(draw("cutmix", 3)[:, 0], 1.0, 1.0)
    side = 2 * np.floor(np.sqrt(1 - drawn) * 8)
    assert (rows.numpy() <= side).all() and (rows.numpy() == side).mean() > 0.3
    assert share.min() < 0.3 and share.max() == 1
    centre = pasted.float().mean(0)
    assert centre[8, 8] > centre[0, 0] > 0 and (centre - centre.flip(0)).abs().max() < 0.08


def test_mix_is_mixup_or_cutmix_for_each_image():
    images, labels, index = data(4000, 1, 8)
    view = mix.apply(visible_view(images, labels), Draw(0, 0, index), 10, switch_prob=0.3)
    own, other = to_float(images), to_float(partner(images))
    is_cut = ((view.inputs == own) | (view.inputs == other)).flatten(1).all(1)
    assert is_cut.float().mean() == pytest.approx(0.3, abs=0.03)
    assert not view.visible[~is_cut].any() and view.visible[is_cut].any()
    share = torch.where(is_cut, view.visible.float().mean((1, 2)), torch.nan)
    assert torch.allclose(view.targets[is_cut], soft_labels(labels, share)[is_cut], atol=1e-6)
    assert torch.allclose(view.targets.sum(1), torch.ones(4000))
    for prob, cut in ((0.0, False), (1.0, True)):
        view = mix.apply(visible_view(images, labels), Draw(0, 0, index), 10, switch_prob=prob)
        assert bool(((view.inputs == own) | (view.inputs == other)).flatten(1).all(1).float().mean() > 0.9) is cut


@pytest.mark.parametrize("name", MIXING)
def test_mixing_needs_pairs_and_comes_last(name):
    images, labels, index = data(5)
    with pytest.raises(UserError, match="even number of images per micro-batch, got 5"):
        Augment((part(name),), 0)(images, labels, index, 0, num_classes=10)
    with pytest.raises(UserError, match="augment: flip comes after"):
        Augment((part(name), part("flip")), 0)(images[:4], labels[:4], index[:4], 0, num_classes=10)


@pytest.mark.parametrize("name, arguments, message", [
    ("resized_crop", {"scale": [0.5, 0.2]}, r"resized_crop\.scale: expected \[smallest, largest\]"),
    ("random_erasing", {"ratio": [1.0]}, r"random_erasing\.ratio: expected"),
    ("affine", {"scale": [2.0, 1.0]}, r"affine\.scale: expected"),
    ("randaugment", {"magnitude": 31}, r"randaugment\.magnitude: expected 0 to 30, got 31"),
])
def test_bad_arguments_are_one_line(name, arguments, message):
    images, labels, index = data(4)
    with pytest.raises(UserError, match=message):
        Augment((part(name, **arguments),), 0)(images, labels, index, 0, num_classes=10)
