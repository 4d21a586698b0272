"""Any causal language model of transformers, with LoRA adapters or fine-tuned in full."""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from graft.errors import UserError
from graft.outputs import Outputs, Tokens
from graft.students import _language
from graft.tasks._text import TextTask

TEXT = True


def build(task: TextTask, *,
          model: Annotated[str, "", "folder, finished run of full fine-tuning, or model of the hub"],
          revision: Annotated[str, "", "of the hub: branch, tag or commit"] = "",
          lora: Annotated[bool, "", "train LoRA adapters; false: all weights"] = True,
          rank: Annotated[int, "> 0", "LoRA: rank of an adapter"] = 16,
          alpha: Annotated[int, "> 0", "LoRA: an adapter's output is scaled by alpha / rank"] = 32,
          dropout: Annotated[float, "[0, 1)", "LoRA: of an adapter's input, a mask for every adapted layer; 0 costs "
                             "nothing"] = 0.05,
          targets: Annotated[list[str], "", "LoRA: linear layers that get one, by the end of their name"] = (
              "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
          dtype: Annotated[str, "fp32 | bf16", "of the model's weights; adapters are always fp32"] = "fp32",
          checkpointing: Annotated[bool, "", "recompute activations in the backward pass: less memory, slower"] = False,
          attention: Annotated[str, "sdpa | eager | flash_attention_2", "implementation"] = "sdpa",
          random_weights: Annotated[bool, "", "the architecture alone, newly initialised"] = False,
          trust_remote_code: Annotated[bool, "", "run code that comes with the model; needs a pinned commit"] = False,
          ) -> "CausalLM":
    """The model behind `forward(tokens) -> Outputs`. LoRA: Hu et al. 2021 (arXiv:2106.09685).

    Raises UserError for an unknown model, one with another tokenizer, fewer embeddings than it has tokens, too few
    positions or an end that nobody can read, and for `targets` that are no linear layers of it.
    """
    where = _language.folder_of(model)
    lm = _language.load("student.model", where, revision, dtype, attention, random_weights, trust_remote_code)
    has_own = where != model or not Path(model).is_dir() or list(Path(model).glob("tokenizer*"))
    if has_own and model != task.prompt.tokenizer.name_or_path:
        _language.refuse_other_tokenizer("student.model", task, model, revision)
    rows = lm.get_input_embeddings().weight.shape[0]
    if rows < task.num_classes:
        raise UserError(f"task.tokenizer: has {task.num_classes} tokens, student.model {model} has {rows} embeddings")
    if lm.generation_config is not None:  # before training, not when the answers are to end
        _language.end_ids("student.model", model, lm.generation_config.eos_token_id)
    longest = max(int(split.lengths.max()) for split in task.splits.values() if len(split))
    _language.refuse_longer("student.model", lm.config, longest, "task.max_length")
    head = _language.Head(lm)
    _language.check_head("student.model", lm, head)
    base = f"{'random' if random_weights else _language.identity(where, revision)} in {dtype}"
    if lora:
        _refuse_targets(model, lm, targets)
    lm = adapted(lm, revision, lora, rank, alpha, dropout, targets, checkpointing)
    return CausalLM(lm, head, lora, base, model, revision, task.num_classes)


def adapted(lm: PreTrainedModel, revision: str, lora: bool, rank: int, alpha: int, dropout: float,
            targets: Sequence[str], checkpointing: bool) -> nn.Module:
    """The model with adapters, or itself where there are to be none; the arguments are those of `build`."""
    if checkpointing:
        # In this order, or the first layers get no gradient: checkpointing, inputs that require one, then adapters.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # the name that transformers 5.0 has
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora:
            lm.enable_input_require_grads()
    run = _that_answer(lm)
    if not lora:
        ours = {parameter for module in run for parameter in module.parameters()}
        for parameter in lm.parameters():
            parameter.requires_grad_(parameter in ours)
        return lm
    named = {name: module for name, module in lm.named_modules() if name.rpartition(".")[2] in targets}
    whole = [name for name, module in named.items() if module in run]
    adapters = LoraConfig(task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none",
                          target_modules=list(targets) if len(whole) == len(named) else whole,
                          revision=revision or None)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft asks by a name of the past
        return get_peft_model(lm, adapters)


def _that_answer(lm: PreTrainedModel) -> set[nn.Module]:
    """The modules that `CausalLM.forward` runs. Models that also see have others, which no loss would ever reach."""
    return {*lm.get_decoder().modules(), lm.get_output_embeddings()}


def _refuse_targets(model: str, lm: PreTrainedModel, targets: Sequence[str]) -> None:
    if not targets:
        raise UserError("student.targets: expected names of linear layers, got none; or set student.lora to false")
    kinds: dict[str, set[type]] = {}
    run = _that_answer(lm)
    for name, module in ((name, module) for name, module in lm.named_modules() if module in run):
        kinds.setdefault(name.rpartition(".")[2], set()).add(type(module))
    if missing := [name for name in targets if name not in kinds]:
        raise UserError(f"student.targets: {model} has no layer {', '.join(missing)}")
    for name in targets:
        if other := [kind for kind in kinds[name] if not issubclass(kind, (nn.Linear, Conv1D))]:
            raise UserError(f"student.targets: {name} of {model} is {other[0].__name__}; expected linear layers")


class CausalLM(nn.Module):
    """A causal LM that computes logits where they are asked for.

    `base` identifies the weights it started from, those of `source` at `revision`. `state_dict` holds what was
    trained, in the names of transformers (all weights) or peft (the adapters), so a checkpoint's folder is a
    model or an adapter for every other tool.
    """

    def __init__(self, lm: nn.Module, head: _language.Head, lora: bool, base: str, source: str, revision: str,
                 num_classes: int):
        super().__init__()
        self.lm, self.head, self.lora, self.num_classes = lm, head, lora, num_classes
        self.base, self.source, self.revision = base, source, revision
        self.stem = "adapter_model" if lora else "model"
        self._casts = True  # peft's default

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model, its adapters inside where there are any."""
        return self.lm.get_base_model() if self.lora else self.lm

    def forward(self, tokens: Tokens, features: Sequence[str] = ()) -> Outputs:
        """Hidden states (N, D) where an answer token is predicted, and the head; feature `next`: one position on."""
        self._cast_inputs(not torch.is_autocast_enabled(tokens.ids.device.type))
        hidden = self.model.get_decoder()(input_ids=tokens.ids, use_cache=False).last_hidden_state.flatten(0, 1)
        later = {"next": hidden[tokens.rows + 1]} if "next" in features else {}
        return Outputs(None, features=later, hidden=hidden[tokens.rows], head=self.head)

    def _cast_inputs(self, cast: bool) -> None:
        """Whether peft casts the input of adapters, which are fp32, to fp32: under autocast it is cast back at once.

        Not peft's context manager: the decoder is computed again in the backward pass, outside of it.
        """
        for module in self.lm.modules() if self.lora and cast != self._casts else ():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = cast
        self._casts = cast

    @contextlib.contextmanager
    def untrained(self) -> Iterator[None]:
        """The model without its adapters and without dropout, for a forward pass; not for a backward pass."""
        training = self.lm.training
        self.lm.eval()
        try:
            with self.lm.disable_adapter():
                yield
        finally:
            self.lm.train(training)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Trained weights: the adapters, or all without the second name of tied ones."""
        if self.lora:
            # Not "auto", by which peft asks the hub for the base model's configuration at every save.
            return get_peft_model_state_dict(self.lm, save_embedding_layers=False)
        state = self.lm.state_dict()
        tied = self.lm.config.get_text_config().tie_word_embeddings
        return {name: value for name, value in state.items() if not (tied and name == "lm_head.weight")}

    def load_state_dict(self, state: dict[str, Tensor], strict: bool = True, assign: bool = False) -> None:
        """Put trained weights back. Raises UserError if they are another model's."""
        if state.keys() != self.state_dict().keys():
            raise UserError("the checkpoint's weights are of another architecture or have other adapters")
        if self.lora:
            set_peft_model_state_dict(self.lm, state)
        else:
            self.lm.load_state_dict(state, strict=False)
            self.lm.tie_weights()

    def export_files(self) -> dict[str, str]:
        """What a checkpoint's folder needs besides weights and tokenizer to be loaded elsewhere: name -> text."""
        generation = self.model.generation_config
        files = {} if generation is None else {"generation_config.json": generation.to_json_string()}
        if not self.lora:
            return {"config.json": self.lm.config.to_json_string(use_diff=True), **files}
        with tempfile.TemporaryDirectory() as folder:
            return {"adapter_config.json": _language.about(self.lm.peft_config["default"], Path(folder)), **files}
