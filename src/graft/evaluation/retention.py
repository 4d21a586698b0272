"""What a run's language model still can and still says after training: other rules than it was trained on, the rule it
was trained on with worked examples before the question, and plain text.

A probe is a set of test questions, each asked with some numbers of worked examples. Accuracy is that of
`graft.evaluation.answers`, kept beside the checkpoint. The divergence is KL(untrained || trained) in nats at every
token of right answers to bare questions, and at every token of plain text.
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from graft.config import parts, schema
from graft.config.options import Config
from graft.errors import UserError
from graft.evaluation import answers, icl, kept, language, rebuild
from graft.runtime import checkpoint, sources
from graft.students import _language
from graft.students.causal_lm import CausalLM
from graft.tasks._context import Context, encode
from graft.tasks._text import Ragged, TextTask, fingerprint, sequences

AT_ONCE = 256  # positions whose distributions over the vocabulary are compared at once
FOLDER = "eval-retention"


@dataclass(frozen=True)
class Probe:
    """Test questions of one task, and with how many worked examples they are asked."""

    name: str
    task: TextTask
    index: list[int]
    shots: tuple[int, ...]


def _other_rule(cfg: Config, rule: str, limit: int) -> dict[str, Any]:
    """The arguments of a run's task for another rule, of `limit` test items at most. Raises UserError for none."""
    args, field = cfg.task.args, schema.part_fields("tasks", cfg.task.name).get("rules")
    if field is None:
        raise UserError(f"--rules: task {cfg.task.name} has no rules; leave it out")
    if rule in map(str, args["rules"]):
        raise UserError(f"--rules: {rule} is what {cfg.output_dir} was trained on; expected others")
    try:
        rules = schema.check([int(rule) if rule.isdecimal() else rule], field)
    except UserError as error:
        raise UserError(f"--rules: {error}") from None
    bare = {"donors": []} if "donors" in args else {}
    return {**args, **bare, "rules": rules, "subset": 0, "test": min(args["test"], limit or args["test"])}


def texts(file: str) -> list[str]:
    """The lines of a file of plain text, or of the one that comes with the package. Raises UserError without any."""
    try:
        text = Path(file).read_text("utf-8") if file else (
            resources.files("graft.evaluation") / "plain_text.txt").read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text: {file}: {' '.join(str(error).split())[:200]}") from None
    if not (lines := [line.strip() for line in text.splitlines() if len(line.split()) > 1]):
        raise UserError(f"--text: {file}: expected lines of several words, got none")
    return lines


class Evaluator:
    """Evaluates runs; tasks, engine and the untrained model are made once for all that share them."""

    def __init__(self, options: argparse.Namespace, accelerator: Accelerator):
        self.options, self.accelerator = options, accelerator
        self.tasks = rebuild.Tasks(accelerator.device, options.task_root, options.allow_other_data)
        self.scorer = language.Scorer(options, accelerator)
        self.texts = texts(options.text)
        self.models: dict[str, tuple[CausalLM, CausalLM | None]] = {}
        self.prompts: dict[tuple[int, Context, int], tuple[TextTask, Ragged]] = {}

    def probes(self, cfg: Config) -> list[Probe]:
        """The questions of the run's own task, and of each other rule. Raises UserError for a task without rules."""
        own, limit = self.tasks(cfg), self.options.limit
        shots = tuple(sorted(self.options.shots))
        found = [Probe("trained", own, answers.items(len(own.splits["test"]), limit), shots)]
        for rule in self.options.rules:
            task = self.tasks(replace(cfg, task=replace(cfg.task, args=_other_rule(cfg, rule, limit))))
            found.append(Probe(rule, task, answers.items(len(task.splits["test"]), limit), shots))
        return found

    def run(self, run_dir: Path | None, cfg: Config, probes: Sequence[Probe]) -> dict[str, Any]:
        """What a run, or without one the untrained model of `cfg`, answers and says on every probe."""
        folder = None if run_dir is None else checkpoint.final(run_dir)[0]
        place = (self.options.base_dir / "untrained" if run_dir is None else run_dir) / FOLDER
        engine = self.scorer.engine_for(cfg, probes[0].task, self._longest(cfg, probes))
        if folder is not None:
            self.scorer.refuse_other_base(folder, engine.source.model)
        weights = answers.weights_of(folder) if folder is not None else {
            "weights": "base", "checkpoint_sha256": _language.identity(engine.source.model, engine.source.revision)}
        step = int(folder.name.split("-")[1]) if folder else 0
        found: dict[str, Any] = {"seed": cfg.seed, "step": step, **weights, "probes": {}}
        for probe in probes:
            asked = {}
            for shots in probe.shots:
                wanted = {"split": "test", "probe": probe.name, "shots": shots, "step": step,
                          "limit": self.options.limit, **weights}
                prompts = self._prompts(cfg, probe, shots)
                path = place / f"{probe.name}-{shots}shot" / f"test-{step}.json"
                asked[str(shots)] = answers.scored(path, wanted, engine, probe.task, prompts, probe.index, folder,
                                                   self.options.base_dir, self.accelerator)
            found["probes"][probe.name] = asked
        if run_dir is not None:
            found["kl"] = self._divergence(run_dir, cfg, probes, place / f"kl-{step}.json", weights, engine)
        return found

    def _longest(self, cfg: Config, probes: Sequence[Probe]) -> int:
        most = max(probes[0].shots)
        return max(int(self._prompts(cfg, probe, most).lengths.max()) for probe in probes)

    def _prompts(self, cfg: Config, probe: Probe, shots: int) -> Ragged:
        """The questions of a probe behind their examples, made once for all runs that ask the same."""
        context, reserve = icl.context(cfg, shots), cfg.evaluate.max_new_tokens
        key = (id(probe.task), context, reserve)
        if key not in self.prompts:  # with the task, which must live as long as its id is a key
            self.prompts[key] = probe.task, encode(probe.task, "test", probe.index, context, reserve)[0]
        return self.prompts[key][1]

    def _divergence(self, run_dir: Path, cfg: Config, probes: Sequence[Probe], path: Path,
                    weights: dict[str, str], engine: Any) -> dict[str, list[float]]:
        """Mean KL per token of each item, by probe and for `text`; from `path` where that is still true."""
        count = self.options.kl_items
        chosen = {probe.name: [probe.index[i] for i in range(min(count, len(probe.index)))] for probe in probes}
        wanted = {**weights, "texts": self.texts, "code": sources.of_measurement(__file__, cfg),
                  "items": {probe.name: fingerprint([probe.task.splits["test"].items[i] for i in chosen[probe.name]])
                            for probe in probes}}

        def measure() -> dict[str, list[float]]:
            engine.release()  # vLLM reserves nearly all memory, and would find too little of it again
            trained, base = self._models(run_dir, cfg, probes[0].task)
            found = {}
            for probe in probes:
                split = probe.task.splits["test"]
                own = [(split.prompts[i].tolist(), split.answers[i].tolist()) for i in chosen[probe.name]]
                found[probe.name] = self._per_item(trained, base, own)
            lines = [probes[0].task.prompt.tokenizer(line)["input_ids"] for line in self.texts]
            found["text"] = self._per_item(trained, base, [(ids[:1], ids[1:]) for ids in lines])
            if engine.name == "vllm":
                del trained, base
                self.models.clear()
                torch.cuda.empty_cache()
            return found

        return kept.measured(path, wanted, measure, write=self.accelerator.is_main_process)

    def _models(self, run_dir: Path, cfg: Config, task: TextTask) -> tuple[CausalLM, CausalLM | None]:
        """The run's student; and the untrained one, where it is not the same without its adapters."""
        key = repr(sorted(cfg.student.args.items(), key=lambda item: item[0]))
        if key not in self.models:
            self.models.clear()  # two may not fit
            made = [parts.build("students", cfg.student, task).to(self.accelerator.device).eval()
                    for _ in range(1 if cfg.student.args["lora"] else 2)]
            self.models[key] = made[0], (made[1] if len(made) > 1 else None)
        state, _ = checkpoint.load_model(run_dir, "last")
        self.models[key][0].load_state_dict(state)
        return self.models[key]

    @torch.no_grad()
    def _per_item(self, trained: CausalLM, base: CausalLM | None,
                  pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Mean over the answer tokens of KL(untrained || trained), for each (prompt, answer) in ids."""
        prompts, own = (Ragged([pair[side] for pair in pairs]) for side in (0, 1))
        found: list[float] = []
        for start in range(0, len(pairs), 16):
            index = torch.arange(start, min(start + 16, len(pairs)))
            tokens, _ = sequences(prompts, own, index, "test", self.accelerator.device)
            with trained.untrained() if base is None else nullcontext():
                before = (base or trained)(tokens)
            after = trained(tokens)
            each = torch.cat([_kl(before.head(rows), after.head(more)) for rows, more in zip(
                before.hidden.split(AT_ONCE), after.hidden.split(AT_ONCE), strict=True)])
            found += [float(one.mean()) for one in each.split(tokens.counts.tolist())]
        return found


def _kl(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """(n, V), (n, V) logits -> (n,) nats; not below 0, where rounding would have it."""
    p, q = before.float().log_softmax(-1), after.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)
