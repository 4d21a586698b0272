"""What a finished run says of image files, and why."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from graft.augment import to_float
from graft.errors import UserError
from graft.evaluation import rebuild
from graft.probes.saliency import feature_maps, grad_cam
from graft.reporting import figures
from graft.runtime.files import SEED, parsed
from graft.tasks._images import SUFFIXES, image_files, read_square, refuse_endless, shown
from graft.tasks._task import Task

BATCH = 256


def newest_run(root: Path = Path("experiments")) -> Path:
    """The classifier under `root` that was finished last. Raises UserError if there is none."""
    finished = []
    for status in root.glob("*/*/seed*/status.json"):
        try:
            state = parsed(status.read_text())
            cfg = rebuild.trained(status.parent).config
            done = state["state"] == "done" and SEED.fullmatch(status.parent.name)
            if done and cfg.method != "ssl_teacher" and not cfg.reads_text:
                finished.append((str(state["time"]), status.parent))
        except (UserError, ValueError, KeyError, TypeError):
            continue  # no run that could be chosen
    if not finished:
        raise UserError(f"--run: no finished run under {root}/; name a run's folder")
    return max(finished)[1]


def find_images(paths: list[Path]) -> list[Path]:
    """The files given and those in the folders given, sorted. Raises UserError for a path without an image."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        inside, _ = image_files(path)
        if path.is_dir() and not inside:
            raise UserError(f"{path}: no images ({', '.join(sorted(SUFFIXES))})")
        if not path.is_dir():
            refuse_endless(path)
        found += inside if path.is_dir() else [path]
    return list(dict.fromkeys(found))


def read_image(path: Path, task: Task, invert: bool) -> Tensor:
    """An image file as the task's images are: uint8 (C, H, W)."""
    pixels = read_square(path, task.channels, task.size, shown(path))
    return torch.from_numpy(255 - pixels if invert else pixels.copy())


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, classes: list[str]) -> list[dict[str, Any]]:
    """Class, confidence and the five likeliest classes of images uint8 (N, C, H, W)."""
    rows = []
    for batch in images.split(BATCH):
        probabilities = model(to_float(batch)).logits.double().softmax(-1)
        for values, places in zip(*probabilities.topk(min(5, len(classes))), strict=True):
            top = [{"class": classes[k], "confidence": p}
                   for p, k in zip(values.tolist(), places.tolist(), strict=True)]
            rows.append({**top[0], "top": top})
    return rows


def explanation(model: nn.Module, image: Tensor, row: dict[str, Any], classes: list[str]) -> Figure:
    """Image, Grad-CAM of the predicted class over it, and below a row of feature maps a layer."""
    pixels = to_float(image[None])
    cam = grad_cam(model, pixels, torch.tensor([classes.index(row["class"])], device=image.device))[0].cpu().numpy()
    maps = {name: values[0].cpu().numpy() for name, values in feature_maps(model, pixels).items()}
    shown = image.permute(1, 2, 0).cpu().numpy()
    shown = shown.repeat(3, 2) if shown.shape[2] == 1 else shown
    width = max(len(values) for values in maps.values())
    figure = Figure(figsize=(figures.PAGE, 2.6 + 0.85 * len(maps)))
    grid = figure.add_gridspec(1 + len(maps), width, height_ratios=[2.4] + [1] * len(maps))
    left, right = (figure.add_subplot(grid[0, half]) for half in (slice(0, width // 2), slice(width // 2, None)))
    left.set_title(row["file"][-60:])
    left.imshow(shown)
    right.set_title(f"Grad-CAM: {row['class']}, {100 * row['confidence']:.1f}%")
    right.imshow(shown)
    right.imshow(cam, cmap="inferno", alpha=0.55, vmin=0, vmax=1)
    for i, (name, values) in enumerate(maps.items(), 1):
        for k, value in enumerate(values):
            axis = figure.add_subplot(grid[i, k])
            axis.imshow(value, cmap="viridis")
            if k == 0:
                axis.set_title(name, loc="left")
    for axis in figure.axes:
        axis.set_axis_off()
    return figure
