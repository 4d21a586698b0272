"""Curvature of the loss at a checkpoint: trace, largest eigenvalues and spectral density of the Hessian.

The loss is the mean cross-entropy of the logits in evaluation mode, without label smoothing, in fp32 (no TF32, no
autocast), over exactly the images given. Of a student with several heads these are the class token's logits: the mean
of two heads has the curvature of neither, and a condition that is read by it could not be compared with one that is
not. All parameters count, also those that the logits do not depend on. Products with the Hessian are exact up to
rounding; only the trace and the density are estimates.

Products are reverse-over-reverse, because that graph can be kept. curvlinops' own Hessian is not used: it is a jvp
of torch's `jacrev`, which (torch 2.15) gets the rows of layer norm weights wrong, 1% of a small ViT's product.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from graft.augment import to_float
from graft.errors import UserError
from graft.keyed import key
from graft.probes._images import evaluating
from graft.tasks._task import fingerprint

with warnings.catch_warnings():  # one of its dependencies still uses torch.jit.script
    warnings.simplefilter("ignore", FutureWarning)
    from curvlinops.papyan2020traces.spectrum import fast_lanczos, lanczos_approximate_spectrum_from_iter

BLOCK = 10  # samples between two looks at the stop rule
KAPPA, MARGIN = 3.0, 0.05  # width of the bumps and space beside the extreme eigenvalues (Papyan 2020, D.2)


@contextlib.contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """fp32 as it is, and the only attention kernel that has a second derivative."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


class Hessian:
    """Products with the Hessian (P, P) of a model's mean loss over images (N, C, H, W) with labels (N,).

    With one batch the graph of its gradient is kept, and a product costs 2.5 gradients (DeiT-Tiny on a CPU); with
    more, it is built anew for every call (3.7 gradients for one vector), so hand several to `times` at once. The model
    must be in evaluation mode. `products` counts. It is all that curvlinops' Lanczos iteration asks of an operator.
    """

    dtype = torch.float32

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, batch_size: int):
        assert not model.training
        self.model, self.images, self.labels = model, images, labels
        self.batches = torch.arange(len(images), device=images.device).split(batch_size)
        self.parameters = list(model.parameters())
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.shape, self.device = (sum(self.sizes),) * 2, images.device
        self.loss, self.products = float("nan"), 0
        self._kept: tuple[Tensor, list[Tensor | None]] | None = None

    def times(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The Hessian times each of the vectors (P,)."""
        self.products += len(vectors)
        results = [torch.zeros_like(vector) for vector in vectors]
        loss = 0.0
        with _exact(self.device):
            for batch in self.batches:
                share, gradient = self._gradient(batch)
                loss += float(share)
                for vector, result in zip(vectors, results, strict=True):
                    result += self._product(gradient, vector)
        self.loss = loss
        return results

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.times([vector])[0]

    def _gradient(self, batch: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """A batch's share of the loss and of its gradient, differentiable; None where a parameter has no part in it."""
        if self._kept is not None:
            return self._kept
        out = self.model(to_float(self.images[batch]))
        logits = out.readings.get("cls", out.logits)
        loss = F.cross_entropy(logits.float(), self.labels[batch], reduction="sum") / len(self.images)
        gradient = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        if len(self.batches) == 1:
            self._kept = loss.detach(), gradient
        return loss.detach(), gradient

    def _product(self, gradient: list[Tensor | None], vector: Tensor) -> Tensor:
        pieces = vector.split(self.sizes)
        pairs = [(g, piece.view_as(g)) for g, piece in zip(gradient, pieces, strict=True)
                 if g is not None and g.requires_grad]
        rows = torch.autograd.grad([g for g, _ in pairs], self.parameters, [piece for _, piece in pairs],
                                   retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([row.flatten() for row in rows])


def trace(hessian: Hessian, *, rank: int = 10, tolerance: float = 0.05, max_products: int = 300,
          seed: int = 0) -> dict[str, Any]:
    """Trace of a symmetric operator with its standard error, by Hutch++; `rank` 0 is Hutchinson's estimator.

    tr(H) = tr(QᵀHQ) + E[wᵀHw], w = (I - QQᵀ)g, g of random signs; Q spans H applied to `rank` random vectors
    (Meyer et al. 2021, arXiv:2010.09649; Hutchinson 1990). The first part is exact and costs 2·rank products, the
    standard error is that of the mean over g. Sampling stops once it is at most `tolerance` · |trace| (a trace
    can be negative; one near 0 never stops it), or when `max_products` are spent: `converged` says which.
    """
    generator = torch.Generator().manual_seed(key(seed, "hutchinson"))
    size = hessian.shape[0]

    def signs(count: int) -> list[Tensor]:
        return [(torch.randint(0, 2, (size,), generator=generator) * 2 - 1).to(hessian.device, hessian.dtype)
                for _ in range(count)]

    rank, before = min(rank, size), hessian.products
    if max_products < 2 * rank + BLOCK:
        raise UserError(f"curvature: rank {rank} needs at least {2 * rank + BLOCK} products, got {max_products}")
    basis, exact = None, 0.0
    if rank:
        basis = torch.linalg.qr(torch.stack(hessian.times(signs(rank)), 1)).Q
        exact = sum(_dot(q, hq) for q, hq in zip(basis.T, hessian.times(list(basis.T)), strict=True))
    samples: list[float] = []
    converged = False
    while not converged and hessian.products - before + BLOCK <= max_products:
        vectors = [g if basis is None else g - basis @ (basis.T @ g) for g in signs(BLOCK)]
        samples += [exact + _dot(w, hw) for w, hw in zip(vectors, hessian.times(vectors), strict=True)]
        mean, error = float(np.mean(samples)), float(stats.sem(samples))
        if not np.isfinite(error):
            raise UserError("curvature: the Hessian is not finite; the weights are damaged")
        converged = error <= tolerance * abs(mean)
    half = float(stats.t.ppf(0.975, len(samples) - 1)) * error
    return {"value": mean, "standard_error": error, "ci95": [mean - half, mean + half], "samples": len(samples),
            "products": hessian.products - before, "rank": rank, "captured": float(exact), "tolerance": tolerance,
            "converged": converged}


def _dot(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double())


def top_eigenvalues(hessian: Hessian, count: int, seed: int = 0, tolerance: float = 1e-3) -> dict[str, Any]:
    """The largest eigenvalues, descending, by implicitly restarted Lanczos (ARPACK); `converged` if all were found."""
    def product(vector: np.ndarray) -> np.ndarray:
        return (hessian @ torch.from_numpy(vector.ravel()).to(hessian.device)).cpu().numpy()

    operator = LinearOperator(hessian.shape, matvec=product, dtype=np.float32)
    start = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(key(seed, "eigsh"))).numpy()
    try:
        found = eigsh(operator, count, which="LA", v0=start, tol=tolerance, maxiter=20, return_eigenvectors=False)
        converged = True
    except ArpackNoConvergence as error:
        found, converged = error.eigenvalues, False
    return {"values": sorted(map(float, found), reverse=True), "converged": converged, "tolerance": tolerance}


def spectrum(hessian: Hessian, steps: int, points: int = 400, seed: int = 0) -> dict[str, Any]:
    """Spectral density (its integral is 1) by Lanczos quadrature from one random vector (Papyan 2020, JMLR 21).

    `nodes` and `weights` are the quadrature itself; its extreme nodes lie inside the spectrum, close to its ends.
    Raises UserError if the Hessian has fewer directions than `steps`.
    """
    devices = [hessian.device] if hessian.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key(seed, "lanczos"))
        try:
            values, vectors = fast_lanczos(hessian, steps)
        except torch.linalg.LinAlgError:  # 0 / 0: no direction was left
            raise UserError(f"curvature: the Hessian is too small or too flat for {steps} Lanczos steps") from None
    grid, density = lanczos_approximate_spectrum_from_iter(
        (values, vectors), (float(values[0]), float(values[-1])), points, KAPPA, MARGIN)
    return {"nodes": values.tolist(), "weights": vectors[0].square().tolist(), "eigenvalue": grid.tolist(),
            "density": density.tolist(), "steps": steps}


def analyse(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 128, rank: int = 10,
            tolerance: float = 0.05, max_products: int = 300, top: int = 5, steps: int = 64,
            seed: int = 0) -> dict[str, Any]:
    """Curvature of a model on images (N, C, H, W), uint8 or in [0, 1], with labels (N,); JSON-ready.

    `trace` and, with `top` > 0 and `steps` > 0, `eigenvalues` and `spectrum` are as the functions of this module
    return them; `loss` is the mean cross-entropy in nats, `data` the SHA-256 of images and labels, `min_eigenvalue`
    an upper bound on the smallest. A graph is kept for `batch_size` images at a time, twice that of training.
    """
    with evaluating(model):
        hessian = Hessian(model, images, labels, batch_size)
        result: dict[str, Any] = {
            "n": len(images), "data": fingerprint(images.cpu().numpy(), labels.cpu().numpy()), "seed": seed,
            "parameters": hessian.shape[0],
            "trace": trace(hessian, rank=rank, tolerance=tolerance, max_products=max_products, seed=seed)}
        if top:
            result["eigenvalues"] = top_eigenvalues(hessian, top, seed)
        if steps:
            result["spectrum"] = spectrum(hessian, steps, seed=seed)
            result["min_eigenvalue"] = result["spectrum"]["nodes"][0]
    return result | {"loss": hessian.loss, "products": hessian.products}
