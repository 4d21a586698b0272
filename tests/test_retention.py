"""What a language model kept: probes, divergence from the untrained model, the file and its figures."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import eval_checkpoints
import eval_icl
import eval_retention
import gen_gap_fig
import gen_retention_fig
from graft import config
from graft.config import parts
from graft.config.options import Part
from graft.errors import UserError
from graft.evaluation import _transformers, retention
from graft.reporting import reading, results, retained
from graft.runtime import checkpoint
from graft.students._tiny_lm import make

BASE = """
task: {{name: strings, tokenizer: "${{student.model}}", layout: plain, rules: [3], train: 40, test: 9}}
student: {{name: causal_lm, model: {model}, rank: 2}}
objective: [{{name: ce}}]
evaluate: {{batch_size: 16, max_new_tokens: 5}}
train: {{duration: 4st, batch_size: 4}}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Two conditions of two seeds: adapters that do nothing, and all weights, moved."""
    folder = tmp_path_factory.mktemp("place")
    make(folder / "model", "qwen3", hidden=32, ff=48, init_std=0.4)
    (folder / "base.yaml").write_text(BASE.format(model=folder / "model"))
    at = folder / "experiments/kept"
    for name, words in (("baseline", []), ("moved", ["student.lora=false"])):
        for seed in (0, 1):
            cfg = config.load([folder / "base.yaml"], words, output_dir=str(at / name), seed=seed)
            task = parts.build("tasks", cfg.task)
            student = parts.build("students", cfg.student, task)
            draw = torch.Generator().manual_seed(seed)
            state = {key: value + (0.1 if name == "moved" else 0.0) * torch.randn(value.shape, generator=draw)
                     for key, value in student.state_dict().items()}
            checkpoint.save(cfg.run_dir, 4, {student.stem: state}, {"state": {}, "param_groups": []},
                            {"final": True, "total_steps": 4, "selection": {}, "base": student.base, "data": task.about,
                             "step": 4, "config": cfg.to_dict()}, 5, files=student.export_files())
    return at


def call(script, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    script.main()


def evaluate(study: Path, monkeypatch, *words: object) -> dict:
    call(eval_retention, monkeypatch, "--base_dir", study, "--conditions", "baseline", "moved", "--output",
         study / "retention.json", "--rules", "1", "--shots", 0, 3, "--kl_items", 4, *words)
    return reading.read_retention(study / "retention.json")


def kl_by_hand(before, after, prompt: list[int], answer: list[int]) -> float:
    """By transformers alone, one sequence at a time."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        p, q = (lm(ids).logits[0, len(prompt) - 1:-1].double().log_softmax(-1) for lm in (before, after))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_what_was_kept_is_measured_and_what_was_not_changed_is_kept_whole(study, monkeypatch, capsys):
    found = evaluate(study, monkeypatch)
    assert "| moved |" in capsys.readouterr().out
    assert list(found["conditions"]) == ["baseline", "moved"] and found["others"] == ["1"]
    same, moved = found["conditions"]["baseline"], found["conditions"]["moved"]
    for probe in ("trained", "1"):
        assert same["probes"][probe]["kl"]["mean"] == 0 and moved["probes"][probe]["kl"]["mean"] > 0.01
        for shots in ("0", "3"):
            own, before = same["probes"][probe]["shots"][shots], found["untrained"]["probes"][probe]["shots"][shots]
            assert own["n"] == 9 and own["accuracy"]["mean"] == before["accuracy"]["mean"]
            assert own["vs_untrained"]["difference"] == 0 and own["tokens"]["mean"] == before["tokens"]["mean"]
    assert same["retention"]["kl"]["mean"] == 0 and moved["retention"]["kl"]["mean"] > 0.01
    assert moved["retention"]["accuracy"] | {"p": 0} == moved["retention"]["accuracy"] | {"p": 0, "n": 9, "shots": 3}
    # the numbers themselves: rows of a run, and the divergence of whole models
    folder = study / "moved/seed1"
    rows = pd.read_parquet(folder / "eval-retention/1-3shot/test-4.parquet")
    other = parts.build("tasks", Part("strings", {
        **config.load([study.parents[1] / "base.yaml"]).task.args, "rules": [1]}))
    items = other.splits["test"].items
    assert [items[i].gold for i in rows["index"]] == rows["gold"].tolist() and {item.group for item in items} == {
        "0314875269"}
    kept = json.loads((folder / "eval-retention/kl-4.json").read_text())["found"]
    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
                     for path in (study.parents[1] / "model", folder / "checkpoint-4"))
    split = other.splits["test"]
    by_hand = [kl_by_hand(before, after, split.prompts[i].tolist(), split.answers[i].tolist()) for i in range(4)]
    assert np.allclose(kept["1"], by_hand, rtol=1e-3, atol=1e-6)
    line = other.prompt.tokenizer(retention.texts("")[0])["input_ids"]
    assert np.isclose(kept["text"][0], kl_by_hand(before, after, line[:1], line[1:]), rtol=1e-3)


def test_what_is_kept_is_used_again_while_it_is_true(study, monkeypatch):
    first = evaluate(study, monkeypatch)

    def never(*_, **__):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(_transformers.Transformers, "generate", never)
        patch.setattr(retention.Evaluator, "_models", never)
        assert evaluate(study, monkeypatch)["conditions"] == first["conditions"]
        with pytest.raises(AssertionError, match="computed again"):
            evaluate(study, monkeypatch, "--kl_items", 5)
    file = study / "moved/seed0/eval-retention/kl-4.json"
    content = json.loads(file.read_text())
    for other in ({**content["of"], "code": "other"}, {**content["of"], "weights": "other"}):
        file.write_text(json.dumps({"of": other, "found": {"1": [0.0]}}))
        assert evaluate(study, monkeypatch)["conditions"] == first["conditions"]
    for damaged in ("{", json.dumps({"of": content["of"]})):
        file.write_text(damaged)
        assert evaluate(study, monkeypatch)["conditions"] == first["conditions"]


def test_conditions_that_were_asked_other_questions_are_refused(study, monkeypatch):
    """The untrained model answered those of the first condition: by position they would be compared with any others."""
    evaluate(study, monkeypatch)
    own = Path("moved/seed0/eval-retention/trained-0shot/test-4.parquet")
    rows = results.example_rows(study / own)
    results.write_examples(study / "other.parquet", rows.assign(gold=rows["gold"] + "?"), rows.attrs["fingerprint"])
    runs = {name: [{"probes": {"trained": {"0": {"examples": str(file)}}}}]
            for name, file in (("moved", own), ("other", "other.parquet"))}
    with pytest.raises(UserError, match=r"other: trained, 0 shots: asks other questions than .* of moved"):
        retained.assemble("s", {}, runs, runs["moved"][0], study, [])


def test_figures_of_gain_against_gap_and_retention(study, monkeypatch, tmp_path):
    evaluate(study, monkeypatch)
    base = study.parents[1] / "base.yaml"
    call(eval_icl, monkeypatch, "--base_config", base, "--output", study / "icl.json", "--shots", 0, 3, "--split",
         "test")
    call(eval_checkpoints, monkeypatch, "--base_dir", study, "--conditions", "baseline", "moved", "--output",
         study / "results.json", "--icl", study / "icl.json", "--splits", "test")
    call(gen_retention_fig, monkeypatch, "--retention", study / "retention.json", "--results", study / "results.json",
         "--out", tmp_path)
    call(gen_gap_fig, monkeypatch, "--results", study / "results.json", "--out", tmp_path, "--conditions", "moved")
    kept, gap = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("retention", "gap"))
    content = results.read_results(study / "results.json")["conditions"]
    assert kept["condition"].tolist() == ["baseline", "moved"] and kept["kl"][0] == 0
    versus = content["moved"]["vs_untrained"]["test"]["accuracy"]
    assert np.allclose(gap[["gain", "low", "high"]].iloc[0], 100 * np.array([versus["difference"], *versus["ci95"]]))
    means = [content[name]["summary"]["test"]["accuracy"]["mean"] for name in results.GAP]
    assert np.isclose(gap["gap"][0], 100 * (means[1] - means[0]), atol=1e-4)
    assert (tmp_path / "retention.pdf").stat().st_size and (tmp_path / "gap.pdf").stat().st_size


@pytest.mark.parametrize(("words", "says"), [
    (("--rules", "3"), "--rules: 3 is what"), (("--rules", "7"), "rules"), (("--text", "EMPTY"), "expected lines of"),
    (("--text", "NONE"), "--text: "), (("--conditions", "nothing"), "no finished run")])
def test_bad_input_is_one_line(study, monkeypatch, tmp_path, words, says):
    (tmp_path / "empty.txt").write_text("word\n\n")
    words = [str(tmp_path / "empty.txt") if word == "EMPTY" else str(tmp_path / "none") if word == "NONE" else word
             for word in words]
    with pytest.raises(UserError, match=says) as caught:
        evaluate(study, monkeypatch, *words)
    assert "\n" not in str(caught.value)
