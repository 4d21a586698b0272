"""The command line of scripts/study.sh, for all programs that read it."""

import argparse
import os
from collections.abc import Sequence

from graft.config import study
from graft.config.study.graph import Asked, Graph
from graft.config.study.options import STEPS


def from_command_line(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Graph]:
    """The options, and the jobs of the study they name. Raises UserError as `study.load` and `Graph` do."""
    options = _parser().parse_args(argv)
    asked = Asked(tuple(options.only), tuple(options.seeds), tuple(options.set), options.name, options.smoke,
                  dict(os.environ))
    return options, Graph(study.load(options.study), asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="study.sh", description="Run a study: bash scripts/study.sh NAME|FILE …",
                                     allow_abbrev=False)
    parser.add_argument("study", help="one of configs/study/ by name, or a file of your own")
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="CONDITION",
                        help="these and what they need; also a teacher, or what runs are made from, as cache-fewshot")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="of every condition; default: the study's")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="over every run that has such a key")
    parser.add_argument("--name", default="", help="another folder below experiments/")
    parser.add_argument("--smoke", action="store_true", help="four steps a run, one seed, in experiments/<study>-smoke")
    parser.add_argument("--list", action="store_true", help="what would run, with state and command line")
    parser.add_argument("--dry_run", action="store_true", help="check each configuration by its script's own --dry_run")
    parser.add_argument("--then", action="store_true", help="only what follows the runs")
    parser.add_argument("--steps", nargs="+", default=[], choices=STEPS, help="of these, with --then: only some")
    parser.add_argument("--graph", action="store_true", help="the jobs as JSON, for other schedulers")
    return parser
