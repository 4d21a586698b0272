"""Pixel and policy operations against torchvision, image by image."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandAugment, TrivialAugmentWide
from torchvision.transforms.v2 import functional as F

from graft.augment import autoaugment, color_jitter, randaugment, trivialaugment
from graft.augment._ops import GEOMETRIC, _inverse, apply_ops, magnitudes
from graft.keyed import Draw
from graft.outputs import View
from oracle import nearly_equal, ties

# These compute in float32; the others move whole pixels or look whole numbers up, and are exact.
COMPUTED = ("Brightness", "Color", "Contrast", "Sharpness", "AutoContrast")
SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 8, 12)]


def pictures(channels: int, height: int, width: int, n: int = 12) -> torch.Tensor:
    """Noise, a low-contrast ramp, a flat image and one with four levels."""
    images = torch.randint(0, 256, (n, channels, height, width), generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(height)[:, None] * 2 + torch.arange(width)
    images[n // 2:] = images[n // 2:] // 5 + 60 + ramp
    images[0], images[1] = 7, images[1] // 64 * 64
    return images.clamp(0, 255).byte()


def expected(image: torch.Tensor, name: str, value: float) -> torch.Tensor:
    """The operation as torchvision's policies call it."""
    degrees, corner = math.degrees(math.atan(value)), [0, 0]
    calls = {
        "Identity": lambda: image,
        "ShearX": lambda: F.affine(image, 0.0, [0, 0], 1.0, [degrees, 0.0], center=corner),
        "ShearY": lambda: F.affine(image, 0.0, [0, 0], 1.0, [0.0, degrees], center=corner),
        "TranslateX": lambda: F.affine(image, 0.0, [int(value), 0], 1.0, [0.0, 0.0]),
        "TranslateY": lambda: F.affine(image, 0.0, [0, int(value)], 1.0, [0.0, 0.0]),
        "Rotate": lambda: F.rotate(image, value),
        "Brightness": lambda: F.adjust_brightness(image, 1.0 + value),
        "Color": lambda: F.adjust_saturation(image, 1.0 + value),
        "Contrast": lambda: F.adjust_contrast(image, 1.0 + value),
        "Sharpness": lambda: F.adjust_sharpness(image, 1.0 + value),
        "Posterize": lambda: F.posterize(image, int(value)),
        "Solarize": lambda: F.solarize(image, value),
        "AutoContrast": lambda: F.autocontrast(image),
        "Equalize": lambda: F.equalize(image),
        "Invert": lambda: F.invert(image),
    }
    return calls[name]()


def torchvision_space(policy: torch.nn.Module, *arguments) -> dict[str, tuple[list[float], bool]]:
    space = policy._augmentation_space(*arguments)
    return {name: (values.tolist() if values.ndim else [0.0], signed) for name, (values, signed) in space.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bins, wide", [(10, False), (31, False), (31, True)])
def test_every_operation_at_every_magnitude_equals_torchvision(shape, bins, wide):
    images = pictures(*shape)
    if wide:
        space = torchvision_space(TrivialAugmentWide(), bins)
    else:
        space = torchvision_space(AutoAugment(AutoAugmentPolicy.CIFAR10), bins, shape[1:])
    own = magnitudes(bins, *shape[1:], wide=wide)
    for name, (values, signed) in space.items():
        assert sorted(set(own[name])) == sorted(set(values)), name
        for value in sorted({sign * value for value in values for sign in ((1, -1) if signed else (1,))}):
            got = apply_ops(View(images, images), np.full(len(images), name), np.full(len(images), value)).inputs
            want = torch.stack([expected(image, name, value) for image in images])
            tied = ties(torch.from_numpy(_inverse(np.array([name]), np.array([value]), *shape[1:])[0]), *shape[1:])
            free = tied if name in GEOMETRIC and value else None  # two pixels equally near: a rounding decides
            nearly_equal(got, want, share=1e-3 if name in COMPUTED else 0, what=f"{name} {value}", free=free)


@pytest.mark.parametrize("shape", SHAPES)
def test_hue_equals_torchvision_up_to_one_level(shape):
    images = pictures(*shape)
    for turn in np.linspace(-0.5, 0.5, 21):
        got = apply_ops(View(images, images), np.full(len(images), "Hue"), np.full(len(images), turn)).inputs
        difference = (got.int() - F.adjust_hue(images, turn).int()).abs()
        # both cut a float32 colour off to an integer; its last bit depends on the order of the arithmetic
        assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
def test_policies_apply_what_they_plan_to_each_image(shape, policy):
    images = pictures(*shape, n=200)
    draw = Draw(3, 5, torch.arange(200))
    if policy == "autoaugment":
        steps, got = autoaugment.plan(draw, *shape[1:]), autoaugment.apply(View(images, images), draw)
    elif policy == "randaugment":
        steps = randaugment.plan(draw, *shape[1:], n=3, magnitude=14)
        got = randaugment.apply(View(images, images), draw, n=3, magnitude=14)
    else:
        steps, got = [trivialaugment.plan(draw, *shape[1:])], trivialaugment.apply(View(images, images), draw)
    want = images  # which operation is which, the test above has compared with torchvision
    for names, values in steps:
        want = torch.cat([apply_ops(View(image, image), names[i:i + 1], values[i:i + 1]).inputs
                          for i, image in enumerate(want.split(1))])
    assert torch.equal(got.inputs, want)
    assert not torch.equal(got.inputs, images)


def test_autoaugment_takes_torchvisions_cifar10_policy_with_its_probabilities():
    policy = AutoAugment(AutoAugmentPolicy.CIFAR10)
    space = torchvision_space(policy, 10, (32, 32))
    chances = Counter()
    for first, second in policy.policies:
        outcomes = []
        for name, p, level in (first, second):
            value = space[name][0][level] if level is not None else 0.0
            signs = (1, -1) if space[name][1] and value else (1,)
            outcomes.append([(("Identity", None), 1 - p), *(((name, sign * value), p / len(signs)) for sign in signs)])
        for one, p in outcomes[0]:
            for two, q in outcomes[1]:
                chances[one, two] += p * q / len(policy.policies)
    n = 100_000
    steps = autoaugment.plan(Draw(0, 0, torch.arange(n)), 32, 32)
    tagged = [[(name, None if name == "Identity" else value) for name, value in zip(names, values.tolist())]
              for names, values in steps]
    seen = Counter(zip(*tagged, strict=True))
    assert set(seen) == {outcome for outcome, p in chances.items() if p > 0}
    for outcome, p in chances.items():
        assert abs(seen[outcome] - n * p) < 5 * math.sqrt(n * p * (1 - p) + 1e-9), outcome


def check_uniform(seen: Counter, chances: dict) -> None:
    n = sum(seen.values())
    assert set(seen) == set(chances)
    for outcome, p in chances.items():
        assert abs(seen[outcome] - n * p) < 5 * math.sqrt(n * p), outcome


def spread(space: dict[str, tuple[list[float], bool]]) -> Counter:
    """Chance of each (operation, magnitude): uniform over operations, over their magnitudes and over signs."""
    chances = Counter()
    for name, (values, signed) in space.items():
        for value in values:
            for sign in (1, -1) if signed else (1, 1):
                chances[name, sign * value] += 1 / (2 * len(values) * len(space))
    return chances


def test_randaugment_draws_every_operation_and_sign_equally_often_in_every_step():
    space = {name: ([values[min(9, len(values) - 1)]], signed)
             for name, (values, signed) in torchvision_space(RandAugment(), 31, (32, 32)).items()}
    steps = randaugment.plan(Draw(0, 0, torch.arange(50_000)), 32, 32, n=2, magnitude=9)
    for names, values in steps:
        check_uniform(Counter(zip(names.tolist(), values.tolist())), spread(space))
    together = Counter(zip(steps[0][0], steps[1][0]))
    assert len(together) == 14**2 and max(together.values()) < 50_000 / 14**2 * 1.5


def test_trivialaugment_draws_every_operation_strength_and_sign():
    names, values = trivialaugment.plan(Draw(0, 0, torch.arange(200_000)), 32, 32)
    check_uniform(Counter(zip(names.tolist(), values.tolist())), spread(torchvision_space(TrivialAugmentWide(), 31)))


def test_color_jitter_uses_its_ranges_and_every_order():
    images = pictures(3, 8, 8, n=64)
    view, draw = View(images, images), Draw(1, 0, torch.arange(64))
    strength = {"brightness": 0.4, "contrast": 0.3, "saturation": 1.5, "hue": 0.1}
    uniform = draw("color_jitter", 8)
    calls = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    lows, highs = [0.6, 0.7, 0.0, -0.1], [1.4, 1.3, 2.5, 0.1]
    want = []
    for image, row in zip(images, uniform):
        for which in np.argsort(row[4:]):
            value = lows[which] + (highs[which] - lows[which]) * row[which]
            image = calls[which](image, value)
        want.append(image)
    got = color_jitter.apply(view, draw, **strength).inputs
    # a level lost by the hue grows by the factors that come after it
    assert (got.int() - torch.stack(want).int()).abs().max() <= 8
    assert (got != torch.stack(want)).float().mean() < 1e-3
    assert len({tuple(np.argsort(row[4:])) for row in Draw(1, 0, torch.arange(2000))("color_jitter", 8)}) == 24
    still = color_jitter.apply(view, draw, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    assert torch.equal(still.inputs, images)
