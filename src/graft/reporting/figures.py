"""How every figure looks and is written: sized for a two-column page, the same bytes for the same numbers."""

import argparse
import contextlib
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from graft.errors import UserError
from graft.reporting import reading

COLUMN, PAGE = 3.25, 6.75  # inches: widths of one column and of both
# Conditions differ in colour, marker and line style, so that grey print and colour-blind readers can tell them apart.
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)), (0, (5, 1, 1, 1)), (0, (2, 2)))
_STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.1, "lines.markersize": 3.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.grid": True,
    "grid.linewidth": 0.3, "grid.color": "0.85", "axes.axisbelow": True, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "figure.constrained_layout.use": True, "text.usetex": False,
    "text.parse_math": False,  # names may have a $
    "pdf.fonttype": 42, "savefig.dpi": 300, "savefig.bbox": "standard"}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Drawing inside this block has the house style (petroff10 colours: Petroff 2021, arXiv:2107.02270)."""
    with matplotlib.style.context(["default", "petroff10", _STYLE]):
        yield


def colours() -> list[str]:
    """The ten colours of conditions, in order."""
    return matplotlib.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"]


def axes(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs) -> tuple[Figure, list[Axes]]:
    """A figure of that size in inches and its axes, row by row."""
    figure = Figure(figsize=(width, height))
    return figure, list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)


def look(i: int) -> dict:
    """Colour, marker and line of the i-th condition; those that share a colour differ in the rest."""
    other = (i + i // 10) % 10
    return {"color": f"C{i % 10}", "marker": MARKERS[other], "linestyle": LINES[other]}


def logarithmic(axis: Axis) -> None:
    """Label the powers of ten of a logarithmic axis, which matplotlib would write as formulas."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"10{f'{math.log10(value):.0f}'.translate(RAISED)}"))
    axis.set_minor_formatter(NullFormatter())


def arguments(doc: str, name: str, source: str, *, split: str = "", **of_source: Any) -> argparse.ArgumentParser:
    """The arguments that the scripts of all figures share.

    `source` is the flag that names the input, `of_source` goes with it to `add_argument`; `name` is the figure's file
    name by default; with `split` there is a `--split` with that default.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument(source, required=True, **of_source)
    parser.add_argument("--out", required=True, help="folder for the figure as .pdf and .png and its numbers as .csv")
    parser.add_argument("--name", default=name, help=f"their name without suffix (default: {name})")
    parser.add_argument("--conditions", nargs="+", help="these, in this order (default: all that can be drawn)")
    if split:
        parser.add_argument("--split", default=split, help=f"default: {split}")
    parser.add_argument("--allow_missing", action="store_true", help="draw what is there and name the rest")
    return parser


def choose(asked: list[str] | None, present: list[str], where: str, allow_missing: bool) -> list[str]:
    """The conditions to draw. Raises UserError naming those that were asked for and are not there."""
    missing = [name for name in asked or () if name not in present]
    if missing and not allow_missing:
        raise UserError(f"{where}: no {', '.join(missing)}; there are: {', '.join(present) or 'none'}")
    for name in missing:
        print(f"missing: {name}", file=sys.stderr)
    chosen = [name for name in asked or present if name in present]
    if not chosen:
        raise UserError(f"{where}: no condition to draw; there are: {', '.join(present) or 'none'}")
    return chosen


def rename(figure: Figure, labels: dict[str, str]) -> None:
    """Show conditions and metrics by their display names, wherever a figure names one; its numbers keep the keys."""
    if not labels:
        return
    longest = sorted(labels, key=len, reverse=True)
    words = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, longest))})(?![\w.-])")

    def shown(text: str) -> str:
        return words.sub(lambda found: labels[found[0]], text)

    for text in figure.findobj(Text):
        text.set_text(shown(text.get_text()))
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        if isinstance(axis.get_major_locator(), FixedLocator):  # its labels are made anew when it is drawn
            axis.set_ticks(axis.get_ticklocs(), [shown(text.get_text()) for text in axis.get_ticklabels()])


def _labels(args: argparse.Namespace) -> dict[str, str]:
    """The display names in the results.json that a figure is drawn from, or that lies beside its source."""
    source = next(getattr(args, key) for key in ("results", "forensics", "base_dir") if hasattr(args, key))
    source = Path(source[0] if isinstance(source, list) else source)
    file = (source if source.is_dir() else source.parent) / "results.json"
    return reading.labels(reading.read_results(file)) if file.is_file() else {}


def save(figure: Figure, args: argparse.Namespace, table: pd.DataFrame) -> list[Path]:
    """Write .pdf, .png (300 dpi) and .csv, the numbers drawn; no dates, so that equal input gives equal bytes.

    `args` are those of `arguments`.
    """
    rename(figure, _labels(args))
    out_dir = Path(args.out)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = [out_dir / f"{args.name}.{suffix}" for suffix in ("pdf", "png", "csv")]
    with style():
        figure.savefig(paths[0], metadata={"CreationDate": None})
        figure.savefig(paths[1], metadata={"Software": None})
    table.to_csv(paths[2], index=False, lineterminator="\n", float_format="%.6g")
    return paths
