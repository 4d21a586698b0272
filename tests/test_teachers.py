"""Teachers: frozen for good, the right classes and weights, and a cache that equals the teacher."""

import functools
import json
import multiprocessing
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm as timm_library
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from graft.config.options import Part
from graft.config.parts import build
from graft.errors import DiskProblem, UserError
from graft.outputs import Outputs
from graft.runtime import checkpoint
from graft.teachers import _cache
from graft.teachers._cache import TeacherCache
from test_students import TINY, a_task, images

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SMALL_DINO = {"arch": "vit_small_patch14_dinov2", "size": 56, "random_weights": True}


def teacher(name: str, task, **args):
    return build("teachers", Part(name, args), task)


def a_run(folder: Path, task, method: str = "baseline", student: dict | None = None,
          **vit_args) -> tuple[Path, nn.Module]:
    """A finished run of a small ViT, or of another student: its folder and the model in it."""
    part = student or {"name": "vit", **TINY, **vit_args}
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    model = build("students", Part(part["name"], {key: value for key, value in part.items() if key != "name"}), task)
    average = {name: value + 1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    checkpoint.save(folder, 7, {"model": model.state_dict(), "average": average}, {},
                    {"final": True, "total_steps": 7, "data": task.about,
                     "config": {"method": method, "task": {"name": "digits"}, "student": part}}, keep=2)
    return folder, model


def test_none_is_no_teacher():
    assert teacher("none", a_task()) is None


def test_a_frozen_teacher_stays_frozen(tmp_path):
    task = a_task()
    folder, _ = a_run(tmp_path / "seed0", task, drop_path=0.5, dropout=0.5)
    frozen = teacher("run", task, path=str(folder))
    nn.ModuleList([frozen]).train()
    frozen.train()
    frozen.model.train()
    frozen.model.blocks[0].train(True)
    assert not any(module.training for module in frozen.modules())
    out = frozen(images(task), ["patch.1"])
    torch.testing.assert_close(out.logits, frozen(images(task)).logits, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not out.logits.requires_grad and not out.features["patch.1"].requires_grad


def test_building_a_teacher_leaves_the_students_generator_alone(tmp_path):
    task = a_task()
    folder, _ = a_run(tmp_path / "seed0", task)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    teacher("run", task, path=str(folder))
    teacher("dinov2", task, **SMALL_DINO)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_run_teacher_is_the_runs_student(tmp_path):
    task = a_task()
    folder, model = a_run(tmp_path / "resnet" / "seed3", task)
    model.eval()
    for path in (folder, folder.parent):
        last = teacher("run", task, path=str(path), weights="last")
        torch.testing.assert_close(last(images(task)).logits, model(images(task)).logits)
    averaged = teacher("run", task, path=str(folder))
    torch.testing.assert_close(averaged.model.head.bias, model.model.head.bias + 1)


def test_random_weights_are_the_architecture_and_a_function_of_the_seed(tmp_path):
    task = a_task()
    folder, model = a_run(tmp_path / "seed0", task)
    weights = [teacher("run", task, path=str(folder), random_weights=True, init_seed=seed).model.head.weight
               for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert weights[0].shape == model.model.head.weight.shape
    assert not torch.equal(weights[0], model.model.head.weight)


def test_run_teacher_does_not_need_what_the_run_started_from(tmp_path):
    task = a_task()
    start = tmp_path / "start.safetensors"
    save_file(timm_library.create_model("resnet10t", num_classes=10).state_dict(), start)
    folder, model = a_run(tmp_path / "seed0", task,
                          student={"name": "timm", "arch": "resnet10t", "checkpoint": str(start)})
    start.unlink()
    again = teacher("run", task, path=str(folder), weights="last")
    torch.testing.assert_close(again(images(task)).logits, model.eval()(images(task)).logits)


def test_run_folder_must_be_one(tmp_path):
    task = a_task()
    a_run(tmp_path / "arm" / "seed0", task)
    a_run(tmp_path / "arm" / "seed1", task)
    with pytest.raises(UserError, match=r"arm has seed0, seed1; name one"):
        teacher("run", task, path=str(tmp_path / "arm"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        teacher("run", task, path=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"has no checkpoint"):
        teacher("run", task, path=str(tmp_path))


def _with_depth(info: dict, depth: int) -> dict:
    return {**info, "config": {**info["config"], "student": {**info["config"]["student"], "depth": depth}}}


def test_run_teacher_of_other_classes_or_architecture_is_refused(tmp_path, monkeypatch):
    folder, _ = a_run(tmp_path / "hundred", a_task(classes=100))
    with pytest.raises(UserError, match=r"teacher has 100 classes, data has 10$"):
        teacher("run", a_task(), path=str(folder))
    folder, _ = a_run(tmp_path / "larger", a_task(size=64))
    with pytest.raises(UserError, match=r"student vit .* 3x32x32 images: 1 of another shape: model.pos_embed "
                                        r"\(1, 257, 24\), expected \(1, 65, 24\)"):
        teacher("run", a_task(), path=str(folder))
    folder, _ = a_run(tmp_path / "deeper", a_task())
    real = checkpoint.info_of
    monkeypatch.setattr(checkpoint, "info_of", lambda path: _with_depth(real(path), 5))
    with pytest.raises(UserError, match=r"24 missing: model.blocks.3.norm1.weight(, [\w.]+){4}, …$"):
        teacher("run", a_task(), path=str(folder))


def test_run_teacher_may_have_seen_fewer_images_but_no_test_image(tmp_path):
    folder, _ = a_run(tmp_path / "seed0", trained_on := a_task())

    def taught(**changes):
        return teacher("run", replace(trained_on, **changes), path=str(folder))

    for split, fine in {"train": True, "val": False, "test": False}.items():
        other = {**trained_on.fingerprints, split: "other"}
        if fine:
            taught(fingerprints=other)
            continue
        with pytest.raises(UserError, match=rf"seed0: was trained on other data \({split} data of 12 items.* "
                                            r"teacher\.other_data: true allows it"):
            taught(fingerprints=other)
        teacher("run", replace(trained_on, fingerprints=other), path=str(folder), other_data=True)
    with pytest.raises(UserError, match=r"class names 10 \(class 0 as number 1\), now 10 \(class 9 as number 1\)"):
        taught(classes=trained_on.classes[::-1])
    (folder.parent / "seed0_old").mkdir()
    teacher("run", trained_on, path=str(folder.parent))


def test_self_supervised_run_has_no_classifier_and_may_know_other_classes(tmp_path):
    folder, model = a_run(tmp_path / "ssl", a_task(classes=100), method="ssl_teacher")
    frozen = teacher("run", a_task(), path=str(folder), weights="last")
    out = frozen(images(a_task()), ["patch.final"])
    assert out.logits is None and out.distill_logits is None and frozen.num_classes == 0
    expected = model.eval()(images(a_task()), ["patch.final"]).features["patch.final"]
    torch.testing.assert_close(out.features["patch.final"], expected)


def test_timm_teacher_sees_what_its_weights_were_trained_on(tmp_path):
    task = a_task(1, 8)
    source = timm_library.create_model("resnet10t", num_classes=10).eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    frozen = teacher("timm", task, arch="resnet10t", checkpoint=str(tmp_path / "w.safetensors"), size=64)
    x = F.interpolate(images(task).repeat(1, 3, 1, 1), (64, 64), mode="bicubic", align_corners=False)
    x = (x - torch.tensor(IMAGENET["mean"]).view(-1, 1, 1)) / torch.tensor(IMAGENET["std"]).view(-1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(frozen(images(task)).logits, source(x))
    assert teacher("timm", task, arch="resnet10t", random_weights=True).size == 176  # timm's own for this model


def test_timm_teacher_of_other_classes_is_refused_unless_only_its_features_count(tmp_path):
    task = a_task()
    save_file(timm_library.create_model("resnet10t", num_classes=100).state_dict(), tmp_path / "w.safetensors")
    given = {"arch": "resnet10t", "checkpoint": str(tmp_path / "w.safetensors"), "size": 32}
    with pytest.raises(UserError, match="resnet10t has 100 classes, data has 10"):
        teacher("timm", task, **given)
    out = teacher("timm", task, **given, classifier=False)(images(task), ["cls.final"])
    assert out.logits is None and out.features["cls.final"].shape == (2, 1, 512)


def test_dinov2_features():
    task = a_task(1, 8)
    plain, normed, pooled = (teacher("dinov2", task, **SMALL_DINO, **args)
                             for args in ({}, {"norm_layers": True}, {"norm_layers": True, "pool": 2}))
    wanted = ["patch.3", "cls.3", "patch.final"]
    out, out_normed, out_pooled = (model(images(task), wanted) for model in (plain, normed, pooled))
    assert out.logits is None and plain.grid == (4, 4) and pooled.grid == (2, 2) and plain.num_prefix_tokens == 1
    norm = plain.model.norm
    torch.testing.assert_close(norm(out.features["patch.3"]), out_normed.features["patch.3"])
    torch.testing.assert_close(norm(out.features["cls.3"]), out_normed.features["cls.3"])
    torch.testing.assert_close(out.features["patch.final"], out_normed.features["patch.final"])
    first = out_normed.features["patch.3"][:, [0, 1, 4, 5]].mean(1)
    torch.testing.assert_close(out_pooled.features["patch.3"][:, 0], first)
    x = F.interpolate(images(task).repeat(1, 3, 1, 1), (56, 56), mode="bicubic", align_corners=False)
    x = (x - torch.tensor(IMAGENET["mean"]).view(-1, 1, 1)) / torch.tensor(IMAGENET["std"]).view(-1, 1, 1)
    (oracle,) = plain.model.get_intermediate_layers(x, n=[3], norm=True)
    torch.testing.assert_close(out_normed.features["patch.3"], oracle)


def test_dinov2_takes_a_local_file_of_another_input_size(tmp_path):
    task = a_task()
    source = timm_library.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=112)
    save_file(source.state_dict(), tmp_path / "dino.safetensors")
    frozen = teacher("dinov2", task, checkpoint=str(tmp_path / "dino.safetensors"), size=56)
    torch.testing.assert_close(frozen.model.blocks[7].attn.qkv.weight, source.blocks[7].attn.qkv.weight)
    assert frozen.model.pos_embed.shape == (1, 17, 384)


def test_dinov2_says_what_is_wrong(monkeypatch):
    with pytest.raises(UserError, match="multiple of patch 14 x pool 3, got 56"):
        teacher("dinov2", a_task(), **SMALL_DINO, pool=3)
    with pytest.raises(UserError, match="resnet18 is no vision transformer"):
        teacher("dinov2", a_task(), arch="resnet18", random_weights=True)

    def offline(*args, **options):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(UserError, match=r"dinov2.lvd142m: no weights from the hub \(timm/.*OSError: Name or service "
                                        r"not known; give a local file with checkpoint: FILE.safetensors"):
        teacher("dinov2", a_task(), size=56)


FEATURES = ["patch.final", "cls.1", "patch.1"]


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A task, a frozen teacher for it, its part, and a cache folder of its own."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    task = a_task(n=11)
    folder, _ = a_run(tmp_path / "seed0", task)
    args = {"path": str(folder), "weights": "last"}
    return task, teacher("run", task, **args), Part("run", args)


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_cached_outputs_are_the_teachers(cached, limit):
    task, frozen, part = cached
    cache = TeacherCache(frozen, part, task, "train", FEATURES, "cpu", limit_bytes=limit, batch_size=4)
    assert cache.resident == bool(limit)
    index = torch.tensor([10, 0, 3, 3])
    got, online = cache.fetch(index), frozen(task.splits["train"].images[index].float() / 255, FEATURES)
    assert set(got.features) == set(FEATURES) and got.logits.dtype == torch.float32
    for one, other in [(got.logits, online.logits)] + [(got.features[n], online.features[n]) for n in FEATURES]:
        torch.testing.assert_close(one, other, rtol=2**-10, atol=1e-6)


def test_what_does_not_fit_on_the_device_is_read_one_batch_ahead(cached, monkeypatch):
    """Whatever was announced, what is asked for is what comes."""
    task, frozen, part = cached
    small, whole = (TeacherCache(frozen, part, task, "train", FEATURES, "cpu", limit_bytes=limit)
                    for limit in (0, None))
    assert whole.resident and not small.resident
    read, real = [], small._read
    monkeypatch.setattr(small, "_read", lambda index: (read.append(index.tolist()), real(index))[1])
    for index, ahead in (([0, 1], [2, 3]), ([2, 3], [4, 5]), ([6, 7], None), ([8, 9], None)):
        got = small.fetch(torch.tensor(index), ahead and torch.tensor(ahead))
        wanted = whole.fetch(torch.tensor(index))
        assert all(torch.equal(got.features[name], wanted.features[name]) for name in FEATURES)
        assert torch.equal(got.logits, wanted.logits)
    small._reader.shutdown()  # what was announced and never asked for is read by then
    assert sorted(read) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_a_gpu_keeps_what_fills_half_of_its_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 << 30, 80 << 30))
    assert _cache.room(torch.device("cuda", 0)) == 35 << 30
    assert _cache.room(torch.device("cpu")) == 4 << 30


def test_a_cache_is_built_once_and_again_when_it_is_not_what_it_says(cached, monkeypatch):
    task, frozen, part = cached
    built = []
    real = _cache._build
    monkeypatch.setattr(_cache, "_build", lambda *args: (built.append(args[0]), real(*args)))

    def make(model=frozen, split="train", given=task):
        return TeacherCache(model, part, given, split, FEATURES, "cpu")

    first = make()
    make()
    assert len(built) == 1
    manifest = first.folder / "manifest.json"
    for damage in (lambda: manifest.unlink(), lambda: manifest.write_text("{"),
                   lambda: manifest.write_text(json.dumps({"origin": {}, "sha256": {}})),
                   lambda: (first.folder / "cls.1.npy").write_bytes(b"short"),
                   lambda: _flip_last_byte(first.folder / "patch.1.npy")):
        before = len(built)
        damage()
        torch.testing.assert_close(make().fetch(torch.arange(11)), first.fetch(torch.arange(11)))
        assert len(built) == before + 1 and built[-1] == first.folder
    with torch.no_grad():
        frozen.model.blocks[1].mlp.fc2.weight[0, 0] += 1e-3
    assert make().folder != first.folder
    others = [replace(task, fingerprints={**task.fingerprints, split: "other"}) for split in ("train", "test")]
    assert len({make().folder, make(split="val").folder, make(given=others[0]).folder}) == 3
    assert make(given=others[1]).folder == make().folder, "other test images throw no training cache away"


def _flip_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_cache_knows_its_precision(cached):
    task, frozen, part = cached
    bf16 = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    full, half = (TeacherCache(frozen, part, task, "train", FEATURES, "cpu", **args)
                  for args in ({}, {"autocast": bf16}))
    assert full.folder != half.folder
    with bf16():
        online = frozen(task.splits["train"].images.float() / 255)
    torch.testing.assert_close(half.fetch(torch.arange(11)).logits, online.logits.float(), rtol=2**-10, atol=1e-6)


def test_a_teacher_without_logits_is_cached_without_them(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    task = a_task(n=3)
    cache = TeacherCache(teacher("dinov2", task, **SMALL_DINO), Part("dinov2", SMALL_DINO), task, "val", ["cls.3"],
                         "cpu")
    out = cache.fetch(torch.arange(3))
    assert out.logits is None and out.features["cls.3"].shape == (3, 1, 384)


class _Huge(nn.Module):
    num_classes = 2

    def forward(self, x, features=()):
        return Outputs(torch.full((len(x), 2), 1e5))


def test_values_beyond_float16_and_a_full_disk_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="logits does not fit float16"):
        TeacherCache(_Huge(), Part("huge"), a_task(), "train", [], "cpu")
    assert not list(tmp_path.glob("*/manifest.json"))
    monkeypatch.setattr(_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3})())
    with pytest.raises(UserError, match="need 0 MiB, 0 MiB are free"):
        TeacherCache(_Huge(), Part("huge"), a_task(), "test", [], "cpu")


def test_a_disk_that_fills_while_a_cache_is_written_is_one_line_and_is_emptied(cached, monkeypatch):
    task, frozen, part = cached
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # bytes a file: what a full disk does, for real
    try:
        with pytest.raises(DiskProblem, match=r"cannot keep the teacher's outputs \(File too large\)"):
            TeacherCache(frozen, part, task, "train", FEATURES, "cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (folder,) = (path for path in _cache.cache_dir().iterdir() if path.is_dir() and len(path.name) == 32)
    assert not list(folder.iterdir())
    assert len(TeacherCache(frozen, part, task, "train", FEATURES, "cpu").fetch(torch.arange(11)).logits) == 11


def _build_in_a_process(folder: str, started, results) -> None:
    task = a_task(n=9)
    started.wait()
    torch.set_num_threads(1)
    frozen = build("teachers", Part("run", {"path": folder}), task)
    cache = TeacherCache(frozen, Part("run", {"path": folder}), task, "train", FEATURES, "cpu", batch_size=2)
    results.put(np.asarray(cache.fetch(torch.arange(9)).logits).tolist())


@pytest.mark.slow
def test_two_processes_that_build_at_once_read_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    folder, _ = a_run(tmp_path / "seed0", a_task(n=9))
    context = multiprocessing.get_context("spawn")
    started, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_build_in_a_process, args=(str(folder), started, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    one, other = results.get(timeout=900), results.get(timeout=900)
    for worker in workers:
        worker.join()
    assert one == other and len(list((tmp_path / "cache").glob("*/manifest.json"))) == 1
