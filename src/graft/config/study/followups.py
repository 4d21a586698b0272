"""What follows a study's runs, as jobs: scores, table, robustness, forensics, figures and report."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from graft.config.study.graph import Graph
from graft.config.study.job import Job
from graft.config.study.options import claimed

CURVES = ("--keys", "train/ce", "train/topk", "val/nll", "--band", "ci95", "--name", "losses")
# figure -> script, what it reads
FIGURES = {"accuracy": ("accuracy", "results"), "forest": ("forest", "results"),
           "ablation": ("ablation", "results"), "teacher": ("teacher", "results"),
           "checkpoint": ("checkpoint", "results"), "curves": ("curves", ""), "losses": ("curves", ""),
           "locality": ("locality", "forensics"), "layer": ("layer", "forensics"), "cka": ("cka", "forensics"),
           "forensics": ("forensics", "forensics"), "hessian": ("hessian", "forensics"), "dose": ("dose", "forensics"),
           "reliability": ("reliability", "robustness"), "confusion": ("confusion", "robustness"),
           "roc": ("roc", "robustness"), "retention": ("retention", "retention"), "gap": ("gap", "results")}
SCORED = ("accuracy", "forest", "ablation", "teacher", "dose", "retention", "gap")  # those that take a --split


def steps(graph: Graph, conditions: Sequence[str], references: Sequence[str], icl: bool) -> list[Job]:
    """The jobs that follow, for the `conditions` and `references` whose runs are done; `icl`: whether that is done.

    A smoke run is scored and drawn from its scores alone.
    """
    wanted = [step for step in graph.study.then if not graph.asked.smoke or step in ("scores", "table", "figures")]
    found = []
    for step in (step for step in STEPS if step in wanted):
        found += STEPS[step](graph, conditions, references, icl)
    made = {job.name for job in found}
    found = [job for job in found if set(job.needs) <= made]  # nothing is drawn of numbers that no step makes
    return [replace(job, digest=_digest(job)) for job in found]


def step_of(job: Job) -> str:
    """Which of a study's steps a job is of."""
    name = job.name.removeprefix("then/")
    return "figures" if name.startswith("figure-") else name


def _digest(job: Job) -> str:
    return hashlib.sha256(json.dumps([job.script, job.words]).encode()).hexdigest()


def _step(graph: Graph, name: str, script: str, words: Sequence[str], needs: Sequence[str] = (),
          gpus: str = "none") -> Job:
    more = [str(word) for word in graph.study.options.get(name, [])]
    return Job(f"then/{name}", "step", f"scripts/{script}.py", (*words, *more), graph.at / "then" / name,
               tuple(f"then/{need}" for need in needs), gpus=gpus)


def _scores(graph: Graph, conditions: Sequence[str], references: Sequence[str], icl: bool) -> list[Job]:
    study, at = graph.study, graph.at
    words = ["--base_dir", str(at), "--output", str(at / "results.json"), "--conditions", *conditions,
             "--baseline", study.baseline, "--splits", *graph.splits]
    words += ["--references", *references] if references else []
    words += ["--icl", str(at / "icl.json")] if icl else []
    pairs = [pair for pair in study.contrasts if {*pair.split(":")} <= {*conditions}]
    words += ["--contrasts", *pairs] if pairs else []
    primary = [one for one in study.primary if one in (*conditions, *pairs)]
    words += ["--primary", *primary] if primary else []
    labels = [f"{name}={item.label}" for name, item in study.conditions.items() if item.label and name in conditions]
    words += ["--condition_labels", *labels] if labels else []
    words += ["--metric_labels", *(f"{name}={label}" for name, label in study.metrics.items())] if study.metrics else []
    return [_step(graph, "scores", "eval_checkpoints",
                  [*words, *graph.asked.environment.get("EVAL_ARGS", "").split()], gpus="eval")]


def _table(graph: Graph, *_: object) -> list[Job]:
    return [_step(graph, "table", "write_results", ["--results", str(graph.at / "results.json"), "--out",
                                                    str(graph.at)], ["scores"])]


def _robustness(graph: Graph, conditions: Sequence[str], *_: object) -> list[Job]:
    return [_step(graph, "robustness", "eval_robustness",
                  ["--base_dir", str(graph.at), "--conditions", *conditions, "--baseline", graph.study.baseline,
                   "--split", graph.splits[-1], "--output", str(graph.at / "robustness.json")], gpus="work")]


def _roles(graph: Graph) -> dict[str, str]:
    return {"baseline": graph.study.baseline, **graph.study.roles}


def _forensics(graph: Graph, conditions: Sequence[str], *_: object) -> list[Job]:
    words = [word for role, name in _roles(graph).items() if name in conditions for word in (f"--{role}", name)]
    doses = [name for name in graph.study.doses if name in conditions]
    words += ["--doses", *doses] if len(doses) > 1 else []
    return [_step(graph, "forensics", "analyze_locality",
                  ["--base_dir", str(graph.at), "--conditions", *conditions, *words, "--results",
                   str(graph.at / "results.json"), "--output", str(graph.at / "forensics.json")], ["scores"],
                  gpus="work")]


def _retention(graph: Graph, conditions: Sequence[str], *_: object) -> list[Job]:
    return [_step(graph, "retention", "eval_retention",
                  ["--base_dir", str(graph.at), "--conditions", *conditions, "--output",
                   str(graph.at / "retention.json"), *graph.asked.environment.get("EVAL_ARGS", "").split()],
                  gpus="eval")]


def _figures(graph: Graph, conditions: Sequence[str], *_: object) -> list[Job]:
    found = []
    for name in graph.study.figures:
        script, source = FIGURES[name]
        words = ["--base_dir", str(graph.at), "--conditions", *conditions]
        if source:
            flag = f"--{source}" if source in ("forensics", "retention") else "--results"
            words = [flag, str(graph.at / f"{source}.json")]
        words += ["--results", str(graph.at / "results.json")] if source == "retention" else []
        if source in ("forensics", "robustness") and name != "dose":  # of all arms these would show nothing
            words += ["--conditions", *claimed(conditions, _roles(graph), graph.study.doses)]
        words += ["--out", str(graph.at / "figures"), *(CURVES if name == "losses" else ())]
        words += ["--split", graph.splits[-1]] if name in SCORED else []
        needs = [{"results": "scores"}.get(source, source)] if source else []
        needs += ["scores"] if source == "retention" else []
        found.append(_step(graph, f"figure-{name}", f"gen_{script}_fig", words, needs))
    return found


def _report(graph: Graph, *_: object) -> list[Job]:
    needs = [step for step in ("scores", "robustness", "forensics", "retention") if step in graph.study.then]
    return [_step(graph, "report", "report", ["--study", graph.study.file, "--base_dir", str(graph.at)], needs)]


STEPS = {"scores": _scores, "table": _table, "robustness": _robustness, "forensics": _forensics,
         "retention": _retention, "figures": _figures, "report": _report}
