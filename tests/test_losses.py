"""Every loss against a hand value and against its formula written a second time, in NumPy and float64."""

import ast
import importlib
import inspect
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graft.config import schema
from graft.errors import UserError
from graft.losses import ce, cka, correlation, gram, kd, token
from graft.losses._dino import DinoHead, dino_loss
from graft.losses._tokens import PUBLISHED_WIDTH
from graft.outputs import TopK

NAMES = schema.part_names("losses")
TOKENWISE = [name for name in NAMES if "student_tokens" in schema.part_tensors("losses", name)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def some_visible(B: int, T: int, seed: int = 0) -> torch.Tensor:
    """About half visible, at least 5 in every image."""
    visible = torch.rand(B, T, generator=rng(seed)) < 0.5
    visible[:, :5] = True
    return visible


# --------------------------------------------------------------------- the contract of every file in losses/

def tensors_for(name: str, dtype: torch.dtype, equal: bool = False) -> dict[str, torch.Tensor]:
    logits, tokens = normal(6, 4).to(dtype), normal(6, 8, 5).to(dtype)
    teacher_logits = logits if equal else normal(6, 4, seed=1).to(dtype)
    maps = normal(6, 1 if equal else 2, 9, 9).softmax(-1).to(dtype)
    wide = teacher_logits.to(torch.promote_types(dtype, torch.float32))  # a TopK always is
    given = {"logits": logits, "distill_logits": logits, "targets": torch.tensor([0, 3, 1, 1, 2, 0]),
             "teacher_logits": teacher_logits, "teacher_topk": TopK(*wide.topk(2), wide.logsumexp(-1)),
             "student_tokens": tokens, "teacher_tokens": tokens if equal else normal(6, 8, 5, seed=1).to(dtype),
             "student_attention": maps, "visible": None, "projector": None,
             "teacher_attention": maps[:, 0] if equal else normal(6, 9, 9, seed=1).softmax(-1).to(dtype)}
    return {key: given[key] for key in schema.part_tensors("losses", name)}


def settings(name: str) -> list[dict]:
    """The defaults, and each choice of each argument, without projectors."""
    fields = schema.part_fields("losses", name)
    base = {"project": "none"} if "project" in fields else {}
    found = [base]
    for key, field in fields.items():
        if key != "project" and "|" in field.rule:
            found += [{**base, key: choice.strip()} for choice in field.rule.split("|")]
        elif field.type is bool:
            found += [{**base, key: value} for value in (False, True)]
    return found


EVERY = [pytest.param(name, args, id=f"{name}-{'-'.join(map(str, args.values()))}")
         for name in NAMES for args in settings(name)]
DISTANCES = [case for case in EVERY if case.values[0] != "ce" and case.values[1].get("mode") != "hard"
             and case.values[1].get("tail") != "ignore" and case.values[1].get("target") not in ("local", "uniform")]
STRUCTURAL = [case for case in EVERY if case.values[0] in TOKENWISE]


@pytest.mark.parametrize("name", NAMES)
def test_files_say_what_they_are(name):
    module = importlib.import_module(f"graft.losses.{name}")
    assert module.__doc__ and len(module.__doc__.split("\n")[0]) > 20
    doc = inspect.getdoc(module.loss)
    assert any(sign in doc for sign in "=/-") and ("(N" in doc or "(B" in doc), "no formula with shapes"
    assert "arXiv" in doc, "no source"
    for field in schema.part_fields("losses", name).values():
        assert field.help and field.default is not schema.REQUIRED
    known = {"logits", "distill_logits", "teacher_logits", "teacher_topk", "targets", "student_tokens",
             "teacher_tokens", "student_attention", "teacher_attention", "visible", "projector"}
    assert set(schema.part_tensors("losses", name)) <= known
    assert not [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize(("name", "args"), EVERY)
def test_values_per_sample_in_fp32_from_bf16_under_autocast(name, args):
    loss = importlib.import_module(f"graft.losses.{name}").loss
    halves = tensors_for(name, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(**halves, **args)
    wide = loss(**{key: x.float() if torch.is_tensor(x) and x.is_floating_point() else x for key, x in halves.items()},
                **args)
    assert value.shape == (() if args.get("over") == "batch" else (6,))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, wide, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "args"), DISTANCES)
def test_distances_are_zero_at_equality_and_positive_elsewhere(name, args):
    loss = importlib.import_module(f"graft.losses.{name}").loss
    tolerance = 1e-4 if args.get("eps_inside") else 1e-12
    assert loss(**tensors_for(name, torch.float64, equal=True), **args).abs().max() < tolerance
    assert loss(**tensors_for(name, torch.float64), **args).mean() > 1e-3


@pytest.mark.parametrize(("name", "args"), EVERY)
def test_no_gradient_reaches_the_teacher(name, args):
    loss = importlib.import_module(f"graft.losses.{name}").loss
    given = tensors_for(name, torch.float64)
    tensors = given | (vars(given["teacher_topk"]) if "teacher_topk" in given else {})
    floats = {key: x.requires_grad_() for key, x in tensors.items() if torch.is_tensor(x) and x.is_floating_point()}
    loss(**given, **args).sum().backward()
    for key, x in floats.items():
        assert (x.grad is None) == (key.startswith("teacher") or key in ("values", "logsumexp")), key


@pytest.mark.parametrize(("name", "args"), STRUCTURAL)
def test_masked_tokens_count_for_nothing(name, args):
    """An image with some tokens hidden gives what the visible tokens alone give; hidden content is never read."""
    loss = importlib.import_module(f"graft.losses.{name}").loss
    student, visible = normal(6, 16, 5), some_visible(6, 16)
    teacher = normal(6, 16, 5 if name == "token" else 7, seed=1)
    masked = loss(student, teacher, visible, **args)
    junk = torch.where(visible[..., None], student, 1e3 * normal(6, 16, 5, seed=2)).requires_grad_()
    again = loss(junk, teacher, visible, **args)
    torch.testing.assert_close(again, masked)
    again.sum().backward()
    assert junk.grad[~visible].abs().max() == 0 < junk.grad[visible].abs().max()
    if args.get("over") != "batch":
        alone = [loss(s[v][None], t[v][None], **args)[0] for s, t, v in zip(student, teacher, visible)]
        torch.testing.assert_close(masked, torch.stack(alone))


@pytest.mark.parametrize(("name", "args"), STRUCTURAL)
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_images_with_too_few_tokens_give_zero_or_a_finite_value(name, args, count):
    module = importlib.import_module(f"graft.losses.{name}")
    student, visible = normal(6, 16, 5).requires_grad_(), some_visible(6, 16)
    visible[1] = torch.arange(16) < count
    value = module.loss(student, normal(6, 16, 5, seed=1), visible, **args)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()
    least = 2 if args.get("diagonal") else getattr(module, "MIN_TOKENS", 1)
    if args.get("over") != "batch":
        assert (value[1].abs() > 1e-12) == (count >= least)


@pytest.mark.parametrize(("name", "args"), STRUCTURAL)
def test_gradients_agree_with_finite_differences(name, args):
    loss = importlib.import_module(f"graft.losses.{name}").loss
    teacher, visible = normal(2, 7, 3, seed=1), some_visible(2, 7)
    if args.get("over") == "batch":
        teacher, visible = normal(6, 2, 3, seed=1), None
    student = normal(*teacher.shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, visible, **args), student)


@pytest.mark.parametrize("name", ["cka", "correlation", "gram"])
def test_structure_ignores_rotation_and_scale(name):
    loss = importlib.import_module(f"graft.losses.{name}").loss
    x, y = normal(2, 12, 6), normal(2, 12, 9, seed=1)
    rotation = torch.linalg.qr(normal(6, 6, seed=2)).Q
    for kernel in ({"kernel": "linear"}, {"kernel": "rbf"}) if name == "cka" else ({},):
        torch.testing.assert_close(loss(1e3 * x @ rotation, y, **kernel), loss(x, y, **kernel))
        assert loss(x, 1e-3 * x @ rotation, **kernel).abs().max() < 1e-10
        stretched = x * torch.tensor([9.0, 1, 1, 1, 1, 1], dtype=x.dtype)
        assert (loss(stretched, y, **kernel) - loss(x, y, **kernel)).abs().min() > 1e-4


# ---------------------------------------------------------------------------------------------- ce and kd

def test_ce_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4, 1/4
    assert ce.loss(logits, torch.tensor([1])).item() == pytest.approx(math.log(4))
    smoothed = 0.1 * math.log(4 / 3) + 0.9 * math.log(4)  # label (0.1, 0.9) = 0.8 * (0, 1) + 0.2 / 2
    assert ce.loss(logits, torch.tensor([1]), smoothing=0.2).item() == pytest.approx(smoothed)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ce_of_soft_labels(smoothing):
    logits, soft = normal(6, 5), F.softmax(normal(6, 5, seed=1), -1)
    label = (1 - smoothing) * soft + smoothing / 5
    expected = [-(y * np.log(np.exp(z) / np.exp(z).sum())).sum() for z, y in zip(logits.numpy(), label.numpy())]
    np.testing.assert_allclose(ce.loss(logits, soft, smoothing=smoothing), expected, rtol=1e-10)
    published = ce.loss(logits, soft, smoothing=smoothing, smooth_soft=False)
    torch.testing.assert_close(published, F.cross_entropy(logits, soft, reduction="none"))


def test_ce_of_one_hot_labels_is_that_of_hard_ones():
    logits, hard = normal(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    one_hot = F.one_hot(hard, 5).double()
    torch.testing.assert_close(ce.loss(logits, one_hot, smoothing=0.1), ce.loss(logits, hard, smoothing=0.1))
    hard_published = ce.loss(logits, hard, smoothing=0.1, smooth_soft=False)
    torch.testing.assert_close(hard_published, ce.loss(logits, hard, smoothing=0.1))


def test_kd_by_hand():
    teacher, student = torch.tensor([[2 * math.log(3.0), 0.0]]), torch.zeros(1, 2)
    # At temperature 2 the teacher says 3/4, 1/4 and the student 1/2, 1/2.
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd.loss(student, teacher, tau=2.0).item() == pytest.approx(4 * kl, rel=1e-5)
    assert kd.loss(student, teacher, mode="hard").item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_kd_gradient_is_tau_times_the_difference_of_probabilities(tau):
    student, teacher = normal(5, 7).requires_grad_(), normal(5, 7, seed=1)
    kd.loss(student, teacher, tau=tau).sum().backward()
    expected = tau * (F.softmax(student / tau, -1) - F.softmax(teacher / tau, -1))
    torch.testing.assert_close(student.grad, expected.detach())


def test_kd_hard_follows_the_teachers_answer():
    student, teacher = normal(5, 7), normal(5, 7, seed=1)
    expected = [np.log(np.exp(z).sum()) - z[t.argmax()] for z, t in zip(student.numpy(), teacher.numpy())]
    np.testing.assert_allclose(kd.loss(student, teacher, mode="hard", tau=3.0), expected, rtol=1e-10)


# --------------------------------------------------------------------------------- tokens, Gram, correlation

def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def test_token_distances():
    student, teacher = normal(2, 5, 3), normal(2, 5, 3, seed=1)
    cosines = [[1 - cosine(s, t) for s, t in zip(S, T)] for S, T in zip(student.numpy(), teacher.numpy())]
    np.testing.assert_allclose(token.loss(student, teacher, project="none"), np.mean(cosines, 1), rtol=1e-10)
    squares = ((student.numpy() - teacher.numpy())**2).reshape(2, -1).mean(1)
    np.testing.assert_allclose(token.loss(student, teacher, project="none", distance="mse"), squares, rtol=1e-10)
    assert token.loss(student, -student, project="none").tolist() == pytest.approx([2, 2])


def test_projector_shapes():
    one_sided = token.projector(24, 36, project="student")
    assert [p.shape for p in one_sided.teacher.parameters()] == []
    student, teacher = one_sided(torch.zeros(2, 4, 24), torch.ones(2, 4, 36))
    assert student.shape == (2, 4, 36) and torch.equal(teacher, torch.ones(2, 4, 36))
    kinds = [type(layer).__name__ for layer in one_sided.student]
    assert kinds == ["Linear", "LayerNorm", "GELU", "Linear", "LayerNorm"] and one_sided.student[0].out_features == 72
    published = token.projector(192, 384, project="both")
    assert [sum(p.numel() for p in side.parameters()) for side in (published.student, published.teacher)] == \
        [231_680, 329_984]
    assert published(torch.zeros(1, 1, 192), torch.zeros(1, 1, 384))[1].shape == (1, 1, PUBLISHED_WIDTH)
    with pytest.raises(UserError, match="student 24, teacher 36"):
        token.projector(24, 36, project="none")
    assert cka.projector(24, 36, project="none") is None and gram.projector(24, 36, project="none") is None


def fit_projector(project: str, steps: int) -> float:
    """The loss on unseen noise after training the projector alone on fresh, unrelated noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projector = token.projector(48, 64, project=project)
        optimizer = torch.optim.AdamW(projector.parameters(), lr=3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            value = token.loss(torch.randn(32, 16, 48), torch.randn(32, 16, 64), None, projector, project=project)
            value.mean().backward()
            optimizer.step()
        with torch.no_grad():
            return token.loss(torch.randn(32, 16, 48), torch.randn(32, 16, 64), None, projector,
                              project=project).mean().item()


def test_only_a_trained_teacher_side_can_satisfy_the_loss_without_the_student():
    assert fit_projector("student", 40) > 0.95
    assert fit_projector("both", 40) < 0.2


def test_trained_teacher_side_still_sends_nothing_to_the_teacher():
    teacher = normal(2, 4, 6).float().requires_grad_()
    projector = token.projector(5, 6, project="both")
    token.loss(normal(2, 4, 5).float(), teacher, None, projector, project="both").sum().backward()
    assert teacher.grad is None
    assert all(p.grad is not None for p in projector.parameters())


def test_gram_by_pairs():
    student, teacher = normal(2, 6, 3), normal(2, 6, 9, seed=1)
    for S, T, value, published in zip(student.numpy(), teacher.numpy(), gram.loss(student, teacher),
                                      gram.loss(student, teacher, scale="frobenius")):
        squares = [(cosine(S[i], S[j]) - cosine(T[i], T[j]))**2 for i, j in itertools.permutations(range(6), 2)]
        assert value.item() == pytest.approx(sum(squares) / 30)
        assert published.item() == pytest.approx(math.sqrt(sum(squares)) / 36)


def test_published_gram_scale_makes_the_term_vanish():
    student, teacher = normal(4, 64, 192), normal(4, 64, 384, seed=1)
    collapsed = torch.ones(4, 64, 192, dtype=torch.float64)
    assert gram.loss(student, teacher, scale="frobenius").mean().item() == pytest.approx(0.0013, abs=3e-4)
    assert gram.loss(collapsed, teacher, scale="frobenius").mean().item() == pytest.approx(1 / 64, rel=0.05)
    assert gram.loss(collapsed, teacher).mean().item() == pytest.approx(1, rel=0.05)


def row_kl(student: np.ndarray, teacher: np.ndarray, temperature: float, diagonal: bool) -> float:
    """Mean KL of the rows of two sets of vectors, entry by entry."""
    n, total = len(student), 0.0
    for i in range(n):
        others = [j for j in range(n) if diagonal or j != i]
        p, q = ([math.exp(cosine(x[i], x[j]) / temperature) for j in others] for x in (teacher, student))
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q))
    return total / n


@pytest.mark.parametrize("diagonal", [False, True])
def test_correlation_by_rows(diagonal):
    student, teacher = normal(5, 6, 3), normal(5, 6, 9, seed=1)
    expected = [row_kl(s, t, 0.2, diagonal) for s, t in zip(student.numpy(), teacher.numpy())]
    np.testing.assert_allclose(correlation.loss(student, teacher, temperature=0.2, diagonal=diagonal), expected)
    pooled = row_kl(student.numpy().mean(1), teacher.numpy().mean(1), 0.1, diagonal)
    assert correlation.loss(student, teacher, over="batch", diagonal=diagonal).item() == pytest.approx(pooled)


@pytest.mark.parametrize("loss", [correlation.loss, cka.loss])
def test_batch_terms_leave_out_images_without_a_visible_token(loss):
    student, teacher, visible = normal(7, 6, 3), normal(7, 6, 9, seed=1), some_visible(7, 6)
    visible[2] = False
    kept = torch.arange(7) != 2
    torch.testing.assert_close(loss(student, teacher, visible, over="batch"),
                               loss(student[kept], teacher[kept], visible[kept], over="batch"))


# ------------------------------------------------------------------------------------------------------ CKA

def kernel_matrix(x: np.ndarray, kernel: str) -> np.ndarray:
    if kernel == "linear":
        return x @ x.T
    n = len(x)
    squares = np.array([[np.sum((x[i] - x[j])**2) for j in range(n)] for i in range(n)])
    between = sorted(squares[i, j] for i in range(n) for j in range(i + 1, n))
    return np.exp(-squares / (2 * between[(len(between) - 1) // 2]))


def song_hsic(K: np.ndarray, L: np.ndarray) -> float:
    """The three-term unbiased estimator (Song et al. 2012, eq. 5)."""
    n, one = len(K), np.ones(len(K))
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    trace = np.trace(K @ L)
    product = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return (trace + product - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def biased_hsic(K: np.ndarray, L: np.ndarray) -> float:
    n = len(K)
    H = np.eye(n) - 1 / n
    return np.trace(K @ H @ L @ H) / (n - 1)**2


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_cka_against_the_trace_formulas(kernel, estimator):
    student, teacher = normal(5, 11, 4) + 2, normal(5, 11, 6, seed=1)
    hsic = {"unbiased": song_hsic, "biased": biased_hsic}[estimator]

    def distance(s: np.ndarray, t: np.ndarray) -> float:
        K, L = kernel_matrix(s, kernel), kernel_matrix(t, kernel)
        return 1 - hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))

    expected = [distance(s, t) for s, t in zip(student.numpy(), teacher.numpy())]
    np.testing.assert_allclose(cka.loss(student, teacher, kernel=kernel, estimator=estimator), expected, rtol=1e-9)
    batch = cka.loss(student, teacher, kernel=kernel, estimator=estimator, over="batch").item()
    assert batch == pytest.approx(distance(student.numpy().mean(1), teacher.numpy().mean(1)))


def test_published_cka():
    """Unit tokens, centred kernels divided by (n-1)^2 + 1e-8, and 1e-8 under the root."""
    student, teacher = normal(3, 10, 4), normal(3, 10, 6, seed=1)
    expected = []
    for s, t in zip(student.numpy(), teacher.numpy()):
        s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
        H = np.eye(10) - 0.1
        K, L = H @ s @ s.T @ H, H @ t @ t.T @ H
        st, ss, tt = ((a * b).sum() / (81 + 1e-8) for a, b in ((K, L), (K, K), (L, L)))
        expected.append(1 - st / math.sqrt(ss * tt + 1e-8))
    published = {"normalize": True, "estimator": "biased", "eps_inside": True}
    np.testing.assert_allclose(cka.loss(student, teacher, **published), expected, rtol=1e-6)


def test_unbiased_cka_of_unrelated_tokens_is_zero_and_the_biased_one_is_not():
    student, teacher = normal(64, 64, 192).float(), normal(64, 64, 384, seed=1).float()
    unbiased, biased = (1 - cka.loss(student, teacher, estimator=e) for e in ("unbiased", "biased"))
    assert abs(unbiased.mean().item()) < 0.01 and unbiased.abs().max() < 0.2
    assert biased.mean().item() == pytest.approx(0.80, abs=0.01)
    rbf = 1 - cka.loss(student, teacher, kernel="rbf")
    assert abs(rbf.mean().item()) < 0.01


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("noise", [1.0, 0.1, 0.01, 1e-3])
def test_cka_of_similar_tokens_needs_no_epsilon(noise, kernel):
    """float32 tokens with a large common part: the same answer as in float64; the published one breaks down."""
    common = normal(1, 1, 192, seed=3)
    student, teacher = common + noise * normal(4, 64, 192), common + noise * normal(4, 64, 192, seed=1)
    teacher = (teacher + student) / 2
    exact = cka.loss(student.float().double(), teacher.float().double(), kernel=kernel)
    torch.testing.assert_close(cka.loss(student.float(), teacher.float(), kernel=kernel).double(), exact,
                               rtol=0, atol=2e-3)
    assert cka.loss(student.float(), student.float(), kernel=kernel).abs().max() < 1e-3
    if noise <= 0.1:
        published = cka.loss(student, student, normalize=True, estimator="biased", eps_inside=True)
        assert published.min() > 0.5


def test_cka_of_few_tokens_can_be_negative_but_is_bounded():
    values = cka.loss(normal(200, 5, 2), normal(200, 5, 2, seed=1))
    assert values.min() >= 0 and 1.5 < values.max() <= 2


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("T", [5, 64, 101])
@pytest.mark.parametrize("rounding", [0, 3e-7])
def test_tokens_that_are_all_the_same_are_unlike_anything(kernel, T, rounding):
    flat = (normal(2, 1, 4, seed=2) * (1 + rounding * normal(2, T, 4, seed=3))).float().requires_grad_()
    value = cka.loss(flat, normal(2, T, 4).float(), kernel=kernel)
    value.sum().backward()
    assert value.tolist() == [1, 1] and flat.grad.isfinite().all()


# ----------------------------------------------------------------------------------------------------- DINO

def test_dino_loss_by_pairs():
    student, teacher, center = normal(5, 3, 7).numpy(), normal(2, 3, 7, seed=1).numpy(), normal(7, seed=2).numpy()
    soft = lambda z: np.exp(z) / np.exp(z).sum()  # noqa: E731
    expected = [np.mean([-(soft((teacher[g, b] - center) / 0.3) * np.log(soft(student[v, b] / 0.5))).sum()
                         for g in range(2) for v in range(5) if v != g]) for b in range(3)]
    value = dino_loss(*map(torch.from_numpy, (student, teacher, center)), 0.5, 0.3)
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_dino_by_hand():
    """A uniform student pays log K whatever the teacher says; the teacher gets no gradient."""
    teacher = normal(2, 3, 8).requires_grad_()
    student = torch.zeros(4, 3, 8, dtype=torch.float64, requires_grad=True)
    value = dino_loss(student, teacher, torch.zeros(8, dtype=torch.float64), 0.1, 0.04)
    assert value.tolist() == pytest.approx([math.log(8)] * 3)
    value.sum().backward()
    assert teacher.grad is None and student.grad.abs().max() > 0


def test_dino_head_gives_cosines_without_gain():
    head = DinoHead(6, 11, 16, 5)
    out = head(normal(4, 6).float())
    assert out.shape == (4, 11) and out.abs().max() <= 1 + 1e-6
    before = out.detach().clone()
    with torch.no_grad():
        head.prototypes.weight.mul_(7)  # their length is no parameter
    torch.testing.assert_close(head(normal(4, 6).float()), before)
    assert [type(m) for m in head.mlp] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
