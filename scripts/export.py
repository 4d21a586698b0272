"""A finished run as a folder that other tools load, checked in a process without graft.

    python scripts/export.py experiments/cifar10/baseline/seed0 --to timm --out deit_cifar10
    python scripts/export.py experiments/gsm8k_qwen1b7/kd_only/seed0 --to merged --push me/kd_only

timm: for `timm.create_model("local-dir:…", pretrained=True)`, where timm has the architecture; onnx: for any other
runtime (pip install '.[onnx]'). hf: a language student as it was saved, adapter or whole; merged: the adapter added
to its base. Each has a README with data, recipe, results and the largest difference to the run's own outputs.
"""

import argparse
from pathlib import Path

from graft.config import script_options
from graft.errors import exit_cleanly


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_options.parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, <condition>/seed<k>")
    parser.add_argument("--to", required=True, choices=["timm", "hf", "merged", "onnx"])
    parser.add_argument("--out", type=Path, help="a folder that is new or empty; default: RUN/export-<to>")
    parser.add_argument("--push", default="", metavar="NAMESPACE/NAME", help="upload it to the hub, private")
    return parser.parse_args()


def main() -> None:
    """Write, check, say."""
    options = arguments()  # before torch is imported
    from graft.evaluation import cards, exporting

    out = options.out or options.run / f"export-{options.to}"
    about = exporting.export(options.run, options.to, out)
    cards.write(out, options.run, options.to, about)
    print(f"wrote {out}: largest difference of a logit {about['difference']:.2g} (of {about['largest']:.3g}) over "
          f"{about['inputs']} inputs, in a process without graft")
    if options.push:
        print(exporting.push(out, options.push))


if __name__ == "__main__":
    exit_cleanly(main)
