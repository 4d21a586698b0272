"""How much worked examples help the untrained model: the gap that distillation is to close.

    python scripts/eval_icl.py --base_config configs/base/gsm8k_qwen1b7.yaml --config configs/distill/fewshot.yaml \\
        --output experiments/gsm8k_qwen1b7/icl.json --shots 0 4 8 --split val

Prompts, stopping rules, extraction and engine are those by which eval_checkpoints.py scores checkpoints; 0 shots is
its very prompt. Worked examples are those that the configured teacher reads (teacher.fewshot_seed, teacher.max_length).
The file has the format of results.json: conditions base_0shot, base_4shot, …, and base_kshot for the most shots.
`accelerate launch` spreads the questions over several processes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from graft import config
from graft.config import parts, schema
from graft.config.options import Config
from graft.errors import UserError, exit_cleanly
from graft.evaluation import answers, engines, generation
from graft.reporting import results, tables
from graft.runtime.place import accelerator
from graft.runtime.provenance import code_sha
from graft.students import _language
from graft.tasks._context import Context, encode
from graft.tasks._text import TextTask


def context(cfg: Config, shots: int) -> Context:
    """`shots` worked examples, chosen as the configured teacher's are; as context_lm's by default without one."""
    args = {name: item.default for name, item in schema.part_fields("teachers", "context_lm").items()}
    args |= cfg.teacher.args if cfg.teacher.name == "context_lm" else {}
    return Context("fewshot", shots, args["fewshot_seed"], args["max_length"])


def score(cfg: Config, task: TextTask, options: argparse.Namespace, processes: Accelerator) -> list[dict[str, Any]]:
    """One entry of `conditions.*.runs` for each split and number of shots."""
    asked = {}
    for split in options.split:
        index = answers.items(len(task.splits[split]), options.limit)
        for shots in options.shots:
            asked[split, shots] = index, *encode(task, split, index, context(cfg, shots))
    longest = max(int(prompts.lengths.max()) for _, prompts, _ in asked.values())
    source = generation.source(cfg, task, longest, untrained=True)
    engine = engines.engine(
        options.engine, source, batch_size=options.batch_size or cfg.evaluate.batch_size, device=processes.device,
        tensor_parallel=options.tensor_parallel, processes=processes.num_processes)
    entries = []
    for (split, shots), (index, prompts, dropped) in asked.items():
        used = context(cfg, shots)
        wanted = {"split": split, "step": 0, "shots": shots, "seed": used.seed, "max_length": used.max_length,
                  "limit": options.limit, "cut_short": sum(d > 0 for d in dropped), "weights": "base",
                  "checkpoint_sha256": _language.identity(source.model, source.revision)}
        path = options.output.parent / options.output.stem / f"base_{shots}shot" / "eval" / f"{split}-0.json"
        entry = answers.scored(path, wanted, engine, task, prompts, index, None, options.output.parent, processes)
        most = shots == max(options.shots) > 0
        entries.append({**entry, "condition": "base_kshot" if most else f"base_{shots}shot"})
    return entries


def says(assembled: dict[str, Any], split: str) -> str:
    """The gap with its interval, and whether it is worth distilling."""
    versus = assembled["conditions"]["base_kshot"]["vs_baseline"][split]
    shown = {name: f"{100 * one['difference']:+.2f} points [{100 * one['ci95'][0]:+.2f}, {100 * one['ci95'][1]:+.2f}]"
             for name, one in versus.items()}
    low, high = versus["accuracy"]["ci95"]
    if low > 0:
        verdict = "worked examples help this model; there is a gap worth distilling"
        if versus["accuracy_flexible"]["ci95"][0] <= 0:
            verdict += ", but it may be one of format alone: by flexible accuracy there is none"
    elif high < 0:
        verdict = "worked examples harm this model; there is nothing to distil"
    else:
        verdict = "no gap worth distilling: its interval includes 0"
    return f"{split}: k-shot gap {shown['accuracy']}, flexible {shown['accuracy_flexible']}: {verdict}"


def main() -> None:
    """Score, assemble, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False, usage="%(prog)s --base_config FILE --output FILE [options] "
                                     "[key=value ...]")
    parser.add_argument("--base_config", required=True, help="a complete run: data, student, recipe")
    parser.add_argument("--config", nargs="+", action="extend", default=[], help="deltas, such as the teacher's")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file; rows lie in a folder beside it")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 4, 8])
    parser.add_argument("--split", nargs="+", choices=["val", "test"], default=["val"])
    parser.add_argument("--limit", type=int, default=0, help="a random sample of that many questions; 0: all")
    parser.add_argument("--engine", choices=engines.ENGINES, default="transformers")
    parser.add_argument("--batch_size", type=int, help="prompts answered together; default: evaluate.batch_size")
    parser.add_argument("--tensor_parallel", type=int, default=1, help="vllm: GPUs that share one model")
    # A list takes every word after it, and no file or number has a '=' in it.
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    options = parser.parse_args([word for word in sys.argv[1:] if word not in overrides])
    if min(options.shots) < 0:
        raise UserError(f"--shots: expected numbers from 0 on, got {min(options.shots)}")
    if options.limit < 0:
        raise UserError(f"--limit: expected a number from 0 on, got {options.limit}")
    engines.enter_environment(options.engine)
    cfg = config.load([options.base_config, *options.config], overrides)
    processes = accelerator()
    task = parts.build("tasks", cfg.task)
    if not isinstance(task, TextTask):
        raise UserError(f"task.name: {cfg.task.name} has no questions to answer")
    options.shots, options.split = sorted(set(options.shots)), list(dict.fromkeys(options.split))
    entries = score(cfg, task, options, processes)
    if not processes.is_main_process:
        return
    assembled = results.assemble(options.output.resolve().parent.name, task.about, entries, options.output.parent,
                                 "base_0shot" if options.shots[0] == 0 else "", code_sha=code_sha())
    results.write_json(options.output, assembled)
    print(tables.shown(assembled), end="")
    if options.shots[0] == 0 < options.shots[-1]:
        for split in options.split:
            print(says(assembled, split))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    exit_cleanly(main)
