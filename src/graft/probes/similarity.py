"""How alike two models' layers see the same images: unbiased centred kernel alignment, exact, without n x n matrices.

CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the unbiased HSIC of Song et al. 2012 (JMLR 13), over n
images (Kornblith et al. 2019, arXiv:1905.00414; Nguyen et al. 2021, arXiv:2010.15327). Its expectation is 0 for
unrelated features whatever n and their widths, so single values may be below 0; the null states how far.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graft.errors import UserError
from graft.probes._images import evaluating, require_images

MIN_IMAGES = 4  # the unbiased estimator divides by n - 3
SAME = 1e-5  # features that vary by less, relative to their length, vary by rounding
NO_STRUCTURE = 1e-12  # self-HSIC over squared variance: less than one direction in a million shows
BANDWIDTH_IMAGES = 1000
BLOCK_NUMBERS = 2**22  # kernel entries held at a time

Pairs = Iterable[tuple[list[Tensor], list[Tensor]]]


def cka(model_1: nn.Module, model_2: nn.Module, images: Iterable[Tensor], layers_1: Sequence[str] = (),
        layers_2: Sequence[str] = (), *, kernel: str = "linear", null: bool = True) -> dict[str, Any]:
    """CKA between features of two students or teachers (or of one and itself) on batches (B, C, H, W) in [0, 1].

    A feature is the mean of its tokens: `patch.3`, or `cls.3` for the class token; by default those of all
    blocks, `patch.0` to the last. Otherwise as `compare`.
    """
    names_1, names_2 = (list(layers) or [f"patch.{i}" for i in range(model.depth)]
                        for model, layers in ((model_1, layers_1), (model_2, layers_2)))

    def pairs() -> Pairs:
        with torch.no_grad(), evaluating(model_1, model_2):
            for batch in images:
                first = _means(model_1, batch, [*names_1, *(names_2 if model_1 is model_2 else ())])
                second = first[-len(names_2):] if model_1 is model_2 else _means(model_2, batch, names_2)
                yield first[:len(names_1)], second

    return compare(pairs(), names_1, names_2, kernel=kernel, null=null)


def _means(model: nn.Module, images: Tensor, names: list[str]) -> list[Tensor]:
    features = model(images, list(dict.fromkeys(names))).features
    return [features[name].float().mean(1) for name in names]


def compare(pairs: Pairs, names_1: Sequence[str], names_2: Sequence[str], *, kernel: str = "linear",
            null: bool = True) -> dict[str, Any]:
    """CKA matrix from batches of features (B, D) of each layer, two lists a batch, rows the same images.

    `cka[i][j]` is None where a layer named in `dead_1`, `dead_2` does not vary over the images. `null` is the
    same matrix with every image paired with the next one in the order given, which should be a random one.
    linear: one pass, memory (Σ D_1)(Σ D_2) whatever n. rbf: exp(-d² / 2m), m the median d² of the first 1,000
    images; features are kept (n Σ D), kernels only some rows at a time, time n² a layer. Raises UserError for fewer
    than 4 images and for features that are not finite.
    """
    if kernel not in ("linear", "rbf"):
        raise UserError(f"similarity: kernel: expected linear or rbf, got {kernel!r}")
    sums = (_linear if kernel == "linear" else _rbf)(_checked(pairs, names_1, names_2), null)
    n, cross, shifted, own_1, own_2, floor_1, floor_2 = sums
    alive_1, alive_2 = own_1 > floor_1, own_2 > floor_2
    scale = (own_1.clamp_min(0)[:, None] * own_2.clamp_min(0)).sqrt()
    both = alive_1[:, None] & alive_2

    def matrix(hsic: Tensor) -> list[list[float | None]]:
        return [[float(x) if ok else None for x, ok in zip(row, oks, strict=True)]
                for row, oks in zip(hsic / scale, both, strict=True)]

    result = {"kernel": kernel, "estimator": "unbiased", "n": n, "layers_1": list(names_1), "layers_2": list(names_2),
              "cka": matrix(cross), "null": None,
              "dead_1": [name for name, alive in zip(names_1, alive_1, strict=True) if not alive],
              "dead_2": [name for name, alive in zip(names_2, alive_2, strict=True) if not alive]}
    if null:
        values = [x for row in matrix(shifted) for x in row if x is not None]
        result["null"] = {"cka": matrix(shifted), "mean": sum(values) / len(values) if values else None,
                          "max_abs": max(map(abs, values), default=None)}
    return result


def _checked(pairs: Pairs, names_1: Sequence[str], names_2: Sequence[str]) -> Pairs:
    for batch in pairs:
        for names, features in zip((names_1, names_2), batch, strict=True):
            for name, x in zip(names, features, strict=True):
                if not x.isfinite().all():
                    raise UserError(f"similarity: {name}: features are not finite")
        yield batch


def _unbiased(n: int, inner: Tensor, rows: Tensor, whole: Tensor) -> Tensor:
    """HSIC of Song et al. 2012, eq. 5, for kernels with zero diagonal: tr KL, 1ᵀKL1 and (1ᵀK1)(1ᵀL1)."""
    return (inner + whole / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


class _Products:
    """Σ xᵀy over batches."""

    def __init__(self):
        self.sum: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        self.sum = x.T @ y if self.sum is None else self.sum.addmm_(x.T, y)


class _Side:
    """One model's features as rows [x, ‖x‖², 1] per layer (float64), whose products hold every sum HSIC needs."""

    def __init__(self, features: list[Tensor]):
        # HSIC does not change under translation; near the mean, sums of squares lose no digits.
        self.shift = [x.double().mean(0) for x in features]
        ends = torch.tensor([x.shape[1] + 2 for x in features]).cumsum(0).tolist()
        self.places = [slice(start, end) for start, end in zip([0, *ends], ends)]
        self.own = [_Products() for _ in features]
        self.squares = self.shift[0].new_zeros(len(features))  # Σ‖x‖² of the features as they are

    def rows(self, features: list[Tensor]) -> Tensor:
        """(B, Σ(D + 2)) of one batch."""
        columns = []
        for x, shift in zip(features, self.shift, strict=True):
            x = x.double() - shift
            columns += [x, x.square().sum(1, keepdim=True), torch.ones_like(x[:, :1])]
        return torch.cat(columns, 1)

    def add(self, features: list[Tensor], rows: Tensor) -> None:
        for i, (x, place) in enumerate(zip(features, self.places, strict=True)):
            self.own[i].add(rows[:, place], rows[:, place])
            self.squares[i] += x.double().square().sum()

    def self_hsic(self, n: int) -> tuple[Tensor, Tensor]:
        """HSIC of every layer with itself, and what it must exceed to be more than rounding."""
        sums = [products.sum for products in self.own]
        variance = torch.stack([block[-2, -1] for block in sums]) / n
        floor = torch.maximum(SAME**4 * (self.squares / n).square(), NO_STRUCTURE * variance.square())
        return torch.stack([_hsic(block) for block in sums]), floor


def _hsic(sums: Tensor) -> Tensor:
    """Unbiased linear HSIC from Σ [x, a, 1]ᵀ[y, b, 1], a = ‖x‖², b = ‖y‖²: with K = XXᵀ - diag(a), L likewise,

    tr KL = ‖XᵀY‖² - Σab, 1ᵀKL1 = Σ (x·Σx - a)(y·Σy - b), 1ᵀK1 = ‖Σx‖² - Σa.
    """
    xy, xb, sx = sums[:-2, :-2], sums[:-2, -2], sums[:-2, -1]
    ay, ab, a = sums[-2, :-2], sums[-2, -2], sums[-2, -1]
    sy, b, n = sums[-1, :-2], sums[-1, -2], sums[-1, -1]
    rows = sx @ xy @ sy - sx @ xb - ay @ sy + ab
    return _unbiased(n, xy.square().sum() - ab, rows, (sx @ sx - a) * (sy @ sy - b))


def _linear(pairs: Pairs, null: bool) -> tuple[int, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """(n, HSIC between, the same shuffled, HSIC of each layer of 1, of 2, their floors)."""
    n, one, two, last = 0, None, None, None
    cross, shuffled = _Products(), _Products()
    for features in pairs:
        if one is None:
            one, two = _Side(features[0]), _Side(features[1])
        x, y = one.rows(features[0]), two.rows(features[1])
        one.add(features[0], x)
        two.add(features[1], y)
        cross.add(x, y)
        if null:  # image i with image i - 1, the first with the last
            if last is None:
                first = x[:1]
            else:
                shuffled.add(x[:1], last)
            shuffled.add(x[1:], y[:-1])
            last = y[-1:]
        n += len(x)
    require_images(n, MIN_IMAGES, "similarity")
    if null:
        shuffled.add(first, last)

    def hsics(sums: Tensor) -> Tensor:
        return torch.stack([torch.stack([_hsic(sums[p, q]) for q in two.places]) for p in one.places]).cpu()

    (own_1, floor_1), (own_2, floor_2) = (tuple(t.cpu() for t in side.self_hsic(n)) for side in (one, two))
    return n, hsics(cross.sum), hsics(shuffled.sum) if null else None, own_1, own_2, floor_1, floor_2


def _rbf(pairs: Pairs, null: bool) -> tuple[int, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """As `_linear`, with kernels exp(-d² / 2m) computed some rows at a time."""
    kept = [(list(first), list(second)) for first, second in pairs]
    n = sum(len(first[0]) for first, _ in kept)
    require_images(n, MIN_IMAGES, "similarity")
    sides = [[torch.cat(batches).double() for batches in zip(*side, strict=True)] for side in zip(*kept, strict=True)]
    del kept
    if null:
        sides.append([y.roll(1, 0) for y in sides[1]])
    features = [x for side in sides for x in side]
    centred = [x - x.mean(0) for x in features]
    widths = [_median_distance(x[:BANDWIDTH_IMAGES]) for x in centred]
    inner, rows = _kernel_sums(centred, widths)
    whole = rows.sum(1)
    hsic = _unbiased(n, inner, rows @ rows.T, whole[:, None] * whole).cpu()
    l1, l2 = len(sides[0]), len(sides[1])
    own = hsic.diagonal()
    dead = torch.tensor([width <= 2 * SAME**2 * float(x.square().sum(1).mean())
                         for width, x in zip(widths, features, strict=True)])
    floor = torch.where(dead, torch.inf, NO_STRUCTURE).double()
    return (n, hsic[:l1, l1:l1 + l2], hsic[:l1, l1 + l2:] if null else None, own[:l1], own[l1:l1 + l2], floor[:l1],
            floor[l1:l1 + l2])


def _median_distance(x: Tensor) -> float:
    return float(torch.pdist(x).square().median())


def _kernel_sums(features: list[Tensor], widths: list[float]) -> tuple[Tensor, Tensor]:
    """Σ_ij K_ij L_ij of all pairs of kernels (M, M) and their row sums (M, n), diagonals taken as 0."""
    n, many = len(features[0]), len(features)
    inner = features[0].new_zeros(many, many)
    rows = features[0].new_zeros(many, n)
    squares = [x.square().sum(1) for x in features]
    for block in torch.arange(n).split(max(1, BLOCK_NUMBERS // (many * n))):
        here = slice(int(block[0]), int(block[-1]) + 1)
        kernels = features[0].new_empty(many, len(block), n)
        for kernel, x, square, width in zip(kernels, features, squares, widths, strict=True):
            torch.addmm(square[here, None] + square, x[here], x.T, alpha=-2, out=kernel)
            kernel.clamp_min_(0).mul_(-1 / (2 * max(width, torch.finfo(kernel.dtype).tiny))).exp_()
            kernel[torch.arange(len(block)), block] = 0
        flat = kernels.flatten(1)
        inner.addmm_(flat, flat.T)
        rows[:, here] = kernels.sum(2)
    return inner, rows
