"""How every figure looks and is written: sized for a two-column page, the same bytes for the same numbers."""

import argparse
import contextlib
import math
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import NDArray

from graft.errors import UserError
from graft.reporting import reading

COLUMN, PAGE = 3.25, 6.75  # inches: widths of one column and of both
DPI = 300
GREYS = (3, 8)  # their places in petroff10
# Conditions differ in colour, marker and line style, so that grey print and colour-blind readers can tell them apart.
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)), (0, (5, 1, 1, 1)), (0, (2, 2)))
_STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.title_fontsize": 7, "figure.labelsize": 6.5, "legend.frameon": False,
    "lines.linewidth": 1.1, "lines.markersize": 3.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.grid": True,
    "grid.linewidth": 0.3, "grid.color": "0.85", "axes.axisbelow": True, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "figure.constrained_layout.use": True, "text.usetex": False,
    "text.parse_math": False,  # names may have a $
    "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "graft",  # text stays text; ids that do not change
    "savefig.dpi": DPI, "savefig.bbox": "standard"}
# For slides as many pixels across at more of them per inch: text, lines and markers fill more of the figure.
STYLES = {"paper": {}, "talk": {"savefig.dpi": 1.25 * DPI, "lines.linewidth": 1.4, "axes.linewidth": 0.8}}
FORMATS = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}  # and their metadata


@contextlib.contextmanager
def style(name: str = "paper") -> Iterator[None]:
    """Drawing inside this block has the house style, and `C0` to `C9` are `colours()`."""
    with matplotlib.style.context(["default", _STYLE, {"axes.prop_cycle": cycler(color=colours())}, STYLES[name]]):
        yield


def colours() -> list[str]:
    """The ten colours of conditions, in order: those of Petroff 2021 (arXiv:2107.02270), the greys last, since
    references are grey."""
    found = matplotlib.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"]
    return [one for i, one in enumerate(found) if i not in GREYS] + [found[i] for i in GREYS]


def axes(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs) -> tuple[Figure, list[Axes]]:
    """A figure of that size in inches (its width that on paper) and its axes, row by row."""
    figure = Figure(figsize=(width * DPI / matplotlib.rcParams["savefig.dpi"], height))
    return figure, list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)


def look(i: int) -> dict:
    """Colour, marker and line of the i-th condition; those that share a colour differ in the rest."""
    other = (i + i // 10) % 10
    return {"color": f"C{i % 10}", "marker": MARKERS[other], "linestyle": LINES[other]}


def across(panels: int, most: int = 4) -> int:
    """How many of so many panels stand in a row, at least `most` - 1 where there are more: those that leave fewest
    empty places."""
    return panels if panels < most else min((most, most - 1), key=lambda columns: -panels % columns)


def below(seeds: int) -> NDArray:
    """How far below the mean of its condition the value of each seed is drawn: each lower, so that equal ones show."""
    return np.linspace(0.22, 0.46, seeds) if seeds > 1 else np.array([0.3])


def legend(figure: Figure, handles: list, labels: list[str], title: str = "") -> None:
    """Above the axes; `save` gives it as many columns as there is room for, and the figure the height it takes."""
    own = figure.legend(handles, labels, loc="outside upper center", title=title or None)
    own.stand_for = handles  # the legend itself keeps copies that cannot be laid out anew


def foot(figure: Figure, text: str) -> None:
    """A note below the axes, which `save` breaks into lines."""
    figure.supxlabel(text)


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
    parser.add_argument("--out", required=True, help="folder for the figure (.pdf, .svg, .png) and its numbers (.csv)")
    parser.add_argument("--name", default=name, help=f"their name without suffix (default: {name})")
    parser.add_argument("--style", choices=list(STYLES), default="paper", help="for a page (default) or a slide")
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


def rename(figure: Figure, conditions: dict[str, str], metrics: dict[str, str] | None = None) -> None:
    """Show display names wherever a figure names a condition or a metric; its numbers keep the keys.

    A condition is named where a line begins and after a minus: elsewhere its key may be a word of the language.
    """
    places = [(conditions, r"(?m)(?:^|(?<=[−-] ))"), (metrics or {}, r"(?<![\w.-])")]
    keys = [(known, before, "|".join(map(re.escape, sorted(known, key=len, reverse=True)))) for known, before in places]
    words = [(re.compile(rf"{before}({any_of})(?![\w.-])"), known) for known, before, any_of in keys if known]
    if not words:
        return

    def shown(text: str) -> str:
        for pattern, known in words:
            text = pattern.sub(lambda found, known=known: known[found[1]], text)
        return text

    for text in figure.findobj(Text):
        text.set_text(shown(text.get_text()))
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        own = [shown(text.get_text()) for text in axis.get_ticklabels()]
        # The labels of a fixed locator are made anew when it is drawn; a panel that shares them has none of its own.
        if isinstance(axis.get_major_locator(), FixedLocator) and any(own):
            axis.set_ticks(axis.get_ticklocs(), own)


def _labels(args: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """The display names of conditions and metrics in the results.json that a figure is drawn from or lies beside."""
    source = next(getattr(args, key) for key in ("results", "forensics", "base_dir") if hasattr(args, key))
    source = Path(source[0] if isinstance(source, list) else source)
    file = (source if source.is_dir() else source.parent) / "results.json"
    if not file.is_file():
        return {}, {}
    content = reading.read_results(file)
    return reading.condition_labels(content), content.get("metric_labels", {})


def _settle(figure: Figure) -> None:
    """Fit legends and the note at the foot into the figure's width, and let it grow by the lines they take.

    Done when the display names stand, which may be longer.
    """
    width, more = figure.get_figwidth(), 0.0
    for own in list(figure.legends):
        columns, title = _columns(own, width), own.get_title().get_text()
        labels = [text.get_text() for text in own.get_texts()]
        own.remove()
        figure.legend(own.stand_for, labels, loc="outside upper center", title=title or None, ncols=columns)
        lines = math.ceil(len(labels) / columns) + bool(title)
        more += (1.35 * lines + 0.8) * own.get_texts()[0].get_fontsize() / 72
    if words := figure.get_supxlabel():
        text = figure.supxlabel(words)
        fit = math.ceil(text.get_window_extent().width / (0.95 * width * figure.dpi))  # lines, about equally long
        lines = textwrap.wrap(words, math.ceil(len(words) / fit) + 3 * (fit > 1))
        figure.supxlabel("\n".join(lines))
        more += (1.25 * len(lines) + 0.5) * text.get_fontsize() / 72
    figure.set_figheight(figure.get_figheight() + more)
    _fold_labels(figure)


def _fold_labels(figure: Figure) -> None:
    """Give the labels of axes that are much longer than these, or leave the figure, two lines."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        room = ax.get_window_extent()
        for axis, length, side in ((ax.xaxis, room.width, "width"), (ax.yaxis, room.height, "height")):
            words, own = axis.get_label_text(), axis.label.get_window_extent()
            outside = min(own.x0, own.y0, figure.bbox.x1 - own.x1, figure.bbox.y1 - own.y1) < 0
            if words and (outside or getattr(own, side) > 1.25 * length) and "\n" not in words:
                axis.set_label_text("\n".join(textwrap.wrap(words, max(len(words) // 2 + 3, 12))))


def _columns(own: Legend, width: float) -> int:
    """The largest number of columns, filled one after the other, that `width` inches have room for."""
    widths = np.array([text.get_window_extent().width for text in own.get_texts()]) / own.figure.dpi
    beside = 4.8 * own.get_texts()[0].get_fontsize() / 72  # handle, and what stands between
    return next((columns for columns in range(len(widths), 1, -1)
                 if sum(part.max() + beside for part in np.array_split(widths, columns)) < 0.98 * width), 1)


def save(figure: Figure, args: argparse.Namespace, table: pd.DataFrame) -> list[Path]:
    """Write .pdf, .svg, .png and .csv, the numbers drawn; no dates, so that equal input gives equal bytes.

    `args` are those of `arguments`.
    """
    rename(figure, *_labels(args))
    out_dir = Path(args.out)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = [out_dir / f"{args.name}.{suffix}" for suffix in (*FORMATS, "csv")]
    with style(args.style):
        _settle(figure)
        for path, metadata in zip(paths, FORMATS.values(), strict=False):
            figure.savefig(path, metadata=metadata)
    table.to_csv(paths[-1], index=False, lineterminator="\n", float_format="%.6g")
    return paths
