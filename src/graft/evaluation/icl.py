"""The untrained model with worked examples before the question, or what else a teacher reads, scored as checkpoints
are."""

import argparse
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from graft.config import schema
from graft.config.options import Config
from graft.errors import UserError
from graft.evaluation import answers, engines, generation
from graft.reporting.comparisons import UNTRAINED
from graft.students import _language
from graft.tasks._context import Context, encode
from graft.tasks._text import TextTask


def context(cfg: Config, shots: int) -> Context:
    """`shots` worked examples, chosen as the configured teacher's are; as context_lm's by default without one."""
    args = {name: item.default for name, item in schema.part_fields("teachers", "context_lm").items()}
    args |= cfg.teacher.args if cfg.teacher.name == "context_lm" else {}
    return Context("fewshot", shots, args["fewshot_seed"], args["max_length"])


def gap_shots(cfg: Config, shots: list[int]) -> int:
    """Of the numbers of worked examples asked for the one whose gap is to be closed: the configured teacher's, or where
    it is not among them the largest."""
    own = cfg.teacher.args["shots"] if cfg.teacher.name == "context_lm" else 0
    return own if own and own in shots else max(shots)


def score(cfg: Config, task: TextTask, options: argparse.Namespace, processes: Accelerator,
          named: Mapping[str, Context]) -> list[dict[str, Any]]:
    """One entry of `conditions.*.runs` for each split and number of shots, and for each of the `named` contexts."""
    contexts = {f"{shots}shot": context(cfg, shots) for shots in options.shots} | dict(named)
    asked = {}
    for split in options.split:
        if not len(task.splits[split]):
            raise UserError(f"--split {split}: its data have no such questions"
                            + ("; expected a larger task.val_fraction" if split == "val" else ""))
        index = answers.items(len(task.splits[split]), options.limit)
        for name, used in contexts.items():
            asked[split, name] = index, *encode(task, split, index, used, cfg.evaluate.max_new_tokens)
    longest = max(int(prompts.lengths.max()) for _, prompts, _ in asked.values())
    source = generation.source(cfg, task, longest, untrained=True)
    engine = engines.engine(
        options.engine, source, batch_size=options.batch_size or cfg.evaluate.batch_size, device=processes.device,
        tensor_parallel=options.tensor_parallel, processes=processes.num_processes)
    entries, k = [], f"{gap_shots(cfg, options.shots)}shot"
    for (split, name), (index, prompts, dropped) in asked.items():
        used = contexts[name]
        wanted = {"split": split, "step": 0, "shots": used.examples, "seed": used.seed, "max_length": used.max_length,
                  "limit": options.limit, "cut_short": sum(d > 0 for d in dropped), "weights": "base",
                  "checkpoint_sha256": _language.identity(source.model, source.revision),
                  **(used.identity(task) if name in named else {})}
        path = options.output.parent / options.output.stem / f"{UNTRAINED}{name}" / "eval" / f"{split}-0.json"
        entry = answers.scored(path, wanted, engine, task, prompts, index, None, options.output.parent, processes)
        entries.append({**entry, "condition": UNTRAINED + ("kshot" if name == k != "0shot" else name)})
    return entries
