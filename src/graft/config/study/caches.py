"""The logits of language teachers, and their own answers, made once for all the runs of a study that read the same."""

import itertools
import json
from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path

from graft.config import schema
from graft.config.options import Config
from graft.config.study.job import Job, work
from graft.config.study.layers import SMOKE, last_wins

# What the logits depend on, of the teacher's settings and of the model's; the task's count all.
SETTINGS = ("context", "shots", "fewshot_seed", "instruction", "max_length", "keep", "precision", "cache_dtype",
            "model", "revision", "dtype")
ANSWERS = ("context", "shots", "fewshot_seed", "instruction", "max_length", "temperature", "model", "revision", "dtype",
           "precision")
MODEL = ("model", "revision", "dtype", "random_weights")


def served(runs: Iterable[Job], at: Path, caches: bool) -> dict[str, Job]:
    """The jobs that make teachers' answers and, with `caches`, those that build caches of their logits in the study's
    folder `at`; and the runs, each reading what fits.

    A cache holds the logits for the run that reads the most of them.
    """
    runs, samples = _answered(runs, at)
    largest: dict[str, Job] = {}
    names: dict[str, str] = {}
    taken = {job.folder.parent.name for job in samples}  # beside the caches
    for job in filter(_reads, runs if caches else ()):
        key = _key(job.config)
        if key not in names:
            names[key] = _free((_name(job.config), job.name.split("/")[0]), taken | {*names.values()})
        if key not in largest or job.config.teacher.args["k"] > largest[key].config.teacher.args["k"]:
            largest[key] = job
    found = [*samples, *(_build(largest[key], at, names[key], key) for key in names)]
    found += [_reading(job, at, names[_key(job.config)]) if caches and _reads(job) else job for job in runs]
    return {job.name: job for job in found}


def _answered(runs: Iterable[Job], at: Path) -> tuple[list[Job], list[Job]]:
    """The runs, those that are trained on a teacher's own answers reading them from the study's folder, and the jobs
    that make these."""
    found, made = [], {}
    for job in runs:
        cfg = job.config
        if cfg.teacher.args.get("targets") == "teacher" and not cfg.teacher.args["samples"]:
            key = _answers(cfg)
            name = made[key].folder.parent.name if key in made else _free(
                (f"samples-{job.name.split('/')[0]}",), {other.folder.parent.name for other in made.values()})
            path = f"teacher.samples={at / 'cache' / name}"
            if key not in made:
                words = [*_configured(job), *last_wins(cfg.overrides, [path])]
                made[key] = work(name, at, "scripts/sample_teacher.py", words, job.needs, {"samples": key}, gpus="work",
                                 config=cfg)
            job = _with(job, [path], f"{name}/work")
        found.append(job)
    return found, [*made.values()]


def _free(wanted: tuple[str, ...], taken: Container[str]) -> str:
    """The first of the names that is not taken, numbered if all are."""
    numbered = (f"{wanted[-1]}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain(wanted, numbered) if name not in taken)


def _configured(job: Job) -> list[str]:
    """The words of a run that say its configuration but for its folder and what lies over it."""
    return [*job.words[:job.words.index("--output_dir")], "--seed", str(job.config.seed)]


def _answers(cfg: Config) -> str:
    """What a teacher's own answers depend on."""
    identity = cfg.identity()
    teacher = {key: identity["teacher"][key] for key in ANSWERS if key in identity["teacher"]}
    student = {key: cfg.student.args[key] for key in MODEL}
    return json.dumps([identity["task"], teacher, student, cfg.evaluate.max_new_tokens], sort_keys=True)


def _with(job: Job, first: list[str], need: str) -> Job:
    """A run with `teacher.key=value` words before its own, which needs one more job."""
    given = job.config.overrides
    words = tuple(last_wins(first, given))
    args = {**job.config.teacher.args, **dict(word.removeprefix("teacher.").split("=", 1) for word in first)}
    cfg = replace(job.config, teacher=replace(job.config.teacher, args=args), overrides=words)
    return replace(job, words=(*job.words[:len(job.words) - len(given)], *words), needs=(*job.needs, need), config=cfg,
                   digest=cfg.sha256)


def _build(job: Job, at: Path, name: str, key: str) -> Job:
    words = [*_configured(job), f"teacher.path={at / 'cache' / name}", *job.config.overrides]
    return work(f"cache-{name}", at, "scripts/cache_teacher.py", words, job.needs,
                {"cache": key, "k": job.config.teacher.args["k"]}, gpus="work", config=job.config)


def _reading(job: Job, at: Path, name: str) -> Job:
    return _with(job, ["teacher.serve=cache", f"teacher.path={at / 'cache' / name}"], f"cache-{name}/work")


def _name(cfg: Config) -> str:
    """What a cache is called: as the ablation that needs one of its own, else as what the teacher reads."""
    last = [Path(file) for file in cfg.files if file != SMOKE][-1]
    return last.stem if last.parent.name == "ablation" else cfg.teacher.args["context"]


def _reads(job: Job) -> bool:
    """Whether a run reads a language teacher's logits, was not told from where, and can be told beforehand."""
    cfg = job.config
    if cfg.teacher.args.get("targets") == "student" or cfg.teacher.args.get("serve") == "ema":
        return False
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
    if args.get("targets") == "teacher":
        settings |= {"answers": _answers(cfg), "only_right": cfg.teacher.args["only_right"]}
    return json.dumps([identity["task"], settings, model, positions], sort_keys=True)
