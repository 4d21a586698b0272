"""Quantised model files: a folder with the same logits as the weights that were written, and what is refused."""

import json
import shutil
import sys

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from graft.errors import UserError
from graft.evaluation import rebuild
from graft.planning import costs
from graft.planning.data import Told, data_of
from graft.students import _language
from graft.tasks import _gguf, _prompts
from small_lm import lm, run_main, tiny

HEADS, KV_HEADS, LAYERS, WIDTH = 4, 2, 2, 32
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k as GGUF has them: rotary pairs side by side instead of half a head apart."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path, tokens: list[str], embeddings: int | None = None, architecture: str = "llama",
          quantised: bool = False) -> dict[str, torch.Tensor]:
    """A GGUF file of a small Llama, by the gguf package alone; returns its weights under transformers' names."""
    draw = torch.Generator().manual_seed(0)
    rows, kv = embeddings or len(tokens), WIDTH // HEADS * KV_HEADS
    shapes = {"model.embed_tokens": (rows, WIDTH), "model.norm": (WIDTH,), "lm_head": (rows, WIDTH)}
    for layer in range(LAYERS):
        own = {"self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (kv, WIDTH), "self_attn.v_proj": (kv, WIDTH),
               "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (64, WIDTH), "mlp.up_proj": (64, WIDTH),
               "mlp.down_proj": (WIDTH, 64), "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    weights = {f"{name}.weight": torch.randn(shape, generator=draw) * 0.2 for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, architecture)
    for add, value in ((writer.add_context_length, 64), (writer.add_embedding_length, WIDTH),
                       (writer.add_block_count, LAYERS), (writer.add_feed_forward_length, 64),
                       (writer.add_head_count, HEADS), (writer.add_head_count_kv, KV_HEADS),
                       (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_freq_base, 10_000.0),
                       (writer.add_vocab_size, rows)):
        add(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    for name, value in weights.items():
        stem = name.removesuffix(".weight")
        array = value.numpy()
        if stem.endswith("q_proj") or stem.endswith("k_proj"):
            array = paired(array, HEADS if stem.endswith("q_proj") else KV_HEADS)
        if stem.startswith("model.layers."):
            _, _, layer, own = stem.split(".", 3)
            there = f"blk.{layer}.{NAMES[own]}.weight"
        else:
            there = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[stem]
            there += ".weight"
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(there, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(there, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


TOKENS = ["<s>", "</s>", "a", "b", "ab", "Ġ", "Ċ", "c", "<|endoftext|>"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))


def test_the_folder_has_the_weights_that_were_written_and_the_tokenizer(tmp_path):
    weights = write(tmp_path / "tiny.gguf", TOKENS)
    lm = _language.load("student.model", str(tmp_path / "tiny.gguf"), "", "fp32", "eager", False, False)
    state = lm.state_dict()
    assert set(weights) == set(state)
    for name, value in weights.items():
        assert torch.equal(state[name], value), name
    prompt = _prompts.load(str(tmp_path / "tiny.gguf"))
    assert prompt.layout == "plain" and prompt.answer_ids(["ab"]) == [[4, 1]] and prompt.decode([4, 7]) == "abc"
    folder = _gguf.folder_of(str(tmp_path / "tiny.gguf"), "student.model")
    assert json.loads((folder / "origin.json").read_text())["tensors"] == {"F32": len(weights)}
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044  # readable for a group, by the usual umask
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again")  # no longer quantised


def test_a_study_of_a_file_is_planned(tmp_path):
    file = str(tmp_path / "tiny.gguf")
    write(tmp_path / "tiny.gguf", [*TOKENS, *sorted({*"Itisoveryeasy#4"} - {*TOKENS})])
    cfg = tiny(tmp_path / "x", f"student.model={file}", "task.layout=plain")
    data = data_of(cfg, Told())
    assert not data.note and data.sizes["train"] == 54  # its tokenizer was read, too
    assert costs.of_run(cfg, data, {}).parameters > 20_000


def test_quantised_weights_are_those_that_the_gguf_package_reads(tmp_path):
    weights = write(tmp_path / "tiny.gguf", TOKENS, quantised=True)
    lm = _language.load("student.model", str(tmp_path / "tiny.gguf"), "", "fp32", "eager", False, False)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    up = tensors["blk.1.ffn_up.weight"]
    expected = torch.from_numpy(gguf.quants.dequantize(up.data, up.tensor_type))
    assert torch.equal(lm.state_dict()["model.layers.1.mlp.up_proj.weight"], expected)
    assert not torch.equal(expected, weights["model.layers.1.mlp.up_proj.weight"])


def test_bad_files_end_in_one_line_and_leave_nothing(tmp_path):
    def refused(name: str, match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            _gguf.folder_of(str(tmp_path / name), "student.model")
        assert "\n" not in str(caught.value) and name in str(caught.value)
        assert not [path for path in _gguf.cache().glob("*") if path.suffix != ".lock"]

    refused("none.gguf", "no such file")
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(range(256)))
    refused("noise.gguf", "cannot be read as GGUF")
    write(tmp_path / "strange.gguf", TOKENS, architecture="notamodel")
    refused("strange.gguf", "transformers cannot read this GGUF file")
    write(tmp_path / "narrow.gguf", TOKENS, embeddings=len(TOKENS) - 2)
    refused("narrow.gguf", "its tokenizer has 9 tokens, its weights 7 embeddings")


def test_without_the_package_the_line_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "tiny.gguf", TOKENS)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        _gguf.folder_of(str(tmp_path / "tiny.gguf"), "student.model")


def test_the_note_of_origin_goes_with_a_run_and_with_what_starts_from_it(tmp_path):
    note = {"packages": ["some==1"], "licence": "Apache-2.0", "tensors": {"Q4_1": 210}}
    model = shutil.copytree(lm(), tmp_path / "lm")
    (model / "origin.json").write_text(json.dumps(note))
    words = [f"student.model={model}", "student.lora=false", "train.duration=2st"]
    cfg = tiny(tmp_path / "first", *words)
    run_main(cfg)
    assert rebuild.trained(cfg.run_dir).models == {str(model): note}
    later = tiny(tmp_path / "later", *words, f"student.model={cfg.run_dir}")
    assert _language.origins(later) == {str(model): note}
    assert _language.origins(tiny(tmp_path / "drawn", *words, "student.random_weights=true")) == {}
    assert _language.origins(tiny(tmp_path / "other", *words, f"student.model={lm()}")) == {}
    for damaged in ('{"licence": ', "[1]", '{"size": NaN}', '{"a": "\\ud800"}', "[" * 100_000):
        (model / "origin.json").write_text(damaged)
        with pytest.raises(UserError, match=r"student\.model: .*origin\.json: damaged") as caught:
            run_main(tiny(tmp_path / "second", *words))
        assert "\n" not in str(caught.value) and not list((tmp_path / "second").glob("seed0/checkpoint*"))
