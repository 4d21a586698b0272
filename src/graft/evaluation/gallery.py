"""What the report shows of single examples besides their rows: the image and where each arm looked, or the question."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

from graft.augment import to_float
from graft.errors import UserError
from graft.evaluation import rebuild
from graft.probes.saliency import grad_cam

LARGEST = 160  # pixels of a side in the report
HEAT = 0.5  # weight of the map over its image


def questions(run_dir: Path, split: str, places: Sequence[int], root: str = "") -> list[dict[str, str]]:
    """Question, worked answer and group of the items at `places`. Raises UserError for data that are other by now."""
    task, _ = rebuild.Tasks(torch.device("cpu"), root).of(rebuild.trained(run_dir), [split])
    items = [task.splits[split].items[place] for place in places]
    return [{"question": item.question, "worked": item.answer, "group": item.group} for item in items]


def images(run_dir: Path, split: str, places: Sequence[int], root: str = "") -> tuple[list[str], torch.Tensor]:
    """The images at `places` as data URIs, and as uint8 (N, C, H, W). Raises UserError for other data."""
    task, _ = rebuild.Tasks(torch.device("cpu"), root).of(rebuild.trained(run_dir), [split])
    pixels, _ = next(task.splits[split].batches([torch.as_tensor(list(places))]))
    return [_uri(_rgb(image)) for image in pixels], pixels


def maps(runs: Mapping[str, tuple[Path, dict[str, Any]]], pixels: torch.Tensor, classes: Mapping[str, Sequence[int]]
         ) -> tuple[dict[str, list[str]], list[str]]:
    """Grad-CAM of the class that each condition predicted, over the images `pixels`, as data URIs; and what is missing.

    `runs`: by condition the folder of a run and its entry in results.json, which says whose rows they are.
    """
    found, missing = {}, []
    for name, (run_dir, entry) in runs.items():
        try:
            weights = "average" if entry["weights"] == "average" else "last"
            student, info = rebuild.classifier(rebuild.trained(run_dir), weights, torch.device("cpu"))
            if info["sha256"] != entry["checkpoint_sha256"]:
                raise UserError(f"{run_dir}: another checkpoint than that of results.json")
            cams = grad_cam(student, to_float(pixels), torch.as_tensor(list(classes[name]))).numpy()
            found[name] = [_uri(_warm(_rgb(image), cam)) for image, cam in zip(pixels, cams, strict=True)]
        except UserError as error:
            missing.append(f"Grad-CAM of {name}: {error}")
    return found, missing


def _rgb(image: torch.Tensor) -> np.ndarray:
    array = image.permute(1, 2, 0).numpy()
    return array.repeat(3, 2) if array.shape[2] == 1 else array


def _warm(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    colours = 255 * matplotlib.colormaps["inferno"](cam)[..., :3]
    return ((1 - HEAT) * image + HEAT * colours).round().astype(np.uint8)


def _uri(array: np.ndarray) -> str:
    """PNG for what is small, where every pixel counts; else JPEG of `LARGEST` pixels."""
    image, buffer = Image.fromarray(array), io.BytesIO()
    small = max(image.size) <= LARGEST // 2
    image.thumbnail((LARGEST, LARGEST))
    image.save(buffer, "PNG" if small else "JPEG")
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
