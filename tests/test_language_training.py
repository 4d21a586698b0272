"""Language runs of the real training scripts: pieces, division of the batch, cached teachers, resuming, bad input."""

import itertools
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from graft.config.options import Term
from graft.losses import topk
from graft.runtime import checkpoint
from graft.tasks._context import Context
from graft.teachers import _topk_cache, context_lm
from graft.training import objective
from graft.training.journal import read
from graft.training.objective import Objective
from small import assert_same_training, one_line, weights
from small_lm import (
    CPU,
    FAMILIES,
    Interrupted,
    batch,
    build,
    disturb,
    interrupt,
    kill_and_finish,
    launch,
    lm,
    run_main,
    student,
    task,
    tiny,
    untimed,
)

CE = {"smoothing": 0.0, "smooth_soft": True}
KL = {"form": "kl", "tau": 1.0, "tail": "bucket", "position": "predicting"}
LATER = {**KL, "form": "mse", "position": "published"}
TEACHER = "teacher={name: context_lm, shots: 3, k: 16%s}"
TERMS = "objective=[{name: ce}, {name: topk, weight: 0.5, form: kl}]"
DISTILL = ("method=distill", TEACHER % "", TERMS)
DROPOUT_OFF = "student.dropout=0"


def distilled(output_dir: Path, *overrides: str, **options):
    return tiny(output_dir, *DISTILL, *overrides, method="distill", **options)


# ---------------------------------------------------------------------------------------------------- pieces

@pytest.mark.parametrize("lora, checkpointing", [(True, True), (False, False)])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_pieces_change_neither_loss_nor_gradients(monkeypatch, lora, checkpointing, autocast):
    """Oracle: the same terms on logits made all at once, by hand."""
    about = task()
    tokens, targets = batch(about, 3, 17, 30)
    args = {"k": 16, "shots": 3, "serve": "copy"}
    results, weights_ = [], [1.0, 0.5, 0.25]
    for at_once in (1 << 26, 1000, 1):
        monkeypatch.setattr(objective, "LOGITS_AT_ONCE", at_once)
        model = student(about, lora=lora, checkpointing=checkpointing, dropout=0.0)
        disturb(model)
        model.train()
        teacher = build("teachers", "context_lm", about, model, **args)
        terms = Objective((Term("ce", CE), Term("topk", KL), Term("topk", LATER)), model, teacher, seed=0)
        heads = [0]
        model.head.register_forward_hook(lambda *_, heads=heads: heads.__setitem__(0, heads[0] + 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(tokens, features=terms.student_features)
            seen = teacher(tokens, features=terms.teacher_features)
            heads[0] = 0
            loss, values = terms(out, seen, targets, None, weights_, window=40.0, micro_share=1.0)
        loss.backward()
        pieces = -(-len(targets) // max(1, at_once // model.head.vocabulary))
        assert heads[0] == (2 if pieces == 1 else 4 * pieces), "once in each direction where there are several"
        results.append([loss.detach(), values, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}])
        if not autocast:
            by_hand = weights_[0] * torch.nn.functional.cross_entropy(out.head(out.hidden), targets, reduction="sum")
            for weight, term, name in ((0.5, KL, "rows"), (0.25, LATER, "next")):
                state = {"rows": out.hidden, **out.features}[name]
                each = topk.loss(out.head(state), seen.topk[name], **term)
                assert each.mean() > 1e-3
                by_hand = by_hand + weight * each.sum()
            torch.testing.assert_close(loss, by_hand / 40)
    atol = 2e-2 if autocast else 1e-5
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-2 if autocast else 1e-4, atol=atol)


def test_a_step_at_which_every_term_waits_still_has_a_graph():
    about = task()
    model = student(about)
    tokens, targets = batch(about, 3)
    terms = Objective((Term("ce", CE, warmup="2st"),), model, None, seed=0)
    loss, values = terms(model(tokens), None, targets, None, [0.0], window=1.0, micro_share=1.0)
    loss.backward()
    assert loss.item() == 0 and not values
    assert all(p.grad is not None and not p.grad.any() for name, p in model.named_parameters() if "lora_B" in name)


def test_objectives_that_do_not_fit_are_refused():
    about = task()
    model = student(about)
    assert "needs a teacher" in one_line(Objective, (Term("topk", KL),), model, None, seed=0)

    class Other(torch.nn.Module):
        num_classes = 0

    assert "gives its largest logits" in one_line(Objective, (Term("topk", KL),), model, Other(), seed=0)


# ---------------------------------------------------------------------------------------- division of a batch

def assert_same_log(one: list[dict], other: list[dict], rel: float) -> None:
    assert len(one) == len(other) > 3
    for ours, theirs in zip(one, other):
        assert ours == {k: pytest.approx(v, rel=rel, abs=rel) if "second" not in k else ours[k]
                        for k, v in theirs.items()}


# SGD: Adam blows rounding up to full steps where a gradient is zero but for rounding.
DIVIDED = (DROPOUT_OFF, "optim.name=sgd", "optim.lr=0.1")


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_accumulation_does_not_change_the_training(tmp_path, lora):
    """One batch of 8, or 4 of 2: answers differ by a factor of three, so a mean of means would not do."""
    serve = [f"student.lora={lora}", TEACHER % (", serve: adapter" if lora else ", serve: copy")]
    logs = [run_main(distilled(tmp_path / str(n), *DIVIDED, *serve, f"train.accumulate={n}")) for n in (1, 4)]
    lengths = task().splits["train"].answers.lengths
    assert lengths.max() > 3 * lengths.min()
    assert_same_training(tmp_path / "1/seed0", tmp_path / "4/seed0")
    assert_same_log(*logs, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_two_processes_do_not_change_the_training(tmp_path, lora):
    serve = [f"student.lora={lora}", TEACHER % (", serve: adapter" if lora else ", serve: copy")]
    rows = run_main(distilled(tmp_path / "a", *DIVIDED, *serve))
    done = launch(tmp_path / "b", *DISTILL, *DIVIDED, *serve, "train.accumulate=2", "student.checkpointing=true",
                  processes=2)
    assert done.returncode == 0, done.stderr
    assert "on 2 × cpu" in done.stdout
    assert json.loads((tmp_path / "b/seed0/metadata.json").read_text())["attempts"][0]["world_size"] == 2
    assert_same_training(tmp_path / "a/seed0", tmp_path / "b/seed0")
    assert_same_log(rows, read(tmp_path / "b/seed0/metrics.jsonl"), 1e-3)


# ------------------------------------------------------------------------------------------------- the teacher

def test_the_first_step_of_a_teacher_with_the_students_context_teaches_nothing(tmp_path):
    same = "teacher={name: context_lm, context: zeroshot, shots: 0, k: 16}"
    rows = run_main(distilled(tmp_path / "same", same, DROPOUT_OFF))
    first = [row["train/topk"] for row in rows if "train/topk" in row]
    assert abs(first[0]) < 1e-6 < first[1], "zero at the start, not after a step of cross-entropy"
    rows = run_main(distilled(tmp_path / "few", DROPOUT_OFF))
    assert rows[0]["train/topk"] > 1e-3


def test_without_labels_the_student_moves_towards_the_teacher(tmp_path):
    only = "objective=[{name: ce, weight: 0}, {name: topk, form: kl}]"
    rows = run_main(distilled(tmp_path / "x", only, "train.duration=20st"))
    values = [row["train/topk"] for row in rows if "train/topk" in row]
    assert sum(values[-5:]) < 0.8 * sum(values[:5]) and not any("train/ce" in row for row in rows)


@pytest.mark.parametrize("schedule, steps", [("warmup: 2st", [2, 3]), ("before: 1, warmup: 3st, weight: 0", [0, 1, 2]),
                                             ("weight: 0.5", [0, 1, 2, 3])])
def test_the_teacher_is_asked_only_where_its_weight_is_not_zero(tmp_path, monkeypatch, schedule, steps):
    asked, current = [], []
    real, real_weights = context_lm.ContextLM.forward, Objective.weights
    monkeypatch.setattr(context_lm.ContextLM, "forward",
                        lambda self, *args, **kwargs: (asked.append(current[-1]), real(self, *args, **kwargs))[1])
    monkeypatch.setattr(Objective, "weights",
                        lambda self, step, *rest: (current.append(step), real_weights(self, step, *rest))[1])
    run_main(distilled(tmp_path / "x", f"objective=[{{name: ce}}, {{name: topk, {schedule}}}]"))
    assert asked == steps


def test_a_topk_term_of_weight_zero_is_the_baseline(tmp_path):
    run_main(tiny(tmp_path / "a"))
    run_main(distilled(tmp_path / "b", "objective=[{name: ce}, {name: topk, weight: 0}]"))
    assert weights(tmp_path / "a/seed0") == weights(tmp_path / "b/seed0")


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_cached_and_online_training_agree_step_by_step(tmp_path, lora):
    """With dropout: a teacher that is asked draws no random number."""
    about = task()
    own = context_lm.frozen_lm(about, lm(), "", "fp32")
    context = Context("fewshot", 3)
    teacher = context_lm.ContextLM(about, context, own, 24, 4000)
    wanted = _topk_cache.about(about, context, own.base, "fp32", "fp32")
    _topk_cache.build(tmp_path / "c", wanted, 24, ["rows", "next"], teacher, about, device=CPU, autocast=nullcontext)
    terms = "objective=[{name: ce}, {name: topk, form: kl}, {name: topk, weight: 0.1, form: mse, position: published}]"
    common = [f"student.lora={lora}", terms, "train.duration=8st", "optim.name=sgd", "optim.lr=0.1",
              "student.dropout=0.2"]
    served = {"online": TEACHER % (", serve: adapter" if lora else ", serve: copy"),
              "cached": TEACHER % f", serve: cache, path: {tmp_path / 'c'}, cache_dtype: fp32"}
    logs = {name: run_main(distilled(tmp_path / name, *common, one)) for name, one in served.items()}
    assert_same_log(logs["online"], logs["cached"], 1e-5)
    assert_same_training(tmp_path / "online/seed0", tmp_path / "cached/seed0")
    assert logs["online"][3]["train/topk"] > 1e-3


# -------------------------------------------------------------------------------------------------- resuming

RESUMED = ("student.dropout=0.3", "train.duration=9st", "train.checkpoint_every=2st", "train.eval_every=3st",
           "train.accumulate=2")


@pytest.mark.parametrize("family, lora", [("qwen3", True), ("llama", False)])
def test_an_interrupted_run_ends_bit_identical(tmp_path, monkeypatch, family, lora):
    """Stopped twice in the middle of an accumulation window, a step after a checkpoint."""
    serve = [*RESUMED, f"student.lora={lora}", TEACHER % (", serve: adapter" if lora else ", serve: copy")]
    rows = run_main(distilled(tmp_path / "whole", *serve, family=family))
    cfg = distilled(tmp_path / "stopped", *serve, family=family)
    interrupt(monkeypatch, 12, 20)  # in step 5, which begins again at 4, then in step 7
    resumed = []
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_main(cfg)
        resumed.append(checkpoint.steps(cfg.run_dir)[-1])
    assert resumed == [4, 6]
    again = run_main(cfg)
    assert weights(tmp_path / "whole/seed0") == weights(cfg.run_dir)
    assert untimed(again) == untimed(rows)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_killed_run_ends_bit_identical(tmp_path, lora):
    serve = [*RESUMED, f"student.lora={lora}", TEACHER % (", serve: adapter" if lora else ", serve: copy"),
             "train.duration=40st"]
    torch.set_num_threads(1)
    run_main(distilled(tmp_path / "whole", *serve))
    cfg = distilled(tmp_path / "killed", *serve)
    kill_and_finish(cfg, 5, 14, 27)
    assert weights(tmp_path / "whole/seed0") == weights(cfg.run_dir)


def test_dropout_decides_something(tmp_path):
    """The control of the tests above: another seed, or no dropout, gives other weights."""
    for name, change in (("a", "student.dropout=0.3"), ("b", DROPOUT_OFF)):
        run_main(tiny(tmp_path / name, change))
    assert weights(tmp_path / "a/seed0") != weights(tmp_path / "b/seed0")


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_another_base_model_or_template_may_not_go_on(tmp_path, lora):
    """Folders whose content changed under the same path, so the configuration is the same."""
    path = tmp_path / "lm"
    shutil.copytree(lm(), path)
    cfg = tiny(tmp_path / "x", f"student.model={path}", f"student.lora={lora}")
    run_main(cfg)
    before = weights(cfg.run_dir)
    template = path / "chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace("<|im_start|>", "<|im_start|> "))
    assert template.read_text() != text
    assert "was made with other data" in one_line(run_main, cfg)
    template.write_text(text)
    shutil.copy(Path(lm(seed=5)) / "model.safetensors", path / "model.safetensors")
    assert "was made with another base model" in one_line(run_main, cfg)
    assert weights(cfg.run_dir) == before and json.loads((cfg.run_dir / "status.json").read_text())["state"] == "done"


# ----------------------------------------------------------------------------------------------------- smoke

@pytest.mark.slow
@pytest.mark.parametrize("family, lora", list(itertools.product(FAMILIES, [True, False])))
def test_smoke_of_every_family(tmp_path, monkeypatch, family, lora):
    """train, checkpoint, resume: baseline and distill, in bf16 with checkpointing."""
    common = [f"student.lora={lora}", "student.checkpointing=true", "train.precision=bf16",
              "train.checkpoint_every=2st", "train.eval_every=2st", *(["student.dtype=bf16"] if lora else [])]
    serve = f", serve: {'adapter' if lora else 'copy'}, precision: bf16"
    for cfg in (tiny(tmp_path / "b", *common, family=family),
                distilled(tmp_path / "d", *common, TEACHER % serve, family=family)):
        with monkeypatch.context() as patched:
            interrupt(patched, 4)
            with pytest.raises(Interrupted):
                run_main(cfg)
        assert checkpoint.steps(cfg.run_dir) == [2]
        rows = run_main(cfg)
        assert checkpoint.steps(cfg.run_dir)[-1] == 4 and [row["step"] for row in rows if "lr" in row] == [1, 2, 3, 4]
        assert all(row["val/nll"] > 0 for row in rows if "val/nll" in row)
        assert json.loads((cfg.run_dir / "status.json").read_text())["state"] == "done"
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        assert losses[-1] < losses[0]


# ------------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("change, says", [
    (["student.model=/nowhere", f"task.tokenizer={'{lm}'}"], "student.model: /nowhere"),
    (["student.targets=[q_proj, c_attn]"], "student.targets: "),
    ([TEACHER % ", serve: copy, model: {llama}"], "another tokenizer"),
    (["student.lora=false"], "teacher.serve: adapter needs a LoRA student"),
    (["teacher={name: context_lm, shots: 3, k: 5000}"], "teacher.k: 5000 is more than"),
    ([TEACHER % ", serve: cache"], "no cache of teacher logits"),
    (["evaluate.max_new_tokens=32768"], "evaluate.max_new_tokens: 32768 after prompts of up to"),
    (["train.batch_size=64"], "train.batch_size: 64 is more than the 54 training items"),
])
def test_bad_input_is_one_line_before_the_first_step(tmp_path, change, says):
    change = [item.replace("{lm}", lm()).replace("{llama}", lm("llama")) for item in change]
    cfg = distilled(tmp_path / "x", *change)
    assert says in one_line(run_main, cfg)
    assert not checkpoint.steps(cfg.run_dir) and not (cfg.run_dir / "metrics.jsonl").exists()


@pytest.mark.slow
def test_bad_input_ends_with_exit_code_2_and_one_line(tmp_path):
    done = launch(tmp_path / "x", "student.targets=[c_attn]", method="baseline")
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == \
        [f"error: student.targets: {lm()} has no layer c_attn"]
    status = json.loads((tmp_path / "x/seed0/status.json").read_text())
    assert status["state"] == "failed" and status["exit_code"] == 2
