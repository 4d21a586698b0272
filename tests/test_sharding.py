"""Sharded language students: as DDP, resumed bit by bit, their checkpoints models and adapters for everybody."""

import contextlib
import copy
import functools
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from graft import config
from graft.config.options import Term
from graft.errors import NonFinite, UserError
from graft.evaluation import scoring
from graft.runtime import checkpoint
from graft.runtime.place import Place
from graft.tasks._context import Context
from graft.teachers import _topk_cache, context_lm
from graft.training import sharding
from graft.training.journal import read
from graft.training.learner import Learner
from graft.training.objective import Objective
from graft.training.optim import build_optimizer
from graft.training.update import Stop, Update
from small import BASE, ROOT, environment, weights
from small_lm import CPU, KEYS, base_config, batch, disturb, last_wins, lm, student, task, tiny

LAUNCHER = sharding.REQUIRED | {"ACCELERATE_USE_FSDP": "true"}
# 7 validation items in batches of 3: one process has two batches, the other one.
COMMON = ["method=distill", "task.val_fraction=0.12", "evaluate.batch_size=3", "train.eval_every=2st", "train.keep=5",
          "objective=[{name: ce}, {name: topk, weight: 0.5, form: kl}]", "train.checkpoint_every=2st"]
VARIANTS = {"lora": ["student.dtype=bf16", "student.checkpointing=true", "student.dropout=0.1",
                     "train.precision=bf16"],
            "full": ["student.lora=false", "optim.lr=1e-3", "train.accumulate=2"]}


def teacher(folder: Path, precision: str) -> str:
    """Logits computed in fp32, for runs of that precision."""
    about = task(val_fraction=0.12)
    own = context_lm.frozen_lm(about, lm(), "", "fp32")
    context = Context("fewshot", 2)
    model = context_lm.ContextLM(about, context, own, 16, 4000)
    wanted = _topk_cache.about(about, context, own.base, precision, "fp32")
    _topk_cache.build(folder, wanted, 16, ["rows"], model, about, device=CPU, autocast=contextlib.nullcontext)
    return (f"teacher={{name: context_lm, shots: 2, k: 16, serve: cache, path: {folder}, cache_dtype: fp32, "
            f"precision: {precision}, model: {lm()}}}")


def launch(launcher: str, output_dir: Path, *overrides: str, at_once: int = 0) -> subprocess.CompletedProcess:
    """`train_distill.py` on two processes; `at_once`: so many (position, token) pairs of logits at a time."""
    script = ROOT / "src/graft/train_distill.py"
    if at_once:
        script = output_dir.parent / "train.py"
        script.write_text(f"import graft.outputs\ngraft.outputs.LOGITS_AT_ONCE = {at_once}\n"
                          "from graft import errors, train_distill\nfrom graft.config import command_line\n"
                          "errors.exit_cleanly(lambda: train_distill.main(command_line.command_line('', 'distill')))\n")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
               str(ROOT / f"configs/accelerate/{launcher}.yaml"), str(script), "--base_config", str(base_config()),
               "--output_dir", str(output_dir), *last_wins(*KEYS, *COMMON, *overrides)]
    return subprocess.run(command, env=environment(), cwd=ROOT, text=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("variant, tolerance", [("lora", 2e-3), ("full", 1e-5)])
def test_sharded_training_is_that_of_ddp(tmp_path, variant, tolerance):
    """The sharded run makes its logits in pieces and computes each again in the backward pass, outside the decoder."""
    precision = "bf16" if "train.precision=bf16" in VARIANTS[variant] else "fp32"
    overrides = [*VARIANTS[variant], teacher(tmp_path / "cache", precision)]
    whole = launch("cpu2", tmp_path / "ddp", *overrides)
    assert whole.returncode == 0, whole.stderr
    parts = launch("fsdp_cpu2", tmp_path / "fsdp", *overrides, at_once=2000)
    assert parts.returncode == 0, parts.stderr
    assert "on 2 × cpu, sharded" in parts.stdout
    ours, theirs = (read(tmp_path / name / "seed0/metrics.jsonl") for name in ("fsdp", "ddp"))
    assert len(ours) == len(theirs) == 6 and any("val/nll" in row for row in ours)
    for one, other in zip(ours, theirs):
        assert one == {k: pytest.approx(v, rel=tolerance) if "second" not in k else one[k] for k, v in other.items()}

    run, ddp = tmp_path / "fsdp/seed0", tmp_path / "ddp/seed0"
    names = [sorted(file.name for file in (folder / "checkpoint-4").iterdir()) for folder in (run, ddp)]
    assert names[0] == names[1]
    (mine, optimizer, _), (other, other_optimizer, _) = (checkpoint.load(f / "checkpoint-4") for f in (run, ddp))
    (stem, state), = mine.items()
    assert shapes(state) == shapes(other[stem])
    assert optimizer["state"] and {index: shapes(values) for index, values in optimizer["state"].items()} == {
        index: shapes(values) for index, values in other_optimizer["state"].items()}
    loads_alone(run, stem, state, ours[-1])

    # Resumed from the middle, it ends bit-identical.
    before = weights(run)
    shutil.copytree(run, tmp_path / "again/seed0")
    shutil.rmtree(tmp_path / "again/seed0/checkpoint-4")
    again = launch("fsdp_cpu2", tmp_path / "again", *overrides, at_once=2000)
    assert again.returncode == 0, again.stderr
    assert "resumed at step 2" in again.stdout
    assert weights(tmp_path / "again/seed0") == before


def shapes(state: dict) -> dict:
    return {name: (value.shape, value.dtype) for name, value in state.items()}


def loads_alone(run: Path, stem: str, state: dict, last: dict) -> None:
    """One process scores the checkpoint as the run did; peft or transformers load its folder."""
    about = task(val_fraction=0.12)
    lora = stem == "adapter_model"
    module = student(about, lora=lora, dtype="bf16" if lora else "fp32")
    module.load_state_dict(state)
    scores = scoring.score_answers(module, about.splits["val"], 3)
    assert scores["nll"] == pytest.approx(last["val/nll"], rel=1e-3 if lora else 1e-5)
    folder = str(run / "checkpoint-4")
    if lora:
        base = AutoModelForCausalLM.from_pretrained(lm(), dtype=torch.bfloat16)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft asks by a name of the past
            theirs = PeftModel.from_pretrained(base, folder)
    else:
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        assert torch.equal(theirs.eval()(input_ids=ids).logits, module.eval().lm(input_ids=ids).logits)


@pytest.fixture
def alone(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("lora", [True, False])
def test_a_sharded_update_that_is_not_finite_is_not_applied(tmp_path, alone, lora):
    about = task()
    cfg = tiny(tmp_path, f"student.lora={lora}", "optim.weight_decay=0.1")
    model = student(about, lora=lora)
    terms = Objective((Term("ce", {"smoothing": 0.0, "smooth_soft": True}),), model, None, seed=0)
    learner = sharding.shard(Learner(model, terms, contextlib.nullcontext), CPU, half=False)
    update = Update(cfg, build_optimizer([learner], cfg.optim), Place(CPU))
    assert update.params and all(isinstance(p, DTensor) for p in update.params)
    tokens, targets = batch(about, 1, 2)

    def state() -> dict:
        optimizer = update.optimizer.state_dict()
        return copy.deepcopy({name: sharding.gathered(value, True)
                              for name, value in (("model", model.state_dict()), ("optimizer", optimizer))})

    def same(one: dict, other: dict) -> bool:
        pairs = [(one["model"], other["model"]),
                 *((values, other["optimizer"]["state"][i]) for i, values in one["optimizer"]["state"].items())]
        return all(torch.equal(value, theirs[name]) for mine, theirs in pairs for name, value in mine.items())

    def step(number: int, factor: float) -> None:
        learner.lend(scoring.score_answers, model, about.splits["val"], 4)  # must not disturb the step
        loss, values = learner(tokens, (), None, targets, None, [1.0], window=9.0, micro_share=1.0)
        (loss * factor).backward()
        update.add(loss * factor, values)
        update.apply(number, 1e-2, Stop.NO)

    untouched = state()
    step(0, 1.0)
    moved = state()
    assert not same(untouched, moved)
    with pytest.raises(NonFinite, match=r"^step 1: not finite"):
        step(1, float("nan"))
    assert same(state(), moved)
    step(2, 1.0)
    assert not same(state(), moved)
    parts = sharding.parted(moved["model"], model.state_dict())
    assert all(isinstance(value, DTensor) for value in parts.values())
    model.load_state_dict(parts)
    update.optimizer.load_state_dict(sharding.parted_optimizer(moved["optimizer"], update.optimizer))
    assert same(state(), moved)


@pytest.mark.parametrize("family, options", [("qwen3", {"lora": False}), ("gemma3", {"dropout": 0.1})])
def test_what_is_gathered_in_bf16_is_what_autocast_would_round(alone, family, options):
    """Loss and gradients are those of the model in one piece, bit by bit; norms are gathered in fp32."""
    about, seen = task(family), {}

    def learn(shard: bool) -> dict[str, torch.Tensor]:
        model = student(about, family, checkpointing=True, **options)
        disturb(model)  # after some training no norm is of bf16 numbers
        terms = Objective((Term("ce", {"smoothing": 0.0, "smooth_soft": True}),), model, None, seed=0)
        autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=False)
        learner = Learner(model, terms, autocast)
        learner = sharding.shard(learner, CPU, half=True) if shard else learner
        layer = next(module for module in model.modules() if type(module).__name__.endswith("DecoderLayer"))
        for name, module in layer.named_modules():
            if shard and list(module.parameters(recurse=False)):
                module.register_forward_pre_hook(lambda module, _, name=name: seen.update({name: module.weight.dtype}))
        learner.lend(scoring.score_answers, model, about.splits["val"], 4, 0, 1, autocast)
        tokens, targets = batch(about, 0, 5)
        torch.manual_seed(0)
        loss, _ = learner(tokens, (), None, targets, None, [1.0], window=9.0, micro_share=1.0)
        loss.backward()
        return {"loss": loss.detach(), **{name: sharding.whole(weight.grad) for name, weight in model.named_parameters()
                                          if weight.requires_grad}}

    whole, parts = learn(False), learn(True)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        if "embed" in name:  # the head's weights, too: a sum whose order is free
            torch.testing.assert_close(value, parts[name], rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(value, parts[name]), name
    assert any("norm" in name for name in seen) and all(
        kind == (torch.float32 if "norm" in name else torch.bfloat16) for name, kind in seen.items()), seen


@pytest.mark.parametrize("world, batch_size", [(2, 3), (2, 1), (3, 2), (8, 4)])
def test_processes_score_equally_often_and_every_item_once(monkeypatch, world, batch_size):
    """Where weights are in parts, a process that stops early would leave the others waiting."""
    about = task(val_fraction=0.12)
    model, val = student(about), about.splits["val"]
    alone, calls, shares = scoring.score_answers(model, val, batch_size), [], []
    monkeypatch.setattr(scoring.dist, "all_reduce", lambda totals: shares.append(totals.clone()))
    model.register_forward_hook(lambda *_: calls.append(1))
    counted = []
    for rank in range(world):
        calls.clear()
        with contextlib.suppress(ZeroDivisionError):  # more processes than items
            scoring.score_answers(model, val, batch_size, rank, world)
        counted.append(len(calls))
    assert len(val) == 7 and len(set(counted)) == 1
    loss, correct, count = sum(shares).tolist()
    assert count == int(val.answers.lengths.sum())
    assert {"nll": loss / count, "token_accuracy": correct / count} == pytest.approx(alone)


@pytest.mark.parametrize("environ, world, overrides, says", [
    ({"FSDP_VERSION": "1"}, 2, [], "fsdp_version must be 2, got 1"),
    ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, 2, [], "fsdp_cpu_ram_efficient_loading must be false"),
    ({}, 1, [], "one process has nothing to share"),
    ({}, 2, ["method=distill", "teacher={name: context_lm}", "objective=[{name: ce}, {name: topk}]"],
     "teacher.serve: adapter cannot be used under FSDP; use cache"),
])
def test_what_cannot_be_sharded_is_refused(tmp_path, monkeypatch, environ, world, overrides, says):
    for name, value in (LAUNCHER | environ).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        sharding.wanted(tiny(tmp_path, *overrides), world)


@pytest.mark.parametrize("launcher", ["fsdp", "fsdp_cpu2"])
def test_the_launchers_ask_for_what_there_is(launcher):
    said = yaml.safe_load((ROOT / f"configs/accelerate/{launcher}.yaml").read_text())
    assert said["distributed_type"] == "FSDP" and said["mixed_precision"] == "no"
    assert {key.upper(): str(said["fsdp_config"][key.lower()]).lower() for key in sharding.REQUIRED} == \
        sharding.REQUIRED


def test_pictures_are_not_sharded(monkeypatch):
    assert not sharding.wanted(config.load([BASE]), 2)
    for name, value in LAUNCHER.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"student\.name: vit cannot be sharded, only language models can"):
        sharding.wanted(config.load([BASE]), 2)
