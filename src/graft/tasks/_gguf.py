"""Quantised model files (GGUF) as folders that transformers, peft and vLLM read: fp32 weights, tokenizer, template.

transformers dequantises the tensors, but the model it returns calls itself quantised and cannot be saved; here its
weights go into a fresh model of the same configuration. `origin.json` in the folder says what it was made from.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import filelock

from graft.errors import UserError
from graft.runtime.digests import of_files
from graft.runtime.files import cache_dir, parsed, permitted

SUFFIX = ".gguf"
NOTE = "origin.json"


def cache() -> Path:
    """Where model folders are kept: `$GRAFT_CACHE/models`, else `cache/models` in the working directory."""
    return cache_dir() / "models"


def folder_of(file: str, key: str) -> Path:
    """The folder made of a GGUF file, made now if it is not there; its name holds the file's digest.

    `key` is the configuration key that errors name. Raises UserError if the file is none, or of an architecture that
    transformers does not read.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{key}: {file}: no such file")
    digest = of_files([path])[0]
    folder = cache() / f"{path.stem}-{digest[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):  # two runs that start together convert it once
        if not folder.is_dir():
            convert(path, folder, key, {"file": path.name, "sha256": digest})
    return folder


def origin(folder: Path, key: str) -> dict[str, Any]:
    """What the note in a model's folder says of where its weights are from; empty without one.

    Raises UserError for a damaged note: a licence must not be lost without a word.
    """
    note = folder / NOTE
    try:
        content = parsed(note.read_text(encoding="utf-8"))
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()  # it is to go into results
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise UserError(f"{key}: {note}: damaged ({' '.join(str(error).split())[:80]}); expected what "
                        "scripts/get_model.py wrote: make the folder again, or remove the note") from None


def convert(path: Path, folder: Path, key: str, origin: dict[str, Any]) -> None:
    """Write the model of a GGUF file as `folder`, which is there complete or not at all; `origin` joins its note.

    Raises UserError for a damaged file, an unknown architecture, or a tokenizer with more tokens than embeddings.
    """
    about = _metadata(path, key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    try:
        _write(path, unfinished, key)
        (unfinished / NOTE).write_text(json.dumps({**origin, **about}, indent=1) + "\n")
        readable = permitted()  # mkdtemp and safetensors write 0700 and 0600
        os.chmod(unfinished, readable)
        for file in unfinished.iterdir():
            file.chmod(readable & 0o666)
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _metadata(path: Path, key: str) -> dict[str, Any]:
    """Architecture, name and how many tensors are quantised in which way."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"{key}: {path}: GGUF files need the gguf package: pip install gguf") from None
    try:
        reader = GGUFReader(path)
        texts = {name: str(field.contents()) for name, field in reader.fields.items()
                 if name in ("general.architecture", "general.name", "general.license")}
        kinds = [tensor.tensor_type.name for tensor in reader.tensors]
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise UserError(f"{key}: {path}: cannot be read as GGUF ({' '.join(str(error).split())[:200]})") from None
    return {"architecture": texts.get("general.architecture", ""), "name": texts.get("general.name", ""),
            "licence_in_file": texts.get("general.license", ""),
            "tensors": {kind: kinds.count(kind) for kind in sorted(set(kinds))}}


def _write(path: Path, folder: Path, key: str) -> None:
    """Configuration, fp32 weights and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except Exception as error:  # transformers has one kind of error for each kind of file
        raise UserError(f"{key}: {path}: transformers cannot read this GGUF file "
                        f"({' '.join(str(error).split())[:300]})") from None
    rows = read.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(f"{key}: {path}: its tokenizer has {len(tokenizer)} tokens, its weights {rows} embeddings")
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(read).__name__]
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(read.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
