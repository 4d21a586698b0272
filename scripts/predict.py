"""Classify images with a finished run: single files and folders, with confidence, top 5 and an explanation.

    python scripts/predict.py photo.png folder/ --run experiments/cifar10/baseline/seed0 [--tta] [--explain]

Each image is made what the run was trained on: its channels, the largest centred square at its size. A table goes
to the terminal, one JSON object an image to OUT/predictions.jsonl; `--explain` adds OUT/<name>.png with the Grad-CAM
of the predicted class (graft.probes.saliency says which layer) and feature maps. Colours are never inverted unless
`--invert` says so.
"""

import argparse
import json
from pathlib import Path

from graft.config import script_options
from graft.errors import exit_cleanly


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_options.parser(__doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--run", type=Path, help="a run's folder; default: the newest under experiments/")
    parser.add_argument("--tta", action="store_true", help="average the probabilities of shifted (and mirrored) views")
    parser.add_argument("--explain", action="store_true", help="write Grad-CAM and feature maps")
    parser.add_argument("--invert", action="store_true", help="light and dark exchanged: ink on paper for MNIST")
    parser.add_argument("--out", type=Path, default=Path("outputs/predict"))
    script_options.add_weights(parser)
    return parser.parse_args()


def main() -> None:
    """Read, classify, print, explain."""
    options = arguments()  # before torch is imported
    import torch

    from graft.augment import to_float
    from graft.evaluation import rebuild
    from graft.evaluation.predictions import explanation, find_images, newest_run, predict, read_image
    from graft.probes.corruptions import AveragedViews
    from graft.reporting import figures
    from graft.runtime.files import write_text
    from graft.runtime.place import set_kernels
    from graft.tasks._images import shown

    files = find_images(options.images)
    run_dir = options.run or newest_run()
    run = rebuild.trained(run_dir)
    rebuild.refuse_text(run.config, run_dir)
    task = run.task
    set_kernels()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student, info = rebuild.classifier(run, options.weights, device)
    images = torch.stack([read_image(file, task, options.invert) for file in files]).to(device)
    bright, usual = float(to_float(images).mean()), task.mean[0]
    if task.channels == 1 and abs(1 - bright - usual) + 0.2 < abs(bright - usual):
        print(f"note: the images' mean brightness is {bright:.2f}, the run was trained on {usual:.2f}; should light "
              f"and dark be exchanged ({'without' if options.invert else 'with'} --invert)?")
    model = AveragedViews(student, rebuild.mirrors(run.config)) if options.tta else student
    rows = [{"file": shown(file), **row} for file, row in zip(files, predict(model, images, task.classes), strict=True)]
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"run": str(run_dir), "step": info["step"], "tta": options.tta}
    if options.explain:
        for i, row in enumerate(rows):
            row["explanation"] = str(options.out / f"{i:04d}-{Path(row['file']).stem}.png")
            with figures.style():
                explanation(student, images[i], row, task.classes).savefig(row["explanation"])
    write_text(options.out / "predictions.jsonl", "".join(json.dumps({**row, **about}) + "\n" for row in rows))
    print(f"{run_dir}, step {info['step']}, {info['weights']} weights{', averaged views' if options.tta else ''}")
    width = max(len(row["file"]) for row in rows)
    for row in rows:
        others = ", ".join(f"{other['class']} {100 * other['confidence']:.1f}%" for other in row["top"][1:])
        print(f"{row['file']:<{width}}  {row['class']:<12} {100 * row['confidence']:5.1f}%   then {others}")
    print(f"wrote {options.out}/predictions.jsonl{' and a PNG an image' if options.explain else ''}")


if __name__ == "__main__":
    exit_cleanly(main)
