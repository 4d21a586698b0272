"""The answers that a student is trained on: the data's own, its teacher's, or its own.

A teacher's own answers (sequence-level distillation: Kim & Rush 2016, arXiv:1606.07947) are made once, by
scripts/sample_teacher.py, and lie in a folder with everything that decided them; a run takes them only if that is what
it asks for. The student's own (on-policy: Agarwal et al. 2024, arXiv:2306.13649) are made while it trains, by
`training.rollouts`.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from graft.config.options import Config
from graft.errors import UserError
from graft.evaluation import answers, generation
from graft.evaluation.generation import Source
from graft.reporting import reading, results
from graft.runtime.files import cache_dir, named_by
from graft.students import _language
from graft.tasks._context import encode
from graft.tasks._taught import taught
from graft.tasks._text import Ragged, TextSplit, TextTask
from graft.teachers import context_lm
from graft.training.resume import leaves

AGAIN = "scripts/sample_teacher.py and the same configuration"
NAME = "train-0"  # of the score that holds the answers


def task_for(cfg: Config, task: TextTask) -> TextTask:
    """The task with the answers that `teacher.targets` asks for.

    Raises UserError if the teacher's are not there, not finished, damaged, or not those of this configuration.
    """
    targets = cfg.teacher.args["targets"] if cfg.teacher.name == "context_lm" else "gold"
    if targets == "gold":
        return task
    train, reserve = task.splits["train"], cfg.evaluate.max_new_tokens
    if targets == "student":
        split = TextSplit(train.name, train.items, task.prompt)  # its answers will change, the data's stay
        said = (f"the student's own answers are the targets: sampled at temperature {cfg.teacher.args['temperature']:g}"
                f", anew every {cfg.teacher.args['sample_every']} steps, up to {reserve} tokens")
        return taught(task, split, range(len(train)), reserve, said, "student")
    wanted = wanted_of(cfg, task)[2]
    texts, left_out = _chosen(cfg, task, wanted)
    split = TextSplit(train.name, [train.items[place] for place in texts], task.prompt)
    split.answer(task.prompt.answer_ids([*texts.values()]))
    digest = hashlib.sha256(json.dumps([wanted, [*texts.items()]], sort_keys=True).encode()).hexdigest()
    said = f"the teacher's own answers are the targets, of {len(texts)} of {len(train)} items; left out: {left_out}"
    return taught(task, split, [*texts], reserve, said, digest)


# ------------------------------------------------------------------------------------------- the teacher's own

def source(cfg: Config, prompts: Ragged, task: TextTask) -> Source:
    """The model that teaches. Raises UserError if it cannot be found or has another tokenizer."""
    args = cfg.teacher.args
    if args["model"]:
        _language.refuse_other_tokenizer("teacher.model", task, args["model"], args["revision"])
        own = {**{key: args[key] for key in ("model", "revision", "dtype")}, "random_weights": False}
        cfg = replace(cfg, student=replace(cfg.student, args={**cfg.student.args, **own}))
    return generation.source(cfg, task, int(prompts.lengths.max()), untrained=True)


def wanted_of(cfg: Config, task: TextTask) -> tuple[Source, Ragged, dict[str, Any]]:
    """The model, what it is asked, and everything that decides its answers."""
    args = cfg.teacher.args
    context = context_lm.context_of(task, args)
    prompts, dropped = encode(task, "train", range(len(task.splits["train"])), context, cfg.evaluate.max_new_tokens)
    model = source(cfg, prompts, task)
    return model, prompts, {
        "split": "train", "step": 0, "model": _language.identity(model.model, model.revision, "teacher.model"),
        **context.identity(task), "temperature": args["temperature"],
        "cut_short": sum(count > 0 for count in dropped), **answers.asked(task, "train", prompts, model)}


def folder_for(cfg: Config, wanted: dict[str, Any]) -> Path:
    """Where the answers belong: `teacher.samples`, or a folder named by what decides them."""
    return Path(cfg.teacher.args["samples"] or cache_dir() / f"samples-{named_by(wanted)}")


def _rows(folder: Path, wanted: dict[str, Any]) -> pd.DataFrame:
    """The answers with their judgement. Raises UserError naming what is missing, damaged or not as wanted."""
    file = folder / f"{NAME}.json"
    if not file.is_file():
        begun = " finished" if list(folder.glob("*.jsonl")) else ""
        raise UserError(f"teacher.samples: {folder}: no{begun} answers of the teacher; make them with {AGAIN}")
    try:
        entry, rows = reading.read_json(file), results.example_rows(file.with_suffix(".parquet"))
    except UserError as error:
        raise UserError(f"teacher.samples: {error}; mend it with {AGAIN}") from None
    have, want = leaves(entry), leaves(wanted)
    for key, value in want.items():
        if have.get(key) != value:
            raise UserError(f"teacher.samples: {folder}: made with another {key} ({str(have.get(key))[:60]}, wanted "
                            f"{str(value)[:60]}); make others with {AGAIN}")
    if rows.attrs["fingerprint"] != wanted["data_fingerprint"] or rows["index"].tolist() != list(range(wanted["n"])):
        raise UserError(f"teacher.samples: {file.with_suffix('.parquet')}: holds other items than {file.name}; mend it "
                        f"with {AGAIN}")
    return rows


def _chosen(cfg: Config, task: TextTask, wanted: dict[str, Any]) -> tuple[dict[int, str], str]:
    """place -> text of the answers that can be trained on, without the space around it, and how many cannot.

    They become ids as the data's own do, so that only what is said differs, not how an answer ends.
    """
    folder = folder_for(cfg, wanted)
    rows, only_right = _rows(folder, wanted), cfg.teacher.args["only_right"]
    texts = {int(place): text.strip() for place, text in zip(rows["index"], rows["text"])}
    whole, right = rows["ended"].tolist(), rows["correct"].tolist()
    train, ids = task.splits["train"], Ragged(task.prompt.answer_ids([*texts.values()]))
    fits = (train.prompts.lengths + ids.lengths <= task.max_length).tolist()
    reasons = ["cut off" if not whole[i] else "empty" if not texts[i] else "longer than task.max_length" if not fits[i]
               else "wrong" if only_right and not right[i] else "" for i in texts]
    counts = ", ".join(f"{reasons.count(why)} {why}" for why in dict.fromkeys(reasons) if why) or "none"
    kept = {place: text for place, text in texts.items() if not reasons[place]}
    if not kept:
        raise UserError(f"teacher.samples: {folder}: none of {len(texts)} answers can be trained on ({counts}); "
                        "expected a larger evaluate.max_new_tokens, or a teacher that answers")
    return kept, counts
