"""Attention as a target: the loss by its formula, the maps that models hand over, views that move, training."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from graft.config import parts
from graft.config.options import Part, Term
from graft.errors import UserError
from graft.losses import attention as loss_file
from graft.outputs import Outputs, View
from graft.probes import attention
from graft.teachers._view import TeacherView
from graft.training.objective import Objective
from small import run_main, tiny

PARTS = {"student": {"dim": 16, "depth": 3, "heads": 2}}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64).softmax(-1)


@pytest.fixture(scope="module")
def digits():
    return parts.build("tasks", Part("digits", {"val_fraction": 0.1, "split_seed": 0, "subset": 40}))


def vit(digits, **changes):
    from graft.config import schema
    args = {key: field.default for key, field in schema.part_fields("students", "vit").items()}
    return parts.build("students", Part("vit", {**args, "patch": 2, **PARTS["student"], **changes}), digits)


# ------------------------------------------------------------------------------------------- the formula

@pytest.mark.parametrize("heads", ["each", "mean"])
@pytest.mark.parametrize(("target", "radius"), [("local", 0.5), ("local", 2.0), ("uniform", 1.0), ("teacher", 1.0)])
def test_divergence_from_the_target_against_scipy(target, radius, heads):
    student, teacher = maps(4, 3, 16, 16), maps(4, 16, 16, seed=1)
    visible = torch.rand(4, 16, generator=rng()) < 0.6
    visible[0], visible[1] = True, False
    found = loss_file.loss(student, teacher if target == "teacher" else None, visible, target=target, radius=radius,
                           heads=heads)
    places = np.stack(np.divmod(np.arange(16), 4), 1)
    away = ((places[:, None] - places[None]) ** 2).sum(-1)
    fixed = {"local": np.exp(-away / (2 * radius**2)), "uniform": np.ones((16, 16))}
    for b in range(4):
        keys = visible[b].numpy()
        rows = []
        for own in student[b].numpy() if heads == "each" else [student[b].mean(0).numpy()]:
            wanted = teacher[b].numpy() if target == "teacher" else fixed[target]
            # scipy normalises both
            rows += [entropy(wanted[i, keys], own[i, keys]) for i in range(16) if keys[i]]
        assert float(found[b]) == pytest.approx(np.mean(rows) if rows else 0.0, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("target", "radius"), [("local", 1.0), ("uniform", 1.0)])
def test_a_target_is_at_no_distance_from_itself_and_its_spread_is_known(target, radius):
    rows = loss_file.pattern(64, target, radius)
    assert float(loss_file.loss(rows[None, None], None, target=target, radius=radius)) == pytest.approx(0, abs=1e-9)
    assert torch.allclose(rows.sum(-1), torch.ones(64, dtype=torch.float64))
    scores = torch.log(rows)[None, None].float()
    found = attention.image_statistics(scores, attention.Geometry((8, 8), 0, False))
    uniform = attention.uniform(attention.Geometry((8, 8), 0, False))["mean_distance"]
    distance = float(found["mean_distance"])
    assert distance == pytest.approx(uniform, abs=1e-3) if target == "uniform" else 0.9 < distance < 1.3


# ----------------------------------------------------------------------------- what models hand over

@pytest.mark.parametrize("distilled", [False, True])
def test_maps_are_those_of_the_probe_and_nothing_else_changes(digits, distilled):
    model = vit(digits, distilled=distilled).eval()
    images = torch.rand(5, 1, 8, 8, generator=rng())
    plain = model(images, ["patch.1"])
    out = model(images, ["patch.1", "heads.0", "heads.2", "attention.2"])
    assert torch.allclose(out.logits, plain.logits, atol=1e-6)
    assert torch.allclose(out.features["patch.1"], plain.features["patch.1"], atol=1e-6)
    whole, prefix = attention.matrices(model, images), model.num_prefix_tokens
    for layer in (0, 2):
        patches = whole[layer][:, :, prefix:, prefix:].float()
        expected = patches / patches.sum(-1, keepdim=True)
        assert torch.allclose(out.features[f"heads.{layer}"], expected, atol=1e-5)
    assert torch.allclose(out.features["attention.2"], out.features["heads.2"].mean(1))
    assert set(model(images).features) == set() and not model._watch.layers, "fused again once nobody asks"
    assert list(model.state_dict()) == list(vit(digits, distilled=distilled).state_dict())


def test_a_gradient_goes_through_the_maps(digits):
    model = vit(digits)
    out = model(torch.rand(2, 1, 8, 8, generator=rng()), ["heads.1"])
    loss_file.loss(out.features["heads.1"], None, target="local").sum().backward()
    assert model.model.blocks[1].attn.qkv.weight.grad.abs().max() > 0
    assert model.model.blocks[2].attn.qkv.weight.grad is None


def test_models_without_maps_say_so(digits):
    cnn = parts.build("students", Part("cnn", {"arch": "small"}), digits)
    with pytest.raises(UserError, match="no attention maps"):
        cnn.grid_of_feature("heads.0")
    with pytest.raises(UserError, match="blocks 0 to 2"):
        vit(digits).grid_of_feature("heads.3")


def test_a_teacher_with_another_grid_is_refused(digits):
    from graft.teachers._freeze import freeze
    terms = (Term("attention", {"target": "teacher", "radius": 1.0, "heads": "mean"}, layers=[0]),)
    teacher = freeze(vit(digits, patch=4))
    with pytest.raises(UserError, match="attends over 2x2 patches, the student over 4x4"):
        Objective(terms, vit(digits), teacher, seed=0)
    imposed = (Term("attention", {"target": "local", "radius": 1.0, "heads": "each"}, layers=[0]),)
    assert Objective(imposed, vit(digits), None, seed=0).student_features == ("heads.0",)


# ------------------------------------------------------------------------------------ views that move

def test_a_teachers_map_is_moved_with_the_view_in_both_directions(digits):
    look = TeacherView.__new__(TeacherView)
    look.grid, look.task, look.moves = (4, 4), digits, True
    whole = maps(1, 16, 16).float()
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None]
    view = View(torch.zeros(1, 1, 8, 8), torch.zeros(1), flip, torch.ones(1, 8, 8, dtype=torch.bool))
    rows, visible = look._moved(whole, view)
    moved = look._moved(rows.mT, view)[0].mT
    mirrored = torch.arange(16).view(4, 4).flip(1).flatten()
    assert visible.all() and torch.allclose(moved, whole[:, mirrored][:, :, mirrored])


def test_neighbours_outputs_are_another_images():
    logits = torch.arange(6.0).view(3, 2)
    found = Outputs(logits, logits, {"patch.0": logits[:, None]}).of_neighbours()
    for value in (found.logits, found.distill_logits, found.features["patch.0"][:, 0]):
        assert torch.equal(value, logits[[2, 0, 1]])


# ------------------------------------------------------------------------------------------- training

def spread(tmp_path, name: str, objective: str) -> float:
    """Mean attention distance after a short training."""
    cfg = tiny(tmp_path / name, f"objective={objective}", "train.duration=60st", "optim.lr=0.02", "train.log_every=60")
    run_main(cfg)
    from graft.evaluation import rebuild
    task = parts.build("tasks", cfg.task)
    model, _ = rebuild.student(rebuild.trained(cfg.run_dir))
    heads = attention.head_statistics(model, [task.splits["test"].images[:64].float() / 255])
    return float(heads.values["mean_distance"].mean())


@pytest.mark.slow
def test_imposed_attention_is_what_the_probe_then_measures(tmp_path):
    ce = "{name: ce, weight: 1}"
    term = "{{name: attention, target: {}, radius: 0.5, layers: [0, 1], weight: 20}}"
    free = spread(tmp_path, "free", f"[{ce}]")
    local = spread(tmp_path, "local", f"[{ce}, {term.format('local')}]")
    uniform = spread(tmp_path, "uniform", f"[{ce}, {term.format('uniform')}]")
    everywhere = attention.uniform(attention.Geometry((8, 8), 0, False))["mean_distance"]
    assert local < 0.7 * free, (local, free, uniform)
    assert abs(uniform - everywhere) < 0.5 * abs(free - everywhere), (local, free, uniform)


def test_layers_must_be_named(tmp_path):
    with pytest.raises(UserError, match=r"objective\.1\.layers: attention needs the blocks"):
        tiny(tmp_path / "x", "objective=[{name: ce}, {name: attention, target: local}]")
    with pytest.raises(UserError, match=r"objective\.1\.name: attention needs a teacher"):
        tiny(tmp_path / "x", "objective=[{name: ce}, {name: attention, layers: [0]}]")


@pytest.mark.slow
def test_shuffled_logits_are_another_images(tmp_path, monkeypatch):
    run_main(tiny(tmp_path / "teacher", "student={name: cnn, arch: small}"))
    seen = []

    def forward(self, student, teacher, *rest, real=Objective.forward, **options):
        seen.append(teacher.logits.clone())
        return real(self, student, teacher, *rest, **options)

    monkeypatch.setattr(Objective, "forward", forward)
    terms = ["student.distilled=true", f"teacher={{name: run, path: {tmp_path}/teacher/seed0}}",
             "objective=[{name: ce, weight: 0.5}, {name: kd, weight: 0.5}]", "train.duration=1st", "optim.warmup=0"]
    run_main(tiny(tmp_path / "a", *terms, method="distill"))
    shuffled = [word.replace("seed0}", "seed0, shuffle: true}") for word in terms]
    run_main(tiny(tmp_path / "b", *shuffled, method="distill"))
    assert torch.equal(seen[1], seen[0].roll(1, 0)) and not torch.equal(seen[1], seen[0])
    with pytest.raises(UserError, match="at least 2 images in a micro-batch"):
        run_main(tiny(tmp_path / "c", *shuffled, "train.batch_size=4", "train.accumulate=4", method="distill"))


def test_a_cpu_in_bf16_trains_with_attention_written_out(digits):
    """Fused kernels are slow backward there; what is computed is the same, and other passes keep them."""
    model, images = vit(digits, depth=2, drop_path=0.0), torch.rand(4, 1, 8, 8)
    attentions = [block.attn for block in model.model.blocks]
    seen = []
    for one in attentions:
        one.attn_drop.register_forward_hook(lambda *_: seen.append(True))
    fused = model.train()(images).logits
    assert not seen
    with torch.autocast("cpu", torch.bfloat16):
        written = model(images).logits
        assert len(seen) == 2
        model.eval()(images)
    assert len(seen) == 2 and all(one.fused_attn for one in attentions)
    assert torch.allclose(fused, written.float(), atol=0.02)
