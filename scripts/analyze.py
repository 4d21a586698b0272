"""Forensics of one run: attention, similarity of layers, curvature of the loss.

    python scripts/analyze.py --run experiments/demo/distill/seed0 --metrics attention cka \\
        --output experiments/demo/distill/seed0/analytics.json

The run is rebuilt from its checkpoint at its final step. Every model sees the same images: the first of one
constant random order of the split. Half a minute on two CPU cores for the demo; `hessian` takes longer.
"""

import argparse
from pathlib import Path

from graft.config import script_options
from graft.errors import exit_cleanly

METRICS = ("attention", "cka", "hessian")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_options.parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="<condition>/seed<k>")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=["attention", "cka"])
    parser.add_argument("--hessian_images", type=int, default=256)
    script_options.add_analysis(parser)
    options = parser.parse_args()
    script_options.at_least(options, images=1, cka_images=1, hessian_images=1, batch_size=1)
    return options


def main() -> None:
    """Load, measure, write."""
    options = arguments()  # before torch is imported
    from graft.evaluation.forensics import SCHEMA_VERSION, curve, describe, entry, make_runs
    from graft.reporting import results
    from graft.runtime.provenance import code_sha

    runs = make_runs(options, options.metrics, options.hessian_images)
    cfg, student, info = runs.student(options.run)
    found, _ = entry(runs, cfg, student, info)
    if "hessian" in options.metrics:
        found["hessian"] = curve(runs, cfg, student)
    results.write_json(options.output, {"schema_version": SCHEMA_VERSION, "run": str(options.run),
                                        "code_sha": code_sha(), "data": describe(runs, cfg), **found})
    for key in ("avg_attention_distance", "avg_relative_distance", "collapsed_heads_ratio_relative", "avg_entropy"):
        if key in found:
            print(f"{key}: {found[key]:.4f}")
    if "hessian" in found:
        trace = found["hessian"]["trace"]
        print(f"hessian trace: {trace['value']:.4g}, standard error {trace['standard_error']:.2g}")
    for warning in found.get("warnings", []):
        print(f"warning: {warning}")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    exit_cleanly(main)
