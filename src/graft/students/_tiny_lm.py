"""Small causal language models with random weights, and tokenizers for them, made without any download.

The folder loads like any other: configuration, tokenizer, chat template, model.safetensors. Each family has the traits
of its namesake that prompts depend on: who puts BOS first, what ends a turn, what a template adds by itself.
"""

import string
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, processors
from tokenizers.pre_tokenizers import ByteLevel, Split
from transformers import (
    Gemma3ForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
)

from graft import keyed
from graft.errors import UserError


@dataclass(frozen=True)
class Family:
    """What distinguishes a family's tokenizer and prompts. Roles and blocks are tokens of their own."""

    model: type[PreTrainedModel]
    tied: bool  # input and output embeddings are one
    special: tuple[str, ...]
    bos: str  # "" if the family has none; else the tokenizer puts it before every text
    eos: str  # of the chat model
    base_eos: str
    pad: str  # "" if the family has none
    words: tuple[str, ...]  # ordinary tokens that the template writes
    writes: str  # characters that it writes
    template: str


FAMILIES = {
    "qwen3": Family(
        Qwen3ForCausalLM, True, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "", "<|im_end|>", "<|endoftext|>",
        "<|endoftext|>", ("<think>", "</think>", "system", "user", "assistant"), "\n",
        "{%- set silent = '<think>\\n\\n</think>\\n\\n' -%}"
        "{%- for turn in messages -%}"
        "{{- '<|im_start|>' + turn.role + '\\n' -}}"
        "{%- if loop.last and turn.role == 'assistant' -%}{{- silent -}}{%- endif -%}"
        "{{- turn.content + '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        "{{- '<|im_start|>assistant\\n' -}}"
        "{%- if not enable_thinking | default(true) -%}{{- silent -}}{%- endif -%}"
        "{%- endif -%}"),
    "llama": Family(
        LlamaForCausalLM, False,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>", "", ("system", "user", "assistant"),
        "\n :" + string.ascii_letters + string.digits,
        "{%- macro header(role) -%}"
        "{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' -}}"
        "{%- endmacro -%}"
        "{%- set today = date_string if date_string is defined else strftime_now('%d %b %Y') -%}"
        "{{- bos_token + header('system') + 'Date: ' + today + '\\n\\n<|eot_id|>' -}}"
        "{%- for turn in messages -%}{{- header(turn.role) + turn.content | trim + '<|eot_id|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- header('assistant') -}}{%- endif -%}"),
    "gemma3": Family(
        Gemma3ForCausalLM, True, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>", "<eos>", "<eos>", "<pad>", ("user", "model"), "\n",
        "{{- bos_token -}}"
        "{%- for turn in messages -%}"
        "{%- set role = 'model' if turn.role == 'assistant' else turn.role -%}"
        "{{- '<start_of_turn>' + role + '\\n' + turn.content | trim + '<end_of_turn>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"),
}


def make_tokenizer(family: str, characters: str = "", plain: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of a family: of bytes, or of `characters` (and the newline, and what the chat template writes).

    The character tokenizer raises an exception at any other character. Special tokens have the first ids.
    """
    about = FAMILIES[family]
    alphabet = {*characters, "\n", *("" if plain else about.writes)} if characters else ByteLevel.alphabet()
    ids = {token: i for i, token in enumerate([*about.special, *sorted(alphabet)])}
    if characters:
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unknown character>"))  # not in the vocabulary
        tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    else:
        tokenizer = Tokenizer(models.BPE(ids, []))
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in about.special])
    if not plain:
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in about.words])
    if bos := about.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids[bos])])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=about.bos or None, pad_token=about.pad or None,
        eos_token=about.base_eos if plain else about.eos, clean_up_tokenization_spaces=False)
    made.chat_template = None if plain else about.template
    return made


def make(out: str | Path, family: str = "qwen3", *, hidden: int = 64, layers: int = 2, heads: int = 4,
         kv_heads: int = 2, ff: int = 128, seed: int = 0, characters: str = "", vocabulary: int = 0,
         init_std: float = 0.02, plain: bool = False, no_weights: bool = False) -> Path:
    """Write a model's folder and return it. The weights are float32 and depend on the architecture and `seed` alone.

    `vocabulary` rows in the embedding (0: as many as the tokenizer has tokens). `plain` makes a base model, without a
    chat template. Raises UserError if the sizes do not fit together.
    """
    if family not in FAMILIES:
        raise UserError(f"family: expected one of {', '.join(FAMILIES)}, got {family}")
    if hidden % (2 * heads) or heads % kv_heads:
        raise UserError(f"hidden {hidden}, heads {heads}, kv_heads {kv_heads}: expected an even hidden / heads and a "
                        "whole heads / kv_heads")
    about, tokenizer = FAMILIES[family], make_tokenizer(family, characters, plain)
    if 0 < vocabulary < len(tokenizer):
        raise UserError(f"vocabulary: the tokenizer has {len(tokenizer)} tokens, got {vocabulary}")
    tokenizer.save_pretrained(out)
    config = about.model.config_class(
        vocab_size=vocabulary or len(tokenizer), hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=hidden // heads, intermediate_size=ff,
        max_position_embeddings=32768, initializer_range=init_std, tie_word_embeddings=about.tied,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config.architectures = [about.model.__name__]
    config.save_pretrained(out)
    if not no_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed.key(seed, "tiny_lm"))
            about.model(config).save_pretrained(out)
    return Path(out)
