"""The teacher's own answers to the training questions, made once, for runs that are trained on them.

    accelerate launch --config_file configs/accelerate/1gpu.yaml scripts/sample_teacher.py \\
        --base_config configs/base/gsm8k_qwen1b7.yaml \\
        --config configs/distill/fewshot.yaml configs/ablation/teacher_targets.yaml

Takes the configuration of the training run, which says `teacher.targets=teacher`: the model without adapters (or
teacher.model) reads the teacher's context and answers every training question, greedily or at `teacher.temperature`,
with random numbers that follow from the few-shot seed and the prompt. The folder is teacher.samples, or found by its
content in $GRAFT_CACHE or cache/: model, context, template, items, decoding. Interrupt it at will: the same command
goes on, with any number of processes. What is cut off, empty or (`teacher.only_right`) wrong is left out when a run
reads it; how much that is, is said here.
"""

import argparse
import sys

from graft import config
from graft.config import script_options
from graft.config.options import Config
from graft.errors import UserError, exit_cleanly


def arguments() -> tuple[argparse.Namespace, Config]:
    """The command line, and the run's configuration."""
    parser = script_options.parser(__doc__, usage="%(prog)s --base_config FILE --config FILE... [options] "
                                   "[key=value ...]")
    parser.add_argument("--base_config", required=True)
    parser.add_argument("--config", nargs="+", action="extend", default=[], help="deltas, the teacher's among them")
    parser.add_argument("--seed", type=int, help="of the run, where its configuration is made from it; default: 0")
    parser.add_argument("--engine", choices=script_options.ENGINES, default="transformers")
    parser.add_argument("--batch_size", type=int, help="prompts answered together; default: evaluate.batch_size")
    parser.add_argument("--tensor_parallel", type=int, default=1, help="vllm: GPUs that share one model")
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    options = parser.parse_args([word for word in sys.argv[1:] if word not in overrides])
    script_options.at_least(options, batch_size=1, tensor_parallel=1)
    seed = {} if options.seed is None else {"seed": options.seed}
    cfg = config.load([options.base_config, *options.config], overrides, **seed)
    if cfg.teacher.name != "context_lm" or cfg.teacher.args["targets"] != "teacher":
        raise UserError("teacher.targets: expected teacher, of a teacher context_lm; nothing else is trained on what "
                        "this makes")
    if options.engine == "vllm" and cfg.teacher.args["temperature"]:
        raise UserError("--engine vllm: answers greedily here; set teacher.temperature=0, or use transformers")
    return options, cfg


def main() -> None:
    """Answer what is not answered yet."""
    options, cfg = arguments()  # before torch is imported
    from graft.config import parts
    from graft.evaluation import answers, engines
    from graft.runtime.place import accelerator
    from graft.teachers import _targets

    engines.enter_environment(options.engine)
    processes = accelerator()
    task = parts.build("tasks", cfg.task)
    source, prompts, wanted = _targets.wanted_of(cfg, task)
    folder = _targets.folder_for(cfg, wanted)
    engine = engines.engine(options.engine, source, batch_size=options.batch_size or cfg.evaluate.batch_size,
                            device=processes.device, tensor_parallel=options.tensor_parallel,
                            processes=processes.num_processes, temperature=cfg.teacher.args["temperature"],
                            seed=cfg.teacher.args["fewshot_seed"])
    entry = answers.scored(folder / f"{_targets.NAME}.json", wanted, engine, task, prompts, range(wanted["n"]), None,
                           folder, processes)
    if processes.is_main_process:
        print(f"{folder}: {100 * entry['metrics']['accuracy']['value']:.2f} % of {wanted['n']} answers are right, "
              f"{entry['metrics']['tokens']['value']:.1f} tokens on average; {_targets.task_for(cfg, task).said}")


if __name__ == "__main__":
    exit_cleanly(main)
