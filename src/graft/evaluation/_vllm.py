"""The vLLM engine of `graft.evaluation.generation`: one engine for the base model and all its adapters."""

import contextlib
import gc
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from graft.errors import UserError
from graft.evaluation.generation import Generated, Source, cut, is_adapter

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as max_lora_rank
AT_ONCE = 4096  # prompts handed over together, so that the GPU is full; what is answered is kept before the next
CANARY_PROMPTS, CANARY_TOKENS = 4, 16


class Vllm:
    """Hands prompts to vLLM as token ids, so that no second BOS is put before them.

    Adapters share one engine, each under a number of its own: vLLM would serve the first adapter's weights again for
    a number it has seen. Whole models cannot share one; the old engine is freed first. `adapters` are all folders
    that will be asked for, because the engine must know the largest rank when it starts.
    """

    name = "vllm"

    def __init__(self, source: Source, adapters: Sequence[Path], tensor_parallel: int = 1, seed: int = 0):
        _number_devices()
        # vLLM's default, fork, cannot be had once this process has looked at a GPU.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        try:
            import vllm
        except ImportError:
            raise UserError("--engine vllm: vllm is not installed; bash scripts/setup_vllm.sh") from None
        self.vllm, self.source, self.tensor_parallel, self.seed = vllm, source, tensor_parallel, seed
        self.rank = max_rank(adapters)
        self.loaded: tuple[str, Any] | None = None
        self.requests: dict[Path, Any] = {}

    def generate(self, prompts: Sequence[Sequence[int]],
                 weights: Path | None = None) -> Iterator[tuple[int, Generated]]:
        """Answers as `(i, Generated)`, each prompt once. Raises UserError naming an adapter that changes nothing."""
        adapter = is_adapter(weights)
        llm = self._engine(self.source.model if weights is None or adapter else str(weights))
        request = self._request(llm, weights, prompts[:CANARY_PROMPTS]) if adapter and prompts else None
        for start in range(0, len(prompts), AT_ONCE):
            outputs = self._answers(llm, prompts[start:start + AT_ONCE], request, self.source.stop.max_new_tokens)
            for i, output in enumerate(outputs, start):
                yield i, cut(output.token_ids, self.source.stop, self.source.prompt.decode)

    def _answers(self, llm: Any, prompts: Sequence[Sequence[int]], request: Any, max_tokens: int, **more: Any) -> list:
        stop = self.source.stop
        sampling = self.vllm.SamplingParams(
            temperature=0.0, seed=self.seed, max_tokens=max_tokens, stop=list(stop.texts),
            stop_token_ids=list(stop.ids), skip_special_tokens=True, **more)
        outputs = llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], sampling, lora_request=request,
                               use_tqdm=False)
        return [output.outputs[0] for output in outputs]

    def _request(self, llm: Any, folder: Path, prompts: Sequence[Sequence[int]]) -> Any:
        """The adapter's LoRARequest, after the canary.

        The canary: on a few prompts an adapter must change a token or a log-probability of the base model's answers.
        It guards against a stack that accepts a LoRARequest and serves the base model all the same (layers that it
        does not support, names that do not match), which would score every checkpoint as the base. An adapter whose
        effect is wrong but not zero passes.
        """
        if folder not in self.requests:
            from vllm.lora.request import LoRARequest
            number = len(self.requests) + 1
            request = LoRARequest(lora_name=f"adapter-{number}", lora_int_id=number, lora_path=str(folder))
            _refuse_damaged(folder)  # it would take the engine down
            try:
                base, tuned = ([(list(output.token_ids), output.cumulative_logprob) for output in
                                self._answers(llm, prompts, one, CANARY_TOKENS, logprobs=1)] for one in (None, request))
            except Exception as error:  # of many kinds; the engine has said more
                self.release()
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"{folder}: vLLM cannot serve this adapter ({reason})") from None
            if base == tuned:
                raise UserError(f"{folder}: vLLM gives the base model's answers and log-probabilities with this "
                                "adapter; it has no effect there. Use --engine transformers")
            self.requests[folder] = request
        return self.requests[folder]

    def _engine(self, model: str) -> Any:
        if self.loaded is None or self.loaded[0] != model:
            self.release()
            source, base = self.source, model == self.source.model
            lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": self.rank} if base and self.rank else {}
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _end_with_engine)
            llm = self.vllm.LLM(
                model=model, revision=source.revision or None if base else None,
                tokenizer=source.prompt.tokenizer.name_or_path, tensor_parallel_size=self.tensor_parallel,
                dtype={"bf16": "bfloat16", "fp32": "float32"}[source.dtype], seed=self.seed,
                max_model_len=source.longest + source.stop.max_new_tokens, trust_remote_code=source.trust_remote_code,
                generation_config="vllm", **lora)  # not the model's own, which may sample or penalise repetition
            self.loaded = model, llm
        return self.loaded[1]

    def release(self) -> None:
        """End the engine's processes and let go of it; its memory is free only once nothing refers to it. The next
        answers start it again."""
        if self.loaded is not None:
            self.loaded[1].llm_engine.engine_core.shutdown()
        self.loaded = None
        self.requests = {}  # numbers are the engine's
        gc.collect()


def _end_with_engine(number: int, frame: Any) -> None:
    """A signal handler: end the engine's processes, then this one, at once; what was answered is on disk.

    Left to itself vLLM waits for an engine that may hear nothing while it starts, and where this process dies of the
    signal, the engine lives on and holds its GPUs.
    """
    import psutil  # comes with vLLM
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(128 + number)


def _refuse_damaged(folder: Path) -> None:
    """Raise UserError if an adapter's weights cannot be read."""
    try:
        with safe_open(folder / "adapter_model.safetensors", "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: its adapter cannot be read ({' '.join(str(error).split())[:300]})") from None


def _number_devices() -> None:
    """Name the GPUs in CUDA_VISIBLE_DEVICES by number: vLLM ends with a ValueError at a UUID (its issue 20939)."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if not any(name.startswith("GPU-") for name in named):
        return
    listed = subprocess.run(["nvidia-smi", "--query-gpu=uuid,index", "--format=csv,noheader"], capture_output=True,
                            text=True, check=True).stdout
    numbers = [line.split(", ") for line in listed.splitlines()]
    found = [next((number for uuid, number in numbers if uuid.startswith(name)), name) for name in named]
    os.environ |= {"CUDA_VISIBLE_DEVICES": ",".join(found), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # nvidia-smi's order


def max_rank(adapters: Sequence[Path]) -> int:
    """The smallest rank that vLLM accepts and every adapter fits into; 0 without adapters."""
    largest = max((json.loads((folder / "adapter_config.json").read_text())["r"] for folder in adapters), default=0)
    if largest > RANKS[-1]:
        raise UserError(f"--engine vllm: adapters of rank {largest}; at most {RANKS[-1]}")
    return next(rank for rank in RANKS if rank >= largest) if adapters else 0
