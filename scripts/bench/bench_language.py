"""What context distillation costs here and in its original design: ratios within one run.

    python scripts/bench/bench_language.py [--reps 3] [--micro 2] [--accumulate 2]

The model has Qwen3's architecture and random weights: 4 layers, 512 wide, 151,936 tokens. Items are random letters
with the lengths that GSM8K has in Qwen3's tokens: question 65 and answer 145 on average, log-normal, so that the
student's sequence has 220 tokens and the teacher's, behind 8 worked examples, 2,000. A step is forward, backward,
clipping and AdamW over one global batch in LoRA fine-tuning with the loss ce + 0.5 mse of the 256 largest logits. Three
designs do the same step:

    original  two copies of the model, all logits at all positions on both sides, the batch padded as it was drawn
    online    the student's own weights teach, their adapters switched off (teacher.serve: adapter)
    cached    the teacher's logits come from disk (teacher.serve: cache); making the cache is not counted

The last line is one JSON object:

    loss_difference       |original - online| / original, of one micro-batch without dropout, before anything is timed
    gradient_difference   the same of the gradient of all adapters, in the Euclidean norm; the script fails where one
                          of the two is above 1e-4 (bf16: 3e-2), so that only equal work is compared
    online_speedup        time of a step, original / online; `position: published` in both
    cached_speedup        original / cached, likewise
    *_speedup_predicting  ours with `position: predicting`, its default, which needs one row of logits for each answer
                          token where `published` needs two; the original has all rows anyway
    *_range               smallest and largest of the repetitions
    memory_ratio          peak memory, online / original: models, adapters, optimizer and one step, the data left out
    cached_memory_ratio   cached / original, likewise
    step_memory_ratio     online / original of what the step adds to what is there before it
    cache_bytes_per_token bytes on disk for one answer token at one of the two positions
    hidden_cost           time of a step, cached hidden states and all logits of them / cached_kl, the 256 largest
                          logits from disk; kl in both, `position: predicting`
    hidden_bytes_per_token as cache_bytes_per_token, of hidden states
    on_policy_cost        likewise, the student answering the step's questions first (as many tokens as an answer has on
                          average, by a model that never ends by itself: the worst case) / cached_kl
    loop_efficiency       time of a step on labels alone, bare transformers + peft / the real loop of train_baseline
                          (`Run`, with its log, without the first step and the last, which saves) on the same batches
    loop_loss_difference  the same step's loss there and here, relative; the script fails above 1e-4 (bf16: 3e-2)
    seconds, megabytes    what the ratios were made of: medians over the repetitions, peaks

Time: in every repetition each design takes one step on the same items; a speedup is the median of the repetitions'
ratios. All get their sequences as token ids, and freed memory stays in the process, as with a GPU's allocator. On the
CPU the time is that of the process (user and system), which other work on the machine disturbs least; on a GPU it is
the clock's. Memory: each design takes one step in a new process. On the CPU it is Linux's peak of the resident memory
(VmHWM) less what was resident before the first model, on a GPU the peak of torch's allocator. The original's two models
count twice, although on a CPU both may map the same file.

The larger the vocabulary is against the rest of the model, the more there is to save: the layers of this model have a
sixth of the weights of its embedding, those of Qwen3-1.7B 4.5 times as many.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import statistics
import string
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from graft import config
from graft.config import parts
from graft.config.options import Config
from graft.runtime.place import Place
from graft.students._language import DTYPES
from graft.students._tiny_lm import make
from graft.students.causal_lm import CausalLM
from graft.tasks import _prompts
from graft.tasks._context import Context, encode
from graft.tasks._text import Item, Ragged, TextTask, text_task
from graft.teachers import _targets, _topk_cache, context_lm
from graft.training.learner import Learner
from graft.training.objective import Objective
from graft.training.optim import build_optimizer
from graft.training.rollouts import Rollouts
from graft.training.run import Run

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "configs/base/gsm8k_qwen1b7.yaml", ROOT / "configs/distill/fewshot.yaml"]
QUESTION, ANSWER = (65, 0.38), (144, 0.49)  # tokens without the template: mean, standard deviation of their logarithm
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
INIT_STD = 0.1  # logits of a size at which the mse counts beside ce
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
AT = {name: f"objective={{topk: {{position: {name}}}}}" for name in ("published", "predicting")}
DESIGNS = {"original": (), "online": ("adapter", AT["published"]), "cached": ("cache", AT["published"]),
           "online_predicting": ("adapter", AT["predicting"]), "cached_predicting": ("cache", AT["predicting"])}
KL = ("objective={topk: {form: kl, position: predicting}}",)
ARMS = {"cached_kl": ("cache", *KL), "hidden": ("cache", *KL, "teacher.keep=hidden"),
        "on_policy": ("adapter", *KL, "teacher.targets=student", "objective={ce: {weight: 0.0}}")}
Options = argparse.Namespace


# --------------------------------------------------------------------------------------------- model and data

def lengths(count: int, mean: float, spread: float, draw: random.Random) -> list[int]:
    """Log-normal lengths: evenly spaced quantiles, in random order."""
    normal = statistics.NormalDist(math.log(mean) - spread**2 / 2, spread)
    return [round(math.exp(normal.inv_cdf((i + 0.5) / count))) for i in draw.sample(range(count), count)]


def make_task(options: Options, model: Path) -> TextTask:
    """Enough items for every repetition; the tokenizer is one of bytes, so a letter is a token."""
    draw, count = random.Random(0), max(options.reps * options.micro * options.accumulate, options.shots + 1)
    sizes = zip(*(lengths(count, options.length * mean, spread, draw) for mean, spread in (QUESTION, ANSWER)))
    letters = lambda size: "".join(draw.choices(string.ascii_lowercase + " ", k=max(1, size)))  # noqa: E731
    items = [Item(i, letters(question), letters(answer), "") for i, (question, answer) in enumerate(sizes)]
    return text_task("letters", "letters", items, items[:1], _prompts.load(str(model)), val_fraction=0.0, split_seed=0,
                     subset=0, max_length=4096, extract=lambda text: ("", ""))


def configure(options: Options, folder: Path, serve: str, *more: str) -> Config:
    """The study's own configuration with this model; `more` are further words."""
    kept = "hidden" if "teacher.keep=hidden" in more else "cache"
    answer = max(1, round(options.length * ANSWER[0]))
    return config.load([*FILES, *_files(folder, more)], [
        f"student.model={folder / 'model'}", "student.revision=''", f"student.dtype={options.dtype}",
        f"train.precision={options.dtype}", f"teacher.serve={serve}", f"teacher.path={folder / kept}",
        f"teacher.k={options.k}", f"teacher.shots={options.shots}", f"evaluate.max_new_tokens={answer}"],
        output_dir=str(folder / "run"))


def _files(folder: Path, words: tuple[str, ...]) -> list[Path]:
    """`key=value` words as deltas, a file each: a command line takes a key once, and mappings there replace."""
    found = []
    for word in words:
        key, _, value = word.partition("=")
        path = folder / f"{hashlib.sha256(word.encode()).hexdigest()[:8]}.yaml"
        section, _, name = key.partition(".")
        path.write_text(f"{section}: {{{name}: {value}}}\n" if name else f"{key}: {value}\n")
        found.append(path)
    return found


def settings(cfg: Config, task: TextTask) -> Context:
    """The teacher's worked examples."""
    return context_lm.context_of(task, cfg.teacher.args)


def autocast(options: Options) -> contextlib.AbstractContextManager:
    """As `Run.autocast`."""
    return torch.autocast(options.device, torch.bfloat16, enabled=options.dtype == "bf16")


def build_student(options: Options, cfg: Config, task: TextTask) -> CausalLM:
    """The student, with adapters that do something: at their initialisation half of the gradients are zero."""
    torch.manual_seed(0)
    student = parts.build("students", cfg.student, task).to(options.device).train()
    for name, weight in student.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.02)
    return student


# ------------------------------------------------------------------------------------------------- the designs

class Ours:
    """The modules of a real run, without its log, evaluation and checkpoints."""

    def __init__(self, options: Options, cfg: Config, task: TextTask, student: CausalLM):
        task, device = _targets.task_for(cfg, task), torch.device(options.device)
        self.options, self.clip, self.split = options, cfg.optim.clip, task.splits["train"].to(options.device)
        own = cfg.teacher.args["targets"] == "student"
        self.rollouts = Rollouts(cfg, task, student, Place(device), lambda: autocast(options)) if own else None
        self.teacher = parts.build("teachers", cfg.teacher, task, student).to(options.device)
        self.objective = Objective(cfg.objective, student, self.teacher, seed=0)
        self.learner = Learner(student, self.objective, lambda: autocast(options))
        self.student, self.optimizer = student, build_optimizer([student, self.objective], cfg.optim)

    def backward(self, index: Tensor, window: int) -> float:
        """Loss and gradients of one micro-batch."""
        (tokens, targets), = self.split.batches([index])
        with autocast(self.options):
            seen = self.teacher(tokens, features=self.objective.teacher_features)
        weights = self.objective.weights(0, 1000, 1000)
        loss, _ = self.learner(tokens, self.objective.student_features, seen, targets, None, weights, window=window,
                               micro_share=1 / self.options.accumulate)
        loss.backward()
        return float(loss.detach())

    def step(self, index: Tensor) -> None:
        """One optimizer step on a global batch."""
        if self.rollouts:
            self.rollouts.answer(index, 0, int(index[0]))
            said = dict(zip(self.rollouts.items, self.rollouts.answers))
            self.split.answer([said.get(item, ()) for item in range(len(self.split))])
        dealt = self.split.arrange(index, 1, self.options.accumulate)
        for micro in dealt.split(self.options.micro):
            self.backward(micro, self.split.positions(index))
        update(self.student, self.optimizer, self.clip)


class Original:
    """The published design: two models, all logits, sequences padded in the order in which they were drawn."""

    def __init__(self, options: Options, cfg: Config, task: TextTask, alone: bool = False):
        train, args = task.splits["train"], cfg.student.args
        self.options, self.clip = options, cfg.optim.clip
        self.answers, self.questions = train.answers, train.prompts
        if not alone:
            self.k = cfg.teacher.args["k"]
            self.with_shots, _ = encode(task, "train", range(len(train)), settings(cfg, task))
            self.teacher = self._load(args["model"]).eval().requires_grad_(False)
        adapters = LoraConfig(task_type="CAUSAL_LM", r=args["rank"], lora_alpha=args["alpha"],
                              lora_dropout=args["dropout"], target_modules=list(args["targets"]))
        self.student = get_peft_model(self._load(args["model"]), adapters).train()
        self.optimizer = torch.optim.AdamW([p for p in self.student.parameters() if p.requires_grad], lr=cfg.optim.lr,
                                           weight_decay=cfg.optim.weight_decay)

    def _load(self, folder: str) -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[self.options.dtype]).to(self.options.device)

    def padded(self, prompts: Ragged, index: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Prompt + answer with their mask, padded to the longest, and labels: -100 but at the answer."""
        rows = [torch.cat([prompts[i], self.answers[i]]).long() for i in index]
        pad = lambda rows, value: nn.utils.rnn.pad_sequence(rows, True, value).to(self.options.device)  # noqa: E731
        labels = pad([row.index_fill(0, torch.arange(len(prompts[i])), -100) for row, i in zip(rows, index)], -100)
        return {"input_ids": pad(rows, 0), "attention_mask": pad([torch.ones_like(row) for row in rows], 0)}, labels

    def backward(self, index: Tensor, share: float) -> float:
        """Loss and gradients of one micro-batch. The mse compares outputs *at* the answer's tokens, one too late."""
        shown, shown_labels = self.padded(self.with_shots, index.tolist())
        bare, labels = self.padded(self.questions, index.tolist())
        with torch.no_grad(), autocast(self.options):
            teacher_logits = self.teacher(**shown, use_cache=False).logits
        with autocast(self.options):
            out = self.student(**bare, labels=labels, use_cache=False)
        values, places = teacher_logits[shown_labels != -100].float().topk(self.k)
        gap = values - out.logits.float()[labels != -100].gather(1, places)
        loss = (out.loss + 0.5 * gap.square().mean()) * share
        loss.backward()
        return float(loss.detach())

    def labelled(self, index: Tensor, share: float) -> float:
        """Loss and gradients of one micro-batch on labels, as anybody writes it with transformers and peft."""
        bare, labels = self.padded(self.questions, index.tolist())
        with autocast(self.options):
            loss = self.student(**bare, labels=labels, use_cache=False).loss * share
        loss.backward()
        return float(loss.detach())

    def step(self, index: Tensor) -> None:
        """One optimizer step on a global batch."""
        for micro in index.split(self.options.micro):
            self.backward(micro, 1 / self.options.accumulate)
        update(self.student, self.optimizer, self.clip)


def update(student: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
    """Clip and apply the gradients."""
    nn.utils.clip_grad_norm_([p for p in student.parameters() if p.requires_grad], clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def build(name: str, options: Options, folder: Path, task: TextTask,
          student: CausalLM | None = None) -> Ours | Original:
    """A design ready for its first step."""
    if name == "original":
        return Original(options, configure(options, folder, "copy", AT["published"]), task)
    cfg = configure(options, folder, *{**DESIGNS, **ARMS}[name])
    return Ours(options, cfg, task, student or build_student(options, cfg, task))


# ------------------------------------------------------------------------------------------------ measurements

def apart(function: Callable, *given: Any) -> Any:
    """What a function returns, called in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(function, given)
        pool.close()
        pool.join()  # it ends by itself, with what it has to clean up
    return found


def make_cache(options: Options, folder: Path, keep: str = "topk") -> float:
    """Write the teacher's logits at both positions, or its hidden states; returns bytes for one answer token at one of
    them."""
    prepare()
    task, positions = make_task(options, folder / "model"), ["rows", "next"] if keep == "topk" else ["rows"]
    cfg, more = configure(options, folder, "cache", *KL), () if keep == "topk" else ("teacher.keep=hidden",)
    online = Ours(options, configure(options, folder, "adapter", *KL, *more), task,
                  build_student(options, cfg, task))
    wanted = _topk_cache.about(task, settings(cfg, task), online.student.base, options.dtype,
                               cfg.teacher.args["cache_dtype"], keep)
    at = folder / ("cache" if keep == "topk" else "hidden")
    _topk_cache.build(at, wanted, online.teacher.columns, positions, online.teacher, task,
                      device=torch.device(options.device), autocast=lambda: autocast(options))
    return _topk_cache.read_manifest(at)["bytes_per_token"] / len(positions)


def same_loss(original: Original, online: Ours, index: Tensor, tolerance: float) -> dict[str, float]:
    """How far the two losses and gradients of a micro-batch are apart. Raises AssertionError above `tolerance`."""
    set_peft_model_state_dict(original.student, online.student.state_dict())
    found = []
    for design, share in ((original, 1.0), (online, online.split.positions(index))):
        design.student.eval()
        loss = design.backward(index, share)
        model = design.student if design is original else design.student.lm
        found.append((loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}))
        design.optimizer.zero_grad(set_to_none=True)
        design.student.train()
    (loss, gradients), (our_loss, our_gradients) = found
    assert gradients.keys() == our_gradients.keys()
    gap = sum((gradients[name] - our_gradients[name]).square().sum() for name in gradients)
    far = {"loss_difference": abs(loss - our_loss) / abs(loss),
           "gradient_difference": float((gap / sum(g.square().sum() for g in gradients.values())).sqrt())}
    assert max(far.values()) < tolerance, f"not the same loss: {far}"
    return far


def resident(key: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at its peak."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def peak_memory(name: str, options: Options, folder: Path) -> tuple[int, int]:
    """Bytes at the peak of one step with everything that a design holds, and without it."""
    prepare()
    task = make_task(options, folder / "model")
    index = torch.arange(options.micro * options.accumulate)
    cuda = options.device == "cuda"
    empty = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
    design = build(name, options, folder, task)
    for model in (value for value in vars(design).values() if isinstance(value, nn.Module)):
        for weight in model.parameters():
            weight.sum()  # weights are mapped from their file, and resident only once they are read
    if cuda:
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        held = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    design.step(index)
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return peak - empty, peak - held


def bench_memory(options: Options, folder: Path) -> dict[str, Any]:
    """Peaks of the three designs."""
    peaks = {name: apart(peak_memory, name, options, folder) for name in ("original", "online", "cached")}
    whole, step = ({name: peak[at] for name, peak in peaks.items()} for at in (0, 1))
    return {"memory_ratio": whole["online"] / whole["original"],
            "cached_memory_ratio": whole["cached"] / whole["original"],
            "step_memory_ratio": step["online"] / step["original"],
            "megabytes": {name: round(size / 1e6) for name, size in whole.items()},
            "step_megabytes": {name: round(size / 1e6) for name, size in step.items()}}


def seconds(options: Options, design: Ours | Original, index: Tensor) -> float:
    """Of one step."""
    clock = time.perf_counter if options.device == "cuda" else time.process_time
    started = clock()
    design.step(index)
    if options.device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def bench_time(options: Options, folder: Path, task: TextTask) -> dict[str, Any]:
    """Check that the losses agree, then alternate."""
    if options.device == "cpu":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
    windows = torch.arange(options.reps * options.micro * options.accumulate).view(options.reps, -1)
    original, online = (build(name, options, folder, task) for name in ("original", "online"))
    found: dict[str, Any] = same_loss(original, online, windows[0, :options.micro], TOLERANCE[options.dtype])
    designs = {"original": original, "online": online}
    designs |= {name: build(name, options, folder, task, online.student) for name in (*DESIGNS, *ARMS)
                if name not in designs}
    times: dict[str, list[float]] = {name: [] for name in designs}
    for rep, index in enumerate(windows):
        for name, design in designs.items():
            times[name].append(seconds(options, design, index))
        print(f"repetition {rep + 1}: " + " ".join(f"{name}={took[-1]:.2f}s" for name, took in times.items()),
              flush=True)
    for name in ("hidden", "on_policy"):
        ratios = [theirs / ours for theirs, ours in zip(times[name], times["cached_kl"])]
        found |= {f"{name}_cost": statistics.median(ratios),
                  f"{name}_cost_range": [round(min(ratios), 3), round(max(ratios), 3)]}
    for name in list(DESIGNS)[1:]:
        ratios = [theirs / ours for theirs, ours in zip(times["original"], times[name])]
        key = f"{name}_speedup".replace("_predicting_speedup", "_speedup_predicting")
        found |= {key: statistics.median(ratios), f"{key}_range": [round(min(ratios), 3), round(max(ratios), 3)]}
    return {**found, "seconds": {name: round(statistics.median(took), 3) for name, took in times.items()}}


def bench_loop(options: Options, folder: Path, task: TextTask) -> dict[str, Any]:
    """The real loop on labels, and after each of its micro-batches the same one without it."""
    batch_size = options.micro * options.accumulate
    cfg = config.load([FILES[0]], [
        f"student.model={folder / 'model'}", "student.revision=''", f"student.dtype={options.dtype}",
        "student.dropout=0", f"train.precision={options.dtype}", f"train.batch_size={batch_size}",
        f"train.accumulate={options.accumulate}", f"train.duration={options.reps + 2}st", "train.eval_every=0",
        "train.checkpoint_every=0", "train.tensorboard=false", "optim.warmup=1st",
        "task.val_fraction=0", "evaluate.max_new_tokens=1"], output_dir=str(folder / "loop"))
    clock = time.perf_counter if options.device == "cuda" else time.process_time
    sync = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    took: dict[str, list[float]] = {"loop": [0.0], "bare": [0.0]}
    losses: dict[str, list[float]] = {"loop": [0.0], "bare": [0.0]}
    with Run(cfg) as run:
        student = build_student(options, cfg, task)
        objective = Objective(cfg.objective, student, None, seed=0)
        run.start(task, student, objective)
        bare = Original(options, cfg, task, alone=True)
        set_peft_model_state_dict(bare.student, {name: value.clone() for name, value in student.state_dict().items()})
        loop, micros, begun = run.loop(), 0, clock()
        while (batch := next(loop, None)) is not None:
            loss, values = run.learner(batch.inputs, objective.student_features, None, batch.labels, None,
                                       objective.weights(batch.step, run.total_steps, run.steps_per_epoch),
                                       window=batch.window, micro_share=batch.micro_share)
            micros += 1
            last = micros % options.accumulate == 0
            run.step(loss, values)
            sync()
            middle = clock()
            theirs = bare.labelled(batch.index, len(batch.labels) / batch.window)
            if last:
                update(bare.student, bare.optimizer, bare.clip)
            sync()
            for name, seconds_, value in (("loop", middle - begun, float(loss.detach())),
                                          ("bare", clock() - middle, theirs)):
                took[name][-1] += seconds_
                losses[name][-1] += value
                if last:
                    took[name].append(0.0)
                    losses[name].append(0.0)
            begun = clock()
        run.finish()
    far = abs(losses["loop"][0] - losses["bare"][0]) / losses["bare"][0]
    assert far < TOLERANCE[options.dtype], f"not the same loss: {losses}"
    ratios = [theirs / ours for theirs, ours in zip(took["bare"][1:-2], took["loop"][1:-2])]
    return {"loop_efficiency": statistics.median(ratios), "loop_loss_difference": far,
            "loop_efficiency_range": [round(min(ratios), 3), round(max(ratios), 3)]}


def prepare() -> None:
    """What every process needs."""
    warnings.filterwarnings("ignore")
    logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    for name, default in {"reps": 3, "micro": 2, "accumulate": 2, "hidden": 512, "layers": 4, "heads": 8,
                          "kv_heads": 4, "ff": 1536, "vocabulary": 151_936, "shots": 8, "k": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--length", type=float, default=1.0, help="of questions and answers, times that of GSM8K")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="default: bf16 on a GPU, else fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU")
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cuda = options.device == "cuda"
    options.dtype = options.dtype or ("bf16" if cuda else "fp32")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare()
        make(folder / "model", init_std=INIT_STD, **{name: getattr(options, name) for name in (
            "hidden", "layers", "heads", "kv_heads", "ff", "vocabulary")})
        task = make_task(options, folder / "model")
        found = {"cache_bytes_per_token": apart(make_cache, options, folder),
                 "hidden_bytes_per_token": apart(make_cache, options, folder, "hidden"),
                 **bench_memory(options, folder)}
        print(f"peak MB {found['megabytes']}", flush=True)
        found = {**bench_time(options, folder, task), **bench_loop(options, folder, task), **found}
    train = task.splits["train"]
    sizes = {"answer_tokens": train.answers.lengths, "student_tokens": train.lengths}
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}
    print(json.dumps({**rounded, **{name: round(float(length.float().mean()), 1) for name, length in sizes.items()},
                      "device": torch.cuda.get_device_name() if cuda else "cpu", "threads": torch.get_num_threads(),
                      "torch": torch.__version__, "repetitions": options.reps, "micro": options.micro,
                      "accumulate": options.accumulate, "dtype": options.dtype}))


if __name__ == "__main__":
    main()
