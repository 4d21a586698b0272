"""The tables of a results.json, conditions and contrasts, by split: for people, for the paper and in full."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graft.errors import UserError
from graft.reporting import latex
from graft.reporting.reading import labels

BESIDE = ("class token", "to base_0shot", "flexible", "gap closed, flexible", "cut off", "chance")
VALUE = re.compile(r"((?:< )?[+-]?\d+(?:\.\d+)?)(?: ([\[(].*))?$")  # a number, and its interval or note


def table(results: dict[str, Any]) -> pd.DataFrame:
    """One row a condition and split: accuracy, difference to the baseline, chance; fractions.

    Of students with two heads also the difference where all are read by their class token.

    Of text also the difference to the untrained model and the share of its gap that is closed, where there are such,
    flexible accuracy and the share of answers that were cut off. In the order of the conditions in `results`, the
    baseline first where that was not given.
    """
    classes = results["data"].get("classes")
    classes = len(classes) if isinstance(classes, list) else classes
    lines = []
    names = results.get("order") or sorted(results["conditions"], key=lambda name: name != results.get("baseline"))
    for name, condition in ((name, results["conditions"][name]) for name in names):
        for split, summary in condition["summary"].items():
            accuracy = summary["accuracy"]
            against = condition["vs_baseline"].get(split, {})
            versus, by_class_token = against.get("accuracy", {}), against.get("accuracy_cls")
            lines.append({
                "condition": name, "split": split, "seeds": accuracy["seeds"],
                "n": next(run["n"] for run in condition["runs"] if run["split"] == split),
                "accuracy": accuracy["mean"], **_ends("", accuracy), **_difference("difference", versus),
                "p_holm": versus.get("p_holm"), "detectable": versus.get("detectable"),
                "chance": 1 / classes if classes else None,
                **(_difference("class_token", by_class_token) if by_class_token else {}),
                **_of_text(condition, split)})
    return _numbers(lines, ("condition", "split", "seeds", "n"), results)


def _of_text(condition: dict[str, Any], split: str) -> dict[str, Any]:
    """The columns that only text has, those of them that there are."""
    found, summary = {}, condition["summary"][split]
    if versus := condition.get("vs_untrained", {}).get(split, {}).get("accuracy"):
        found |= {**_difference("to_base", versus), "to_base_p_holm": versus["p_holm"]}
    for column, metric in {"gap_closed": "accuracy", "gap_closed_flexible": "accuracy_flexible"}.items():
        if closed := condition.get("gap_closed", {}).get(split, {}).get(metric):
            found |= {column: closed["value"], f"{column}_scope": closed["scope"],
                      **_ends(f"{column}_", closed)}
    if flexible := summary.get("accuracy_flexible"):
        found |= {"flexible": flexible["mean"], **_ends("flexible_", flexible)}
    return found | ({"cut_off": 1 - summary["ended"]["mean"]} if "ended" in summary else {})


def contrasts(results: dict[str, Any]) -> pd.DataFrame:
    """One row a contrast and split: accuracy of its first condition minus that of its second; fractions."""
    return _numbers([{"contrast": f"{one['a']} - {one['b']}", "split": one["split"], **_difference("difference", one),
                      "p_holm": one["p_holm"], "detectable": one["detectable"]}
                     for one in results.get("contrasts", []) if one["metric"] == "accuracy"], ("contrast", "split"),
                    results)


def _difference(column: str, found: dict[str, Any]) -> dict[str, Any]:
    return {column: found.get("difference"), **_ends(f"{column}_", found), f"{column}_scope": found.get("scope", "")}


def _ends(prefix: str, found: dict[str, Any]) -> dict[str, Any]:
    """The columns of an interval; `cut` names its ends that are those of what can be."""
    low, high = found.get("ci95", (None, None))
    return {f"{prefix}low": low, f"{prefix}high": high, f"{prefix}cut": " ".join(found.get("cut", ()))}


def _numbers(lines: list[dict[str, Any]], others: tuple[str, ...], results: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame(lines)
    frame.attrs["labels"] = labels(results)  # what people read; the columns hold the keys
    text = [column for column in frame if column in others or column.endswith(("scope", "cut"))]
    return frame.astype({column: float for column in frame if column not in text})


def _interval(row: Any, column: str, sign: str = "", prefix: str | None = None) -> str:
    """A share in percent, or a difference in points, with its interval; a star at an end that was cut off."""
    prefix = f"{column}_" if prefix is None else prefix
    low, high, cut = (getattr(row, f"{prefix}{name}") for name in ("low", "high", "cut"))
    scope = " (1 seed)" if getattr(row, f"{column}_scope", "") == "examples" else ""
    between = "" if np.isnan(low) else f" {ends(low, high, sign, cut)}"
    return f"{100 * getattr(row, column):{sign}.2f}{between}{scope}"


def ends(low: float, high: float, sign: str = "", cut: Sequence[str] | str = "") -> str:
    """An interval of shares in percent or points; a star at an end that was cut off."""
    both = [f"{100 * end:{sign}.2f}{'*' * (name in cut)}" for name, end in (("low", low), ("high", high))]
    return f"[{', '.join(both)}]"


def _comparison(row: Any) -> dict[str, str]:
    if np.isnan(row.difference):
        return dict.fromkeys(("difference, points", "p (Holm)", "detectable, points"), "")
    return {"difference, points": _interval(row, "difference", "+"),
            "p (Holm)": p_value(row.p_holm), "detectable, points": detectable(row.detectable)}


def p_value(value: float) -> str:
    """As people read it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def detectable(value: float | None) -> str:
    """In points; no difference is larger than 100 of them."""
    return f"{100 * value:.2f}" if value is not None and value <= 1 else "none"


def _condition(row: Any) -> dict[str, str]:
    one_seed = " (1 seed)" if row.seeds == 1 else ""
    shown = {"condition": row.condition, "split": row.split, "seeds": str(row.seeds), "n": str(row.n),
             "accuracy %": _interval(row, "accuracy", prefix="") + one_seed, **_comparison(row)}
    if hasattr(row, "class_token"):
        shown["class token, points"] = "" if np.isnan(row.class_token) else _interval(row, "class_token", "+")
    if hasattr(row, "to_base"):
        shown["to base_0shot, points"] = "" if np.isnan(row.to_base) else _interval(row, "to_base", "+")
    for column, name in {"gap_closed": "gap closed %", "flexible": "flexible %",
                         "gap_closed_flexible": "gap closed, flexible %"}.items():
        if hasattr(row, column):  # a share of a gap that may be none says nothing
            nothing = column != "flexible" and np.isnan(getattr(row, f"{column}_low"))
            shown[name] = "" if nothing else _interval(row, column)
    if hasattr(row, "cut_off"):
        shown["cut off %"] = f"{100 * row.cut_off:.2f}"
    if hasattr(row, "flexible"):
        return shown
    return shown | {"chance %": "" if np.isnan(row.chance) else f"{100 * row.chance:.2f}"}


def _contrast(row: Any) -> dict[str, str]:
    return {"contrast": row.contrast, "split": row.split, **_comparison(row)}


def display(frame: pd.DataFrame) -> pd.DataFrame:
    """A table as text, in percent and percentage points."""
    cells = _contrast if "contrast" in frame else _condition
    found = pd.DataFrame([cells(row) for row in frame.itertuples()])
    names = frame.attrs.get("labels", {})
    for column in found.columns.intersection(["condition", "contrast"]):
        found[column] = [" - ".join(names.get(name, name) for name in cell.split(" - ")) for cell in found[column]]
    heads = [column.partition(" ") for column in found]  # "accuracy %"
    found.columns = ["".join([names.get(metric, metric), *unit]) for metric, *unit in heads]
    return found


def of_split(frame: pd.DataFrame, split: str | None) -> pd.DataFrame:
    """The rows of one split, or all."""
    return frame[frame["split"] == split] if split and len(frame) else frame


def shown(results: dict[str, Any], split: str = "") -> str:
    """The tables as Markdown, the contrasts' below where there are any; of one split, or of all ("")."""
    frames = [of_split(frame, split) for frame in (table(results), contrasts(results))]
    return "\n".join(to_markdown(frame) for frame in frames if len(frame))


def to_markdown(frame: pd.DataFrame) -> str:
    """A table for people."""
    return cells_to_markdown(display(frame))


def cells_to_markdown(shown: pd.DataFrame) -> str:
    """Text in cells as a table in Markdown."""
    lines = [list(shown), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    cells = [[" ".join(cell.replace("|", "\\|").splitlines()) for cell in line] for line in lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)


def to_latex(frame: pd.DataFrame) -> str:
    """A table for the paper (booktabs): values aligned at the point, what follows them in a column beside.

    The columns that a comparison needs; `BESIDE` are in the other formats.
    """
    shown = display(frame)
    shown = shown.drop(columns=[name for name in shown if name.startswith(BESIDE)
                                or (name == "split" and shown[name].nunique() == 1)])  # a caption says it
    heads, columns, lines = [], "", [[] for _ in shown.index]
    for place, (name, cells) in enumerate(shown.items()):
        parts = [VALUE.match(cell) for cell in cells]
        numbers = any(parts) and place > 0
        beside = numbers and any(part and part[2] for part in parts)
        columns += ("r@{ }l" if beside else "r") if numbers else "l"
        heads.append(rf"\multicolumn{{2}}{{c}}{{{_escape(name)}}}" if beside else _escape(name))
        for line, cell, part in zip(lines, cells, parts):
            line += [_escape(part[1]), _escape(part[2] or "")] if part and beside else [_escape(cell)] + [""] * beside
    rows = [" & ".join(line) + r" \\" for line in [heads, *lines]]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:],
                      r"\bottomrule", r"\end{tabular}", ""])


def _escape(text: str) -> str:
    """Plain text for LaTeX; a minus is one."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", latex.escape(text)).replace(" - ", " $-$ ")


def to_csv(frame: pd.DataFrame) -> str:
    """The numbers of a table in full."""
    return frame.to_csv(index=False, lineterminator="\n")


def insert(path: Path, mark: str, text: str) -> None:
    """Replace what stands between the lines `<!-- mark -->` and `<!-- /mark -->` of a file.

    Raises UserError if they are not there.
    """
    before, _, after = _parts(path, mark)
    path.write_text(before + text + after, encoding="utf-8")


def between(path: Path, mark: str) -> str:
    """What stands there now. Raises UserError as `insert` does."""
    return _parts(path, mark)[1]


def _parts(path: Path, mark: str) -> tuple[str, str, str]:
    before, opening, rest = path.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    text, closing, after = rest.partition(f"<!-- /{mark} -->\n")
    if not opening or not closing:
        raise UserError(f"{path}: expected the lines <!-- {mark} --> and <!-- /{mark} -->")
    return before + opening, text, closing + after
