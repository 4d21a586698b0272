"""The jobs of a study for scripts/study.sh, which starts them, and for other schedulers as JSON (--graph).

    python scripts/lib/jobs.py cifar10 --list
    python scripts/lib/jobs.py cifar10 --graph

--list shows every job with its state, the time it takes where that is known, and its command line. --graph gives them
as JSON: `{"study", "folder", "left_out", "jobs": [{"name", "kind", "state", "note", "folder", "needs", "threads",
"gpus", "share", "seconds", "digest", "script", "words", "command"}], "then": [...], "steps": [...]}`; `then` is the
command that scores and draws once all jobs have ended, `steps` are its parts, each a job of its own.
Without either, records for bash: fields that end in NUL. With --then, exit code 75 says that what follows waits.
"""

import hashlib
import json
import os
import shlex
import sys
from dataclasses import replace

from graft.config.study.followups import step_of, steps
from graft.config.study.graph import Graph
from graft.config.study.job import Job, command
from graft.config.study.line import from_command_line
from graft.errors import exit_cleanly
from graft.runtime import files, runs

WAITS = 75  # exit code
SHARES = {"run": "GPUS_PER_JOB", "eval": "GPUS_PER_EVAL", "work": "GPUS_PER_WORK"}


def gpus_of(job: Job) -> int:
    """How many GPUs a job gets; 0 where it wants none or there is none."""
    there = int(os.environ.get("GRAFT_GPUS") or 0)
    return int(os.environ.get(SHARES[job.gpus]) or 1) if there and job.gpus in SHARES else 0


def words_of(job: Job, dry: bool = False) -> list[str]:
    """The command line of a job on this machine."""
    python, gpus = os.environ.get("GRAFT_PYTHON") or sys.executable, gpus_of(job)
    if dry:
        return [python, job.script, *job.words, "--dry_run"]
    launch = (os.environ.get("ACCELERATE") or ("1gpu" if gpus == 1 else "2gpu")) if gpus else "cpu"
    return command(job, python, launch, max(gpus, 1))


def finished(graph: Graph, name: str) -> bool:
    """Whether all runs of a condition or teacher, the planned ones and those that are there besides, are done."""
    planned = [job for job in graph.jobs.values() if job.kind == "run" and job.name.startswith(f"{name}/")]
    there = [path for path in files.seeds(graph.at / name) if (path / "config.yaml").is_file()]
    others = [path for path in there if path not in [job.folder for job in planned]]
    return bool(planned or others) and all(runs.state(job).name == "done" for job in planned) and \
        all(runs.ended(path) for path in others)


def following(graph: Graph, whole: bool = False) -> list[Job] | None:
    """The steps for what is done, and if `whole` for what is asked for; None where they wait for the baseline."""
    study, asked = graph.study, {name.split("/")[0] for name in graph.jobs} if whole else set()
    there = [name for name in study.conditions if name not in graph.left_out and (
        name in asked or finished(graph, name))]
    if study.baseline not in there:
        return None if study.then else []
    references = [name for name in study.references if name in asked or finished(graph, name)]
    icl = graph.icl is not None and ((whole and graph.icl.name in graph.jobs) or runs.state(graph.icl).name == "done")
    return steps(graph, there, references, icl)


def waiting(graph: Graph) -> str:
    """What to say where nothing follows yet."""
    return f"what follows ({' '.join(graph.study.then)}) waits for {graph.study.baseline}, which is not done"


def show(graph: Graph) -> None:
    """Every job: its state, what is known of its time, its command line."""
    after = following(graph, whole=True)
    jobs = [*graph.jobs.values(), *(after or ())]
    times = runs.expected(jobs)
    for job in jobs:
        found = runs.state(job)
        minutes = f"  ~{times[job.name] / 60:.1f} min" if job.name in times and found.name != "done" else ""
        needs = [need for need in job.needs if need in graph.jobs and runs.state(graph.jobs[need]).name != "done"]
        print(f"{job.name}: {'after its runs' if job.kind == 'step' else found.name}"
              f"{f' ({found.note})' if found.note else ''}{minutes}{f'  after {chr(32).join(needs)}' if needs else ''}")
        print(f"    {shlex.join(words_of(job))}")
    for name, reason in graph.left_out.items():
        print(f"{name}: left out; {reason}")
    if after is None:
        print(waiting(graph))


def as_json(graph: Graph, jobs: list[Job]) -> None:
    """The jobs for another scheduler, which starts `then` when all of them have ended."""
    times = runs.expected(jobs)
    listed = []
    for job in jobs:
        found = runs.state(job)
        listed.append({"name": job.name, "kind": job.kind, "state": found.name, "note": found.note,
                       "folder": str(job.folder), "needs": list(job.needs), "threads": job.threads,
                       "gpus": gpus_of(job), "share": job.gpus, "seconds": times.get(job.name), "digest": job.digest,
                       "script": job.script, "words": list(job.words), "command": words_of(job)})
    then = ["bash", "scripts/study.sh", *[word for word in sys.argv[1:] if word != "--graph"], "--then"]
    print(json.dumps({"study": graph.study.study, "file": graph.study.file, "queue": graph.study.queue,
                      "folder": str(graph.at), "left_out": graph.left_out, "jobs": listed, "then": then,
                      "steps": steps_as_json(graph, then)}, indent=1))


def steps_as_json(graph: Graph, then: list[str]) -> list[dict]:
    """What follows the runs, a job for each step; all figures are one, drawn of what the others left (`any`)."""
    jobs = following(graph, whole=True)
    if jobs is None:
        print(waiting(graph), file=sys.stderr)
    parts: dict[str, list[Job]] = {}
    for job in jobs or ():
        parts.setdefault(step_of(job), []).append(job)
    last = max((path.stat().st_mtime for path in graph.at.glob("*/seed*/status.json")), default=0)  # a run ended

    def done(job: Job) -> bool:
        return runs.made(job) and (job.folder / "status.json").stat().st_mtime > last

    return [{"name": f"then/{name}", "state": "done" if all(map(done, part)) else "new",
             "folder": str(graph.at / "then" / name), "share": part[0].gpus, "threads": 1,
             "needs": list(dict.fromkeys(need for job in part for need in job.needs)), "any": name == "figures",
             "digest": hashlib.sha256("".join(job.digest for job in part).encode()).hexdigest(),
             "command": [*then, "--steps", name]} for name, part in parts.items()]


def chosen(graph: Graph, steps: list[str]) -> list[Job] | None:
    """The jobs that follow, of `steps` alone if there are any; those whose numbers are not there are named."""
    jobs = following(graph)
    if jobs is None or not steps:
        return jobs
    found = [job for job in jobs if step_of(job) in steps]
    names, kept = {job.name for job in found}, []
    for job in found:
        lacking = [need for need in job.needs if need not in names and not runs.ended(graph.at / need)]
        if lacking:
            print(f"SKIPPED {job.name}: needs {' '.join(lacking)}", file=sys.stderr)
        else:
            kept.append(replace(job, needs=tuple(need for need in job.needs if need in names)))
    return kept


def distinct(jobs: list[Job]) -> list[Job]:
    """The first of the runs that differ in the seed alone."""
    found = {}
    for job in jobs:
        if job.kind == "run":
            found.setdefault((job.name.split("/")[0], job.script, replace(job.config, seed=0).sha256), job)
    return list(found.values())


def emit(jobs: list[Job], dry: bool) -> None:
    """One record a job: its fields, the number of words of its command, and the words."""
    here = {job.name: runs.state(job).name for job in jobs}
    for job in distinct(jobs) if dry else jobs:
        state = here[job.name]
        if state == "other" and not dry:
            print(f"REFUSED {job.name}: {job.folder} holds another result ({runs.state(job).note}); it is left as it "
                  "is: use --name, or remove it", file=sys.stderr)
        if dry:
            state = "later" if any(here.get(need) != "done" for need in job.needs) else "new"
        words = words_of(job, dry)
        fields = [job.name, job.kind, state, str(gpus_of(job)), str(job.threads), str(job.folder), job.digest,
                  "" if dry and state == "new" else " ".join(job.needs), str(len(words)), *words]
        sys.stdout.write("".join(f"{item}\0" for item in fields))


def main() -> None:
    """Read the study, say what was asked for."""
    options, graph = from_command_line()
    jobs = list(graph.jobs.values())
    if options.graph:
        as_json(graph, jobs)
    elif options.list:
        show(graph)
    elif options.then:
        jobs = chosen(graph, options.steps)
        if jobs is None:
            print(waiting(graph), file=sys.stderr)
            sys.exit(WAITS)
        emit(jobs, dry=False)
    else:
        runs.prepare(graph.layers.files)
        for reason in dict.fromkeys(graph.left_out.values()):
            names = [name for name, why in graph.left_out.items() if why == reason]
            print(f"left out: {' '.join(names)}; {reason}", file=sys.stderr)
        emit(jobs, options.dry_run)


if __name__ == "__main__":
    exit_cleanly(main)
