"""What the forensics cost: ratios within one run, DeiT-Tiny at 32 pixels.

    python scripts/bench/bench_probes.py [--reps 5] [--images 512] [--cka_images 2048] [--device cuda]

The last line is one JSON object:

    attention_vs_forward  statistics of every head / a plain forward pass, same images and batches
    cka_speedup           CKA of 12 x 12 layers by full Gram matrices, each made once and kept / graft.probes.similarity
    cka_memory            peak memory of graft.probes.similarity / of those Gram matrices, features not counted
    cka_*_pairwise        the same against a function of two features that is called for every pair
    hvp_vs_gradient       a product with the Hessian of one batch / its gradient; `_rebuilt`: graph not kept
    trace_se_ratio        standard error of Hutch++ / of Hutchinson after the same number of products

Images and features are random, labels of the trace's network are learnable and were learned for --steps steps.
Times are medians over repetitions in which the compared things alternate, because machines are noisy.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graft.config import parts
from graft.config.options import Part
from graft.probes import attention, curvature, similarity
from graft.tasks._task import ResidentSplit, Task

CLASSES, LAYERS, WIDTH, BATCH = 10, 12, 192, 64
RANK = 10


def deit_tiny(device: str) -> nn.Module:
    """The study's student, at its initialisation."""
    torch.manual_seed(0)
    split = ResidentSplit(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    task = Task("random", "random", "", [str(k) for k in range(CLASSES)], 3, 32, [0.5] * 3, [0.25] * 3,
                dict.fromkeys(("train", "val", "test"), split))
    return parts.build("students", Part("vit", {"drop_path": 0.0}), task).eval().to(device)


def learnable(count: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Noisy images whose class is where their bright square is."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 32, 32, generator=generator) * 0.6
    labels = torch.arange(count) % CLASSES
    for image, label in zip(images, labels.tolist()):
        image[:, 16 * (label // 5):16 * (label // 5) + 8, 6 * (label % 5):6 * (label % 5) + 6] += 0.3
    return images.to(device), labels.to(device)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, once."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def alternate(reps: int, **works: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each, alternating, after one warm-up."""
    times = {name: [] for name in works}
    for rep in range(reps + 1):
        for name, work in works.items():
            took = seconds(work)
            if rep:
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


# ---------------------------------------------------------------------------------------------------- CKA

def features(count: int, device: str) -> list[list[Tensor]]:
    """What two models of 12 layers might say about `count` images: (count, 192) each."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(count, WIDTH, generator=generator)
    return [[(common + torch.randn(count, WIDTH, generator=generator)).to(device) for _ in range(LAYERS)]
            for _ in range(2)]


def gram(x: Tensor) -> Tensor:
    """x xᵀ without its diagonal."""
    return (x @ x.T).fill_diagonal_(0)


def unbiased_hsic(k: Tensor, m: Tensor) -> Tensor:
    """Song et al. 2012, eq. 5, from two Gram matrices without their diagonals."""
    n = len(k)
    rows, columns = k.sum(0), m.sum(0)
    return ((k * m).sum() + rows.sum() * columns.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows @ columns)) / (
        n * (n - 3))


def kept_grams(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """CKA of all pairs; every Gram matrix is made once and kept."""
    grams = [[gram(x) for x in side] for side in (first, second)]
    own = [[unbiased_hsic(k, k) for k in side] for side in grams]
    return torch.stack([torch.stack([unbiased_hsic(k, m) / (a * b).sqrt() for m, b in zip(grams[1], own[1])])
                        for k, a in zip(grams[0], own[0])])


def pairwise(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """CKA of all pairs by a function of two features."""
    def cka(x: Tensor, y: Tensor) -> Tensor:
        k, m = gram(x), gram(y)
        return unbiased_hsic(k, m) / (unbiased_hsic(k, k) * unbiased_hsic(m, m)).sqrt()

    return torch.stack([torch.stack([cka(x, y) for y in second]) for x in first])


def streamed(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """CKA of all pairs as graft computes it, from batches."""
    names = [f"patch.{i}" for i in range(LAYERS)]
    pairs = (([x[at:at + BATCH] for x in first], [y[at:at + BATCH] for y in second])
             for at in range(0, len(first[0]), BATCH))
    return torch.tensor(similarity.compare(pairs, names, names, null=False)["cka"])


CKA = {"streamed": streamed, "kept": kept_grams, "pairwise": pairwise}


def peak_memory(name: str, count: int, device: str) -> int:
    """Bytes that a computation of CKA adds, at its height, to this process or on its GPU; in a process of its own."""
    def field(key: str) -> int:
        return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    torch.set_num_threads(1)
    first, second = features(count, device)
    CKA[name]([x[:8 * BATCH] for x in first], [y[:8 * BATCH] for y in second])  # libraries load their buffers
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        CKA[name](first, second)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = field("VmRSS")
    CKA[name](first, second)
    return field("VmHWM") - before


def bench_cka(reps: int, count: int, device: str) -> dict[str, float]:
    """Time and memory against both naive computations."""
    first, second = features(count, device)
    reference = kept_grams([x.double() for x in first], [y.double() for y in second])
    assert torch.allclose(streamed(first, second).double(), reference, atol=1e-4), "the computations disagree"
    del reference
    took = alternate(reps, **{name: lambda work=work: work(first, second) for name, work in CKA.items()})
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_memory, (name, count, device)) for name in CKA}
    megabytes = {name: round(size / 2**20, 1) for name, size in memory.items()}
    print(f"CKA: seconds {took}, peak MB {megabytes}", flush=True)
    return {"cka_speedup": took["kept"] / took["streamed"], "cka_memory": memory["streamed"] / memory["kept"],
            "cka_speedup_pairwise": took["pairwise"] / took["streamed"],
            "cka_memory_pairwise": memory["streamed"] / memory["pairwise"]}


# ------------------------------------------------------------------------------------------------- the rest

def bench_attention(model: nn.Module, reps: int, count: int, device: str) -> dict[str, float]:
    """Statistics of every head against a forward pass."""
    batches = torch.rand(count, 3, 32, 32, device=device).split(BATCH)

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model(batch)

    took = alternate(reps, forward=forward, statistics=lambda: attention.head_statistics(model, batches))
    print(f"attention: seconds {took}", flush=True)
    return {"attention_vs_forward": took["statistics"] / took["forward"]}


def bench_products(model: nn.Module, reps: int, device: str) -> dict[str, float]:
    """Products with the Hessian against a gradient, of the same images."""
    images, labels = learnable(32, 0, device)
    kept = curvature.Hessian(model, images, labels, 32)
    vector = torch.randn(kept.shape[0], device=device)

    def gradient() -> None:
        torch.autograd.grad(F.cross_entropy(model(images).logits, labels), list(model.parameters()))

    def rebuilt() -> None:
        _ = curvature.Hessian(model, images, labels, 32) @ vector

    took = alternate(reps, gradient=gradient, kept=lambda: kept @ vector, rebuilt=rebuilt)
    print(f"Hessian: seconds {took}", flush=True)
    return {"hvp_vs_gradient": took["kept"] / took["gradient"],
            "hvp_vs_gradient_rebuilt": took["rebuilt"] / took["gradient"]}


def bench_trace(model: nn.Module, steps: int, products: int, device: str) -> dict[str, float]:
    """Standard errors of the two estimators after as many products, on a network that has learned something."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for step in range(steps):
        images, labels = learnable(32, step, device)
        loss = F.cross_entropy(model(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hessian = curvature.Hessian(model, *learnable(8, -1, device), 8)
    found = {name: curvature.trace(hessian, rank=rank, tolerance=0, max_products=products)
             for name, rank in (("hutchinson", 0), ("hutchpp", RANK))}
    for name, result in found.items():
        print(f"trace, {name}: {result['value']:.4g} ± {result['standard_error']:.3g} after {result['products']} "
              f"products; loss {hessian.loss:.3f}", flush=True)
    return {"trace_se_ratio": found["hutchpp"]["standard_error"] / found["hutchinson"]["standard_error"],
            **{f"trace_relative_se_{name}": result["standard_error"] / abs(result["value"])
               for name, result in found.items()}}


def main() -> None:
    """Measure one after the other, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--images", type=int, default=512, help="for attention")
    parser.add_argument("--cka_images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=40, help="training steps before the trace")
    parser.add_argument("--products", type=int, default=60, help="with the Hessian, for each estimate of the trace")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = options.device
    model = deit_tiny(device)
    found = {**bench_attention(model, options.reps, options.images, device),
             **bench_cka(options.reps, options.cka_images, device), **bench_products(model, options.reps, device),
             **bench_trace(model, options.steps, options.products, device)}
    print(json.dumps({**{name: round(value, 4) for name, value in found.items()},
                      "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                      "threads": torch.get_num_threads(), "torch": torch.__version__, "repetitions": options.reps}))


if __name__ == "__main__":
    main()
