"""Every job of a study with what it costs, and what the study can decide."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graft.config.options import PARTS, Config
from graft.config.study.graph import Graph
from graft.config.study.job import Job
from graft.errors import UserError
from graft.planning import costs, reading
from graft.planning.costs import Costs
from graft.planning.data import Told, data_of

SHOWN = 3  # jobs that a note names
# Teachers' keys that change what is seen and not what it costs.
FREE = {"shuffle", "init_seed", "random_weights", "fewshot_seed"}


@dataclass(frozen=True)
class Row:
    """Jobs that differ in their seed alone, and what each of them costs (None: `missing` says why it is not known)."""

    name: str
    kind: str
    count: int
    costs: Costs | None
    missing: str = ""


@dataclass(frozen=True)
class Planned:
    """A study: its rows, the number of its test items (0: not known), of conditions that are compared with its
    baseline, the primary ones where it names such, and what had to be assumed."""

    name: str
    rows: list[Row]
    n: int
    comparisons: int
    notes: list[str]


def planned(graph: Graph, told: Told, world: int = 1, moved: Mapping[str, str] | None = None) -> Planned:
    """What a study costs. `moved`: folders that the study will make, and where their like lies now."""
    jobs = {name: replace(job, config=_moved(job.config, moved or {})) if job.config else job
            for name, job in graph.jobs.items()}
    rows = list(_rows(graph, jobs, told, world))
    arms = {job.name.split("/")[0]: job for job in jobs.values()
            if job.kind == "run" and job.name.split("/")[0] in graph.study.conditions}
    try:
        n = data_of(next(iter(arms.values())).config, told).sizes["test"]
    except (UserError, StopIteration):
        n = 0
    compared = arms.keys() - {graph.study.baseline}
    main = compared & {*graph.study.primary}
    return Planned(graph.study.study, rows, n, max(1, len(main or compared)), _notes(rows))


def _notes(rows: Sequence[Row]) -> list[str]:
    """What is assumed, and why something is not known: each once, with the jobs that it is said of."""
    said: dict[str, list[str]] = {}
    for row in rows:
        for note in row.costs.notes if row.costs else [row.missing]:
            said.setdefault(note, []).append(row.name)
    return [f"{', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' * (len(names) > SHOWN)}: {note}"
            for note, names in said.items()]


def _rows(graph: Graph, jobs: Mapping[str, Job], told: Told, world: int) -> Iterator[Row]:
    """One for each condition, teacher and piece of work that computes something."""
    grouped: dict[str, list[Job]] = {}
    for job in jobs.values():
        if job.config is not None:
            grouped.setdefault(job.name.split("/")[0], []).append(job)
    known: dict[str, Costs] = {}
    for name, group in grouped.items():
        try:
            key = _key(group[0])
            if key not in known:
                known[key] = _costs(group[0], graph, jobs, told, world)
            yield Row(name, group[0].kind, len(group), known[key])
        except UserError as error:
            yield Row(name, group[0].kind, len(group), None, str(error))


def _costs(job: Job, graph: Graph, jobs: Mapping[str, Job], told: Told, world: int) -> Costs:
    data = data_of(job.config, told)
    if job.kind == "run":
        return costs.of_run(job.config, data, jobs, world)
    if job.script == "scripts/cache_teacher.py":
        return reading.of_cache(job.config, data, jobs)
    if job.script == "scripts/sample_teacher.py":
        return reading.of_samples(job.config, data, jobs)
    return reading.of_icl(job.config, data, jobs, graph.study.icl.shots, graph.contexts.values(), graph.splits)


def _moved(cfg: Config, moved: Mapping[str, str]) -> Config:
    """The configuration with folders that are not there yet replaced by their like."""
    return replace(cfg, **{key: replace(part, args={name: moved.get(value, value) if isinstance(value, str) else value
                                                    for name, value in part.args.items()})
                           for key in PARTS for part in [getattr(cfg, key)]})


def _key(job: Job) -> str:
    """Jobs of one key cost the same. Of a loss term's weight it counts only whether there is one."""
    about = job.config.identity()
    del about["seed"]
    about["optim"] = {key: about["optim"][key] for key in ("name", "momentum")}
    about["teacher"] = {key: value for key, value in about["teacher"].items() if key not in FREE}
    about["objective"] = [{**term, **{key: term[key] > 0 for key in ("weight", "weight_end")}}
                          for term in about["objective"]]
    if job.config.reads_text:
        about["objective"] = [{key: value for key, value in term.items() if key in (
            "name", "position", "weight", "weight_end", "warmup", "before")} for term in about["objective"]]
        if job.kind == "run" and about["teacher"].get("serve") == "cache":
            about["teacher"] = {key: job.config.teacher.args[key] for key in ("k", "keep")}
    return json.dumps([job.kind, job.script * (job.kind == "work"), about], sort_keys=True)


def as_dict(plan: Planned) -> dict[str, Any]:
    """For --json: bytes, FLOPs, numbers of parameters."""
    rows = [{"name": row.name, "kind": row.kind, "runs": row.count,
             **({**vars(row.costs), "peak": row.costs.peak} if row.costs else {"missing": row.missing})}
            for row in plan.rows]
    return {"study": plan.name, "test_items": plan.n, "comparisons": plan.comparisons, "jobs": rows,
            "notes": plan.notes}
