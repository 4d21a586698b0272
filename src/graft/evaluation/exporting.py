"""A finished run as a folder that other tools load: timm, ONNX, an adapter or a merged language model.

Each is checked where it will be used, in a process that does not import graft: same inputs, same logits.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from graft.augment import to_float
from graft.config import parts
from graft.config.options import Config
from graft.errors import UserError
from graft.evaluation import rebuild
from graft.runtime import checkpoint
from graft.students._backbone import Backbone
from graft.students._language import tokenizer_files
from graft.students._weights import size_option
from graft.tasks._task import Task

KINDS = ("timm", "onnx", "hf", "merged")
CHECKED = 8  # inputs
TOLERANCE = 1e-4  # of the largest logit, for the largest difference
OUTSIDE = Path(__file__).with_name("_outside.py")


def export(run_dir: Path, kind: str, out: Path) -> dict[str, Any]:
    """Write the folder. Returns the run, its checkpoint's digest and the largest difference of logits.

    Raises UserError, and leaves no folder, for a kind that does not suit the run or if the outputs differ.
    """
    run = rebuild.trained(run_dir)
    text = run.config.reads_text
    if text != (kind in ("hf", "merged")):
        raise UserError(f"--to {kind}: {run_dir} is of {'language' if text else 'images'}; "
                        f"expected {'hf or merged' if text else 'timm or onnx'}")
    if kind == "onnx" and (absent := [n for n in ("onnx", "onnxscript", "onnxruntime")
                                      if not importlib.util.find_spec(n)]):
        raise UserError(f"--to onnx: needs {', '.join(absent)}; pip install '.[onnx]'")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: is not empty; name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        folder = Path(temporary) / "export"
        folder.mkdir()
        found = (_language if text else _images)(run, kind, folder)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    return found | {"config": run.config, "data": run.data}


def _images(run: rebuild.Trained, kind: str, folder: Path) -> dict[str, Any]:
    student, info = rebuild.classifier(run, "auto", torch.device("cpu"))
    inputs = _noise(run.task)
    (_to_timm if kind == "timm" else _to_onnx)(run, student, inputs, folder)
    (folder / "classes.json").write_text(json.dumps(run.task.classes, ensure_ascii=False, indent=1) + "\n")
    with torch.no_grad():
        expected = student(inputs).logits.numpy()
    return _same(kind, folder, inputs.numpy(), expected) | {"step": info["step"], "sha256": info["sha256"]}


def _noise(task: Task) -> Tensor:
    shape = (CHECKED, task.channels, task.size, task.size)
    generator = torch.Generator().manual_seed(0)
    return to_float(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))


def _to_timm(run: rebuild.Trained, student: Backbone, inputs: Tensor, folder: Path) -> None:
    """config.json and weights for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    arch, options = _as_timm(run.config, run.task)
    model = timm.create_model(arch, **options)
    state = _one_head(run.config, student.model.state_dict())
    ours, theirs = ({name: value.shape for name, value in one.items()} for one in (state, model.state_dict()))
    if ours != theirs:
        names = ", ".join(sorted(set(ours.items()) ^ set(theirs.items()), key=str)[0][:1])
        raise UserError(f"--to timm: timm has no {arch} with these weights (they differ in {names}); try --to onnx")
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    side = [run.task.channels, run.task.size, run.task.size]
    about = {"architecture": arch, "num_classes": model.num_classes, "num_features": model.num_features,
             "label_names": run.task.classes, "model_args": options,
             "pretrained_cfg": {"num_classes": model.num_classes, "input_size": side,
                                "fixed_input_size": "img_size" in options,  # else timm hands a CNN an img_size
                                "mean": list(run.task.mean), "std": list(run.task.std), "crop_pct": 1.0,
                                "interpolation": "bicubic", "custom_load": False,
                                **{key: model.pretrained_cfg[key] for key in ("first_conv", "classifier")}}}
    (folder / "config.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def _as_timm(cfg: Config, task: Task) -> tuple[str, dict[str, Any]]:
    """The name and arguments of the same architecture in timm. Raises UserError if timm has none."""
    name, args = cfg.student.name, cfg.student.args
    options: dict[str, Any] = {"num_classes": task.num_classes, "in_chans": task.channels}
    if name == "timm":
        patch = {"patch_size": args["patch"]} if args["patch"] else {}
        return args["arch"], {**options, **size_option(args["arch"], task.size), **patch}
    if name == "cnn" and args["arch"] == "convnextv2_tiny":
        return "convnextv2_tiny", {**options, "patch_size": 2}
    if name == "vit" and args["stem"] == "patch" and not (args["grayscale_to_rgb"] and task.channels == 1):
        shape = {"img_size": task.size, "patch_size": args["patch"], "embed_dim": args["dim"], "depth": args["depth"],
                 "num_heads": args["heads"], "mlp_ratio": args["mlp_ratio"], "dynamic_img_size": True}
        if args["distilled"] and args["inference"] == "avg":
            return "deit_tiny_distilled_patch16_224", {**options, **shape}
        # Where one head is read, the other's token is one that only takes part in attention: a register.
        return "vit_tiny_patch16_224", {**options, **shape, "reg_tokens": int(args["distilled"])}
    raise UserError(f"--to timm: student.{name} has a stem or blocks of its own, which timm has not; try --to onnx")


def _one_head(cfg: Config, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a student with a distillation token of which one head is read, as those of a ViT with one
    register; any other's as they are. The token that is read comes first: attention does not know an order."""
    reading = cfg.student.args.get("inference", "avg")
    if cfg.student.name != "vit" or not cfg.student.args["distilled"] or reading == "avg":
        return state
    first, other = ("cls_token", "dist_token") if reading == "cls" else ("dist_token", "cls_token")
    head = "head" if reading == "cls" else "head_dist"
    places = state["pos_embed"] if reading == "cls" else torch.cat(
        [state["pos_embed"][:, [1, 0]], state["pos_embed"][:, 2:]], 1)
    kept = {name: value for name, value in state.items() if not name.startswith(("head", "cls_token", "dist_token"))}
    return {**kept, "cls_token": state[first], "reg_token": state[other], "pos_embed": places,
            "head.weight": state[f"{head}.weight"], "head.bias": state[f"{head}.bias"]}


class _Logits(nn.Module):
    """Images in [0, 1] to logits, without features."""

    def __init__(self, student: Backbone):
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        return self.student(images).logits


def _to_onnx(run: rebuild.Trained, student: Backbone, inputs: Tensor, folder: Path) -> None:
    """model.onnx: images (N, C, H, W) in [0, 1] to logits (N, K), any N; it normalises by itself."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(action="ignore"):  # the exporter's, of its own parts
        torch.onnx.export(_Logits(student).eval(), (inputs,), folder / "model.onnx", input_names=["images"],
                          output_names=["logits"], dynamic_shapes=({0: batch},), dynamo=True, external_data=False,
                          verbose=False)


def _language(run: rebuild.Trained, kind: str, folder: Path) -> dict[str, Any]:
    path, _ = checkpoint.final(run.folder)
    task = rebuild.Tasks(torch.device("cpu"))(run.config)
    student = parts.build("students", run.config.student, task)
    state, info = checkpoint.load_model(run.folder, "auto")
    student.load_state_dict(state)
    student.eval()
    ids, expected = _answers(student)
    if kind == "merged" and student.lora:
        student.lm.merge_and_unload().save_pretrained(folder)
    else:
        for name in ("adapter_config.json", "config.json", "generation_config.json"):
            if (path / name).exists():
                shutil.copy(path / name, folder)
        weights = checkpoint.student_file([file.name for file in path.iterdir()])
        shutil.copy(path / weights, folder)
    for name, content in tokenizer_files(task.prompt.tokenizer).items():
        (folder / name).write_bytes(content)
    return _same(kind, folder, ids, expected) | {"step": info["step"], "sha256": info["sha256"]}


def _answers(student: Any) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (N, T) and the student's logits for them (N, T, V)."""
    size = student.model.config.vocab_size
    ids = torch.randint(0, size, (CHECKED, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return ids.numpy(), student.lm(input_ids=ids).logits.float().numpy()


def _same(kind: str, folder: Path, inputs: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """The largest difference between `expected` and what the folder gives elsewhere. Raises UserError if it is one."""
    with tempfile.TemporaryDirectory() as work:
        given, back = Path(work) / "inputs.npy", Path(work) / "outputs.npy"
        np.save(given, inputs)
        done = subprocess.run([sys.executable, "-P", str(OUTSIDE), kind, str(folder), str(given), str(back)],
                              capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or "nothing said").splitlines()[-1]
            raise UserError(f"--to {kind}: the exported model cannot be loaded: {last[:300]}")
        found = np.load(back)
    difference, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if found.shape != expected.shape or not difference <= TOLERANCE * max(largest, 1):
        raise UserError(f"--to {kind}: its logits differ by {difference:.3g} (of {largest:.3g}); nothing is exported")
    return {"difference": difference, "largest": largest, "inputs": len(inputs)}


def push(folder: Path, name: str, hub: Callable[[], Any] | None = None) -> str:
    """Upload a folder to the hub as `NAMESPACE/NAME`, private. Raises UserError, one line, where that fails."""
    import huggingface_hub
    api = (hub or huggingface_hub.HfApi)()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))
    except Exception as error:  # whatever is wrong with network, name or rights, said in many ways
        said = " ".join(str(error).split())
        kind = type(error).__name__
        raise UserError(f"--push {name}: {kind}: {said[:200]}; the folder {folder} is complete") from None
