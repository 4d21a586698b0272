"""What GPUs, several processes and large data change, as far as a CPU can show it."""

import shutil
import sys
from datetime import timedelta

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from graft.config.options import Train
from graft.errors import UserError
from graft.evaluation import engines
from graft.losses._dino import DinoHead
from graft.losses._tokens import fp32
from graft.runtime.place import accelerator
from graft.tasks._task import ResidentSplit, StreamedSplit
from graft.training import learner
from graft.training.batches import micro_batches
from graft.training.learner import channels_last, synchronised
from graft.training.run import Run
from small import assert_same_training, run_main, tiny, weights
from small_lm import batch, disturb, student, task


@pytest.mark.parametrize("arch", ["efficientnet_b0", "regnety_002", "mobilenetv3_small_100", "resnetv2_50",
                                  "densenet121"])
def test_batchnorm_over_processes_keeps_the_activations_fused_into_it(arch):
    torch.manual_seed(0)
    model, images = timm.create_model(arch, num_classes=4).eval(), torch.rand(2, 3, 32, 32)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # a mean and a spread that matter
            nn.init.normal_(layer.bias, std=0.5)
            layer.running_mean.normal_(std=0.1)
    kinds = sorted(type(layer).__name__ for layer in model.modules())
    with torch.no_grad():
        before = model(images)
        after = synchronised(model)(images)
    names = {"BatchNorm2d": "SyncBatchNorm", "BatchNormAct2d": "SyncBatchNormAct"}
    assert sorted(type(layer).__name__ for layer in model.modules()) == sorted(names.get(kind, kind) for kind in kinds)
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in model.modules())
    assert torch.equal(before, after)


@pytest.mark.parametrize("arch, kind, wanted, expected", [
    ("resnet10t", "cuda", "auto", True), ("resnet10t", "cpu", "auto", False),
    ("resnet10t", "cuda", "contiguous", False), ("resnet10t", "cpu", "channels_last", True),
    ("vit_tiny_patch16_224", "cuda", "auto", False)])
def test_convolutions_on_a_gpu_keep_channels_together(arch, kind, wanted, expected):
    with torch.device("meta"):
        model = timm.create_model(arch)
    assert channels_last(model, torch.device(kind), wanted) == expected


def test_a_run_in_channels_last_is_resumed_bit_by_bit(tmp_path, monkeypatch):
    """A fused optimizer would apply a contiguous state, saved by a CPU say, to weights in another order."""
    strides, real = [], Run.placed

    def placed(run, module):
        module = real(run, module)
        strides.append([p.is_contiguous() for p in module.parameters() if p.ndim == 4])
        return module

    monkeypatch.setattr(Run, "placed", placed)
    student = "student={name: cnn, arch: small}"
    run_main(tiny(tmp_path / "teacher", student, "train.duration=2st"))
    options = [student, f"teacher={{name: run, path: {tmp_path}/teacher/seed0}}", "train.average=ema",
               "objective=[{name: ce}, {name: kd, weight: 0.5}]", "train.duration=4st", "train.checkpoint_every=2st"]
    plain = run_main(tiny(tmp_path / "plain", *options, method="distill"))
    assert len(strides) == 3 and all(map(all, strides))
    strides.clear()
    options += ["train.memory_format=channels_last"]
    logged = run_main(tiny(tmp_path / "x", *options, method="distill"))
    assert len(strides) == 2 and not any(map(all, strides)), "teacher and student"
    assert [row["train/loss"] for row in logged if "lr" in row] == pytest.approx(
        [row["train/loss"] for row in plain if "lr" in row], rel=1e-4)

    def resumed(name, *options):
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-again")
        shutil.rmtree(tmp_path / f"{name}-again/seed0/checkpoint-4")
        run_main(tiny(tmp_path / f"{name}-again", *options, method="distill"))
        return tmp_path / f"{name}-again/seed0"

    assert weights(resumed("x", *options)) == weights(tmp_path / "x/seed0")
    monkeypatch.setattr(learner, "channels_last", lambda *_: True)  # what a GPU would say
    assert_same_training(resumed("plain", *options[:-1]), tmp_path / "plain/seed0")


def test_no_loss_computes_in_tf32():
    matmul, seen = torch.backends.cuda.matmul, []

    @fp32
    def loss(x):
        seen.append(matmul.allow_tf32)
        if x.sum() < 0:
            raise ValueError
        return x @ x.mT

    try:
        matmul.allow_tf32 = True
        loss(torch.ones(2, 3))
        with pytest.raises(ValueError):
            loss(-torch.ones(2, 3))
        assert seen == [False, False] and matmul.allow_tf32, "as the run set it outside, after an error too"
    finally:
        matmul.allow_tf32 = False


def test_prototype_cosines_are_fp32_under_autocast():
    torch.manual_seed(0)
    head, x = DinoHead(16, 8, 16, 8), torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        bottleneck, cosines = head.mlp(x), head(x)
    wanted = F.normalize(bottleneck.float(), dim=-1) @ F.normalize(head.prototypes.weight, dim=-1).T
    assert bottleneck.dtype == torch.bfloat16 and cosines.dtype == torch.float32
    torch.testing.assert_close(cosines, wanted)


@pytest.mark.parametrize("args", [{"dtype": "bf16"}, {"lora": False}, {"lora": False, "family": "llama"}])
def test_logits_of_bf16_factors_are_fp32_with_the_gradient_of_the_plain_product(args):
    """The head's weight takes part where it is trained; tied (qwen3) and of its own (llama)."""
    args = dict(args)
    family = args.pop("family", "qwen3")
    about = task(family)
    model = student(about, family, **args)
    tokens, _ = batch(about, 3, 17)
    output = model.model.get_output_embeddings()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(tokens).hidden.detach().requires_grad_()
        logits = model.head(hidden)
    half, weight = hidden.bfloat16().float(), output.weight.bfloat16().float()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, half @ weight.T)
    assert (logits - logits.bfloat16().float()).abs().max() > 1e-3, "bf16 has lost something here"
    logits.square().sum().backward()
    gradient, weight = 2 * logits.detach(), weight.detach()
    for found, wanted in ((hidden.grad, gradient @ weight), (output.weight.grad, gradient.T @ half.detach())):
        if found is not None:
            torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))
    assert (output.weight.grad is not None) == output.weight.requires_grad


def test_adapters_under_autocast_compute_the_same_without_casts(monkeypatch):
    """And without autocast, where the casts are needed, they are there again."""
    about = task()
    model = student(about, dtype="bf16", dropout=0.0)
    disturb(model)
    tokens, _ = batch(about, 3, 17)
    layers = [m for m in model.lm.modules() if hasattr(m, "cast_input_dtype_enabled")]

    with torch.autocast("cpu", torch.bfloat16):
        without = model(tokens).hidden
        assert len(layers) == 14 and not any(layer.cast_input_dtype_enabled for layer in layers)
        monkeypatch.setattr(model, "_cast_inputs", lambda cast: None)
        for layer in layers:
            layer.cast_input_dtype_enabled = True
        assert torch.equal(model(tokens).hidden, without)
    monkeypatch.undo()
    model(tokens)
    assert all(layer.cast_input_dtype_enabled for layer in layers)


def test_processes_wait_two_hours_for_each_other():
    assert accelerator().init_handler.timeout == timedelta(hours=2)


def test_vllm_is_found_in_its_own_environment(tmp_path, monkeypatch):
    """The command goes on in place of the process, with every word it was given; not where it is there already."""
    calls = []
    monkeypatch.setattr(engines.os, "execv", lambda *given: calls.append(given))
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(engines, "VLLM_PYTHON", tmp_path / "python")
    monkeypatch.delenv("GRAFT_VLLM_PYTHON", raising=False)
    monkeypatch.setenv("PATH", "/bin")
    engines.enter_environment("vllm")  # neither here nor there: the engine says so
    assert not calls
    (tmp_path / "python").touch()
    engines.enter_environment("transformers")
    assert not calls
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "scripts/eval_icl.py", "--engine", "vllm"])
    engines.enter_environment("vllm")
    python = tmp_path / "python"
    assert calls == [(python, [str(python), "-u", "scripts/eval_icl.py", "--engine", "vllm"])]
    monkeypatch.setattr(sys, "executable", str(python))
    engines.enter_environment("vllm")
    assert len(calls) == 1, "no circle"
    (tmp_path / "other").touch()
    monkeypatch.setenv("GRAFT_VLLM_PYTHON", str(tmp_path / "other"))
    engines.enter_environment("vllm")
    assert calls[1][0] == tmp_path / "other"
    monkeypatch.setenv("GRAFT_VLLM_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"GRAFT_VLLM_PYTHON: .*nowhere: no such file"):
        engines.enter_environment("vllm")


class Pixels:
    """Images that say which they are; notes what is decoded."""

    def __init__(self):
        self.decoded: list[int] = []

    def __call__(self, i: int) -> np.ndarray:
        self.decoded.append(i)
        return np.full((1, 2, 2), i, np.uint8)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_streamed_epoch_resumed_in_the_middle_reads_nothing_twice(workers):
    """Order and content are those of the resident data, for any number of workers."""
    train = Train(batch_size=6, accumulate=2)
    labels = torch.arange(40)
    resident = ResidentSplit(labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous(), labels)
    whole = [batch for _, batch in micro_batches(resident, train, 7, 3, range(6), 0, 1)]
    seen, decoded = [], []
    for steps in (range(0, 2), range(2, 6)):  # stopped after two steps, and resumed
        pixels = Pixels()
        split = StreamedSplit(pixels, labels).to("cpu", workers)
        seen += [batch for _, batch in micro_batches(split, train, 7, 3, steps, 0, 1)]
        decoded.append(pixels.decoded)
    assert len(seen) == len(whole) == 12
    for one, other in zip(seen, whole):
        assert torch.equal(one.index, other.index) and one.step == other.step
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.labels, other.labels)
    if not workers:
        assert sorted(decoded[0] + decoded[1]) == sorted(torch.cat([batch.index for batch in whole]).tolist())
        assert len(set(decoded[0] + decoded[1])) == 36
