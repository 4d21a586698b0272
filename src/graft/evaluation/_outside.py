"""Run by its path in a process without graft: what an exported model says of given inputs.

    python -P _outside.py timm|hf|merged|onnx FOLDER INPUTS.npy OUTPUTS.npy

Images (N, C, H, W) in [0, 1], normalised as the folder says, or token ids (N, T). What is imported is what a user of
the export would import.
"""

import json
import sys
from pathlib import Path

import numpy as np


def _timm(folder: Path, images: np.ndarray) -> np.ndarray:
    import timm
    import torch
    model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    config = timm.data.resolve_data_config(model=model)
    mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return model((torch.from_numpy(images) - mean) / std).numpy()


def _onnx(folder: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def _language(folder: Path, ids: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    AutoTokenizer.from_pretrained(folder)
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.exists() else folder
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter.exists():
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(ids)).logits.float().numpy()


if __name__ == "__main__":
    kind, source, inputs, outputs = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    found = {"timm": _timm, "onnx": _onnx, "hf": _language, "merged": _language}[kind](source, np.load(inputs))
    assert "graft" not in sys.modules
    np.save(outputs, found)
