"""Options that several scripts share. Without torch: scripts parse their command line first and import it afterwards,
so that `--help` and a mistake are answered at once."""

import argparse
import math
from pathlib import Path

from graft.errors import UserError

ENGINES = ("transformers", "vllm")
SPLITS = ("val", "test")


def parser(doc: str, **kwargs: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it stands and takes no abbreviations."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
                                   allow_abbrev=False, **kwargs)


def add_weights(to: argparse.ArgumentParser) -> None:
    """Which weights of a run."""
    to.add_argument("--weights", choices=["auto", "last", "average"], default="auto",
                    help="auto: the averaged weights where a run has them")


def add_data(to: argparse.ArgumentParser) -> None:
    """Of all scripts that bring checkpoints and data together."""
    to.add_argument("--task_root", default="", metavar="DIR", help="where the data lie now, if they were moved")
    to.add_argument("--allow_other_data", action="store_true", help="go on where the data, class names, tokenizer or "
                    "template are not those of training; what differs is written into the output")


def add_analysis(to: argparse.ArgumentParser) -> None:
    """Of both analysis scripts."""
    to.add_argument("--output", type=Path, required=True)
    to.add_argument("--split", choices=SPLITS, default="test")
    to.add_argument("--images", type=int, default=512, help="for attention; all, if the split has fewer")
    to.add_argument("--cka_images", type=int, default=2048, help="for similarity")
    to.add_argument("--kernel", choices=["linear", "rbf"], default="linear", help="of CKA")
    to.add_argument("--batch_size", type=int, default=128)
    to.add_argument("--device", default="", help="such as cpu or cuda:1; default: the GPU if there is one")
    add_weights(to)
    add_data(to)


def add_engine(to: argparse._ActionsContainer) -> None:
    """How language models answer."""
    to.add_argument("--engine", choices=ENGINES, default="transformers")
    to.add_argument("--batch_size", type=int, help="prompts answered together; default: evaluate.batch_size")
    to.add_argument("--tensor_parallel", type=int, default=1, help="vllm: GPUs that share one model")
    to.add_argument("--limit", type=int, default=0, help="a random sample of that many questions, the same for all; "
                    "0: all")


def at_least(options: argparse.Namespace, **least: int) -> None:
    """Raise UserError for a number on the command line that is below its least; one that was not given is none."""
    for name, low in least.items():
        values = getattr(options, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < low:
                raise UserError(f"--{name}: expected at least {low}, got {value}")


def above_zero(options: argparse.Namespace, **most: float) -> None:
    """Raise UserError for a number on the command line that is not above 0 and at most what is said here."""
    for name, high in most.items():
        value = getattr(options, name)
        if value is not None and not 0 < value <= high:
            limit = f" and at most {high:g}" if high < math.inf else ""
            raise UserError(f"--{name}: expected a number above 0{limit}, got {value:g}")
