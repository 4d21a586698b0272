"""Language models without their weights: from a folder, the hub's cache, or the published sizes of known ones."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from graft.errors import UserError
from graft.students import _language

_QWEN3 = {"model_type": "qwen3", "head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151_936}
# Their published config.json, as far as it decides shapes. Numbers of parameters are those of the models' pages, and
# what a test compares.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-1.7B": {**_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
                        "num_attention_heads": 16, "tie_word_embeddings": True},
    "Qwen/Qwen3-8B": {**_QWEN3, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
                      "num_attention_heads": 32, "tie_word_embeddings": False},
    "meta-llama/Llama-3.2-3B-Instruct": {
        "model_type": "llama", "head_dim": 128, "num_key_value_heads": 8, "vocab_size": 128_256, "hidden_size": 3072,
        "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "tie_word_embeddings": True},
    "google/gemma-3-270m": {
        "model_type": "gemma3_text", "head_dim": 256, "num_key_value_heads": 1, "vocab_size": 262_144,
        "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
        "sliding_window": 512, "tie_word_embeddings": True},
}


def config_of(model: str, revision: str = "") -> PreTrainedConfig:
    """The configuration of a model: a folder, a GGUF file, a finished run, or one of the hub.

    Raises UserError, one line, if it is neither here nor among the known ones.
    """
    where = _language.folder_of(model, "student.model, teacher.model")
    try:
        if Path(where).is_dir():
            return AutoConfig.from_pretrained(where)
        return AutoConfig.from_pretrained(where, revision=revision or None, local_files_only=True)
    except (OSError, ValueError):
        if model not in PUBLISHED:
            raise UserError(f"{model}: no config.json here, and its sizes are not known; hf download {model} "
                            "config.json") from None
    about = dict(PUBLISHED[model])
    return AutoConfig.for_model(about.pop("model_type"), **about, max_position_embeddings=32_768)
