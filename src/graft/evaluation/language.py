"""Scores of language models' checkpoints, for eval_checkpoints.py."""

import argparse
import functools
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from graft.config.options import Config
from graft.errors import UserError
from graft.evaluation import answers, engines, generation, rebuild
from graft.reporting import results
from graft.runtime import checkpoint, files
from graft.students import _language
from graft.tasks._text import Ragged, TextTask


class Scorer:
    """Scores runs; the base model is loaded once for all that share it. `curve` collects validation scores."""

    def __init__(self, options: argparse.Namespace, accelerator: Accelerator):
        self.options, self.accelerator = options, accelerator
        self.engine: tuple[dict, Any] = ({}, None)
        self.base = ""  # identity of the engine's base model
        self.curve: list[dict[str, Any]] = []

    def score(self, condition: str, run: rebuild.Trained, task: TextTask,
              different: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The entries of `conditions.*.runs` for one run: its chosen step, on each split.

        `different` is in what each split is not what it was (`rebuild.Tasks.of`).
        """
        run_dir = run.folder
        if self.options.weights == "average":
            raise UserError(f"--weights average: {run_dir} trained a language model; only its last weights are scored")
        steps = checkpoint.finished(run_dir)
        chosen, entries = steps[-1], []
        if self.options.choose == "best_val" and "val" not in self.options.splits:
            raise UserError("--choose best_val: needs --splits val")
        engine = self.engine_for(run.config, task, task.longest_prompt)
        one = functools.partial(self._one, engine, condition, run, task, different)
        if "val" in self.options.splits and len(task.splits["val"]):
            wanted = steps if self.options.steps == "all" or self.options.choose == "best_val" else steps[-1:]
            scored = [one("val", step) for step in wanted]
            self.curve += scored
            chosen = answers.best(scored) if self.options.choose == "best_val" else chosen
            entries += [entry for entry in scored if entry["step"] == chosen]
        if "test" in self.options.splits and len(task.splits["test"]):
            self._looked_before(run_dir, chosen)
            entries.append(one("test", chosen))
        return entries

    def _looked_before(self, run_dir: Path, chosen: int) -> None:
        """Say so where test has been scored at another step: a choice between them would be one on test."""
        others = sorted(int(file.stem[5:]) for file in (run_dir / "eval").glob("test-*.json"))
        if others and others != [chosen] and self.accelerator.is_main_process:
            print(f"note: {run_dir}: test was scored before at step {', '.join(map(str, others))}, now at {chosen}")

    def _one(self, engine: Any, condition: str, run: rebuild.Trained, task: TextTask, different: dict[str, list[str]],
             split: str, step: int) -> dict[str, Any]:
        folder, own = checkpoint.path_of(run.folder, step), task.splits[split]
        wanted = {"condition": condition, "seed": run.config.seed, "step": step, "split": split,
                  **answers.weights_of(folder), **rebuild.origin(run, task, split, different[split])}
        self.refuse_other_base(folder, engine.source.model)
        # a score of some questions lies apart: it is never taken for one of all, nor replaces it
        limit = self.options.limit
        index = answers.items(len(own), limit)
        place = run.folder / (f"eval-limit{limit}" if limit else "eval") / f"{split}-{step}.json"
        prompts = Ragged([own.prompts[i].tolist() for i in index]) if limit else own.prompts
        return answers.scored(place, wanted | ({"limit": limit} if limit else {}), engine, task, prompts, index, folder,
                              self.options.base_dir, self.accelerator)

    def refuse_other_base(self, folder: Path, model: str) -> None:
        """An adapter over other weights than it was trained over would be scored without a word."""
        if not generation.is_adapter(folder):
            return
        trained = checkpoint.info_of(folder)["base"].rpartition(" in ")[0]
        if trained != self.base:
            raise UserError(f"{folder}: an adapter of another base model ({trained[:60]}) than {model} is now "
                            f"({self.base[:60]})")

    def engine_for(self, cfg: Config, task: TextTask, longest: int) -> Any:
        """The engine of a run's base model, for prompts of up to `longest` tokens; the one before where it will do."""
        source = generation.source(cfg, task, longest)
        if self.engine[0] != source:
            self.engine = ({}, None)  # free the old one first
            self.base = _language.identity(source.model, source.revision)
            runs = [run for path in self.options.base_dir.iterdir() for run in files.seeds(path)]
            folders = [checkpoint.path_of(run, step) for run in runs for step in checkpoint.steps(run)]
            self.engine = (source, engines.engine(
                self.options.engine, source, batch_size=self.options.batch_size or cfg.evaluate.batch_size,
                device=self.accelerator.device, tensor_parallel=self.options.tensor_parallel,
                adapters=folders, processes=self.accelerator.num_processes))
        return self.engine[1]


def untrained(icl: Path, base_dir: Path, splits: list[str]) -> list[dict[str, Any]]:
    """The entries of a file of eval_icl.py, their rows seen from `base_dir`."""
    content = results.read_results(icl)
    for name, condition in content["conditions"].items():
        for run in condition["runs"]:
            size = content["data"].get("sizes", {}).get(run["split"])
            if "shots" not in run or run["n"] != size or run.get("limit"):
                raise UserError(f"--icl: {icl}: {name} answered {run['n']} of {size} {run['split']} questions; "
                                "expected a file of eval_icl.py, made without --limit")
    return [{**run, "condition": name, "examples": os.path.relpath(icl.parent / run["examples"], base_dir)}
            for name, condition in content["conditions"].items() for run in condition["runs"] if run["split"] in splits]
