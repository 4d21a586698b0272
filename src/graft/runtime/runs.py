"""What lies in a job's folder, read without torch: its state, whether it is the job that is asked for, its times.

And what has to lie in the study's folder before its jobs start.
"""

import datetime
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from graft.config import difference, restored
from graft.config.study.job import Job
from graft.errors import UserError
from graft.runtime.files import parsed, write_text

NAMED = 3  # differences that a refusal names


@dataclass(frozen=True)
class State:
    """`done`, `other` (another job's result is there), `begun` or `new`, and why."""

    name: str
    note: str = ""


def prepare(configurations: Mapping[str, dict[str, Any]]) -> None:
    """Write what a study's file holds of configurations (`Layers.files`) where the command lines look for it.

    Others may be reading there: what is there already is not touched, and nobody sees half a file.
    """
    for file, content in configurations.items():
        path, text = Path(file), OmegaConf.to_yaml(OmegaConf.create(content))
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)


def state(job: Job) -> State:
    """What is there of a job. A result without a digest of what made it counts as another's."""
    status = _json(job.folder / "status.json").get("state")
    if job.kind == "step":
        return State("new")
    if job.kind == "work":
        if status != "done":
            return State("new" if status is None else "begun")
        return State("done") if made(job) else State(
            "other", "was made by another command, or with another configuration")
    info = _newest(job.folder)
    if not info and status != "done":
        return State("new" if status is None else "begun")
    if info.get("config_sha256") != job.digest and (other := _difference(info.get("config"), job)):
        return State("other", other)
    return State("done" if status == "done" else "begun")


def made(job: Job) -> bool:
    """Whether what lies in the folder of work or of a step was made by this very job."""
    status = _json(job.folder / "status.json")
    return status.get("state") == "done" and status.get("digest") == job.digest


def ended(folder: Path) -> bool:
    """Whether what runs in this folder says that it is done."""
    return _json(folder / "status.json").get("state") == "done"


def attempt(run_dir: Path) -> dict[str, Any]:
    """What the last attempt at a run noted of code, versions and machine; empty if that cannot be read."""
    found = _json(run_dir / "metadata.json").get("attempts")
    return found[-1] if isinstance(found, list) and found and isinstance(found[-1], dict) else {}


def _newest(run_dir: Path) -> dict[str, Any]:
    """What the newest checkpoint says of its run, or, where there is none any more, the last attempt; else empty."""
    steps = sorted(run_dir.glob("checkpoint-*"), key=lambda path: int(f"0{path.name[11:]}")
                   if path.name[11:].isdigit() else -1)
    for path in reversed(steps):
        if info := _json(path / "trainer.json"):
            return info
    attempts = _json(run_dir / "metadata.json").get("attempts")
    last = attempts[-1] if isinstance(attempts, list) and attempts else {}
    return last if ended(run_dir) and isinstance(last, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = parsed(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _difference(old: dict[str, Any] | None, job: Job) -> str:
    """Where another run's configuration differs, in words; empty where a key that is younger had its default."""
    if not isinstance(old, dict):
        return "nothing there says of which configuration"
    try:
        changes = difference(restored(old, str(job.folder)), job.config)
    except UserError:
        return "of a configuration that is not read any more"
    named = "; ".join(f"{key}: {before} -> {after}" for key, before, after in changes[:NAMED])
    return named + f"; and {len(changes) - NAMED} more" * (len(changes) > NAMED)


def look(run_dir: Path) -> tuple[float, float | None]:
    """`(fraction done, seconds a whole run takes)`; None while its speed is unknown."""
    try:
        status = parsed((run_dir / "status.json").read_text())
        attempt = parsed((run_dir / "metadata.json").read_text())["attempts"][-1]
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        step = parsed(lines[-1])["step"]
        done = status["state"] == "done"
        end = datetime.datetime.fromisoformat(status["time"]).timestamp() if done else time.time()
        seconds = end - datetime.datetime.fromisoformat(attempt["time"]).timestamp()
        share = (step - attempt["resumed_at"]) / attempt["total_steps"]
        return (1.0 if done else step / attempt["total_steps"]), (seconds / share if share > 0.05 else None)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):  # damaged, or not written yet
        return 0.0, None


def expected(jobs: Iterable[Job]) -> dict[str, float]:
    """Seconds a run takes, where one of the same condition, or else of the same script, has been measured here."""
    runs = [job for job in jobs if job.kind == "run"]
    measured = {job.name: seconds for job in runs if (seconds := look(job.folder)[1]) is not None}
    found = {}
    for job in runs:
        for alike in (lambda one: one.config.output_dir, lambda one: one.script):
            known = [measured[one.name] for one in runs if one.name in measured and alike(one) == alike(job)]
            if known:
                found[job.name] = sum(known) / len(known)
                break
    return found
