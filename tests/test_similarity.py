"""Unbiased CKA, streamed, against its definition over quadruples of images and the full-matrix estimator."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graft.errors import UserError
from graft.probes import similarity
from test_students import TINY, a_task, images, student


def kernel_of(x: np.ndarray, kernel: str) -> np.ndarray:
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)  # translation: no matter but to rounding
    if kernel == "linear":
        return x @ x.T
    d2 = ((x[:, None] - x[None]) ** 2).sum(-1)
    pairs = np.sort(d2[np.triu_indices(len(x), 1)])
    return np.exp(-d2 / (2 * pairs[(len(pairs) - 1) // 2]))


def hsic_by_quadruples(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """The U-statistic itself: mean over distinct i, j, q, r of k_ij (l_ij + l_qr - 2 l_iq)."""
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(len(k)), 4)]
    return float(np.mean(terms))


def hsic_of_song(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    whole = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ l) + whole - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3)))


def expected(xs, ys, kernel, hsic=hsic_of_song):
    ks, ls = ([kernel_of(x.numpy(), kernel) for x in side] for side in (xs, ys))
    return [[hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)) for m in ls] for k in ks]


def features(n, dims, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 3, generator=generator)
    return [shared @ torch.randn(3, d, generator=generator) + torch.randn(n, d, generator=generator) + offset
            for d in dims]


def compare(xs, ys, sizes=None, **options):
    sizes = sizes or [len(xs[0])]
    assert sum(sizes) == len(xs[0])
    pairs = zip(zip(*(x.split(sizes) for x in xs)), zip(*(y.split(sizes) for y in ys)))
    names = [[f"{side}{i}" for i in range(len(z))] for side, z in (("a", xs), ("b", ys))]
    return similarity.compare(((list(x), list(y)) for x, y in pairs), *names, **options)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_definition(kernel):
    xs, ys = features(7, [2, 5]), features(7, [3], seed=1)
    found = compare(xs, ys, kernel=kernel)
    assert found["cka"] == [pytest.approx(row, abs=1e-9) for row in expected(xs, ys, kernel, hsic_by_quadruples)]
    assert found["n"] == 7 and found["layers_1"] == ["a0", "a1"] and found["estimator"] == "unbiased"


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("sizes", [[90], [1] * 90, [3, 1, 50, 36], [64, 26]])
def test_streaming_equals_the_full_matrices(kernel, sizes):
    xs, ys = features(90, [4, 60, 200], offset=100.0), features(90, [30, 7], seed=2, offset=-50.0)
    ys[0] += xs[1][:, :30]
    found = compare(xs, ys, sizes, kernel=kernel)
    assert found["cka"][1][0] > 0.2
    assert found["cka"] == [pytest.approx(row, abs=1e-9) for row in expected(xs, ys, kernel)]
    shuffled = expected(xs, [y.roll(1, 0) for y in ys], kernel)
    assert found["null"]["cka"] == [pytest.approx(row, abs=1e-9) for row in shuffled]
    assert found["null"]["mean"] == pytest.approx(np.mean(shuffled))
    assert found["null"]["max_abs"] == pytest.approx(np.abs(shuffled).max())
    assert compare(xs, ys, sizes, kernel=kernel, null=False) == {**found, "null": None}


def test_rbf_kernels_are_computed_some_rows_at_a_time(monkeypatch):
    xs, ys = features(50, [4, 6]), features(50, [5], seed=2)
    whole = compare(xs, ys, kernel="rbf")
    monkeypatch.setattr(similarity, "BLOCK_NUMBERS", 50 * 4 * 7)
    assert compare(xs, ys, kernel="rbf")["cka"] == [pytest.approx(row, abs=1e-12) for row in whole["cka"]]


def test_rotation_scale_and_translation_do_not_matter_and_unrelated_features_average_zero():
    x, = features(60, [8])
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3))).Q
    found = compare([x], [1e3 * (x @ rotation) + 7, -x])
    assert found["cka"][0] == pytest.approx([1, 1], abs=1e-5)
    generator = torch.Generator().manual_seed(4)
    values = [compare([torch.randn(64, 192, generator=generator)], [torch.randn(64, 384, generator=generator)],
                      null=False)["cka"][0][0] for _ in range(60)]
    error = np.std(values, ddof=1) / np.sqrt(60)
    assert abs(np.mean(values)) < 4 * error < 0.02  # the biased estimator says 0.80


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_dead_layers_are_named(kernel):
    x, = features(40, [6])
    constant = torch.full((40, 3), 5.0)
    noise = constant + 1e-6 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    single = torch.zeros(40, 3)
    single[7] = 1.0  # one image apart from all the others: no pair of images says anything
    found = compare([x, constant, noise, single], [x, torch.zeros(40, 2)], [25, 15], kernel=kernel)
    json.dumps(found, allow_nan=False)
    assert found["dead_1"] == ["a1", "a2", "a3"] and found["dead_2"] == ["b1"]
    assert found["cka"] == [[pytest.approx(1), None], [None, None], [None, None], [None, None]]
    nothing = compare([constant], [constant], kernel=kernel)
    assert nothing["null"]["mean"] is None and nothing["null"]["max_abs"] is None


def test_bad_input_is_named():
    xs = features(3, [2])
    for kernel in ("linear", "rbf"):
        with pytest.raises(UserError, match="at least 4 images, got 3"):
            compare(xs, xs, kernel=kernel)
    with pytest.raises(UserError, match="at least 4 images, got 0"):
        similarity.compare([], ["a"], ["b"])
    with pytest.raises(UserError, match="expected linear or rbf, got 'cosine'"):
        compare(xs, xs, kernel="cosine")
    xs = features(10, [2, 2])
    xs[1][4, 0] = torch.inf
    with pytest.raises(UserError, match="a1: features are not finite"):
        compare(xs, xs)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_no_matrix_over_images():
    n, size = 3000, 50

    def pairs():
        for start in range(0, n, size):
            yield features(size, [20, 20], seed=start), features(size, [20, 20], seed=start)

    with Largest() as largest:
        assert similarity.compare(pairs(), "ab", "ab")["n"] == n
    assert largest.numel <= 2 * 22 * max(size, 2 * 22) < n * n / 1000


def test_between_models():
    task = a_task(n=12)
    torch.manual_seed(0)
    vit, cnn = student("vit", task, **TINY), student("cnn", task, arch="adaptive_cnn", variant="cifar")
    x = images(task, 12)
    found = similarity.cka(vit.train(), cnn, x.split(5))
    assert found["layers_1"] == ["patch.0", "patch.1", "patch.2"] == found["layers_2"][:3] and vit.training
    assert found["layers_2"][3:] == ["patch.3"]
    with torch.no_grad():
        a = vit.eval()(x, found["layers_1"]).features
        b = cnn.eval()(x, found["layers_2"]).features
    by_hand = expected([v.mean(1) for v in a.values()], [v.mean(1) for v in b.values()], "linear")
    assert found["cka"] == [pytest.approx(row, abs=1e-4) for row in by_hand]
    itself = similarity.cka(vit, vit, [x], ["patch.0", "cls.final"], ["cls.final", "patch.0", "patch.2"])
    assert itself["cka"][0][1] == pytest.approx(1) and itself["cka"][1][0] == pytest.approx(1)
    with pytest.raises(UserError, match=r"feature 'patch\.9' does not exist"):
        similarity.cka(vit, vit, [x], ["patch.9"])
