"""The logits of language teachers, computed once for all the runs of a study that read the same ones."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from graft.config import schema
from graft.config.options import Config
from graft.config.study.job import Job, work
from graft.config.study.layers import SMOKE, last_wins

# What the logits depend on, of the teacher's settings and of the model's; the task's count all.
SETTINGS = ("context", "shots", "fewshot_seed", "instruction", "max_length", "keep", "precision", "cache_dtype",
            "model", "revision", "dtype")
MODEL = ("model", "revision", "dtype", "random_weights")


def served(runs: Iterable[Job], at: Path) -> dict[str, Job]:
    """The jobs that build caches in the study's folder `at`, and the runs, each reading the cache that fits.

    A cache holds the logits for the run that reads the most of them.
    """
    runs = list(runs)
    largest: dict[str, Job] = {}
    names: dict[str, str] = {}
    for job in filter(_reads, runs):
        key = _key(job.config)
        if key not in names:
            wanted = (_name(job.config), job.name.split("/")[0])
            names[key] = next(name for name in wanted if name not in names.values())
        if key not in largest or job.config.teacher.args["k"] > largest[key].config.teacher.args["k"]:
            largest[key] = job
    found = [_build(largest[key], at, names[key], key) for key in names]
    found += [_reading(job, at, names[_key(job.config)]) if _reads(job) else job for job in runs]
    return {job.name: job for job in found}


def _build(job: Job, at: Path, name: str, key: str) -> Job:
    words = [*job.words[:job.words.index("--output_dir")], f"teacher.path={at / 'cache' / name}",
             *job.config.overrides]
    return work(f"cache-{name}", at, "scripts/cache_teacher.py", words, job.needs,
                {"cache": key, "k": job.config.teacher.args["k"]}, gpus="work", config=job.config)


def _reading(job: Job, at: Path, name: str) -> Job:
    path = str(at / "cache" / name)
    given = job.config.overrides
    words = tuple(last_wins(["teacher.serve=cache", f"teacher.path={path}"], given))
    teacher = replace(job.config.teacher, args={**job.config.teacher.args, "serve": "cache", "path": path})
    cfg = replace(job.config, teacher=teacher, overrides=words)
    return replace(job, words=(*job.words[:len(job.words) - len(given)], *words),
                   needs=(*job.needs, f"cache-{name}/work"), config=cfg, digest=cfg.sha256)


def _name(cfg: Config) -> str:
    """What a cache is called: as the ablation that needs one of its own, else as what the teacher reads."""
    last = [Path(file) for file in cfg.files if file != SMOKE][-1]
    return last.stem if last.parent.name == "ablation" else cfg.teacher.args["context"]


def _reads(job: Job) -> bool:
    """Whether a run reads a language teacher's logits, and was not told from where."""
    cfg = job.config
    reads = any(term.used and "teacher_topk" in schema.part_tensors("losses", term.name) for term in cfg.objective)
    return reads and cfg.teacher.name == "context_lm" and "teacher.serve" not in {
        word.partition("=")[0] for word in cfg.overrides}


def _key(cfg: Config) -> str:
    """What a teacher's logits depend on, K apart: runs of one key read one cache."""
    identity = cfg.identity()
    args = identity["teacher"]
    model = {} if args["model"] else {key: cfg.student.args[key] for key in MODEL}
    positions = sorted({term.args["position"] for term in cfg.objective if term.used and "position" in term.args})
    settings = {key: args[key] for key in SETTINGS if key in args}  # later keys at their default are left out
    return json.dumps([identity["task"], settings, model, positions], sort_keys=True)
