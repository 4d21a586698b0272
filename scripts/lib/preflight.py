"""Check once, before the first job of a study, that its data, models and packages are there; a line for each missing.

    python scripts/lib/preflight.py cifar10 [the options of scripts/study.sh]

Data are read by the task itself, models of timm are made and those of transformers looked up, once for each that the
jobs to come name; what the study makes itself is left out. Exit code 2 if something is missing.
"""

import os
import sys
from collections.abc import Callable, Iterator

from graft.config.options import Config
from graft.config.study.graph import Graph
from graft.config.study.line import from_command_line
from graft.errors import UserError, exit_cleanly
from graft.runtime import runs

Check = Callable[[], object]


def checks(graph: Graph) -> Iterator[tuple[str, Check]]:
    """What to check, each with a key that says what is the same."""
    if "vllm" in os.environ.get("EVAL_ARGS", "").replace("=", " ").split():
        yield "vllm", _vllm
    for job in graph.jobs.values():
        if job.config is not None and runs.state(job).name in ("new", "begun"):
            yield from _of_run(job.config, graph.makes)


def _of_run(cfg: Config, made: Callable[[str], bool]) -> Iterator[tuple[str, Check]]:
    """The task, the student's and the teacher's weights, but for what is `made` by the study itself."""
    from graft.config import parts

    if not any(made(str(value)) for value in cfg.task.args.values()):
        kept = {key: value for key, value in cfg.task.args.items() if key not in ("subset", "val_fraction")}
        yield f"task {cfg.task.name} {kept}", lambda: parts.build("tasks", cfg.task)
    for key in ("student", "teacher"):
        part = getattr(cfg, key)
        model = str(part.args.get("model", ""))
        if model and not made(model):
            revision = str(part.args.get("revision", ""))
            yield f"model {model} {revision}", lambda key=key, model=model, revision=revision: _language_model(
                f"{key}.model", model, revision)
        published = part.name in ("timm", "dinov2") and not part.args.get("random_weights") and (
            key == "teacher" or part.args.get("pretrained") or part.args.get("checkpoint"))
        if published:
            arch, file = part.args["arch"], part.args["checkpoint"]
            yield f"weights {arch} {file}", lambda key=key, arch=arch, file=file: _weights(key, arch, file)


def _vllm() -> None:
    from graft.evaluation.engines import vllm_python

    if vllm_python() is None:
        raise UserError("EVAL_ARGS: --engine vllm: vllm is not installed; bash scripts/setup_vllm.sh")


def _language_model(key: str, model: str, revision: str) -> None:
    from graft.students._language import identity

    identity(model, revision, key)


def _weights(key: str, arch: str, file: str) -> None:
    from graft.students._weights import from_file, from_hub, require_arch

    require_arch(arch, f"{key}.arch")
    if file:
        from_file(arch, file, f"{key}.checkpoint")
    else:
        from_hub(arch)


def main() -> None:
    """Check everything, then say what is missing."""
    _, graph = from_command_line()
    missing = []
    for check in dict(checks(graph)).values():
        try:
            check()
        except UserError as error:
            missing.append(str(error))
    for line in dict.fromkeys(missing):
        print(f"error: {line}", file=sys.stderr)
    if missing:
        sys.exit(UserError.exit_code)


if __name__ == "__main__":
    exit_cleanly(main)
