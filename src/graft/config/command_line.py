"""The command line that all training scripts share."""

import argparse
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from graft.config import merge
from graft.config.help import help_text
from graft.config.options import Config
from graft.config.reading import COMMAND_LINE
from graft.errors import UserError, exit_cleanly


def command_line(doc: str, method: str | None, argv: list[str] | None = None) -> Config:
    """Parse a training script's arguments; bad ones end the program with one line and exit code 2.

    `--print_config` and `--help` print and exit 0. `method` is what the script trains; None for
    `train_ablation.py`, which takes what its configs say.
    """
    return exit_cleanly(lambda: _parse(doc, method, sys.argv[1:] if argv is None else argv))


def _parse(doc: str, method: str | None, argv: list[str]) -> Config:
    parser = _parser()
    if (at := next((i for i, word in enumerate(argv) if word in ("-h", "--help")), -1)) >= 0:
        asked = itertools.takewhile(lambda word: not word.startswith("-"), argv[at + 1:])
        print(help_text(f"{doc.strip()}\n\n{parser.format_help()}", list(asked)))
        sys.exit(0)
    options, rest = parser.parse_known_args(argv)
    files, rest = files_and_overrides(options, rest)
    scalars = {key: getattr(options, key) for key in ("output_dir", "seed", "resume")
               if getattr(options, key) is not None}
    for word in rest:
        if (key := word.partition("=")[0]) in scalars:
            raise UserError(f"{COMMAND_LINE}: {key}: given twice, as --{key} {scalars[key]} and as {word}")
    config, origin = merge(files, rest, scalars)
    if method is not None and config.method != method:
        if "method" not in origin:
            raise UserError(f"method: no configuration sets it, and this script trains {method}; expected --config "
                            "FILE with one (configs/distill/, configs/ss_distill/), or train_baseline.py")
        raise UserError(f"{origin['method']}: method: this script trains {method}, the configs say {config.method}; "
                        f"use train_{config.method}.py")
    if not config.output_dir:
        who = origin.get("output_dir", COMMAND_LINE)
        raise UserError(f"{who}: output_dir: expected the condition's folder, got ''")
    if options.print_config:
        print(_with_origins(config, origin))
        sys.exit(0)
    return replace(config, files=tuple(files), overrides=tuple(rest), dry_run=options.dry_run,
                   code_changed=options.code_changed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, usage="%(prog)s --base_config FILE "
                                     "--config FILE... --output_dir DIR [options] [key=value ...]")
    parser.add_argument("--base_config", required=True, help="a complete run: data, student, recipe")
    parser.add_argument("--config", nargs="+", action="extend", default=[], help="deltas, later ones win")
    parser.add_argument("--output_dir", required=True, help="the condition's folder; the run is its seed<k>")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--resume", help="auto (default): continue if there is a checkpoint; never; must")
    parser.add_argument("--print_config", action="store_true", help="print every value and where it comes from")
    parser.add_argument("--dry_run", action="store_true",
                        help="check config, data, teacher and shapes, print the objective, train nothing")
    parser.add_argument("--code_changed", action="store_true", help="resume although sources that decide the result "
                        "have changed; the checkpoint and metadata.json record it")
    parser.add_argument("--help", "-h", nargs="*", metavar="TOPIC", help="this, or the keys of a topic")
    return parser


def files_and_overrides(options: argparse.Namespace, rest: list[str]) -> tuple[list[str], list[str]]:
    """The configuration files, and the words of `rest` and --config that are overrides.

    Raises UserError for an option that the parser did not know.
    """
    # argparse gives `--config a.yaml optim.lr=1` both words.
    files = [word for word in options.config if "=" not in word or Path(word).is_file()]
    overrides = rest + [word for word in options.config if word not in files]
    if unknown := [word for word in overrides if word.startswith("-")]:
        raise UserError(f"{COMMAND_LINE}: {unknown[0]}: unknown option; see --help")
    return [options.base_config, *files], overrides


def _with_origins(config: Config, origin: dict[str, str]) -> str:
    """The resolved configuration as YAML, each line with the file its value came from."""
    lines: list[str] = []

    def walk(value: Any, path: str, indent: int) -> None:
        items = value.items() if isinstance(value, dict) else [(None, item) for item in value]
        for i, (key, item) in enumerate(items):
            here = f"{path}.{i if key is None else key}".lstrip(".")
            pad = "  " * indent
            head = f"{pad}- " if key is None else f"{pad}{key}: "
            if isinstance(item, dict) and item and key is None:
                lines.append(f"{pad}-")
                walk(item, here, indent + 1)
            elif (isinstance(item, dict) and item) or (isinstance(item, list) and item and isinstance(item[0], dict)):
                lines.append(head.rstrip())
                walk(item, here, indent + 1)
            else:
                lines.append(f"{head + json.dumps(item):<60}  # {origin.get(here, 'default')}")

    walk(config.to_dict(), "", 0)
    return "\n".join(lines)
