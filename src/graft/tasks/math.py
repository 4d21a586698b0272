"""MATH: 12,500 competition problems with worked solutions (Hendrycks et al. 2021, arXiv:2103.03874)."""

from typing import Annotated

from graft.tasks import _rows
from graft.tasks._answers import boxed, gold_boxed
from graft.tasks._text import TextTask

TEXT = True
PUBLISHED = _rows.Published("math", "DigitalLearningGmbH/MATH-lighteval", "data",
                            {"train": ("train", 7_500), "test": ("test", 5_000)})


def build(*, tokenizer: Annotated[str, "", "folder with a tokenizer, or a model on the hub"],
          tokenizer_revision: Annotated[str, "", "the commit of that model; empty: its newest"] = "",
          layout: Annotated[str, "auto | chat | plain", "auto: the tokenizer's chat template, if it has one"] = "auto",
          source: Annotated[str, "auto | local | hub",
                            "where from; auto: root, or if it has nothing and there is a revision, the hub"] = "auto",
          root: Annotated[str, "", "folder of train.jsonl and test.jsonl; empty: $GRAFT_DATA/math, or data/math",
                               "where a copy lies; the items' fingerprint is compared"] = "",
          revision: Annotated[str, "", "source hub: the commit of DigitalLearningGmbH/MATH-lighteval, 40 hex "
                                        "digits"] = "",
          max_length: Annotated[int, "> 0", "tokens; longer training items are left out"] = 1024,
          val_fraction: Annotated[float, "[0, 0.5]", "part of the training items held out for validation"] = 0.05,
          split_seed: Annotated[int, ">= 0", "which items those are"] = 0,
          subset: Annotated[int, ">= 0", "train on that many items only; 0: all"] = 0,
          allow_overlap: Annotated[bool, "", "test questions may also stand in train; they are counted"] = True,
          ) -> TextTask:
    """MATH with its official test split; the answer is the solution as published, with the result in a box."""
    return _rows.task(PUBLISHED, _read, boxed, "\n\nProblem:", source=source, root=root, revision=revision,
                      tokenizer=tokenizer, tokenizer_revision=tokenizer_revision, layout=layout, max_length=max_length,
                      val_fraction=val_fraction, split_seed=split_seed, subset=subset,
                      allow_overlap=allow_overlap)


def _read(row: _rows.Row) -> tuple[str, str, str]:
    answer = _rows.text(row, "solution")
    gold = gold_boxed(answer)
    if not gold:
        raise ValueError(f"solution: expected a result in \\boxed{{}}, got {answer[-60:]!r}")
    return f"Problem: {_rows.text(row, 'problem')}", answer, gold
