"""Greedy generation against a loop by hand, checkpoints against merged weights, vLLM against a recording stand-in."""

import json
import os
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from graft.errors import UserError
from graft.evaluation import _vllm, engines, generation
from graft.evaluation._transformers import Transformers
from graft.evaluation.generation import Generated, Source, Stop
from graft.students import _language
from graft.students._tiny_lm import make
from graft.tasks import _prompts

CPU = torch.device("cpu")
LONGEST = 40


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Untied, because a random model with tied embeddings says the same token for ever."""
    base = tmp_path_factory.mktemp("models")
    found = {family: make(base / family, family, hidden=32, ff=48, init_std=0.4, no_weights=True)
             for family in ("qwen3", "llama", "gemma3")}
    for folder in found.values():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, tie_word_embeddings=False)) \
            .save_pretrained(folder)
    return found


def asked(prompt: _prompts.Prompt) -> list[list[int]]:
    """Prompts of very different lengths, so that padding would show."""
    shots = [("What is 2 + 2?", "It is 4.")]
    return prompt.prompt_ids([((), "a"), ((), "How much is 17 apples?"), (shots, "And 3?"), (shots * 2, "b"),
                              ((), "zz")])


def source(folder: Path, **changes) -> Source:
    prompt = _prompts.load(str(folder))
    stop = Stop(tuple(prompt.end), (), 24)
    return replace(Source(str(folder), "", "fp32", "sdpa", False, prompt, stop, LONGEST), **changes)


def answers(engine, weights: Path | None = None) -> list[Generated]:
    found = dict(engine.generate(asked(engine.source.prompt), weights))
    assert sorted(found) == list(range(5)), "each prompt once"
    return [found[i] for i in range(5)]


@torch.no_grad()
def by_hand(lm, ids: list[int], steps: int) -> list[int]:
    """The most likely token again and again, from a full forward pass over one sequence each time."""
    made = []
    for _ in range(steps):
        made.append(int(lm(input_ids=torch.tensor([ids + made]), use_cache=False).logits[0, -1].argmax()))
    return made


@pytest.fixture(scope="module")
def expected(folders):
    """Per family the 24 tokens that follow each prompt when nothing stops them."""
    found = {}
    for family, folder in folders.items():
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        found[family] = [by_hand(lm, ids, 24) for ids in asked(_prompts.load(str(folder)))]
        assert len({tuple(ids) for ids in found[family]}) > 2 and len({i for ids in found[family] for i in ids}) > 9
    return found


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3"])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_batches_are_what_one_by_one_would_be(folders, expected, family, batch_size):
    # tokens that occur in some rows become ends, so that rows stop at different steps and one does not stop at all
    ends = [next(token for token in expected[family][row][start:] if token not in expected[family][3])
            for row, start in ((0, 4), (1, 9))]
    given = source(folders[family])
    given = replace(given, stop=replace(given.stop, ids=(*given.stop.ids, *ends)))
    found = answers(Transformers(given, batch_size, CPU))
    for ids, one in zip(expected[family], found, strict=True):
        end = next((place for place, token in enumerate(ids) if token in given.stop.ids), None)
        assert one.ids == ids[:end] and one.ended == (end is not None)
        assert one.text == given.prompt.decode(ids[:end])
    assert {one.ended for one in found} == {True, False}


def test_the_models_own_sampling_is_not_used(folders, expected, tmp_path):
    import shutil
    folder = shutil.copytree(folders["qwen3"], tmp_path / "sampling")
    (folder / "generation_config.json").write_text(json.dumps(
        {"do_sample": True, "temperature": 3.0, "top_k": 5, "repetition_penalty": 2.0, "eos_token_id": [1, 2]}))
    given = source(folder)
    found = answers(Transformers(replace(given, stop=replace(given.stop, ids=(255,))), 5, CPU))
    assert [one.ids for one in found] == [generation.cut(ids, Stop((255,), (), 24), str).ids
                                          for ids in expected["qwen3"]]


def test_stop_texts_cut_and_stop(folders, expected):
    given = source(folders["llama"])
    whole = given.prompt.decode(expected["llama"][1])
    text = next(whole[i:i + 2] for i in range(6, 20) if whole[i:i + 2].isascii())
    given = replace(given, stop=Stop((999,), ("never there", text), 24))
    found = answers(Transformers(replace(given, stop=replace(given.stop, ids=(0,))), 2, CPU))[1]
    assert found.text == whole[:whole.index(text)] and found.ended
    assert len(found.ids) < 24 and text in given.prompt.decode(found.ids) not in given.prompt.decode(found.ids[:-1])


def test_cut():
    decode = lambda ids: "".join(map(chr, ids))  # noqa: E731
    stop = Stop((0,), ("b", "cd"), 9)
    assert generation.cut([97, 99, 100, 98, 0, 97], stop, decode) == Generated([97, 99, 100, 98], "a", True)
    assert generation.cut([97, 0, 0], stop, decode) == Generated([97], "a", True)
    assert generation.cut([97, 99], stop, decode) == Generated([97, 99], "ac", False)
    assert generation.cut([0], stop, decode) == Generated([], "", True)


def adapter(base: Path, folder: Path, seed: int, rank: int = 4, targets=("q_proj", "v_proj", "down_proj")) -> Path:
    """An adapter that does something, saved as peft does, and the merged model beside it."""
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        lm = get_peft_model(lm, LoraConfig(r=rank, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM"))
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    lm.save_pretrained(folder)
    lm.merge_and_unload().save_pretrained(folder.with_name(folder.name + "-merged"))
    return folder


def test_adapters_are_swapped_and_full_checkpoints_loaded(folders, tmp_path, monkeypatch):
    first, second = (adapter(folders["qwen3"], tmp_path / str(rank), rank, rank) for rank in (2, 8))
    loads = []
    real = _language.load
    monkeypatch.setattr(_language, "load", lambda key, model, *rest: loads.append(Path(model).name)
                        or real(key, model, *rest))
    engine = Transformers(source(folders["qwen3"]), 3, CPU)
    base, one, two, again, base_again = (answers(engine, weights) for weights in (None, first, second, first, None))
    assert loads == ["qwen3"], "one load for all adapters"
    assert base == base_again and one == again and one != base != two != one
    assert answers(engine, tmp_path / "2-merged") == one and answers(engine, tmp_path / "8-merged") == two
    assert answers(engine) == base and loads == ["qwen3", "2-merged", "8-merged", "qwen3"]


def test_an_adapter_that_does_not_fit_is_named(folders, tmp_path):
    engine = Transformers(source(folders["qwen3"]), 3, CPU)
    base = answers(engine)
    good = adapter(folders["qwen3"], tmp_path / "good", 0)
    wide = adapter(make(tmp_path / "wide_base", "qwen3", hidden=64), tmp_path / "wide", 0)
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    from safetensors.torch import load_file, save_file
    state = load_file(good / "adapter_model.safetensors")
    save_file({name.replace("layers.1.", "layers.9."): value for name, value in state.items()},
              renamed / "adapter_model.safetensors")
    (renamed / "adapter_config.json").write_text((good / "adapter_config.json").read_text())
    for folder in (wide, renamed):
        with pytest.raises(UserError, match=f"{folder}: is no adapter for") as caught:
            answers(engine, folder)
        assert "\n" not in str(caught.value)
        assert answers(engine) == base


# ------------------------------------------------------------------------------------------------ vLLM

class FakeLLM:
    """Answers with this project's own models, so that the same tokens must come out; records what it was asked."""

    log: ClassVar[list] = []
    inert = False
    engines = 0

    def __init__(self, **options):
        assert FakeLLM.engines == 0, "the old engine was not freed"
        FakeLLM.engines += 1
        self.options = options
        FakeLLM.log.append(("engine", options))
        self.llm_engine = types.SimpleNamespace(engine_core=types.SimpleNamespace(shutdown=self.shutdown))

    def shutdown(self):
        FakeLLM.engines -= 1

    def generate(self, requests, sampling, lora_request=None, use_tqdm=True):
        assert all(set(request) == {"prompt_token_ids"} for request in requests) and not use_tqdm
        FakeLLM.log.append(("generate", len(requests), vars(sampling), lora_request))
        lm = AutoModelForCausalLM.from_pretrained(self.options["model"], dtype=torch.float32).eval()
        if lora_request is not None and not FakeLLM.inert:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                lm = PeftModel.from_pretrained(lm, lora_request.lora_path).eval()
        made = [by_hand(lm, request["prompt_token_ids"], sampling.max_tokens) for request in requests]
        ends = [next((i + 1 for i, token in enumerate(ids) if token in sampling.stop_token_ids), None) for ids in made]
        done = [types.SimpleNamespace(token_ids=tuple(ids[:end]), cumulative_logprob=0.0)
                for ids, end in zip(made, ends)]
        return [types.SimpleNamespace(outputs=[one]) for one in done]


@pytest.fixture
def vllm(monkeypatch):
    module, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    module.LLM, module.SamplingParams = FakeLLM, types.SimpleNamespace
    request.LoRARequest = types.SimpleNamespace
    for one in (module, lora, request):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    FakeLLM.log, FakeLLM.inert, FakeLLM.engines = [], False, 0
    return FakeLLM


def engine_of(folder: Path, adapters=(), **changes) -> _vllm.Vllm:
    return engines.engine("vllm", source(folder, **changes), batch_size=1, device=CPU, adapters=adapters,
                             tensor_parallel=2)


def test_vllm_serves_all_adapters_from_one_engine(folders, tmp_path, vllm):
    base = folders["qwen3"]
    first, second = (adapter(base, tmp_path / str(rank), rank, rank) for rank in (2, 20))
    ours = Transformers(source(base), 5, CPU)
    theirs = engine_of(base, (first, second, tmp_path / "2-merged"))
    for weights in (None, first, second, first):
        assert answers(theirs, weights) == answers(ours, weights)
    (kind, options), *calls = vllm.log
    assert kind == "engine" and options["enable_lora"] and options["max_lora_rank"] == 32
    assert options["max_model_len"] == LONGEST + 24 and options["generation_config"] == "vllm"
    assert options["tensor_parallel_size"] == 2 and options["dtype"] == "float32" and not options["trust_remote_code"]
    assert {kind for kind, *_ in calls} == {"generate"}
    requests = [request for _, _, _, request in calls if request is not None]
    assert {(request.lora_int_id, request.lora_path) for request in requests} == {(1, str(first)), (2, str(second))}
    assert len({request.lora_name for request in requests}) == 2
    canaries = [sampling for _, n, sampling, _ in calls if "logprobs" in sampling]
    assert len(canaries) == 4 and all(sampling["max_tokens"] == 16 for sampling in canaries), "once for each adapter"
    sampling = calls[0][2]
    assert sampling["temperature"] == 0 and sampling["max_tokens"] == 24 and sampling["skip_special_tokens"]
    assert sampling["stop_token_ids"] == list(theirs.source.stop.ids)


def test_vllm_gets_a_new_engine_for_whole_models(folders, tmp_path, vllm):
    one = adapter(folders["llama"], tmp_path / "2", 2)
    engine = engine_of(folders["llama"], (one,))
    assert answers(engine, one) == answers(engine, tmp_path / "2-merged")
    assert answers(engine, one) != answers(engine)
    options = [entry[1] for entry in vllm.log if entry[0] == "engine"]
    assert [Path(o["model"]).name for o in options] == ["llama", "2-merged", "llama"]
    assert "enable_lora" not in options[1] and all(o["tokenizer"] == str(folders["llama"]) for o in options)


def test_vllm_canary_names_an_adapter_without_effect(folders, tmp_path, vllm):
    one = adapter(folders["gemma3"], tmp_path / "2", 2)
    vllm.inert = True
    with pytest.raises(UserError, match=f"{one}: vLLM gives the base model's answers"):
        answers(engine_of(folders["gemma3"], (one,)), one)


def test_vllm_ranks(tmp_path):
    def of(rank):
        folder = tmp_path / str(rank)
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
        return folder
    assert _vllm.max_rank([]) == 0 and _vllm.max_rank([of(3)]) == 8 and _vllm.max_rank([of(8), of(33)]) == 64
    assert _vllm.max_rank([of(300)]) == 320
    with pytest.raises(UserError, match="adapters of rank 513; at most 512"):
        _vllm.max_rank([of(513)])


def test_vllm_gets_numbers_of_gpus(folders, tmp_path, monkeypatch, vllm):
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho GPU-aa-1, 0\necho GPU-bb-2, 1\necho GPU-cc-3, 2\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    for given, wanted in {"GPU-cc-3,GPU-aa-1": "2,0", "GPU-bb": "1", "1,2": "1,2", "MIG-7": "MIG-7"}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        engine_of(folders["qwen3"])
        assert os.environ["CUDA_VISIBLE_DEVICES"] == wanted
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_vllm_where_it_cannot_run(folders, monkeypatch, vllm):
    with pytest.raises(UserError, match="started in 2 processes"):
        engines.engine("vllm", source(folders["qwen3"]), batch_size=1, device=CPU, processes=2)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"bash scripts/setup_vllm.sh"):
        engine_of(folders["qwen3"])
