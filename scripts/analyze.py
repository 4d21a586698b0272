"""Forensics of one run: attention, similarity of layers, curvature of the loss.

    python scripts/analyze.py --run experiments/demo/distill/seed0 --metrics attention cka \\
        --output experiments/demo/distill/seed0/analytics.json

The run is rebuilt from its checkpoint at its final step. Every model sees the same images: the first of one
constant random order of the split. Half a minute on two CPU cores for the demo; `hessian` takes longer.
"""

import argparse
from pathlib import Path

from graft.errors import exit_cleanly
from graft.evaluation.forensics import SCHEMA_VERSION, add_options, describe, entry, make_runs
from graft.reporting import results
from graft.runtime.provenance import code_sha

METRICS = ("attention", "cka", "hessian")


def main() -> None:
    """Load, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="<condition>/seed<k>")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=["attention", "cka"])
    parser.add_argument("--hessian_images", type=int, default=256)
    add_options(parser)
    options = parser.parse_args()
    runs = make_runs(options, options.metrics, options.hessian_images)
    cfg, student, info = runs.student(options.run)
    found, _ = entry(runs, cfg, student, info)
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
