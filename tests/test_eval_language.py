"""Scoring language models end to end: checkpoints made by hand from a tiny model, on questions of a tiny GSM8K."""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import eval_checkpoints
import eval_icl
import export
import report
from graft import config
from graft.config import parts
from graft.errors import UserError
from graft.evaluation import _transformers, answers, icl, language, rebuild
from graft.evaluation.generation import Generated
from graft.reporting import results, stats, tables
from graft.runtime import checkpoint
from graft.runtime.place import accelerator
from graft.students._tiny_lm import make
from graft.tasks._context import Context, encode
from small import ROOT, environment

BASE = """
task: {{name: gsm8k, tokenizer: {model}, root: {root}, val_fraction: 0.4, max_length: 64}}
student: {{name: causal_lm, model: {model}, rank: 2, alpha: 8}}
evaluate: {{batch_size: 4, max_new_tokens: 6}}
train: {{duration: 20st, batch_size: 4}}
"""
STEPS = (10, 20)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, 30 + 11 questions and a base configuration."""
    folder = tmp_path_factory.mktemp("place")
    make(folder / "model", "qwen3", hidden=32, ff=48, init_std=0.4)
    for split, count in {"train": 30, "test": 11}.items():
        lines = [json.dumps({"question": f"{'Well, ' * (i % 3)}{i} + {i}?", "answer": f"#### {2 * i}"})
                 for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "base.yaml").write_text(BASE.format(model=folder / "model", root=folder))
    return folder


def save_run(place: Path, base_dir: Path, condition: str, seed: int, *overrides: str) -> Path:
    """A finished run with two checkpoints of different random adapters (or of all weights, shifted)."""
    cfg = config.load([place / "base.yaml"], overrides, output_dir=str(base_dir / condition), seed=seed)
    task = parts.build("tasks", cfg.task)
    student = parts.build("students", cfg.student, task)
    for step in STEPS:
        torch.manual_seed(1000 * step + 10 * seed + len(condition))
        with torch.no_grad():
            state = {name: value + torch.randn(value.shape) * 0.3 for name, value in student.state_dict().items()}
        checkpoint.save(cfg.run_dir, step, {student.stem: state}, {"state": {}, "param_groups": []},
                        {"final": step == STEPS[-1], "total_steps": STEPS[-1], "selection": {}, "base": student.base,
                         "data": task.about, "config": cfg.to_dict()}, 5, files=student.export_files())
    return cfg.run_dir


@pytest.fixture(scope="module")
def study(place, tmp_path_factory):
    base_dir = tmp_path_factory.mktemp("experiments") / "words"
    for seed in (0, 1):
        save_run(place, base_dir, "baseline", seed)
        save_run(place, base_dir, "distill", seed, "student.lora=false")
    return base_dir


def evaluate(study: Path, monkeypatch, *extra: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["eval", "--base_dir", str(study), "--conditions", "baseline", "distill",
                                      "--output", str(study / "results.json"), *extra])
    eval_checkpoints.main()
    return results.read_results(study / "results.json")


def few_shot(place: Path, output: Path, monkeypatch, *extra: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["icl", "--base_config", str(place / "base.yaml"), "--output", str(output),
                                      *extra])
    eval_icl.main()
    return results.read_results(output)


@pytest.fixture
def oracle(monkeypatch):
    """Answers as a lookup: some right, some right in another format, some wrong, by what the prompt and weights are."""
    asked: list[tuple] = []

    def generate(self, prompts, weights=None):
        for i, ids in enumerate(prompts):
            question = self.source.prompt.tokenizer.decode(ids).split("Question: ")
            asked.append((str(weights), tuple(ids)))
            number = int("".join(c for c in question[-1].split("+")[0] if c.isdigit()))
            shots, step = len(question) - 2, int(weights.name.split("-")[1]) if weights else 0
            level = 3 if weights is None and not shots else 7 if weights is None else 5 + step // 10
            text = f"#### {2 * number}" if number % 10 < level else f"it is {2 * number}" if number % 2 else "#### -1"
            yield i, Generated([7] * (number + 1), text, number % 2 == 0)

    monkeypatch.setattr(_transformers.Transformers, "generate", generate)
    return asked


def test_checkpoints_of_both_kinds_are_scored(study, monkeypatch, capsys):
    """The real engine: every answer is what the checkpoint's own model says, one prompt at a time."""
    found = evaluate(study, monkeypatch)
    assert "| distill | test |" in capsys.readouterr().out
    task = parts.build("tasks", rebuild.trained(study / "baseline/seed0").config.task)
    for name, stem in {"baseline": "adapter_model", "distill": "model"}.items():
        condition = found["conditions"][name]
        assert [(r["seed"], r["split"], r["step"], r["n"]) for r in condition["runs"]] == [
            (seed, split, 20, n) for seed in (0, 1) for split, n in (("val", 12), ("test", 11))]
        assert [(p["seed"], p["step"], p["split"], p["n"]) for p in condition["curve"]] == [
            (seed, step, "val", 12) for seed in (0, 1) for step in STEPS]
        run = condition["runs"][1]
        folder = checkpoint.path_of(study / name / "seed0", 20)
        assert run["weights"] == stem
        assert run["checkpoint_sha256"] == checkpoint.sha256(folder / f"{stem}.safetensors")
        cfg = rebuild.trained(study / name / "seed0").config
        student = parts.build("students", cfg.student, task).eval()
        student.load_state_dict(checkpoint.load_model(study / name / "seed0")[0])
        rows = results.example_rows(study / run["examples"])
        for i, row in rows.iterrows():
            ids = task.splits["test"].prompts[i].tolist()
            with torch.no_grad():
                for _ in range(6):
                    ids.append(int(student.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            made = ids[-6:]
            stops = {*task.prompt.end, student.model.config.eos_token_id}
            made = made[:next((j for j, token in enumerate(made) if token in stops), None)]
            assert row["text"] == task.prompt.decode(made) and row["tokens"] == len(made)
    assert found["data"]["template_sha256"] == task.prompt.template_sha256
    assert found["data"]["tokenizer_sha256"] == task.prompt.tokenizer_sha256 and "classes" not in found["data"]
    texts = [set(results.example_rows(study / run["examples"])["text"]) for c in found["conditions"].values()
             for run in c["runs"]]
    assert len(set(map(frozenset, texts))) > 4, "checkpoints differ"


def fresh(study: Path) -> Path:
    for file in study.glob("*/seed*/eval/*"):
        file.unlink()
    return study


def test_metrics_and_comparison_are_those_of_the_rows(study, monkeypatch, oracle):
    found = evaluate(fresh(study), monkeypatch)
    run = found["conditions"]["baseline"]["runs"][1]
    rows = results.example_rows(study / run["examples"])
    assert list(rows) == list(results.TEXT_COLUMNS)
    numbers = np.arange(11)
    strict = numbers % 10 < 7
    flexible = strict | (numbers % 2 == 1)
    assert (rows["correct"] == strict).all() and (rows["correct_flexible"] == flexible).all()
    assert rows["gold"].tolist() == [str(2 * i) for i in numbers] and rows["id"].tolist() == numbers.tolist()
    assert rows["prediction"].tolist() == [str(2 * i) if s else "" if i % 2 else "-1" for i, s in zip(numbers, strict)]
    assert (rows["ended"] == (numbers % 2 == 0)).all() and rows["tokens"].tolist() == (numbers + 1).tolist()
    metrics = run["metrics"]
    assert metrics["accuracy"] == {"value": 8 / 11, "n_correct": 8, "ci95": list(stats.wilson(8, 11))}
    assert metrics["accuracy_flexible"]["n_correct"] == int(flexible.sum()) == 10
    assert metrics["ended"]["value"] == pytest.approx(6 / 11) and metrics["ended"]["n_ended"] == 6
    assert metrics["tokens"] == {"value": 6.0}
    asked = parts.build("tasks", rebuild.trained(study / "baseline/seed0").config.task).splits["test"].prompts
    lines = "".join(" ".join(map(str, asked[i].tolist())) + "\n" for i in range(11))
    assert run["prompts_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert found["conditions"]["baseline"]["runs"][0]["prompts_sha256"] != run["prompts_sha256"]
    versus = found["conditions"]["distill"]["vs_baseline"]["test"]
    assert set(versus) == {"accuracy", "accuracy_flexible"} and versus["accuracy"]["difference"] == 0


def test_best_on_validation_is_chosen_and_test_looked_at_once(study, monkeypatch, oracle, capsys):
    """The later checkpoint is the better one on val; where its kept answers are made worse, the earlier is taken."""
    evaluate(fresh(study), monkeypatch, "--choose", "best_val")
    assert sorted(f.name for f in study.glob("baseline/seed0/eval/*.json")) == ["test-20.json", "val-10.json",
                                                                              "val-20.json"]
    counts = Counter(Path(weights).name for weights, _ in oracle)
    assert counts == {"checkpoint-10": 4 * 12, "checkpoint-20": 4 * (12 + 11)}
    kept = study / "baseline/seed0/eval/val-20.parquet"
    rows = results.example_rows(kept)
    results.write_examples(kept, rows.assign(text="nothing"), rows.attrs["fingerprint"])
    scorer = language.Scorer(best_of(study, ["val"]), accelerator())
    run = rebuild.trained(study / "baseline/seed0")
    task = parts.build("tasks", run.config.task)
    capsys.readouterr()
    (chosen,) = scorer.score("baseline", run, task, {"val": []})
    assert "val-20.json: disagrees with its rows" in capsys.readouterr().out
    assert chosen["step"] == 10 and len(scorer.curve) == 2
    capsys.readouterr()
    scorer = language.Scorer(best_of(study, ["val", "test"]), accelerator())
    assert [e["step"] for e in scorer.score("baseline", run, task, {"val": [], "test": []})] == [10, 10]
    assert "test was scored before at step 20, now at 10" in capsys.readouterr().out


def best_of(study: Path, splits: list[str]) -> argparse.Namespace:
    return argparse.Namespace(base_dir=study, weights="auto", splits=splits, steps="all", choose="best_val",
                              engine="transformers", batch_size=None, tensor_parallel=1, limit=0)


def test_a_score_of_some_questions_lies_apart(study, place, monkeypatch, oracle, tmp_path, capsys):
    """It is recorded, taken up again, never mixed with one of all, and no share of a gap."""
    whole = evaluate(fresh(study), monkeypatch)
    files = {file: file.read_bytes() for file in study.glob("*/*/eval/*")}
    oracle.clear()
    some = evaluate(study, monkeypatch, "--limit", "4", "--steps", "final")
    assert some["limit"] == 4 and "--limit 4: no full score" in capsys.readouterr().out
    runs = some["conditions"]["distill"]["runs"]
    assert [(run["n"], run["limit"]) for run in runs] == [(4, 4)] * 4 and len(oracle) == 4 * 4 * 2
    index = answers.items(11, 4)
    assert results.example_rows(study / runs[1]["examples"])["index"].tolist() == index
    assert {file: file.read_bytes() for file in files} == files
    oracle.clear()
    assert evaluate(study, monkeypatch, "--limit", "4", "--steps", "final") == some and not oracle
    assert evaluate(study, monkeypatch) == whole and not oracle
    with pytest.raises(UserError, match="--limit: a share of the gap is one of all questions"):
        evaluate(study, monkeypatch, "--limit", "4", "--icl", str(tmp_path / "icl.json"))
    few_shot(place, tmp_path / "icl.json", monkeypatch, "--shots", "0", "2", "--limit", "4")
    with pytest.raises(UserError, match="made without --limit"):
        evaluate(study, monkeypatch, "--icl", str(tmp_path / "icl.json"))


def test_equal_scores_choose_the_earlier_step():
    entry = lambda step, value: {"step": step, "metrics": {"accuracy": {"value": value}}}  # noqa: E731
    assert answers.best([entry(10, 0.5), entry(20, 0.7), entry(30, 0.7)]) == 20


def test_final_steps_only(study, monkeypatch, oracle):
    found = evaluate(fresh(study), monkeypatch, "--steps", "final")
    assert [p["step"] for p in found["conditions"]["baseline"]["curve"]] == [20, 20]
    with pytest.raises(UserError, match="--weights average"):
        evaluate(study, monkeypatch, "--weights", "average")


def test_what_was_generated_survives_a_crash(study, monkeypatch, oracle):
    """Killed in the middle of a line after 17 answers; the second run asks only the rest, whatever came before."""
    arguments = ("--splits", "test", "val", "--steps", "final")
    whole = evaluate(fresh(study), monkeypatch, *arguments)
    first, total = Counter(oracle), len(oracle)
    assert total == 4 * (12 + 11)
    fresh(study)
    del oracle[:]
    real = _transformers.Transformers.generate

    def dying(self, prompts, weights=None):
        for one in real(self, prompts, weights):
            yield one
            if len(oracle) == 17:
                raise KeyboardInterrupt

    monkeypatch.setattr(_transformers.Transformers, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(study, monkeypatch, *arguments)
    monkeypatch.setattr(_transformers.Transformers, "generate", real)
    (part,) = study.glob("*/seed*/eval/*.jsonl")
    with part.open("a") as file:
        file.write('{"j": 3, "te\n' + "[" * 100_000 + '\n5\n{"text": "", "tokens": 0, "ended": true}\n'
                   '{"j": 3, "text": null, "tokens": 0, "ended": true}\n'
                   '{"j": 99, "text": "", "tokens": 0, "ended": true}\n{"j": 3, "te')
    done = len(oracle)
    again = evaluate(study, monkeypatch, *arguments)
    assert len(oracle) - done == total - 17 and Counter(oracle) == first, "nothing is asked twice"
    assert again == whole and not list(study.glob("*/seed*/eval/*.jsonl"))
    count = len(oracle)
    assert evaluate(study, monkeypatch, *arguments, "--batch_size", "1") == whole
    assert len(oracle) == count, "neither a second run nor a batch size is a reason to ask again"


def test_another_setting_is_scored_again(study, monkeypatch, oracle):
    evaluate(fresh(study), monkeypatch)
    count = len(oracle)
    file = study / "baseline/seed0/eval/val-20.json"
    file.write_text(file.read_text().replace('"max_new_tokens": 6', '"max_new_tokens": 5'))
    for kept in (study / "baseline/seed0/eval").glob("val-10.*"):
        kept.unlink()
    for name, now in {"precision": "bf16", "template_sha256": "another"}.items():
        file = study / "baseline/seed0/eval/test-20.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), name: now}))
    evaluate(study, monkeypatch)
    assert len(oracle) - count == 2 * 12 + 11


def test_changed_questions_or_template_are_refused(place, study, tmp_path, monkeypatch, oracle):
    """The same folder and configuration; validation would hold what was trained on, or the prompts be others."""
    for split in ("train", "test"):
        shutil.copy(place / f"{split}.jsonl", tmp_path)
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[::-1]))
    moved = ("--task_root", str(tmp_path))
    with pytest.raises(UserError, match=r"baseline/seed0: was trained on other data \(val data of 12 items"):
        evaluate(study, monkeypatch, *moved)
    assert not oracle
    found = evaluate(study, monkeypatch, *moved, "--splits", "test")  # these are what they were
    assert {run["split"] for run in found["conditions"]["baseline"]["runs"]} == {"test"}
    template = place / "model/chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace("<|im_start|>", "<|im_start|> "))
    try:
        with pytest.raises(UserError, match=r"was trained on other data \(template \w{40}, now \w{40}\)"):
            evaluate(study, monkeypatch)
        found = evaluate(study, monkeypatch, "--allow_other_data")
    finally:
        template.write_text(text)
    run = found["conditions"]["baseline"]["runs"][0]
    assert len(run["other_data"]) == 1 and run["other_data"][0].startswith("template")


def test_a_damaged_checkpoint_is_not_scored(study, monkeypatch, oracle):
    fresh(study)
    file = study / "distill/seed1/checkpoint-20/model.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(UserError, match=r"checkpoint-20/model\.safetensors: content differs from its sha256"):
        evaluate(study, monkeypatch)
    file.write_bytes(before)


def test_the_gap_is_that_of_the_teachers_examples():
    files = ["configs/base/words_smollm2.yaml", "configs/distill/words_fewshot.yaml"]
    taught, bare = (config.load([ROOT / file for file in files[:count]]) for count in (2, 1))
    assert [icl.gap_shots(taught, shots) for shots in ([0, 4, 8, 16], [0, 4, 16], [0])] == [8, 16, 0]
    assert icl.gap_shots(bare, [0, 8, 16]) == 16


def test_the_gap_of_the_untrained_model(place, study, tmp_path, monkeypatch, oracle, capsys):
    found = few_shot(place, study / "icl.json", monkeypatch, "--shots", "0", "2", "4", "--split", "val", "test",
                     "task.val_fraction=0.4")
    said = capsys.readouterr().out
    assert list(found["conditions"]) == ["base_0shot", "base_2shot", "base_kshot"]
    assert [run["shots"] for run in found["conditions"]["base_kshot"]["runs"]] == [4, 4]
    run = found["conditions"]["base_kshot"]["runs"][0]
    assert (run["seed"], run["step"], run["weights"], run["n"]) == (42, 0, "base", 12)
    versus = found["conditions"]["base_kshot"]["vs_baseline"]["test"]["accuracy"]
    assert versus["difference"] == pytest.approx(4 / 11)
    assert f"test: k-shot gap +36.36 points [{100 * versus['ci95'][0]:+.2f}" in said
    assert "there is a gap worth distilling" in said.splitlines()[-2]

    merged = evaluate(fresh(study), monkeypatch, "--icl", str(study / "icl.json"))
    assert list(merged["conditions"]) == ["baseline", "distill", "base_0shot", "base_2shot", "base_kshot"]
    assert merged["conditions"]["base_kshot"]["vs_baseline"] == {}
    closed = merged["conditions"]["distill"]["gap_closed"]["test"]["accuracy"]
    rows = {name: np.stack([results.example_rows(study / r["examples"])["correct"] for r in c["runs"]
                            if r["split"] == "test"]) for name, c in merged["conditions"].items()}
    assert closed == json.loads(json.dumps(stats.gap_closed(rows["distill"], rows["base_0shot"], rows["base_kshot"])))
    assert closed["value"] == pytest.approx(1.0) and closed["gap"] == pytest.approx(4 / 11)
    assert "gap_closed" not in merged["conditions"]["base_kshot"]
    assert "accuracy_flexible" in merged["conditions"]["distill"]["gap_closed"]["val"]
    versus = merged["conditions"]["distill"]["vs_untrained"]["test"]
    assert versus["accuracy"]["difference"] == pytest.approx(4 / 11) and versus["accuracy"]["seeds"] == [2, 1]
    assert set(versus) == {"accuracy", "accuracy_flexible"}
    frame = tables.table(merged)
    markdown = tables.to_markdown(frame)
    assert "gap closed %" in markdown and "flexible %" in markdown and "chance" not in markdown
    line = next(line for line in markdown.splitlines() if line.startswith("| distill | test |"))
    cells = dict(zip(markdown.splitlines()[0].split(" | "), line.split(" | ")))
    assert list(cells)[7:] == ["detectable, points", "to base_0shot, points", "gap closed %", "flexible %",
                               "gap closed, flexible %", "cut off % |"]
    assert cells["gap closed %"].startswith("100.00 [") and cells["to base_0shot, points"].startswith("+36.36 [")
    assert cells["cut off % |"] == "45.45 |"  # 5 of 11 answers did not end
    assert r"gap closed \%" in tables.to_latex(frame)


def test_zero_shots_are_the_very_prompts_of_checkpoints(place, study, tmp_path, monkeypatch, oracle):
    few_shot(place, tmp_path / "icl.json", monkeypatch, "--shots", "0", "--split", "test")
    untrained = [ids for _, ids in oracle]
    del oracle[:]
    evaluate(fresh(study), monkeypatch, "--splits", "test")
    assert {ids for _, ids in oracle} == set(untrained) and len(untrained) == 11
    task = parts.build("tasks", config.load([place / "base.yaml"]).task)
    assert set(untrained) == {tuple(task.splits["test"].prompts[i].tolist()) for i in range(11)}


def test_shots_are_those_of_the_teacher(place, tmp_path, monkeypatch, oracle):
    delta = tmp_path / "teacher.yaml"
    delta.write_text("method: distill\nteacher: {name: context_lm, fewshot_seed: 7, max_length: 500}\n"
                     "objective:\n  - {name: topk}\n")
    few_shot(place, tmp_path / "icl.json", monkeypatch, "--config", str(delta), "--shots", "3", "--limit", "4",
             "teacher.k=8")
    cfg = config.load([place / "base.yaml", delta], ["teacher.k=8"])
    task = parts.build("tasks", cfg.task)
    used = icl.context(cfg, 3)
    assert (used.kind, used.shots, used.seed, used.max_length) == ("fewshot", 3, 7, 500)
    index = answers.items(12, 4)
    prompts, _ = encode(task, "val", index, used, cfg.evaluate.max_new_tokens)
    assert [ids for _, ids in oracle] == [tuple(prompts[j].tolist()) for j in
                                          sorted(range(4), key=lambda j: -len(prompts[j]))]
    assert len(set(index)) == 4 and index != [0, 1, 2, 3]


def test_what_else_a_teacher_reads_is_a_reference_too(place, study, tmp_path, monkeypatch, oracle):
    told = tmp_path / "told.yaml"
    told.write_text("method: distill\nteacher: {name: context_lm, context: instruction, instruction: Add., k: 8}\n"
                    "objective:\n  - {name: topk}\n")
    found = few_shot(place, study / "icl.json", monkeypatch, "--shots", "0", "2", "--split", "val", "test",
                     "--context", "told", str(told))
    assert list(found["conditions"]) == ["base_0shot", "base_kshot", "base_told"]
    run = found["conditions"]["base_told"]["runs"][1]
    assert (run["split"], run["shots"], run["n"], run["context"]["instruction"]) == ("test", 0, 11, "Add.")
    cfg = config.load([place / "base.yaml", told])
    task = parts.build("tasks", cfg.task)
    used = Context("instruction", cfg.teacher.args["shots"], instruction="Add.", max_length=4096)
    prompts, _ = encode(task, "test", range(11), used, cfg.evaluate.max_new_tokens)
    assert {tuple(ids.tolist()) for ids in prompts} == {ids for _, ids in oracle[-11:]}
    assert "vs_baseline" in found["conditions"]["base_told"]
    merged = evaluate(fresh(study), monkeypatch, "--icl", str(study / "icl.json"))
    assert list(merged["conditions"])[2:] == ["base_0shot", "base_kshot", "base_told"]
    del oracle[:]
    few_shot(place, study / "icl.json", monkeypatch, "--shots", "0", "2", "--split", "val", "test",
             "--context", "told", str(told))
    assert not oracle  # what is there is kept
    wider = tmp_path / "wider.yaml"
    wider.write_text("task: {val_fraction: 0.3}\n")
    for words, said in [(["bare"], "bare: teacher.name: expected context_lm, got none"),
                        (["4shot", str(told)], "not such as 4shot, once, got '4shot'"),
                        (["wide", str(wider)], "changes task; expected a teacher alone")]:
        with pytest.raises(UserError, match=said):
            few_shot(place, tmp_path / "x.json", monkeypatch, "--shots", "0", "--context", *words)


def test_bad_input_is_one_line(place, tmp_path, monkeypatch, oracle):
    def refuse(match, *extra):
        with pytest.raises(UserError, match=match) as caught:
            few_shot(place, tmp_path / "x.json", monkeypatch, *extra)
        assert "\n" not in str(caught.value)
    refuse(r"--shots: expected at least 0, got -1", "--shots", "0", "-1")
    refuse(r"--limit: expected at least 0, got -1", "--limit", "-1")
    refuse(r"--batch_size: expected at least 1, got -4", "--batch_size", "-4")
    refuse(r"evaluate.max_new_tokens: 40000 after prompts .* 32768 positions", "--shots", "0",
           "evaluate.max_new_tokens=40000")
    refuse(r"teacher.max_length: 4096 tokens have no room for a single worked example .* 4090 of them kept", "--shots",
           "0", "2", "evaluate.max_new_tokens=4090")
    refuse("--split val: its data have no such questions; expected a larger task.val_fraction", "task.val_fraction=0")
    refuse("student.random_weights", "student.random_weights=true")
    refuse(r"vllm is not installed; bash scripts/setup_vllm\.sh", "--engine", "vllm")


def test_an_adapter_over_weights_that_have_changed_is_refused(place, tmp_path, monkeypatch, oracle):
    base = shutil.copytree(place / "model", tmp_path / "model")
    save_run(place, tmp_path / "words", "baseline", 0, f"student.model={base}")
    options = ["--base_dir", str(tmp_path / "words"), "--conditions", "baseline", "--output", str(tmp_path / "x.json")]
    monkeypatch.setattr(sys, "argv", ["eval", *options])
    eval_checkpoints.main()
    make(base, "qwen3", hidden=32, ff=48, init_std=0.4, seed=1)
    with pytest.raises(UserError, match="an adapter of another base model") as caught:
        eval_checkpoints.main()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_ask_every_question_once(study, monkeypatch):
    whole = evaluate(fresh(study), monkeypatch)
    fresh(study)
    done = subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                           "configs/accelerate/cpu2.yaml", "scripts/eval_checkpoints.py", "--base_dir", str(study),
                           "--conditions", "baseline", "distill", "--output", str(study / "two.json")],
                          env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = results.read_results(study / "two.json")
    for name, condition in two["conditions"].items():
        for ours, theirs in zip(condition["runs"], whole["conditions"][name]["runs"], strict=True):
            assert ours["metrics"] == theirs["metrics"]
            a, b = (results.example_rows(study / run["examples"]) for run in (ours, theirs))
            assert a.equals(b)
    assert not list(study.glob("*/seed*/eval/*.jsonl"))


def test_the_report_shows_questions_with_all_answers_beside_each_other(study, monkeypatch, tmp_path):
    # A copy without the scores that other tests have kept: what is shown must not depend on their order.
    copy = shutil.copytree(study, tmp_path / "words", ignore=shutil.ignore_patterns("eval", "eval-*", "*.json.parts"))
    found = evaluate(copy, monkeypatch)
    run = found["conditions"]["distill"]["runs"][-1]
    rows = results.example_rows(copy / run["examples"])
    rows["correct"] = rows["correct_flexible"] = np.arange(len(rows)) < 3  # the others have none right
    rows.loc[0, "text"] = evil = "<script>document.title = 'taken'</script>"
    results.write_examples(copy / run["examples"], rows, rows.attrs["fingerprint"])
    run["metrics"]["accuracy"] = results.share(rows["correct"])
    results.write_json(copy / "results.json", found)
    monkeypatch.setattr(sys, "argv", ["report", "--study", "words", "--base_dir", str(copy), "--split", run["split"]])
    report.main()
    page = (copy / "report.html").read_text()
    assert evil not in page and "&lt;script&gt;document" in page
    items = re.findall(r"<h3>Item (\d+): ([^<]+)</h3>", page)
    assert [(int(i), gold) for i, gold in items][:3] == [(row.id, row.gold) for row in rows.iloc[:3].itertuples()]
    assert page.count("seed 0:") == page.count("seed 1:") == len(items) * len(found["conditions"])
    root = Path(rebuild.trained(copy / "baseline/seed0").config.task.args["root"])
    questions = [json.loads(line)["question"] for line in (root / "test.jsonl").read_text().splitlines()]
    for i, _ in items[:3]:
        assert questions[int(i)] in page


@pytest.mark.slow
@pytest.mark.parametrize("condition, kind, file", [("baseline", "hf", "adapter_model.safetensors"),
                                                   ("baseline", "merged", "model.safetensors")])
def test_a_language_student_is_exported_with_its_tokenizer(study, monkeypatch, tmp_path, capsys, condition, kind, file):
    run = study / condition / "seed0"
    monkeypatch.setattr(sys, "argv", ["export", str(run), "--to", kind, "--out", str(tmp_path / "out")])
    export.main()  # which compares logits in a process without graft
    assert "in a process without graft" in capsys.readouterr().out
    assert {file, "tokenizer.json", "README.md"} <= {path.name for path in (tmp_path / "out").iterdir()}
