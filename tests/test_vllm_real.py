"""The real vLLM on a CPU, against the transformers engine in fp32: `bash scripts/test.sh --vllm` (its own environment).

Elsewhere these tests are skipped: vLLM and training cannot share an environment.
"""

import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from graft.errors import UserError
from graft.evaluation import _vllm
from graft.evaluation._transformers import Transformers
from graft.evaluation.generation import Generated, Source, Stop
from graft.students._tiny_lm import make
from graft.tasks import _prompts
from small import ROOT
from small_lm import base_config

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None,
                                reason="vLLM is in an environment of its own: bash scripts/test.sh --vllm")
CPU, FAMILIES, TOKENS = torch.device("cpu"), ("qwen3", "llama"), 24
QUESTIONS = [f"How much is {i} times {7 * i + 3}{' apples' * (i % 5)}?" for i in range(32)]


@pytest.fixture(scope="module", autouse=True)
def small_engines():
    """Models of two layers need neither compiled graphs nor a large cache."""
    import vllm
    whole = vllm.LLM
    vllm.LLM = functools.partial(whole, enforce_eager=True)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    yield
    vllm.LLM = whole


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Per model: `<family>`, two adapters `<family>-a` and `-b`, an inert one `-inert`, other weights `-whole`."""
    base, found = tmp_path_factory.mktemp("models"), {}
    for family in FAMILIES:
        # Heads of 32, the smallest that vLLM has for a CPU; untied, or a random model says one token for ever.
        folder = make(base / family, family, hidden=64, heads=2, kv_heads=1, init_std=0.4, no_weights=True)
        shutil.copytree(folder, base / f"{family}-whole")
        for seed, name in enumerate((family, f"{family}-whole")):
            torch.manual_seed(seed)
            config = AutoConfig.from_pretrained(folder, tie_word_embeddings=False)
            AutoModelForCausalLM.from_config(config).save_pretrained(base / name)
            found[name] = base / name
        for seed, (name, size) in enumerate({"a": 0.1, "b": 0.1, "inert": 0.0}.items()):
            lm = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(
                task_type="CAUSAL_LM", r=4 * (seed + 1), target_modules=["q_proj", "v_proj", "down_proj"]))
            torch.manual_seed(seed)
            for weight in (p for n, p in lm.named_parameters() if "lora_B" in n):
                torch.nn.init.normal_(weight, std=size)
            found[f"{family}-{name}"] = base / f"{family}-{name}"
            lm.save_pretrained(found[f"{family}-{name}"])
    return found


def source(folder: Path, **changes) -> Source:
    prompt = _prompts.load(str(folder))
    return replace(Source(str(folder), "", "fp32", "sdpa", False, prompt, Stop(tuple(prompt.end), (), TOKENS), 120),
                   **changes)


def answers(engine, weights: Path | None = None) -> list[Generated]:
    prompts = engine.source.prompt.prompt_ids([((), question) for question in QUESTIONS])
    found = dict(engine.generate(prompts, weights))
    return [found[i] for i in range(len(prompts))]


def share_of_equal_tokens(ours: list[Generated], theirs: list[Generated]) -> float:
    same = sum(a == b for one, other in zip(ours, theirs, strict=True) for a, b in zip(one.ids, other.ids))
    return same / sum(max(len(one.ids), len(other.ids)) for one, other in zip(ours, theirs))


@pytest.mark.parametrize("family", FAMILIES)
def test_base_adapters_and_a_whole_model_answer_as_with_transformers(folders, family):
    adapters = [folders[f"{family}-{name}"] for name in ("a", "b", "inert")]
    given = source(folders[family])
    vllm, plain = _vllm.Vllm(given, adapters), Transformers(given, 8, CPU)
    said = {}
    for weights in (None, adapters[0], adapters[1], adapters[0], folders[f"{family}-whole"]):
        found, seconds = {}, {}
        for engine in (vllm, plain):
            engine_started = time.perf_counter()
            found[engine.name] = answers(engine, weights)
            seconds[engine.name] = time.perf_counter() - engine_started
        share = share_of_equal_tokens(found["vllm"], found["transformers"])
        equal = sum(a == b for a, b in zip(found["vllm"], found["transformers"]))
        print(f"{family} {weights and weights.name}: equal tokens {share:.4f}, equal answers {equal} of "
              f"{len(QUESTIONS)}, seconds {seconds['vllm']:.1f} vllm, {seconds['transformers']:.1f} transformers")
        assert share > 0.97 and equal >= 0.9 * len(QUESTIONS)
        said[weights] = found["vllm"]
    texts = {tuple(one.text for one in found) for found in said.values()}
    assert len(texts) == 4, "base, two adapters and a whole model say four different things"
    with pytest.raises(UserError, match="it has no effect there"):
        answers(vllm, adapters[2])
    vllm._free()


def test_stop_texts_cut_off_and_a_damaged_adapter(folders, tmp_path):
    given = source(folders["llama"])
    expected = answers(Transformers(given, 8, CPU))
    text = max((one.text for one in expected), key=len)
    stops = source(folders["llama"], stop=replace(given.stop, texts=(text[6:8],)))
    damaged = shutil.copytree(folders["llama-a"], tmp_path / "damaged")
    file = damaged / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    engine = _vllm.Vllm(stops, [folders["llama-a"], damaged])
    found = answers(engine)
    assert [one.text for one in found] == [one.text for one in answers(Transformers(stops, 8, CPU))]
    assert any(one.ended and one.text != other.text for one, other in zip(found, expected)), "the stop text stopped"
    assert any(not one.ended and len(one.ids) == TOKENS for one in found), "and some were cut off"
    with pytest.raises(UserError, match=f"{damaged}: .*") as caught:
        answers(engine, damaged)
    assert "\n" not in str(caught.value)
    assert [one.text for one in answers(engine)] == [one.text for one in found], "the engine lives on"
    engine._free()


def engine_cores(marker: str) -> list[int]:
    """Processes whose environment has our marker, so those that a command of ours started, engines among them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"GRAFT_TEST={marker}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_finds_its_environment_and_leaves_no_engine_behind(folders, tmp_path, number):
    """eval_icl.py --engine vllm, interrupted while it answers: what was answered is kept, no process is left."""
    base = tmp_path / "base.yaml"
    model = folders["qwen3"]
    base.write_text(base_config().read_text().replace(
        json.loads(json.dumps(base_config().read_text().split("model: ")[1].split("}")[0])), str(model)))
    marker = f"{tmp_path.name}-{number}"
    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/eval_icl.py"), "--base_config", str(base), "--output",
         str(tmp_path / "icl.json"), "--shots", "0", "--engine", "vllm", "evaluate.max_new_tokens=150"],
        env={**os.environ, "GRAFT_TEST": marker, "PYTHONPATH": str(ROOT / "src")}, stdout=log.open("w"),
        stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and len(engine_cores(marker)) < 2 and process.poll() is None:
        time.sleep(0.2)
    assert len(engine_cores(marker)) >= 2, log.read_text()
    time.sleep(20)  # it loads, or it answers
    process.send_signal(number)
    process.wait(timeout=60)
    print(f"signal {number}: exit code {process.returncode}, {log.read_text()[-300:]!r}")
    for _ in range(100):
        if not (left := engine_cores(marker)):
            break
        time.sleep(0.1)
    assert not left and process.returncode != 0
