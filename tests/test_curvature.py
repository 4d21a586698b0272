"""Curvature against exact Hessians of networks small enough to have one, and against curvlinops."""

import warnings

import pytest
import torch
from torch import nn

from graft.errors import UserError
from graft.outputs import Outputs
from graft.probes import curvature
from test_students import a_task, student

with warnings.catch_warnings():  # one of its dependencies still uses torch.jit.script
    warnings.simplefilter("ignore", FutureWarning)
    from curvlinops import HessianLinearOperator, hutchinson_trace, hutchpp_trace


# torch's own forward-mode rules, used by the oracles, are scripted
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")


class Tiny(nn.Module):
    """4 pixels to 3 classes through 5 hidden units; `spare` takes no part in the logits."""

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))
            self.spare = nn.Linear(2, 1)

    def forward(self, images):
        return Outputs(self.net(images))


def data(n: int = 12, shape=(1, 2, 2), classes: int = 3):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, *shape, generator=generator), torch.arange(n) % classes


def exact_hessian(model: nn.Module, images, labels) -> torch.Tensor:
    """In double precision, forward over reverse."""
    model = model.double().eval()
    named = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in named.values()])

    def loss(flat):
        pieces = flat.split([p.numel() for p in named.values()])
        values = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces)}
        out = torch.func.functional_call(model, values, (images.double(),))
        return nn.functional.cross_entropy(out.logits, labels)

    hessian = torch.func.hessian(loss)(flat)
    model.float()
    return hessian


class Matrix:
    """A symmetric matrix with the interface of `Hessian`."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.products = matrix, tuple(matrix.shape), 0
        self.device, self.dtype = matrix.device, matrix.dtype

    def times(self, vectors):
        self.products += len(vectors)
        return [self.matrix @ vector for vector in vectors]


@pytest.mark.parametrize("batch_size", [12, 5])
def test_products_are_those_of_the_exact_hessian(batch_size):
    model, (images, labels) = Tiny().eval(), data()
    expected = exact_hessian(model, images, labels)
    hessian = curvature.Hessian(model, images, labels, batch_size)
    rows = torch.stack(hessian.times(list(torch.eye(hessian.shape[0]))))
    torch.testing.assert_close(rows.double(), expected, atol=1e-6, rtol=1e-4)
    assert expected.abs().max() > 0.05 and hessian.products == hessian.shape[0] == 46
    loss = nn.functional.cross_entropy(model(images).logits, labels)
    assert hessian.loss == pytest.approx(loss.item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_products_of_a_vit_are_differences_of_gradients():
    """Attention, layer norm and GELU, read by the class token whatever the model is read by; the oracle is the central
    difference of the gradient in double precision."""
    model, (images, labels) = student("vit", a_task(1, 8), patch=4, dim=8, depth=2, heads=2, distilled=True,
                                      inference="avg").eval(), data(8, (1, 8, 8), 10)
    hessian = curvature.Hessian(model, images, labels, 3)
    vector = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(0))
    found = hessian @ vector
    model.double()
    parameters = list(model.parameters())
    pieces = [v.view_as(p) for v, p in zip(vector.double().split(hessian.sizes), parameters)]

    def gradient(step: float) -> torch.Tensor:
        with torch.no_grad():
            torch._foreach_add_(parameters, pieces, alpha=step)
        loss = nn.functional.cross_entropy(model(images.double()).readings["cls"], labels)
        rows = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            torch._foreach_sub_(parameters, pieces, alpha=step)
        return torch.cat([row.flatten() for row in rows])

    expected = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    assert expected.norm() > 1 and (found - expected).norm() < 1e-5 * expected.norm()


def test_products_of_a_cnn_agree_with_curvlinops():
    model, (images, labels) = student("cnn", a_task(1, 8), arch="small").eval(), data(8, (1, 8, 8), 10)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, images):
            return self.inner(images).logits

    theirs = HessianLinearOperator(Logits(), nn.CrossEntropyLoss(), list(model.parameters()), [(images, labels)],
                                   check_deterministic=False)
    ours = curvature.Hessian(model, images, labels, 3)
    vector = torch.randn(ours.shape[0], generator=torch.Generator().manual_seed(0))
    expected = theirs @ vector
    assert expected.norm() > 1e-3 and (ours @ vector - expected).norm() < 1e-5 * expected.norm()


def test_trace_of_a_diagonal_matrix_is_exact_at_once():
    result = curvature.trace(Matrix(torch.diag(torch.linspace(-5, 1, 30))), rank=0)
    assert result["value"] == pytest.approx(-60, rel=1e-5) and result["standard_error"] < 1e-4
    assert result["converged"] and result["products"] == result["samples"] == curvature.BLOCK


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("sign", [1, -1])
def test_trace_is_unbiased_with_a_true_standard_error(rank, sign):
    """Over 300 repetitions: the mean is the trace, and the stated errors are the spread that is seen."""
    root = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    matrix = sign * (root @ root.T / 40 + 3 * torch.outer(root[0], root[0]) / 40)
    results = [curvature.trace(Matrix(matrix), rank=rank, tolerance=0, max_products=2 * rank + 20, seed=seed)
               for seed in range(300)]
    values = torch.tensor([result["value"] for result in results])
    spread = float(values.std())
    assert abs(float(values.mean() - matrix.trace())) < 3.5 * spread / 300**0.5
    stated = torch.tensor([result["standard_error"] for result in results]).square().mean().sqrt()
    assert float(stated) == pytest.approx(spread, rel=0.15)
    assert {result["products"] for result in results} == {2 * rank + 20}
    covered = sum(r["ci95"][0] <= float(matrix.trace()) <= r["ci95"][1] for r in results)
    assert covered > 270


def test_trace_spreads_as_curvlinops_estimators_do():
    """The same numbers of products give the same error as the library's two estimators."""
    root = torch.randn(60, 60, generator=torch.Generator().manual_seed(1))
    matrix = (root * torch.linspace(1, 0.05, 60)) @ root.T
    for rank, theirs in ((0, hutchinson_trace), (10, hutchpp_trace)):
        # rank 10 and 10 samples: 30 products, a third of them for each step, as there
        count = 2 * rank + 10
        with torch.random.fork_rng():
            torch.manual_seed(0)
            reference = torch.stack([theirs(matrix, count) for _ in range(400)]).std()
        ours = torch.tensor([curvature.trace(Matrix(matrix), rank=rank, tolerance=0, max_products=count,
                                             seed=seed)["value"] for seed in range(400)]).std()
        assert float(ours) == pytest.approx(float(reference), rel=0.2)


def test_stop_rule():
    root = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    for matrix in (root @ root.T, -(root @ root.T)):
        result = curvature.trace(Matrix(matrix), rank=0, tolerance=0.05, max_products=2000)
        assert result["converged"] and result["products"] < 2000
        assert result["standard_error"] <= 0.05 * abs(result["value"])
    no_trace = root @ root.T
    no_trace = no_trace - torch.eye(50) * no_trace.trace() / 50
    result = curvature.trace(Matrix(no_trace), rank=0, max_products=47)
    assert not result["converged"] and result["products"] == 40
    with pytest.raises(UserError, match="needs at least 30 products, got 20"):
        curvature.trace(Matrix(matrix), rank=10, max_products=20)
    with pytest.raises(UserError, match="not finite; the weights are damaged"):
        curvature.trace(Matrix(matrix * float("nan")), rank=0)


def test_analysis_of_a_tiny_network():
    model, (images, labels) = Tiny(), data()
    model.train()
    options = {"rank": 5, "tolerance": 0.1, "max_products": 3000, "top": 3, "steps": 8}
    first = curvature.analyse(model, images, labels, **options)
    torch.rand(1)  # the global generator has no part in it
    assert curvature.analyse(model, images, labels, **options) == first
    assert model.training
    exact = exact_hessian(model, images, labels)
    model.train()
    values = torch.linalg.eigvalsh(exact)
    assert first["trace"]["converged"]
    assert abs(first["trace"]["value"] - float(values.sum())) < 4 * first["trace"]["standard_error"] + 1e-5
    assert first["eigenvalues"]["values"] == pytest.approx(values.flip(0)[:3].tolist(), rel=1e-3)
    assert first["eigenvalues"]["converged"]
    assert float(values[0]) - 1e-6 <= first["min_eigenvalue"] < 0  # a saddle
    assert (first["n"], first["parameters"]) == (12, 46)
    assert first["data"] != curvature.analyse(model, images, labels.roll(1), top=0, steps=0)["data"]


def test_density_has_the_moments_of_the_spectrum():
    """Quadrature with m nodes integrates polynomials of degree < 2m; averaged over starts that is the trace."""
    root = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    matrix = (root + root.T) / 2 / 300**0.5

    class Square(Matrix):
        def __matmul__(self, vector):
            return self.matrix @ vector

    found = [curvature.spectrum(Square(matrix), 20, seed=seed) for seed in range(20)]
    for power in (1, 2):
        moments = torch.tensor([sum(w * x**power for w, x in zip(f["weights"], f["nodes"])) for f in found])
        expected = float(torch.linalg.eigvalsh(matrix).pow(power).mean())
        assert abs(float(moments.mean()) - expected) < 4 * float(moments.std()) / 20**0.5
    assert float(torch.trapezoid(torch.tensor(found[0]["density"]), torch.tensor(found[0]["eigenvalue"]))) == (
        pytest.approx(1, abs=0.02))
    with pytest.raises(UserError, match="too flat for 5 Lanczos steps"):
        curvature.spectrum(Square(torch.zeros(9, 9)), 5)
