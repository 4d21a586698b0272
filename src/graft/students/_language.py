"""Finding, loading and identifying causal language models, for the student and for its teacher."""

import copy
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file, logging

from graft.config.options import Config
from graft.errors import UserError
from graft.runtime import checkpoint, digests
from graft.runtime.identity import of_checkpoint
from graft.tasks import _gguf, _prompts
from graft.tasks._files import require_model
from graft.tasks._text import TextTask

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CONTENT = {".safetensors", ".bin", ".gguf", ".py"}  # suffixes of files that decide what a model computes


def folder_of(model: str, key: str = "student.model") -> str:
    """Where transformers finds `model`: the last checkpoint of a finished run of this project, the folder that was
    made of a GGUF file, else what was given.

    `key` is the configuration key that errors name. Raises UserError if there is no such folder and it is no name of
    the hub's, if the run is not finished, or for an adapter, which is not a model.
    """
    if model.endswith(_gguf.SUFFIX):
        return str(_gguf.folder_of(model, key))
    require_model(key, model)
    folder = Path(model)
    if checkpoint.is_run(folder):
        folder, _ = checkpoint.final(folder)
    if (folder / "adapter_config.json").is_file():  # transformers would load its base and put the adapter inside
        raise UserError(f"{key}: {model}: is an adapter; name a model, or a run of full fine-tuning")
    return model if folder == Path(model) else str(folder)


def load(key: str, model: str, revision: str, dtype: str, attention: str, random_weights: bool,
         trust_remote_code: bool) -> PreTrainedModel:
    """The model with its published weights, or with new ones drawn from the global generator.

    `key` is the configuration key that errors name. Raises UserError if there is no such model.
    """
    where, options = folder_of(model, key), {"revision": revision or None, "trust_remote_code": trust_remote_code}
    # Without a dtype transformers takes the checkpoint's: full fine-tuning would then have bf16 master weights.
    placed = {"dtype": DTYPES[dtype], "attn_implementation": attention}
    logging.disable_progress_bar()  # every process would write one into the log
    try:
        if random_weights:
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(where, **options), **placed)
        lm, report = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **options, **placed)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{key}: {model}: cannot be loaded ({' '.join(str(error).split())[:300]}); expected a folder, "
                        "a finished run of full fine-tuning, or a model of the hub that can be reached") from None
    if missing := sorted(report["missing_keys"]):  # transformers would draw them at random
        raise UserError(f"{key}: {model}: has no weights for {missing[0]} and {len(missing) - 1} more")
    return lm


def refuse_other_tokenizer(key: str, task: TextTask, model: str, revision: str) -> None:
    """Raise UserError if a model's own tokenizer is not the task's: its tokens would mean something else."""
    where = Path(folder_of(model, key))
    if str(where) != model and checkpoint.is_run(where.parent):  # a run of this project: its checkpoint knows
        theirs = of_checkpoint(where, checkpoint.info_of(where))["tokenizer_sha256"]
    else:
        try:
            theirs = _prompts.load(model, revision).tokenizer_sha256
        except UserError as error:
            raise UserError(str(error).replace("task.tokenizer", key)) from None
    if theirs != task.prompt.tokenizer_sha256:
        raise UserError(f"{key}: {model} has another tokenizer than task.tokenizer "
                        f"{task.prompt.tokenizer.name_or_path}; logits cannot be compared token by token")


def identity(model: str, revision: str, key: str = "student.model") -> str:
    """What the weights are: the hub's commit, or a digest of a folder's configuration and weights, every byte of them.

    16 GB take about ten seconds the first time (`graft.runtime.digests`). Raises UserError if there is no such model.
    """
    folder = Path(folder_of(model, key))
    if not folder.is_dir():
        try:
            file = cached_file(model, "config.json", revision=revision or None)
        except OSError as error:
            raise UserError(f"{key}: {model}: {' '.join(str(error).split())[:300]}") from None
        return f"{model}@{Path(file).parent.name}"  # .../snapshots/<commit>/config.json
    files = sorted(file for file in folder.iterdir() if file.suffix in CONTENT or file.name == "config.json")
    about = list(zip([file.name for file in files], digests.of_files(files), strict=True))
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def origins(config: Config) -> dict[str, dict[str, Any]]:
    """What is noted of where the student's and the teacher's weights are from, by the model's name: packages, licence,
    quantisation. A run that is such a model passes on what it started from. Raises UserError for a damaged note."""
    found: dict[str, dict[str, Any]] = {}
    for key in ("student", "teacher"):
        args = getattr(config, key).args
        if (model := args.get("model", "")) and not args.get("random_weights"):
            folder = Path(folder_of(model, f"{key}.model"))
            if checkpoint.is_run(folder.parent):
                found |= checkpoint.info_of(folder).get("models", {})
            elif note := _gguf.origin(folder, f"{key}.model"):
                found[model] = note
    return found


class Head(nn.Module):
    """Hidden states after the last norm (n, D) -> logits (n, V), as the model itself computes them.

    Holds the model in a tuple: it is no submodule, its parameters are the model's.
    """

    def __init__(self, lm: PreTrainedModel):
        super().__init__()
        self._lm = (lm,)
        self.vocabulary = lm.get_output_embeddings().weight.shape[0]
        config = lm.config.get_text_config()
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V); in fp32, also where the factors are bf16."""
        output = self._lm[0].get_output_embeddings()
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else output.weight.dtype
        if dtype == torch.float32 or type(output) is not nn.Linear or output.bias is not None:
            logits = output(hidden)
        else:
            logits = _Logits.apply(hidden.to(dtype), output.weight.to(dtype))
        if self.scale != 1:
            logits = logits * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


class _Logits(torch.autograd.Function):
    """Half-precision (n, D), (V, D) -> their products (n, V), summed and returned in fp32.

    Rounding a logit of 20 to bf16 would move it by up to 0.06 nat. The gradient is rounded, as everywhere.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        with torch.autocast(hidden.device.type, enabled=False):
            # A tensor without data (graft.planning) stands for one on a GPU.
            if hidden.device.type == "cuda" or isinstance(hidden, FakeTensor):
                return torch.mm(hidden, weight.T, out_dtype=torch.float32)
            return hidden.float() @ weight.float().T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        gradient = gradient.to(hidden.dtype)
        return (gradient @ weight if ctx.needs_input_grad[0] else None,
                gradient.T @ hidden if ctx.needs_input_grad[1] else None)


@torch.no_grad()
def check_head(key: str, lm: PreTrainedModel, head: Head) -> None:
    """Raise UserError unless decoder and head give the logits that the whole model gives (some scale or cap them)."""
    ids = torch.arange(4)[None]
    decoder, training, attention = lm.get_decoder(), lm.training, lm.config._attn_implementation
    layers = getattr(decoder, "layers", None)
    lm.eval()
    lm.set_attn_implementation("eager")  # flash attention has no kernel for the CPU, where the model still is
    if isinstance(layers, nn.ModuleList):  # one will do: what comes after them is asked for, and 8B on a CPU is slow
        decoder.layers = layers[:1]
    whole = lm(input_ids=ids, use_cache=False).logits[0].float()
    apart = head(decoder(input_ids=ids, use_cache=False).last_hidden_state[0]).float()
    if isinstance(layers, nn.ModuleList):
        decoder.layers = layers
    lm.set_attn_implementation(attention)
    lm.train(training)
    if not torch.allclose(whole, apart, rtol=1e-2, atol=1e-2 * float(whole.abs().max())):
        raise UserError(f"{key}: {type(lm).__name__} does more to its logits than its output embedding; its head is "
                        "not known here")


def end_ids(key: str, model: str, ends: object) -> set[int]:
    """The tokens that a model's configuration calls an end: `eos_token_id`, a number, a list of them or None.

    Raises UserError for anything else, such as the token's text.
    """
    ids = [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]
    if bad := [one for one in ids if not isinstance(one, int) or isinstance(one, bool) or one < 0]:
        raise UserError(f"{key}: {model}: eos_token_id in config.json or generation_config.json: expected token "
                        f"numbers, got {bad[0]!r}")
    return set(ids)


def refuse_longer(key: str, about: PreTrainedConfig, tokens: int, setting: str) -> None:
    """Raise UserError if sequences of up to `tokens`, as `setting` allows them, have more positions than a model."""
    room = getattr(about.get_text_config(), "max_position_embeddings", None)
    if room and tokens > room:
        raise UserError(f"{setting}: sequences of up to {tokens} tokens are more than the {room} positions of {key} "
                        f"{about.name_or_path}")


def refuse_no_room(about: PreTrainedConfig, prompt: int, answer: int) -> None:
    """Raise UserError if a student has not the positions for `answer` tokens after prompts of up to `prompt`."""
    refuse_longer("student.model", about, prompt + answer,
                  f"evaluate.max_new_tokens: {answer} after prompts of up to {prompt} tokens")


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """The files of a tokenizer and its chat template, for the folder of a model that was trained with it."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.no_padding()  # of the last call
    tokenizer.backend_tokenizer.no_truncation()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}


def about(peft_config: object, folder: Path) -> str:
    """adapter_config.json as peft writes it."""
    peft_config.save_pretrained(str(folder))
    return json.dumps(json.loads((folder / "adapter_config.json").read_text()), indent=1, sort_keys=True) + "\n"
