"""The objective: what it asks of the models, its weights over time, its one reduction."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graft.config import schema
from graft.config.options import Term
from graft.errors import UserError
from graft.outputs import Outputs
from graft.training.objective import Objective, needs_teacher, pool_tokens


class Model(nn.Module):
    """As much of a student or teacher as the objective looks at: 12 blocks of one width on one grid."""

    def __init__(self, dim: int, grid: tuple[int, int] = (4, 4), classes: int = 10, trainable: bool = False):
        super().__init__()
        self.dim, self.grid, self.num_classes = dim, grid, classes
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=trainable)

    def feature_dim(self, name: str) -> int:
        if name.split(".")[1] not in [*map(str, range(12)), "final"]:
            raise UserError(f"no feature {name}; one of: patch.0 to patch.11, patch.final")
        return self.dim

    def grid_of_feature(self, name: str) -> tuple[int, int]:
        return self.grid

    def outputs(self, names: tuple[str, ...], B: int, seed: int) -> Outputs:
        draw = torch.Generator().manual_seed(seed)
        tokens = {name: self.grid[0] * self.grid[1] if name.startswith("patch") else 1 for name in names}
        logits = torch.randn(B, self.num_classes, generator=draw)
        return Outputs(logits, torch.randn(B, self.num_classes, generator=draw),
                       {name: torch.randn(B, T, self.dim, generator=draw) for name, T in tokens.items()})


def term(name: str, **given) -> Term:
    """A term as the configuration makes it: every argument of the loss filled in."""
    common = {key: given.pop(key) for key in list(given) if key in schema.dataclass_fields(Term)}
    args = {key: field.default for key, field in schema.part_fields("losses", name).items()}
    assert set(given) <= set(args)
    return Term(name=name, args={**args, **given}, **common)


def build(*terms: Term, student: Model | None = None, teacher: Model | None = None, seed: int = 0) -> Objective:
    return Objective(terms, student or Model(24, trainable=True), teacher or Model(36), seed=seed)


EVERYTHING = (term("ce", smoothing=0.1), term("kd", tau=2.0, weight=0.5), term("cka", layers=[3, 6]),
              term("gram", layers=[3], weight=20.0), term("token", layers=[6, 11]), term("correlation", weight=0.1))


def run(objective: Objective, student: Outputs, teacher: Outputs, targets, visible=None, **shares):
    shares = {"window": float(len(targets)), "micro_share": 1.0, **shares}
    return objective(student, teacher, targets, visible, objective.weights(0, 10, 1), **shares)


def batch(objective: Objective, B: int = 8, student: Model | None = None, teacher: Model | None = None):
    ours = (student or Model(24)).outputs(objective.student_features, B, 1)
    theirs = (teacher or Model(36)).outputs(objective.teacher_features, B, 2)
    return ours, theirs, torch.arange(B) % 10, torch.rand(B, 16, generator=torch.Generator().manual_seed(3)) < 0.7


def part_of(out: Outputs, rows: slice) -> Outputs:
    return Outputs(out.logits[rows], out.distill_logits[rows], {key: x[rows] for key, x in out.features.items()})


# ------------------------------------------------------------------------------------------ what it asks for

def test_features_follow_from_layers_and_tokens():
    objective = build(term("cka", layers=[3, 6], teacher_layers=[5, 11]), term("token", layers=[6]),
                      term("correlation"), term("gram", layers=[3], weight=0.0),
                      term("cka", tokens="cls", over="batch", layers=[2]))
    assert objective.student_features == ("patch.3", "patch.6", "patch.final", "cls.2")
    assert objective.teacher_features == ("patch.5", "patch.11", "patch.6", "patch.final", "cls.2")
    assert [built.name for built in objective.terms] == ["cka", "token", "correlation", "cka#2"]
    assert objective.student_grid == (4, 4)


def test_switching_a_term_off_does_not_rename_the_others():
    assert [built.name for built in build(term("cka", weight=0.0), term("cka")).terms] == ["cka#2"]


def test_labels_alone_need_no_teacher():
    terms = (term("ce"), term("kd", weight=0.0), term("cka", weight=0.0, layers=[99]))
    objective = Objective(terms, Model(24, trainable=True), None, seed=0)
    assert objective.student_features == objective.teacher_features == ()
    assert not needs_teacher(terms) and not list(objective.parameters())
    assert needs_teacher((term("ce"), term("kd", weight=0.0, weight_end=0.6)))


@pytest.mark.parametrize(("wrong", "student", "teacher", "message"), [
    (term("cka", layers=[3, 12]), Model(24), Model(36), r"objective\.0 \(cka\), patch\.12.*no feature patch\.12"),
    (term("cka", layers=[3], teacher_layers=[40]), Model(24), Model(36), r"patch\.3 with patch\.40.*no feature"),
    (term("token", layers=[3], project="none"), Model(24), Model(36),
     r"objective\.0 \(token\), patch\.3 with patch\.3.*student 24, teacher 36"),
    (term("cka", layers=[3]), Model(24), Model(36, (7, 7)), r"teacher 7x7 of width 36, student 4x4 of width 24"),
    (term("cka", layers=[3]), Model(24), Model(36, (2, 2)), r"teacher 2x2"),
    (term("cka", layers=[3]), Model(24), Model(36, (8, 4)), r"teacher 8x4"),
    (term("cka", tokens="cls"), Model(24), Model(36), r"at least 4 tokens of an image, got 1; over: batch"),
    (term("gram", tokens="cls"), Model(24), Model(36), r"at least 2 tokens of an image, got 1$"),
    (term("cka"), Model(24, (1, 3)), Model(36, (1, 3)), r"at least 4 tokens of an image, got 3"),
    (term("kd"), Model(24), Model(36, classes=100), r"objective\.0 \(kd\).*teacher has 100 classes, the student 10"),
    (term("kd"), Model(24), Model(36, classes=0), r"teacher has no classes"),
])
def test_models_that_do_not_fit_are_refused(wrong, student, teacher, message):
    with pytest.raises(UserError, match=message):
        build(wrong, student=student, teacher=teacher)


def test_a_term_without_its_teacher_is_refused():
    with pytest.raises(UserError, match=r"objective\.1 \(kd\): needs a teacher"):
        Objective((term("ce"), term("kd")), Model(24), None, seed=0)


def test_patches_at_two_grids_are_refused():
    student = Model(24)
    student.grid_of_feature = lambda name: (8, 8) if name == "patch.0" else (4, 4)
    with pytest.raises(UserError, match=r"objective\.1.*at one grid of the student, got 8x8 after 4x4"):
        build(term("cka", layers=[3]), term("gram", layers=[0]), student=student, teacher=Model(36, (8, 8)))


def test_a_trainable_teacher_is_a_bug():
    with pytest.raises(AssertionError, match="not frozen"):
        build(term("kd"), teacher=Model(36, trainable=True))


# --------------------------------------------------------------------------------------------- formula, weights

def test_formula():
    objective = build(term("ce", smoothing=0.1), term("kd", weight=0.0, weight_end=0.6, schedule="cosine", warmup="5ep",
                                                      tau=4.0),
                      term("cka", layers=[3, 6, 9, 11], weight=0.5, kernel="rbf"),
                      term("cka", weight=0.25, over="batch", tokens="cls"), term("gram", weight=0.0))
    assert objective.formula() == (
        "L = 1·ce(smoothing=0.1) + 0→0.6·kd(tau=4, warmup=5ep, schedule=cosine) + "
        "0.5·cka(kernel=rbf, layers=[3, 6, 9, 11]) + 0.25·cka#2(over=batch, tokens=cls)")
    assert build(term("ce")).formula() == "L = 1·ce"


def weights(steps: list[int], **given) -> list[float]:
    objective = build(term("ce", **given))
    return [objective.weights(step, 101, 10)[0] for step in steps]


def test_weights_over_time():
    assert weights([0, 50, 100], weight=0.3) == [0.3] * 3
    assert weights([0, 19, 20, 100], weight=0.5, warmup="2ep") == [0, 0, 0.5, 0.5]
    assert weights([0, 4, 5], weight=0.5, warmup="5st", before=1.0) == [1, 1, 0.5]
    assert weights([0, 10, 11], weight=0.5, warmup="10%") == [0, 0.5, 0.5]
    linear = weights([0, 25, 50, 100], weight=0.2, weight_end=0.6)
    assert linear == pytest.approx([0.2, 0.3, 0.4, 0.6])
    cosine = weights([0, 19, 20, 40, 60, 100], weight=0.0, weight_end=0.6, schedule="cosine", warmup="2ep", before=0.1)
    assert cosine == pytest.approx([0.1, 0.1, 0, 0.6 * (1 - 0.5**0.5) / 2, 0.3, 0.6])
    assert weights([100], weight=1.0, weight_end=0.0, warmup="100st") == [0.0]


def test_a_run_of_one_step_is_at_its_end():
    assert build(term("ce", weight=0.2, weight_end=0.6)).weights(0, 1, 1) == [0.6]


# --------------------------------------------------------------------------------------------------- reduction

def test_value_is_the_weighted_sum_of_the_terms():
    objective = build(term("ce"), term("kd", weight=0.5, tau=3.0, mode="soft"))
    student, teacher, targets, _ = batch(objective)
    total, values = run(objective, student, teacher, targets)
    ce = F.cross_entropy(student.logits, targets)
    kd = 9 * F.kl_div(F.log_softmax(student.distill_logits / 3, -1), F.log_softmax(teacher.logits / 3, -1),
                      reduction="batchmean", log_target=True)
    torch.testing.assert_close(values, {"ce": ce, "kd": kd})
    torch.testing.assert_close(total, ce + 0.5 * kd)
    assert not any(value.requires_grad for value in values.values())


def test_layers_are_averaged_and_each_has_its_projector():
    both = build(term("token", layers=[3, 6]))
    each = [build(term("token", layers=[layer])) for layer in (3, 6)]
    student, teacher, targets, visible = batch(both)
    values = [run(objective, student, teacher, targets, visible)[1]["token"] for objective in (both, *each)]
    torch.testing.assert_close(values[0], (values[1] + values[2]) / 2)
    assert abs(values[1] - values[2]) > 1e-4
    first, second = (next(p.parameters()) for p in both.projectors["token"])
    assert not torch.equal(first, second)


def gradients(objective: Objective, micro: int, visible: torch.Tensor | None, data) -> list[torch.Tensor]:
    """Total, values and gradients of the batch in micro-batches of that size."""
    student, teacher, targets, _ = data
    leaves = [student.logits, student.distill_logits, *student.features.values(), *objective.parameters()]
    for leaf in leaves:
        leaf.requires_grad_().grad = None
    total = 0.0
    for start in range(0, len(targets), micro):
        rows = slice(start, start + micro)
        loss, _ = run(objective, part_of(student, rows), part_of(teacher, rows), targets[rows],
                      None if visible is None else visible[rows], window=float(len(targets)),
                      micro_share=micro / len(targets))
        loss.backward()
        total += loss.detach()
    return [total, *(leaf.grad.clone() for leaf in leaves)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("micro", [4, 2, 1])
def test_accumulation_does_not_change_the_step(micro, masked):
    objective = build(*EVERYTHING)
    data = batch(objective)
    visible = data[3] if masked else None
    torch.testing.assert_close(gradients(objective, micro, visible, data), gradients(objective, 8, visible, data),
                               rtol=1e-4, atol=1e-6)


def test_batch_terms_are_averaged_over_micro_batches():
    objective = build(term("correlation", over="batch"))
    student, teacher, targets, _ = batch(objective)
    halves = [run(objective, part_of(student, rows), part_of(teacher, rows), targets[rows], micro_share=0.5)[0]
              for rows in (slice(0, 4), slice(4, 8))]
    wholes = [run(objective, part_of(student, rows), part_of(teacher, rows), targets[rows])[0]
              for rows in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(halves), sum(wholes) / 2)


def test_batch_terms_refuse_micro_batches_too_small_to_compare():
    objective = build(term("cka", over="batch"))
    student, teacher, targets, _ = batch(objective, B=3)
    with pytest.raises(UserError, match=r"cka: over: batch compares at least 4 images of a micro-batch, got 3"):
        run(objective, student, teacher, targets)


def test_a_term_of_weight_zero_is_not_computed():
    waiting = (term("ce"), term("kd", warmup="1ep"), term("token", layers=[3], warmup="1ep"))
    objective, alone = build(*waiting), build(term("ce"))
    student, teacher, targets, _ = batch(objective)
    student.logits.requires_grad_()
    total, values = objective(student, None, targets, None, objective.weights(0, 10, 5), window=8.0, micro_share=1.0)
    assert list(values) == ["ce"]
    assert torch.equal(total, run(alone, student, teacher, targets)[0])
    total.backward()
    assert all(p.grad is None for p in objective.parameters())
    assert list(objective(student, teacher, targets, None, objective.weights(5, 10, 5), window=8.0,
                          micro_share=1.0)[1]) == ["ce", "kd", "token"]


def test_a_step_without_any_weight_is_a_step_of_zero():
    objective = build(term("ce", warmup="1ep"))
    student, teacher, targets, _ = batch(objective)
    student.logits.requires_grad_()
    total, values = run(objective, student, teacher, targets)
    total.backward()
    assert total == 0 and values == {} and student.logits.grad.abs().max() == 0


def test_visible_masks_patches_and_not_class_tokens():
    objective = build(term("cka", layers=[3]), term("cka", tokens="cls", over="batch", layers=[3]))
    student, teacher, targets, visible = batch(objective)
    plain, masked = (run(objective, student, teacher, targets, v)[1] for v in (None, visible))
    assert plain["cka"] != masked["cka"] and plain["cka#2"] == masked["cka#2"]


# ------------------------------------------------------------------------------------------------ teacher's grid

def test_pooling_averages_blocks_of_the_map():
    tokens = torch.randn(2, 8 * 12, 3)
    image = tokens.transpose(1, 2).reshape(2, 3, 8, 12)
    expected = F.avg_pool2d(image, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool_tokens(tokens, (4, 6)), expected)
    assert pool_tokens(expected, (4, 6)) is expected
    assert pool_tokens(tokens.bfloat16(), (4, 6)).dtype == torch.bfloat16
    with pytest.raises(AssertionError, match="48 tokens for a 4x4 grid"):
        pool_tokens(torch.zeros(1, 48, 3), (4, 4))


def test_a_finer_teacher_map_is_pooled_once_whoever_does_it():
    fine = Model(36, (8, 8))
    objective = build(term("cka", layers=[3]), teacher=fine)
    student, teacher, targets, visible = batch(objective, teacher=fine)
    pooled = Outputs(None, None, {k: pool_tokens(x, objective.student_grid) for k, x in teacher.features.items()})
    assert pooled.features["patch.3"].shape == (8, 16, 36)
    assert run(objective, student, teacher, targets, visible)[0] == run(objective, student, pooled, targets, visible)[0]


def test_a_coarser_teacher_map_needs_leave_to_pool_the_students():
    coarse = Model(36, (2, 2))
    with pytest.raises(UserError, match="got teacher 2x2 of width 36, student 4x4 of width 24; pool: student"):
        build(term("cka", layers=[3]), teacher=coarse)
    with pytest.raises(UserError, match="the student's token grid must be the teacher's times an integer"):
        build(term("cka", layers=[3], pool="student"), teacher=Model(36, (8, 8)))
    objective = build(term("cka", layers=[3], pool="student"), term("token", layers=[6], pool="student"),
                      teacher=coarse)
    assert objective.student_grid == (2, 2) and "pool=student" in objective.formula()
    student, teacher, targets, _ = batch(objective, teacher=coarse)
    same = build(term("cka", layers=[3]), term("token", layers=[6]), student=Model(24, (2, 2)), teacher=coarse)
    pooled = Outputs(None, None, {k: pool_tokens(x, (2, 2)) for k, x in student.features.items()})
    visible = torch.tensor([[True, False, True, True]]).repeat(8, 1)
    own, want = (run(one, replace(student, features=given), teacher, targets, visible)[1]
                 for one, given in ((objective, student.features), (same, pooled.features)))
    assert own == want


# ---------------------------------------------------------------------------------------------------- projectors

def test_projectors_depend_on_the_seed_the_term_and_the_layer_alone():
    state = torch.get_rng_state()
    first = build(term("token", layers=[3, 6])).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "building the objective moved the global generator"
    torch.rand(7)
    again = build(term("ce"), term("token", layers=[6])).state_dict()
    assert len(again) == 8
    for key, value in again.items():
        torch.testing.assert_close(value, first[key.replace("token.0", "token.1")], rtol=0, atol=0)
    other = build(term("token", layers=[3, 6]), seed=1).state_dict()
    assert not torch.equal(other["projectors.token.0.student.0.weight"], first["projectors.token.0.student.0.weight"])


def test_only_projectors_are_parameters():
    objective = build(*EVERYTHING)
    assert {name.split(".")[1] for name, _ in objective.named_parameters()} == {"token"}
    published = build(term("cka", layers=[3], project="both"), term("cka", layers=[6], project="both"))
    assert {name.split(".")[1] for name, _ in published.named_parameters()} == {"cka", "cka#2"}
    student, teacher, targets, _ = batch(published)
    teacher.features["patch.3"].requires_grad_()
    run(published, student, teacher, targets)[0].backward()
    assert teacher.features["patch.3"].grad is None
    assert all(p.grad is not None for p in published.parameters())
