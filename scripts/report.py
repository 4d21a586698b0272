"""A study as one page to look at and to send: experiments/<study>/report.html.

    python scripts/report.py --study demo
    python scripts/report.py --study mine.yaml --base_dir experiments/mine_lr

One file that loads nothing: what came out, the interval that decides, what each condition is, training, forensics,
robustness, and the examples on which the conditions disagree most. Only results.json, forensics.json, robustness.json,
the rows beside them and the runs' logs are read, and the data and checkpoints for the pictures of examples. What a
study does not have yet, the report names.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

from graft.config import script_options, study
from graft.config.study.graph import Asked, Graph
from graft.errors import UserError, exit_cleanly


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_options.parser(__doc__)
    parser.add_argument("--study", required=True, help="a study of configs/study/, a file of your own, or the "
                                                       "name of a folder of experiments/")
    parser.add_argument("--base_dir", type=Path, help="where it lies; default: experiments/<study>")
    parser.add_argument("--out", type=Path, help="default: report.html there")
    parser.add_argument("--split", choices=script_options.SPLITS, help="default: test where it was scored, else val")
    parser.add_argument("--examples", type=int, default=24, help="how many to show (default: 24)")
    parser.add_argument("--root", default="", help="where the data lie now, if they were moved")
    parser.add_argument("--no_pictures", action="store_true", help="no data and no checkpoint is opened: rows alone")
    options = parser.parse_args()
    script_options.at_least(options, examples=0)
    return options


def main() -> None:
    """Read, choose examples, write."""
    options = arguments()  # before torch is imported
    from graft.evaluation import examples
    from graft.reporting import reading, report
    from graft.runtime.files import write_text

    plan = planned(options)
    name = plan.study if plan else options.study
    folder = options.base_dir or Path("experiments") / name
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; bash scripts/study.sh {options.study} makes it")
    split = options.split or "test"
    if not options.split and (folder / "results.json").is_file():
        scored = reading.read_results(folder / "results.json")["conditions"].values()
        split = "test" if any("test" in condition["summary"] for condition in scored) else "val"
    sources = report.read(name, folder, split, plan)
    if plan:
        sources.commands |= commands(plan, options)
    else:
        sources.missing.append(f"configs/study/{name}.yaml: no file of the study, so nothing of what it asks")
    sources.logs, sources.attempts = examples.logs(folder, sources.names(), sources.missing)
    shown = examples.chosen(sources, options.examples, options.root, not options.no_pictures)
    out = options.out or folder / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, report.render(sources, shown))
    print(f"wrote {out} ({out.stat().st_size / 2**20:.2f} MB)")


def planned(options: argparse.Namespace) -> Any:
    """The study's file, or None if only its folder is there."""
    given = "/" in options.study or options.study.endswith(".yaml")
    return study.load(options.study) if given or options.study in study.names() else None


def commands(plan: Any, options: argparse.Namespace) -> dict[str, str]:
    """What made the study: all of it, and each run by itself."""
    found = {"The whole study": f"bash scripts/study.sh {shlex.quote(options.study)}",
             "This report": f"python scripts/report.py --study {shlex.quote(options.study)}"}
    for job in Graph(plan, Asked()).jobs.values():
        if job.kind != "run" or job.config.seed == plan.seeds[0]:
            found[job.name] = shlex.join(["python", job.script, *job.words])
    return found


if __name__ == "__main__":
    exit_cleanly(main)
