"""Whose answers a student is trained on: the teacher's from a cache, its own as it trains."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from graft import config
from graft.evaluation import answers, engines, generation
from graft.evaluation._transformers import answer, until_end
from graft.runtime import checkpoint
from graft.tasks._context import Context, encode
from graft.teachers import _targets, context_lm
from graft.training.batches import order
from graft.training.objective import Objective
from graft.training.rollouts import Rollouts
from small import assert_same_training, one_line, weights
from small_lm import (
    Interrupted,
    base_config,
    batch,
    disturb,
    interrupt,
    kill_and_finish,
    last_wins,
    launch,
    lm,
    run_main,
    student,
    task,
    tiny,
    untimed,
)

NEW = "evaluate.max_new_tokens=12"
TEACHER = "teacher={name: context_lm, shots: 2, k: 16, targets: teacher, temperature: 0.7%s}"
OWN = "teacher={name: context_lm, shots: 2, k: 16, targets: student, sample_every: 2%s}"
KL = "objective=[{name: ce, weight: 0}, {name: topk, form: %s}]"


def distill(output_dir: Path, *overrides: str, **options):
    return tiny(output_dir, NEW, "method=distill", *overrides, method="distill", **options)


def stopping(monkeypatch) -> None:
    """A model with random weights never ends an answer by itself: any of 700 tokens ends one."""
    real = generation.stop_of

    def stop_of(task_, model, about, written, most):
        stop = real(task_, model, about, written, most)
        return generation.Stop((*stop.ids, *range(200, 900)), stop.texts, most)

    monkeypatch.setattr(generation, "stop_of", stop_of)
    monkeypatch.setattr("graft.training.rollouts.stop_of", stop_of)


# --------------------------------------------------------------------------------------------------- sampling

def lm_and_prompts():
    about = task()
    model = student(about).eval()
    stop = generation.stop_of(about, lm(), model.model.config, model.model.generation_config, 6)
    return about, model.model, [about.splits["train"].prompts[i].tolist() for i in (3, 17, 30)], stop


def test_sampling_is_the_inverse_of_the_cumulative_probability_token_by_token():
    """Oracle: one sequence at a time, without a cache of keys and values, by numpy."""
    about, model, prompts, stop = lm_and_prompts()
    draws = torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    found = answer(model, prompts, stop, about.prompt.decode, draws, temperature=1.7)
    for prompt, row, ids in zip(prompts, draws, found):
        so_far = list(prompt)
        for u, token in zip(row, until_end(ids, stop, about.prompt.decode)):
            with torch.no_grad():
                p = (model(torch.tensor([so_far])).logits[0, -1].double() / 1.7).softmax(-1).numpy()
            assert token == int((p.cumsum() <= u * p.sum()).sum())
            so_far.append(token)
    greedy, again = (answer(model, prompts, stop, about.prompt.decode) for _ in range(2))
    assert greedy == again != found
    assert answer(model, prompts, stop, about.prompt.decode, draws, temperature=1e-4) == greedy


def test_an_answer_ends_where_it_ended_whatever_the_batch_put_behind():
    about, _, _, _ = lm_and_prompts()
    decode, words = about.prompt.decode, about.prompt._ids(["easy.\n\nmore"])[0]
    stop = generation.Stop((7, 5), ("\n",), 40)
    cut = until_end([*words, 7, 7], stop, decode)
    assert decode(cut).rstrip("\n") == "easy." and cut == words[:len(cut)]
    assert until_end([1, 2, 5, 7, 7], stop, decode) == [1, 2, 5] and until_end([1, 2], stop, decode) == [1, 2]


# ------------------------------------------------------------------------------------------ the teacher's own

def sample(cfg, **options) -> Path:
    """As scripts/sample_teacher.py."""
    from accelerate import Accelerator
    about = config.parts.build("tasks", cfg.task)
    source, prompts, wanted = _targets.wanted_of(cfg, about)
    folder = _targets.folder_for(cfg, wanted)
    engine = engines.engine("transformers", source, batch_size=16, device=torch.device("cpu"),
                            temperature=cfg.teacher.args["temperature"], seed=cfg.teacher.args["fewshot_seed"])
    answers.scored(folder / f"{_targets.NAME}.json", wanted, engine, about, prompts, range(wanted["n"]), None, folder,
                   Accelerator(), **options)
    return folder


@pytest.fixture
def samples(tmp_path, monkeypatch):
    stopping(monkeypatch)
    cfg = distill(tmp_path / "x", TEACHER % f", samples: {tmp_path / 's'}", KL % "kl")
    assert sample(cfg) == tmp_path / "s"
    return cfg


def test_a_run_is_trained_on_what_the_teacher_said(samples, tmp_path, monkeypatch):
    about = config.parts.build("tasks", samples.task)
    taught, gold = _targets.task_for(samples, about), about.splits["train"]
    split = taught.splits["train"]
    rows = _targets._rows(tmp_path / "s", _targets.wanted_of(samples, about)[2]).set_index("index")
    kept = [i for i in range(len(gold)) if rows.ended[i] and rows.text[i].strip()]
    counts = map(int, re.findall(r"(\d+) (?:cut off|empty)", taught.said))
    assert 8 < len(kept) < len(gold) == len(kept) + sum(counts) and list(taught.places) == kept
    for j, i in enumerate(kept):
        assert split.answers[j].tolist() == about.prompt.answer_ids([rows.text[i].strip()])[0]
        assert split.prompts[j].tolist() == gold.prompts[i].tolist() and split.items[j] == gold.items[i]
    teacher = context_lm.build(taught, student(taught), shots=2, k=16)
    context, _ = encode(about, "train", range(len(gold)), Context("fewshot", 2), 12)
    assert all(teacher.prompts[j].tolist() == context[i].tolist() for j, i in enumerate(kept)), "gold worked examples"
    assert taught.about["fingerprints"] == about.about["fingerprints"], "scored on the same data as any other run"
    log = run_main(samples)
    assert log[0]["train/topk"] > 0
    origin = json.loads((checkpoint.newest(samples.run_dir) / "trainer.json").read_text())
    assert origin["targets"] == taught.answered
    ce = distill(tmp_path / "ce", TEACHER % f", samples: {tmp_path / 's'}")
    assert run_main(ce)[0]["train/ce"] > 0, "without a teacher's logits: cross-entropy on what it said"


def test_only_right_answers_and_the_facts_that_refuse_others(samples, tmp_path, monkeypatch):
    about = config.parts.build("tasks", samples.task)
    path = f", samples: {tmp_path / 's'}"
    judged = _targets._rows
    monkeypatch.setattr(_targets, "_rows", lambda *given: judged(*given).assign(
        correct=lambda rows: rows["index"] % 3 == 0))
    right = _targets.task_for(distill(tmp_path / "y", TEACHER % f"{path}, only_right: true", KL % "kl"), about)
    assert len(right.places) > 3 and all(place % 3 == 0 for place in right.places) and " wrong" in right.said
    monkeypatch.setattr(_targets, "_rows", judged)
    (tmp_path / "lm").mkdir()
    for what, change in [("context.shots", TEACHER.replace("shots: 2", "shots: 1") % path),
                         ("temperature", TEACHER.replace("0.7", "0.0") % path),
                         ("context.kind", TEACHER % f"{path}, context: random_shots"),
                         ("model", TEACHER % f"{path}, model: {lm(seed=5)}")]:
        cfg = distill(tmp_path / "z", change, KL % "kl", "teacher.serve=copy")
        assert f"made with another {what} " in one_line(_targets.task_for, cfg, about), what
    other = distill(tmp_path / "z", TEACHER % path, KL % "kl", "task.layout=plain")
    assert "made with another " in one_line(run_main, other) and not checkpoint.steps(other.run_dir)
    none = distill(tmp_path / "z", TEACHER % f", samples: {tmp_path / 'none'}", KL % "kl")
    assert "no answers of the teacher; make them with scripts/sample_teacher.py" in one_line(run_main, none)
    (tmp_path / "s/train-0.parquet").write_bytes(b"PAR1")
    assert "mend it with scripts/sample_teacher.py" in one_line(_targets.task_for, samples, about)
    sample(samples)
    _targets.task_for(samples, about)


def test_answers_do_not_depend_on_what_is_answered_beside_them(samples, tmp_path):
    """An interrupted job, and one of another batch size, say the same."""
    about = config.parts.build("tasks", samples.task)
    source, prompts, _ = _targets.wanted_of(samples, about)
    made = {}
    for size in (3, 64):
        engine = engines.engine("transformers", source, batch_size=size, device=torch.device("cpu"), temperature=0.7,
                                seed=42)
        made[size] = {i: one.ids for i, one in engine.generate([prompts[j].tolist() for j in range(12)])}
    assert made[3] == made[64]


# ---------------------------------------------------------------------------------------------- the student's own

def test_the_student_is_taught_on_what_it_says_itself(tmp_path, monkeypatch):
    """The tokens of each step are what its weights of two steps ago, or now, say without a context."""
    stopping(monkeypatch)
    seen, real, real_prepare = [], Objective.forward, Rollouts.prepare
    made = []

    def prepare(self, epoch, steps):
        before = self.round
        real_prepare(self, epoch, steps)
        if self.round != before:
            made.append((epoch, steps, dict(zip(self.items, self.answers))))
            again = Rollouts(self.config, run_task(self), self.student, self.place, self.autocast)
            again.answer(torch.tensor(self.items), epoch, steps.start)
            assert again.answers == self.answers, "the same draws, and no dropout"

    def run_task(of):
        about = task()
        about.splits["train"] = of.split
        return about

    monkeypatch.setattr(Rollouts, "prepare", prepare)
    monkeypatch.setattr(Objective, "forward", lambda self, student_, teacher, targets, *rest, **more: (
        seen.append(targets.tolist()), real(self, student_, teacher, targets, *rest, **more))[1])
    log = run_main(distill(tmp_path / "x", OWN % "", KL % "reverse_kl", "train.duration=8st", "student.dropout=0.2"))
    assert [(epoch, steps) for epoch, steps, _ in made] == [(0, range(0, 2)), (0, range(2, 4)), (0, range(4, 6)),
                                                            (1, range(0, 2))]
    assert all(len(of) == 16 for _, _, of in made) and len({len(ids) for of in made for ids in of[2].values()}) > 3
    for step, targets in enumerate(seen):
        epoch, at = divmod(step, 6)
        own = order(task().splits["train"], 0, epoch)[8 * at:8 * at + 8].tolist()
        assert Counter(targets) == Counter(token for item in own for token in made[step // 2][2][item])
    assert log[0]["train/topk"] > 1e-3 and not any("train/ce" in row for row in log)


@pytest.mark.parametrize("serve", ["adapter", "copy"])
def test_an_on_policy_run_that_is_stopped_ends_bit_identical(tmp_path, monkeypatch, serve):
    """In the middle of the steps that share their answers, at a step whose checkpoint is between two rounds."""
    stopping(monkeypatch)
    args = [OWN.replace("2%s", "3%s") % f", serve: {serve}", KL % "kl", "train.duration=9st",
            "train.checkpoint_every=2st", "train.accumulate=2", "student.dropout=0.3"]
    rows = run_main(distill(tmp_path / "whole", *args))
    cfg = distill(tmp_path / "stopped", *args)
    interrupt(monkeypatch, 12, 20)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_main(cfg)
    again = run_main(cfg)
    assert weights(tmp_path / "whole/seed0") == weights(cfg.run_dir)
    assert untimed(again) == untimed(rows)
    other = run_main(distill(tmp_path / "other", *args, seed=1))
    assert other[0]["train/topk"] != rows[0]["train/topk"]


@pytest.mark.slow
def test_an_on_policy_run_that_is_killed_ends_bit_identical(tmp_path):
    args = [OWN.replace("2%s", "3%s") % "", KL % "reverse_kl", "train.duration=30st", "train.checkpoint_every=2st"]
    torch.set_num_threads(1)
    run_main(distill(tmp_path / "whole", *args))
    cfg = distill(tmp_path / "killed", *args)
    kill_and_finish(cfg, 4, 11, 21)
    assert weights(tmp_path / "whole/seed0") == weights(cfg.run_dir)


def test_accumulation_changes_no_on_policy_step(tmp_path, monkeypatch):
    stopping(monkeypatch)
    args = [OWN % "", KL % "kl", "student.dropout=0", "optim.name=sgd", "optim.lr=0.1"]
    for n in (1, 4):
        run_main(distill(tmp_path / str(n), *args, f"train.accumulate={n}"))
    assert_same_training(tmp_path / "1/seed0", tmp_path / "4/seed0")


@pytest.mark.slow
def test_two_processes_change_no_on_policy_step(tmp_path):
    args = [OWN % "", KL % "kl", "student.dropout=0", "optim.name=sgd", "optim.lr=0.1", NEW]
    run_main(distill(tmp_path / "a", *args))
    done = launch(tmp_path / "b", *args, processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "a/seed0", tmp_path / "b/seed0")


@pytest.mark.parametrize("change, says", [
    ([OWN % ", serve: cache", KL % "kl"], "teacher.serve: cache knows what the teacher says of given answers"),
    ([OWN % "", "objective=[{name: ce}, {name: topk}]"], "objective.0.weight: ce wants given answers"),
    ([OWN % "", KL % "kl", "method=baseline"], "teacher.targets: student is for method: distill"),
    ([OWN % ", only_right: true", KL % "kl"], "teacher.only_right: is for targets: teacher, got student")])
def test_what_cannot_be_on_policy_is_refused_before_anything_is_read(change, says):
    assert says in one_line(config.load, [base_config()], last_wins("method=distill", *change))


def test_the_script_that_samples(tmp_path, capsys, monkeypatch):
    import sys

    import sample_teacher
    stopping(monkeypatch)
    words = ["x", "--base_config", str(base_config()), "method=distill", NEW, KL % "kl"]
    monkeypatch.setattr(sys, "argv", [*words, TEACHER % f", samples: {tmp_path / 's'}"])
    sample_teacher.main()
    said = capsys.readouterr().out
    assert f"{tmp_path / 's'}: " in said and "% of 54 answers are right" in said and "left out: " in said
    monkeypatch.setattr(sys, "argv", [*words, "teacher={name: context_lm}"])
    assert "teacher.targets: expected teacher" in one_line(sample_teacher.main)
    shutil.rmtree(tmp_path / "s")


# ------------------------------------------------------------------------------------------ a teacher that follows

EMA = "teacher={name: context_lm, shots: 2, k: 16, serve: ema, ema_decay: 0.6}"


def test_the_teacher_is_the_average_of_its_students_adapters():
    """Oracle: a second student that holds the average, computed by hand, and reads the same context."""
    about = task()
    model = student(about, dropout=0.4)
    model.train()
    teacher = context_lm.build(about, model, shots=2, k=16, serve="ema", ema_decay=0.6)
    fixed = context_lm.build(about, model, shots=2, k=16)
    tokens, _ = batch(about, 3, 17, 30)
    start = teacher(tokens).topk["rows"]
    torch.testing.assert_close(start.values, fixed(tokens).topk["rows"].values)
    trained = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in trained]
    for seed in range(3):
        disturb(model, seed)
        teacher.ema.follow()
        average = [0.6 * old + 0.4 * p.detach() for old, p in zip(average, trained)]
    before, places = [p.detach().clone() for p in trained], [p.data_ptr() for p in trained]
    found = teacher(tokens).topk["rows"]
    assert model.training and places == [p.data_ptr() for p in trained] and all(map(torch.equal, before, trained))
    other = student(about, dropout=0.4)
    for weight, value in zip([p for p in other.parameters() if p.requires_grad], average):
        weight.data.copy_(value)
    expected = context_lm.ContextLM(about, Context("fewshot", 2), other.eval(), 16, 4000)(tokens).topk["rows"]
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-4)
    assert (found.values - start.values).abs().max() > 0.01
    assert not [p for p in teacher.parameters() if p.requires_grad] and set(teacher.state_dict()) == {
        f"ema.{name}" for name in teacher.ema.state_dict()}


def test_a_run_with_an_averaged_teacher_that_is_stopped_ends_bit_identical(tmp_path, monkeypatch):
    args = [EMA, KL % "kl", "train.duration=7st", "train.checkpoint_every=2st", "student.dropout=0.3"]
    rows = run_main(distill(tmp_path / "whole", *args))
    fixed = run_main(distill(tmp_path / "fixed", *args, EMA.replace("ema,", "adapter,")))
    assert rows[0]["train/topk"] == fixed[0]["train/topk"] and rows[2]["train/topk"] != fixed[2]["train/topk"]
    cfg = distill(tmp_path / "stopped", *args)
    interrupt(monkeypatch, 6)
    with pytest.raises(Interrupted):
        run_main(cfg)
    assert checkpoint.steps(cfg.run_dir) == [2, 4]
    run_main(cfg)
    assert weights(tmp_path / "whole/seed0") == weights(cfg.run_dir)


def test_full_fine_tuning_has_no_adapters_to_average(tmp_path):
    assert "teacher.serve: ema averages the student's adapters" in one_line(
        distill, tmp_path, EMA, KL % "kl", "student.lora=false")
