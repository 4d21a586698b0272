"""Accuracy by what questions are like: from items to rows to results.json."""

import pandas as pd

from graft.evaluation import answers
from graft.reporting import results
from graft.students._tiny_lm import make
from graft.tasks import _prompts, words
from graft.tasks._text import Item, text_task


def told(prompt, items):
    return text_task("small", "small", items, [], prompt, val_fraction=0.0, split_seed=0, subset=0, max_length=1000,
                     extract=words.extract)


def test_traits_reach_the_rows_and_results_with_their_n(tmp_path):
    prompt = _prompts.load(str(make(tmp_path / "lm", no_weights=True)))
    items = [Item(i, f"q{i}", "aaa", "aaa", traits=(("size", "big" if i < 3 else "small"),)) for i in range(10)]
    task = told(prompt, items)
    index, said = list(range(10)), {}
    for seed, right in ((0, {0, 1, 5}), (1, {0, 5, 6, 7})):
        texts = [{"text": "aaa" if i in right else "bbb", "tokens": 2, "ended": True} for i in index]
        rows = answers.judge(task, "train", index, texts)
        assert list(rows) == [*results.TEXT_COLUMNS, "trait.size"]
        results.write_examples(tmp_path / f"{seed}.parquet", rows, task.fingerprints["train"])
        said[seed] = {"condition": "baseline", "seed": seed, "step": 1, "split": "train", "n": 10, "weights": "adapter",
                      "examples": f"{seed}.parquet", "metrics": answers.metrics(rows), "checkpoint_sha256": "c",
                      "tokenizer_sha256": prompt.tokenizer_sha256, "template_sha256": prompt.template_sha256}
    content = results.assemble("s", task.about, list(said.values()), tmp_path)
    content["models"] = {"lm": {"licence": "Apache-2.0", "tensors": {"Q4_1": 210}}}
    results.write_json(tmp_path / "results.json", content)
    found = results.read_results(tmp_path / "results.json")["conditions"]["baseline"]["traits"]["train"]["size"]
    assert {value: one["n"] for value, one in found.items()} == {"big": 3, "small": 7}
    assert found["big"]["accuracy"]["mean"] == (2 / 3 + 1 / 3) / 2
    assert abs(found["small"]["accuracy"]["mean"] - (1 / 7 + 3 / 7) / 2) < 1e-12
    assert found["small"]["accuracy"]["seeds"] == 2 and found["small"]["accuracy"]["ci95"][0] is not None
    bare = answers.judge(told(prompt, [Item(0, "q", "aaa", "aaa")]), "train", [0], [
        {"text": "aaa", "tokens": 1, "ended": True}])
    assert list(bare) == list(results.TEXT_COLUMNS) and isinstance(bare, pd.DataFrame)
