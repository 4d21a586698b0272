"""The report's charts as SVG in the page: text stays text, and light and dark are the style sheet's.

Colours and dashes are those of `graft.reporting.figures`, by the same number of a condition.
"""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from graft.reporting import figures

WIDTH = 640
DASHES = ("", "6 3", "6 2 1 2", "1 2", "9 2", "3 1 1 1", "1 1", "10 3", "9 1 1 1", "2 3")
POINTS = 150  # of a line; more cannot be told apart

REFERENCES = ("4 4", "1 3")  # dashes, in the order of the references

Point = tuple[float, float]


def _scale(low: float, high: float, start: float, end: float, whole: bool = False) -> tuple[Any, list[float]]:
    """A function from values to pixels, and the ticks between, at `whole` numbers."""
    if high == low:
        low, high = low - 0.5, high + 0.5
    low, high = (low, high) if whole else (low - 0.03 * (high - low), high + 0.03 * (high - low))
    ticks = [tick for tick in MaxNLocator(5, integer=whole).tick_values(low, high) if low <= tick <= high]
    return (lambda value: start + (value - low) / (high - low) * (end - start)), ticks


def _svg(height: int, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>').format(
        WIDTH, height, title, title, Markup("").join(parts))


def _text(x: float, y: float, words: str, anchor: str = "middle") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, words)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


def intervals(rows: Sequence[dict[str, Any]], title: str, unit: str) -> Markup:
    """One line a row: `label`, `value` with `low` and `high` (or None), its `points`, colour number `i`, and whether it
    is `hollow`; `reference` marks the row whose interval is drawn across all."""
    values = [v for row in rows for v in (row["value"], row["low"], row["high"], *row["points"]) if v is not None]
    left, step = 190, 30
    bottom = 8 + step * len(rows)
    x, ticks = _scale(min(values), max(values), left, WIDTH - 12)
    parts = []
    for row in rows:
        if row.get("reference") and row["low"] is not None:
            parts.append(Markup('<rect x="{:.1f}" y="4" width="{:.1f}" height="{}" class="band"/>').format(
                x(row["low"]), x(row["high"]) - x(row["low"]), bottom - 4))
    parts += [_line(x(tick), 4, x(tick), bottom, "grid") for tick in ticks]
    parts += [_text(x(tick), bottom + 16, f"{tick:g}") for tick in ticks]
    for k, row in enumerate(rows):
        y, colour = 8 + step * (k + 0.4), f"c{row['i'] % 10}"
        label = row["label"] if len(row["label"]) < 28 else row["label"][:26] + "…"
        parts.append(_text(left - 10, y + 4, label, "end"))
        if row["low"] is not None:
            parts.append(_line(x(row["low"]), y, x(row["high"]), y, f"line {colour}"))
        parts.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" class="mark {}{}"/>').format(
            x(row["value"]), y, colour, " hollow" if row["hollow"] else ""))
        parts += [Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2" class="seed"/>').format(x(value), y + step * under)
                  for value, under in zip(row["points"], figures.below(len(row["points"])))]
    parts.append(_text((left + WIDTH) / 2, bottom + 34, unit))
    return _svg(bottom + 42, title, parts)


def lines(series: Sequence[dict[str, Any]], title: str, across: str, height: int = 250, whole: bool = True) -> Markup:
    """Lines of `points` (x, y), colour number `i` each; `reference` ones are grey. `whole`: x are whole numbers."""
    series = [{**one, "points": _thinned(one["points"])} for one in series if one["points"]]
    xs, ys = ([p[k] for one in series for p in one["points"]] for k in (0, 1))
    x, x_ticks = _scale(min(xs), max(xs), 62, WIDTH - 12, whole)
    y, y_ticks = _scale(min(ys), max(ys), height - 42, 10)
    parts = [_line(62, y(tick), WIDTH - 12, y(tick), "grid") for tick in y_ticks]
    parts += [_text(56, y(tick) + 4, f"{tick:.4g}", "end") for tick in y_ticks]
    parts += [_text(x(tick), height - 24, f"{tick:g}") for tick in x_ticks]
    for one in series:
        if len(one["points"]) == 1:
            (a, b), = one["points"]
            parts.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" class="mark c{}"><title>{}</title></circle>')
                         .format(x(a), y(b), one["i"] % 10, one["label"]))
            continue
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in one["points"])
        kind = "reference" if one.get("reference") else f"line c{one['i'] % 10}"
        dash = REFERENCES[one["i"]] if one.get("reference") else DASHES[(one["i"] + one["i"] // 10) % 10]
        parts.append(Markup('<polyline points="{}" class="{}" stroke-dasharray="{}"><title>{}</title></polyline>')
                     .format(path, kind, dash, one["label"]))
    parts.append(_text(WIDTH / 2, height - 6, across))
    return _svg(height, title, parts)


def legend(names: Sequence[tuple[int, str]], references: Sequence[str] = ()) -> Markup:
    """Which colour and dash is whose."""
    found = [Markup('<span><svg viewBox="0 0 28 8" class="key" aria-hidden="true"><line x1="0" y1="4" x2="28" y2="4" '
                    'class="line c{}" stroke-dasharray="{}"/></svg>{}</span>').format(
                        i % 10, DASHES[(i + i // 10) % 10], name) for i, name in names]
    found += [Markup('<span><svg viewBox="0 0 28 8" class="key" aria-hidden="true"><line x1="0" y1="4" x2="28" y2="4" '
                     'class="reference" stroke-dasharray="{}"/></svg>{}</span>').format(dash, name)
              for dash, name in zip(REFERENCES, references)]
    return Markup('<p class="legend">') + Markup(" ").join(found) + Markup("</p>")


def matrix(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], caption: str,
           corner: str) -> Markup:
    """A table whose cells are as dark as their values, from 0 to 1."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in columns)
    body = []
    for name, own in zip(rows, values, strict=True):
        cells = Markup("").join(
            Markup('<td style="--v:{:.3f}">{}</td>').format(min(max(v or 0, 0), 1), "–" if v is None else f"{v:.2f}")
            for v in own)
        body.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, cells))
    return Markup('<div class="wide"><table class="matrix"><caption>{}</caption><thead><tr><th scope="col">{}</th>{}'
                  '</tr></thead><tbody>{}</tbody></table></div>').format(caption, corner, head, Markup("").join(body))


def _thinned(points: Sequence[Point]) -> list[Point]:
    every = max(1, math.ceil(len(points) / POINTS))
    return [*points[:-1:every], points[-1]]
