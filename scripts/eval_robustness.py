"""Score finished runs beyond top-1, under corruptions and with test-time augmentation, and write robustness.json.

    python scripts/eval_robustness.py --base_dir experiments/demo --conditions baseline distill \\
        --output experiments/demo/robustness.json

For every `<base_dir>/<condition>/seed<k>`, at its final step: all metrics of graft.probes.classification on the
clean split (calibration, per class, confusion, ROC), the same in short under five corruptions at five severities and
with averaged views, and the agreement with the run's own teacher. It is what the reliability, confusion and ROC
figures read. Corruptions and averaged views are 35 passes over the split; `--images` looks at so many of it there, the
same for every run. Runs of self-supervised training have no classifier and are refused.
"""

import argparse
from pathlib import Path
from typing import Any

from graft import __version__
from graft.config import script_options
from graft.errors import UserError, exit_cleanly


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_options.parser(__doc__)
    parser.add_argument("--base_dir", type=Path, required=True, help="experiments/<study>")
    parser.add_argument("--conditions", nargs="+", required=True)
    parser.add_argument("--baseline", default="baseline", help="the condition that others are compared with, if there")
    parser.add_argument("--output", type=Path, required=True, help="robustness.json")
    parser.add_argument("--split", choices=script_options.SPLITS, default="test")
    parser.add_argument("--images", type=int, default=0, help="for corruptions and averaged views; 0: the whole split")
    parser.add_argument("--allow_missing", action="store_true", help="go on without unfinished conditions")
    script_options.add_weights(parser)
    script_options.add_data(parser)
    options = parser.parse_args()
    script_options.at_least(options, images=0)
    return options


def drawn(run: dict[str, Any]) -> dict[str, Any]:
    """A run with its ROC curves, of which numbers there are most by far, to the four decimals that a figure shows."""
    curves = {name: {axis: [round(value, 4) for value in values] for axis, values in curve.items()}
              for name, curve in run["clean"]["roc"].items()}
    return {**run, "clean": {**run["clean"], "roc": curves}}


def main() -> None:
    """Evaluate, summarise, write."""
    options = arguments()  # before torch is imported
    from tqdm import tqdm

    from graft.evaluation import rebuild
    from graft.evaluation.robustness import Evaluator, summary, to_baseline
    from graft.reporting import results
    from graft.runtime.provenance import code_sha

    evaluator, conditions = Evaluator(options), {}
    for name in options.conditions:
        try:
            runs = [drawn(evaluator.run(run_dir)) for run_dir in rebuild.runs_of(options.base_dir, name)]
            conditions[name] = {"runs": runs, "summary": summary(runs)}
        except UserError as error:
            if not options.allow_missing:
                raise
            tqdm.write(f"left out {name}: {error}")
    if not conditions:
        raise UserError(f"{options.base_dir}: no condition could be evaluated")
    if baseline := conditions.get(options.baseline):
        for own in conditions.values():
            if own is not baseline:
                own["vs_baseline"] = to_baseline(own["runs"], baseline["runs"])
    task = evaluator.data
    size = len(task.splits[options.split])
    results.write_json(options.output, {
        "schema_version": 1, "study": options.base_dir.resolve().name, "code_sha": code_sha(),
        "graft_version": __version__,
        "data": {"id": task.data_id, "fingerprint": task.fingerprint, "fingerprints": task.fingerprints,
                 "classes": task.classes, "n": {"clean": size, "corrupted": min(options.images or size, size)}},
        "order": list(conditions), "conditions": conditions})
    print("| condition | accuracy % | with TTA % | corrupted % | NLL | ECE |\n|---|---|---|---|---|---|")
    for name, condition in conditions.items():
        mean = {key: value["mean"] for key, value in condition["summary"].items()}
        print(f"| {name} | {100 * mean['accuracy']:.2f} | {100 * mean['tta_accuracy']:.2f} | "
              f"{100 * mean['corrupted_accuracy']:.2f} | {mean['nll']:.3f} | {mean['ece']:.3f} |")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    exit_cleanly(main)
