"""What language models kept: other rules than they were trained on, their own with worked examples, plain text.

    python scripts/eval_retention.py --base_dir experiments/words_smollm2 --conditions baseline kd_only \\
        --rules third plural --output experiments/words_smollm2/retention.json

Every `<base_dir>/<condition>/seed<k>` answers, at its last step, the test questions of its own task and of each other
rule with --shots worked examples before them; so does the untrained model. On right answers to bare questions and on
plain text (--text, or a page that comes with graft) its distribution is compared with the untrained one's: KL(untrained
|| trained) in nats a token. What is kept beside a checkpoint is used again while it is true.
"""

import argparse
from pathlib import Path

from graft.config import script_options
from graft.errors import UserError, exit_cleanly


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_options.parser(__doc__)
    parser.add_argument("--base_dir", type=Path, required=True, help="experiments/<study>")
    parser.add_argument("--conditions", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True, help="retention.json")
    parser.add_argument("--rules", nargs="+", default=[], help="of tasks that have rules: others than the trained one")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 8], help="worked examples before each question")
    parser.add_argument("--text", default="", help="a file of plain text, an item a line")
    parser.add_argument("--kl_items", type=int, default=64, help="questions of each rule whose answers are compared")
    parser.add_argument("--allow_missing", action="store_true", help="go on without unfinished conditions")
    script_options.add_data(parser)
    script_options.add_engine(parser)
    options = parser.parse_args()
    script_options.at_least(options, limit=0, batch_size=1, tensor_parallel=1, shots=0, kl_items=1)
    options.rules, options.shots = list(dict.fromkeys(options.rules)), sorted(set(options.shots))
    return options


def main() -> None:
    """Evaluate, summarise, write."""
    options = arguments()  # before torch is imported
    from tqdm import tqdm

    from graft.evaluation import engines, rebuild
    from graft.evaluation.retention import Evaluator
    from graft.reporting import results, retained
    from graft.runtime.place import accelerator
    from graft.runtime.provenance import code_sha

    engines.enter_environment(options.engine)
    evaluator, found, first = Evaluator(options, accelerator()), {}, None
    for name in options.conditions:
        try:
            runs = [(folder, rebuild.trained(folder)) for folder in rebuild.runs_of(options.base_dir, name)]
        except UserError as error:
            if not options.allow_missing:
                raise
            tqdm.write(f"left out {name}: {error}")
            continue
        first = first or runs[0][1]
        for _, run in runs:
            if not run.config.reads_text:
                raise UserError(f"{run.folder}: was trained on images; retention is of language models")
            if (base := run.config.student.args["model"]) != (known := first.config.student.args["model"]):
                raise UserError(f"{run.folder}: starts from {base}, {first.folder} from {known}; expected conditions "
                                "of one untrained model")
            evaluator.tasks.of(run, ["test"])
        found[name] = [evaluator.run(folder, run.config, evaluator.probes(run.config))
                       for folder, run in tqdm(runs, desc=name, leave=False)]
    if first is None:
        raise UserError(f"{options.base_dir}: no condition could be evaluated")
    untrained = evaluator.run(None, first.config, evaluator.probes(first.config))
    if not evaluator.accelerator.is_main_process:
        return
    about = evaluator.tasks(first.config).about
    content = retained.assemble(options.base_dir.resolve().name, about, found, untrained, options.base_dir,
                                options.rules, code_sha())
    results.write_json(options.output, content)
    print(retained.shown(content), end="")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    exit_cleanly(main)
