"""CommonsenseQA: 10,962 questions with five choices (Talmor et al. 2019, arXiv:1811.00937)."""

from typing import Annotated

from graft.tasks import _rows
from graft.tasks._answers import letter
from graft.tasks._text import TextTask

TEXT = True
LETTERS = ["A", "B", "C", "D", "E"]
PUBLISHED = _rows.Published("commonsenseqa", "tau/commonsense_qa", "data",
                            {"train": ("train", 9_741), "test": ("validation", 1_221)})


def build(*, tokenizer: Annotated[str, "", "folder with a tokenizer, or a model on the hub"],
          tokenizer_revision: Annotated[str, "", "the commit of that model; empty: its newest"] = "",
          layout: Annotated[str, "auto | chat | plain", "auto: the tokenizer's chat template, if it has one"] = "auto",
          source: Annotated[str, "auto | local | hub",
                            "where from; auto: root, or if it has nothing and there is a revision, the hub"] = "auto",
          root: Annotated[str, "", "folder of train.jsonl and validation.jsonl; empty: $GRAFT_DATA/commonsenseqa, or "
                                   "data/commonsenseqa",
                                   "where a copy lies; the items' fingerprint is compared"] = "",
          revision: Annotated[str, "", "source hub: the commit of tau/commonsense_qa, 40 hex digits"] = "",
          max_length: Annotated[int, "> 0", "tokens; longer training items are left out"] = 256,
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training items held out for validation"] = 0.05,
          split_seed: Annotated[int, ">= 0", "which items those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many items only; 0: all"] = 0,
          allow_overlap: Annotated[bool, "", "test questions may also stand in train; they are counted"] = True,
          ) -> TextTask:
    """CommonsenseQA with its validation split as test, whose own answers are not published."""
    return _rows.task(PUBLISHED, _read, letter, "\n\nQuestion:", source=source, root=root, revision=revision,
                      tokenizer=tokenizer, tokenizer_revision=tokenizer_revision, layout=layout, max_length=max_length,
                      val_fraction=val_fraction, split_seed=split_seed, subset=subset,
                      allow_overlap=allow_overlap)


def _read(row: _rows.Row) -> tuple[str, str, str]:
    question, gold, choices = _rows.text(row, "question"), _rows.text(row, "answerKey"), row.get("choices")
    labels, texts = (choices.get("label"), choices.get("text")) if isinstance(choices, dict) else (None, None)
    if labels != LETTERS or not isinstance(texts, list) or len(texts) != len(LETTERS):
        raise ValueError(f"choices: expected label A to E and five texts, got {str(choices)[:60]}")
    if gold not in LETTERS:
        raise ValueError(f"answerKey: expected a letter A to E, got {gold!r}")
    lines = [f"({label}) {text}" for label, text in zip(labels, texts)]
    return "\n".join([f"Question: {question}", *lines]), f"The answer is ({gold}).", gold
