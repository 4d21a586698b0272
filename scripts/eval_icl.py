"""How much worked examples help the untrained model: the gap that distillation is to close.

    python scripts/eval_icl.py --base_config configs/base/gsm8k_qwen1b7.yaml --config configs/distill/fewshot.yaml \\
        --output experiments/gsm8k_qwen1b7/icl.json --shots 0 4 8 --split val

Prompts, stopping rules, extraction and engine are those by which eval_checkpoints.py scores checkpoints; 0 shots is
its very prompt. Worked examples are those that the configured teacher reads (teacher.fewshot_seed, teacher.max_length).
The file has the format of results.json: conditions base_0shot, base_4shot, …, and base_kshot for as many shots as the
teacher reads (teacher.shots), or the most where those are not asked for. `--context instruction FILE...` adds
base_instruction: the untrained model behind what the teacher reads whose configuration those files lay over the others.
`accelerate launch` spreads the questions over several processes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from graft import config
from graft.config import schema, script_options
from graft.config.options import Config
from graft.errors import UserError, exit_cleanly


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


def arguments() -> tuple[argparse.Namespace, Config]:
    """The command line, and the configuration that it names."""
    parser = script_options.parser(__doc__, usage="%(prog)s --base_config FILE --output FILE [options] [key=value ...]")
    parser.add_argument("--base_config", required=True, help="a complete run: data, student, recipe")
    parser.add_argument("--config", nargs="+", action="extend", default=[], help="deltas, such as the teacher's")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file; rows lie in a folder beside it")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 4, 8])
    parser.add_argument("--context", nargs="+", action="append", default=[], metavar="NAME FILE",
                        help="also behind what the teacher of these deltas reads, as base_NAME")
    parser.add_argument("--split", nargs="+", choices=script_options.SPLITS, default=["val"])
    script_options.add_engine(parser)
    # A list takes every word after it, and no file or number has a '=' in it.
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    options = parser.parse_args([word for word in sys.argv[1:] if word not in overrides])
    script_options.at_least(options, shots=0, limit=0, batch_size=1, tensor_parallel=1)
    options.shots, options.split = sorted(set(options.shots)), list(dict.fromkeys(options.split))
    return options, config.load([options.base_config, *options.config], overrides)


def contexts(options: argparse.Namespace, cfg: Config) -> dict[str, Config]:
    """The configurations of `--context`, by name. Raises UserError where one changes more than what a teacher reads."""
    found = {}
    for name, *files in options.context:
        if not schema.CONTEXT.fullmatch(name) or name in found:
            raise UserError(f"--context: expected {schema.CONTEXT_RULE}, once, got {name!r}")
        other = config.load([options.base_config, *options.config, *files], cfg.overrides)
        for part in ("task", "student", "evaluate"):
            if getattr(other, part) != getattr(cfg, part):
                raise UserError(f"--context {name}: {' '.join(files)}: changes {part}; expected a teacher alone")
        if other.teacher.name != "context_lm":
            raise UserError(f"--context {name}: teacher.name: expected context_lm, got {other.teacher.name}")
        found[name] = other
    return found


def main() -> None:
    """Score, assemble, write."""
    options, cfg = arguments()  # before torch is imported
    others = contexts(options, cfg)
    from graft.config import parts
    from graft.evaluation import engines
    from graft.evaluation.icl import score
    from graft.reporting import results, tables
    from graft.runtime.place import accelerator
    from graft.runtime.provenance import code_sha
    from graft.students._language import origins
    from graft.tasks._text import TextTask
    from graft.teachers.context_lm import context_of

    engines.enter_environment(options.engine)
    processes = accelerator()
    task = parts.build("tasks", cfg.task)
    if not isinstance(task, TextTask):
        raise UserError(f"task.name: {cfg.task.name} has no questions to answer")
    named = {name: context_of(task, other.teacher.args) for name, other in others.items()}
    entries = score(cfg, task, options, processes, named)
    if not processes.is_main_process:
        return
    assembled = results.assemble(options.output.resolve().parent.name, task.about, entries, options.output.parent,
                                 "base_0shot" if options.shots[0] == 0 else "", code_sha=code_sha())
    if models := origins(cfg):
        assembled["models"] = models
    results.write_json(options.output, assembled)
    print(tables.shown(assembled), end="")
    if options.shots[0] == 0 < options.shots[-1]:
        for split in options.split:
            print(says(assembled, split))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    exit_cleanly(main)
