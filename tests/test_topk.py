"""The top-K loss against sums over the whole vocabulary, written outcome by outcome in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from graft import config
from graft.config import schema
from graft.config.options import Config
from graft.errors import UserError
from graft.losses import topk
from graft.outputs import TopK

N, V = 7, 12
TAILS = ["bucket", "renormalise", "ignore"]
# Every setting that means something: form, tail and a temperature other than 1 where it is allowed.
SETTINGS = [{"form": "mse"}, {"form": "centred_mse"},
            *({"form": form, "tail": tail, "tau": tau} for form, tail, tau in
              itertools.product(["kl", "reverse_kl", "jsd"], TAILS, [1.0, 2.5])
              if (tail != "bucket" or tau == 1) and (form, tail) != ("reverse_kl", "ignore"))]
DISTANCES = [args for args in SETTINGS if args.get("tail") != "ignore"]


def name(args: dict) -> str:
    return "-".join(map(str, args.values()))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def top(logits: torch.Tensor, k: int) -> TopK:
    values, indices = logits.topk(k)
    return TopK(values, indices, logits.logsumexp(-1))


def by_hand(student: list[float], teacher: list[float], k: int, form: str, tail: str = "bucket",
            tau: float = 1.0) -> float:
    """One position."""
    kept = sorted(range(len(teacher)), key=lambda v: -teacher[v])[:k]
    if "mse" in form:
        gaps = [teacher[v] - student[v] for v in kept]
        mean = sum(gaps) / k if form == "centred_mse" else 0
        return sum((gap - mean)**2 for gap in gaps) / k
    p, q = ([math.exp((x - max(logits)) / tau) for x in logits] for logits in (teacher, student))
    p, q = ([x / sum(full) for x in full] for full in (p, q))
    rest_p, rest_q = (sum(x for v, x in enumerate(full) if v not in kept) for full in (p, q))
    p, q = [p[v] for v in kept], [q[v] for v in kept]
    if tail != "bucket":
        p = [x / sum(p) for x in p]
    if tail == "renormalise":
        q = [x / sum(q) for x in q]
    else:
        p, q = p + [rest_p if tail == "bucket" else 0.0], q + [rest_q]
    kl = lambda a, b: sum(x * math.log(x / y) for x, y in zip(a, b) if x > 0 < y)  # noqa: E731
    m = [(x + y) / 2 for x, y in zip(p, q)]
    return tau**2 * {"kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": (kl(p, m) + kl(q, m)) / 2}[form]


@pytest.mark.parametrize("k", [1, 2, 5, V])
@pytest.mark.parametrize("args", SETTINGS, ids=name)
def test_every_form_by_hand(args, k):
    student, teacher = 2 * normal(N, V), 2 * normal(N, V, seed=1)
    value = topk.loss(student, top(teacher, k), **args)
    expected = [by_hand(s, t, k, **args) for s, t in zip(student.tolist(), teacher.tolist())]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("tail", TAILS)
def test_with_the_whole_vocabulary_kl_is_that_of_all_logits(tail):
    student, teacher = normal(N, V).requires_grad_(), normal(N, V, seed=1)
    value = topk.loss(student, top(teacher, V), form="kl", tail=tail)
    dense = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(value, dense)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(gradient, student.softmax(-1) - teacher.softmax(-1))


@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize("form", ["kl", "reverse_kl", "jsd"])
def test_with_all_logits_in_order_every_divergence_is_that_of_torchs_distributions(form, tau):
    """As a teacher of hidden states gives them: no indices, no tail, whatever `tail` says; any temperature."""
    student, teacher = normal(N, V).requires_grad_(), normal(N, V, seed=1)
    p, q = (torch.distributions.Categorical(logits=x / tau) for x in (teacher, student))
    m = torch.distributions.Categorical(probs=(p.probs + q.probs) / 2)
    kl = torch.distributions.kl_divergence
    dense = tau**2 * {"kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": (kl(p, m) + kl(q, m)) / 2}[form]
    whole = TopK(teacher, None, teacher.logsumexp(-1))
    for tail in ("bucket", "renormalise"):
        value = topk.loss(student, whole, form=form, tau=tau, tail=tail)
        torch.testing.assert_close(value, dense)
        torch.testing.assert_close(*(torch.autograd.grad(x.sum(), student, retain_graph=True) for x in (value, dense)))
    torch.testing.assert_close(topk.loss(student, whole, form=form), topk.loss(student, top(teacher, V), form=form))


@pytest.mark.parametrize("form", ["mse", "kl", "reverse_kl", "jsd"])
def test_a_token_above_the_clip_counts_as_the_clip_and_has_no_gradient(form):
    student, teacher = (3 * normal(N, V)).requires_grad_(), top(3 * normal(N, V, seed=1), 5)
    free = topk.loss(student, teacher, form=form)
    limit = float(free.detach().median()) * 1.0001
    capped = free.detach() > limit
    assert 0 < capped.sum() < N
    clipped = topk.loss(student, teacher, form=form, clip=limit)
    torch.testing.assert_close(clipped, torch.where(capped, limit, free))
    before, after = (torch.autograd.grad(x.sum(), student)[0] for x in (free, clipped))
    assert not after[capped].any() and before[capped].abs().sum(-1).min() > 1e-3
    assert torch.equal(after[~capped], before[~capped])


def test_bucket_is_a_lower_bound_of_the_kl_of_all_logits_that_rises_with_k():
    student, teacher = normal(N, V), normal(N, V, seed=1)
    values = torch.stack([topk.loss(student, top(teacher, k), form="kl") for k in range(1, V + 1)])
    assert (values.diff(dim=0) > -1e-12).all() and values[0].mean() < 0.7 * values[-1].mean()


@pytest.mark.parametrize("args", DISTANCES, ids=name)
def test_zero_at_equality_with_no_gradient_and_positive_elsewhere(args):
    student = normal(N, V).requires_grad_()
    value = topk.loss(student, top(student.detach(), 5), **args)
    assert value.abs().max() < 1e-12
    assert torch.autograd.grad(value.sum(), student)[0].abs().max() < 1e-12
    assert topk.loss(student, top(normal(N, V, seed=1), 5), **args).min() > 1e-3


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_ignore_at_equality_is_the_mass_that_the_student_has_elsewhere(tau):
    student = normal(N, V).requires_grad_()
    kept = (student.detach() / tau).softmax(-1).topk(5).values.sum(-1)
    value = topk.loss(student, top(student.detach(), 5), form="kl", tail="ignore", tau=tau)
    torch.testing.assert_close(value, -tau**2 * kept.log())
    assert torch.autograd.grad(value.sum(), student)[0].abs().max() > 0.01


@pytest.mark.parametrize("args", SETTINGS, ids=name)
def test_all_but_mse_ignore_a_constant_added_to_the_logits(args):
    student, teacher = normal(N, V), normal(N, V, seed=1)
    moved = topk.loss(student + 3 * normal(N, 1, seed=2), top(teacher, 5), **args)
    moved_teacher = topk.loss(student, top(teacher + 3 * normal(N, 1, seed=2), 5), **args)
    still = topk.loss(student, top(teacher, 5), **args)
    if args["form"] == "mse":
        assert (moved - still).abs().min() > 0.01 and (moved_teacher - still).abs().min() > 0.01
    else:
        torch.testing.assert_close(moved, still)
        torch.testing.assert_close(moved_teacher, still)


@pytest.mark.parametrize("k", [5, V])
@pytest.mark.parametrize("args", SETTINGS, ids=name)
def test_gradients_agree_with_finite_differences(args, k):
    teacher = top(normal(3, V, seed=1), k)
    assert torch.autograd.gradcheck(lambda x: topk.loss(x, teacher, **args), normal(3, V).requires_grad_())


def test_near_equality_kl_is_half_the_variance_of_the_difference_under_the_teacher():
    teacher, step = 2 * normal(N, V), 1e-3 * normal(N, V, seed=1)
    p = teacher.softmax(-1)
    variance = (p * step**2).sum(-1) - (p * step).sum(-1)**2
    torch.testing.assert_close(topk.loss(teacher + step, top(teacher, V), form="kl"), variance / 2, rtol=5e-3, atol=0)


@pytest.mark.parametrize("form", ["mse", "centred_mse"])
def test_squares_weigh_an_improbable_token_as_any_other(form):
    teacher = normal(N, V)
    teacher[:, 3] = -20
    student = teacher.clone()
    student[:, 3] += 3
    assert topk.loss(student, top(teacher, V), form="kl").max() < 1e-6
    expected = 9 / V if form == "mse" else 9 / V * (1 - 1 / V)
    torch.testing.assert_close(topk.loss(student, top(teacher, V), form=form), torch.full_like(teacher[:, 0], expected))


def test_kl_over_the_k_tends_to_half_the_centred_mse_at_high_temperature():
    student, teacher = normal(N, V), top(normal(N, V, seed=1), 5)
    hot = topk.loss(student, teacher, form="kl", tail="renormalise", tau=1e4)
    torch.testing.assert_close(hot, topk.loss(student, teacher, form="centred_mse") / 2, rtol=1e-3, atol=0)


@pytest.mark.parametrize("form", ["kl", "jsd"])
@pytest.mark.parametrize("tail", ["renormalise", "ignore"])
def test_temperature_divides_the_logits_and_its_square_multiplies(form, tail):
    student, teacher = normal(N, V), normal(N, V, seed=1)
    hot = topk.loss(student, top(teacher, 5), form=form, tail=tail, tau=3.0)
    torch.testing.assert_close(hot, 9 * topk.loss(student / 3, top(teacher / 3, 5), form=form, tail=tail))


def test_jsd_is_symmetric_where_both_keep_the_same_tokens_and_bounded():
    order = torch.arange(V, dtype=torch.float64)
    student, teacher = (-order + 0.3 * normal(N, V, seed=seed).clamp(-1, 1) for seed in (0, 1))
    for tail in ("bucket", "renormalise"):
        one, other = (topk.loss(a, top(b, 5), form="jsd", tail=tail) for a, b in
                      ((student, teacher), (teacher, student)))
        torch.testing.assert_close(one, other)
        forward, back = (topk.loss(a, top(b, 5), form="kl", tail=tail) for a, b in
                         ((student, teacher), (teacher, student)))
        assert (forward - back).abs().min() > 1e-6
    apart = topk.loss(50.0 * order.expand(N, V), top(-50.0 * order.expand(N, V), 5), form="jsd", tau=2.0,
                      tail="renormalise")
    torch.testing.assert_close(apart, torch.full_like(apart, 4 * math.log(2)))


# ------------------------------------------------------------------------------------------------- numerics

@pytest.mark.parametrize("k", [1, 5, V])
@pytest.mark.parametrize("args", SETTINGS, ids=name)
def test_logits_of_any_size_give_finite_values_and_gradients(args, k):
    sign = torch.where(normal(2, N, V, seed=3) > 0, 1.0, -1.0)
    one = -torch.ones(N, V)
    one[:, 0] = 1
    cases = torch.stack([1e4 * sign[0], 1e4 * sign[1], 1e4 * one, 1e4 * one.roll(1, 1), 20 * one,
                         torch.zeros(N, V), normal(N, V, dtype=torch.float32)])
    for student, teacher in itertools.product(cases, cases):
        student = student.clone().requires_grad_()
        value = topk.loss(student, top(teacher, k), **args)
        value.sum().backward()
        assert value.isfinite().all() and student.grad.isfinite().all() and value.min() > -1e-5
        if args["form"] == "jsd":
            assert value.max() < args["tau"]**2 * math.log(2) + 1e-5


def test_others_that_are_improbable_keep_their_digits():
    """In float32: 1 - (mass of the K) would be 0 for this student, and its logarithm and gradient infinite."""
    student, teacher = normal(N, V), normal(N, V, seed=1)
    student[torch.arange(N)[:, None], teacher.topk(5).indices] += 30
    exact = torch.tensor([by_hand(s, t, 5, "kl") for s, t in zip(student.tolist(), teacher.tolist())])
    assert exact.min() > 1
    narrow = student.float().requires_grad_()
    value = topk.loss(narrow, top(teacher.float(), 5), form="kl")
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), narrow)
    p, kept = teacher.softmax(-1), torch.zeros(N, V).scatter(1, teacher.topk(5).indices, 1).bool()
    among = student.masked_fill(kept, -math.inf).softmax(-1)
    expected = student.softmax(-1) - torch.where(kept, p, p.masked_fill(kept, 0).sum(-1, keepdim=True) * among)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_certain_student_and_a_teacher_that_knows_nothing():
    student = torch.full((1, V), -1e4)
    student[0, 2] = 1e4
    known = TopK(torch.zeros(1, 5), torch.tensor([[2, 0, 1, 3, 4]]), torch.tensor([math.log(V)]))
    others = (V - 5) / V
    expected = others * math.log(others) + 5 / V * math.log(1 / V) + 4 / V * 2e4 + others * (2e4 - math.log(V - 5))
    assert topk.loss(student, known, form="kl").item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", ["kl", "jsd"])
def test_a_teacher_whose_k_have_more_than_all_the_mass_has_no_others(form):
    student, known = normal(N, V), top(normal(N, V, seed=1), 5)
    known.logsumexp = known.values.logsumexp(-1) - 1e-3
    torch.testing.assert_close(topk.loss(student, known, form=form),
                               topk.loss(student, known, form=form, tail="ignore"))


def test_rounding_of_the_teachers_mass_is_harmless():
    """A float32 logsumexp near 30 leaves the mass of the K two digits short of 1."""
    teacher = normal(2000, V, dtype=torch.float32)
    teacher[:, :5] += 30
    known = top(teacher, 5)
    assert ((known.values.logsumexp(-1) - known.logsumexp) >= 0).any()
    student = teacher.clone().requires_grad_()
    value = topk.loss(student, known, form="kl")
    assert value.min() > -1e-6 and value.max() < 1e-4
    assert torch.autograd.grad(value.sum(), student)[0].abs().max() < 1e-5


# --------------------------------------------------------------------------------------- student and teacher

@pytest.mark.parametrize("args", SETTINGS, ids=name)
def test_the_teacher_is_read_only(args):
    teacher = top(normal(N, V, seed=1, dtype=torch.float32), 5)
    before = [x.clone() for x in (teacher.values, teacher.indices, teacher.logsumexp)]
    teacher.values.requires_grad_()
    teacher.logsumexp.requires_grad_()
    student = normal(N, V, dtype=torch.bfloat16).requires_grad_()
    value = topk.loss(student, teacher, **args)
    assert value.dtype == torch.float32 and value.shape == (N,)
    assert torch.equal(value, topk.loss(student.float(), teacher, **args))
    value.sum().backward()
    assert student.grad.abs().max() > 0 and teacher.values.grad is teacher.logsumexp.grad is None
    assert all(map(torch.equal, before, (teacher.values, teacher.indices, teacher.logsumexp)))


@pytest.mark.parametrize("args", SETTINGS, ids=name)
def test_positions_are_independent_and_there_may_be_none(args):
    student, teacher = normal(N, V), normal(N, V, seed=1)
    whole = topk.loss(student, top(teacher, 5), **args)
    pieces = [topk.loss(student[a:b], top(teacher[a:b], 5), **args) for a, b in ((0, 3), (3, 3), (3, N))]
    torch.testing.assert_close(whole, torch.cat(pieces))


def test_position_is_left_to_the_caller():
    student, teacher = normal(N, V), top(normal(N, V, seed=1), 5)
    assert schema.part_fields("losses", "topk")["position"].default == "predicting"
    assert torch.equal(topk.loss(student, teacher, position="published"), topk.loss(student, teacher))


# --------------------------------------------------------------------------------------------- configuration

def configured(tmp_path, term: str) -> Config:
    path = tmp_path / "some.yaml"
    path.write_text("task: {name: gsm8k, tokenizer: x}\nstudent: {name: causal_lm, model: x}\n"
                    f"teacher: {{name: context_lm}}\nobjective: [{{name: topk, {term}}}]\n")
    return config.load([path])


@pytest.mark.parametrize("form", ["kl", "reverse_kl", "jsd"])
def test_bucket_needs_temperature_one(tmp_path, form):
    with pytest.raises(UserError, match=r"some\.yaml: objective\.0\.tail: bucket needs tau 1.*got 2\.0"):
        configured(tmp_path, f"form: {form}, tau: 2")


@pytest.mark.parametrize("term", ["form: kl, tau: 2, tail: renormalise", "form: jsd, tau: 2, tail: ignore",
                                  "form: kl, tau: 1, tail: bucket", "form: mse, tau: 2"])
def test_other_temperatures_are_accepted(tmp_path, term):
    assert configured(tmp_path, term).objective[0].name == "topk"


def test_a_student_with_mass_where_the_teacher_has_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"some\.yaml: objective\.0\.tail: ignore makes form reverse_kl infinite"):
        configured(tmp_path, "form: reverse_kl, tail: ignore")
