"""The table of a results.json: one row a condition and split, for people, for the paper and in full."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd


def table(results: dict[str, Any]) -> pd.DataFrame:
    """One row a condition and split: accuracy, difference to the baseline, chance; fractions.

    Of text also flexible accuracy, and the share of the gap closed (by strict accuracy) where there is a gap. In the
    order of the conditions in `results`, the baseline first where that was not given.
    """
    classes = results["data"].get("classes")
    classes = len(classes) if isinstance(classes, list) else classes
    lines = []
    names = results.get("order") or sorted(results["conditions"], key=lambda name: name != results.get("baseline"))
    for name, condition in ((name, results["conditions"][name]) for name in names):
        for split, summary in condition["summary"].items():
            accuracy = summary["accuracy"]
            versus = condition["vs_baseline"].get(split, {}).get("accuracy", {})
            low, high = accuracy["ci95"]
            difference_low, difference_high = versus.get("ci95", (None, None))
            lines.append({
                "condition": name, "split": split, "seeds": accuracy["seeds"],
                "n": next(run["n"] for run in condition["runs"] if run["split"] == split),
                "accuracy": accuracy["mean"], "low": low, "high": high,
                "difference": versus.get("difference"), "difference_low": difference_low,
                "difference_high": difference_high, "difference_scope": versus.get("scope", ""),
                "p_holm": versus.get("p_holm"), "detectable": versus.get("detectable"),
                "chance": 1 / classes if classes else None})
            if flexible := summary.get("accuracy_flexible"):
                lines[-1] |= dict(zip(("flexible", "flexible_low", "flexible_high"),
                                      (flexible["mean"], *flexible["ci95"])))
            if closed := condition.get("gap_closed", {}).get(split, {}).get("accuracy"):
                lines[-1] |= {"gap_closed": closed["value"], "gap_closed_scope": closed["scope"],
                              **dict(zip(("gap_closed_low", "gap_closed_high"), closed["ci95"]))}
    frame = pd.DataFrame(lines)
    numbers = [column for column in frame if column not in ("condition", "split", "seeds", "n")
               and not column.endswith("_scope")]
    return frame.astype({column: float for column in numbers})


def _display(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as text, in percent and percentage points."""
    def interval(middle: float, low: float, high: float, sign: str = "") -> str:
        ends = "" if np.isnan(low) else f" [{100 * low:{sign}.2f}, {100 * high:{sign}.2f}]"
        return f"{100 * middle:{sign}.2f}{ends}"

    def one_seed(yes: bool) -> str:
        return " (1 seed)" if yes else ""

    def cells(row: Any) -> dict[str, str]:
        compared = not np.isnan(row.difference)
        shown = {
            "condition": row.condition, "split": row.split, "seeds": str(row.seeds), "n": str(row.n),
            "accuracy %": interval(row.accuracy, row.low, row.high) + one_seed(row.seeds == 1),
            "difference, points": interval(row.difference, row.difference_low, row.difference_high, "+")
            + one_seed(row.difference_scope == "examples") if compared else "",
            "p (Holm)": ("< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}") if compared else "",
            "detectable, points": f"{100 * row.detectable:.2f}" if compared else ""}
        if "gap_closed" in frame:
            closed = not np.isnan(row.gap_closed_low)  # a share of a gap that may be none says nothing
            shown["gap closed %"] = interval(row.gap_closed, row.gap_closed_low, row.gap_closed_high) \
                + one_seed(row.gap_closed_scope == "examples") if closed else ""
        if "flexible" in frame:
            return shown | {"flexible %": interval(row.flexible, row.flexible_low, row.flexible_high)}
        return shown | {"chance %": "" if np.isnan(row.chance) else f"{100 * row.chance:.2f}"}

    return pd.DataFrame([cells(row) for row in frame.itertuples()])


def to_markdown(frame: pd.DataFrame) -> str:
    """The table of `table` for people."""
    shown = _display(frame)
    lines = [list(shown), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def to_latex(frame: pd.DataFrame) -> str:
    """The table of `table` for the paper (booktabs)."""
    shown = _display(frame)
    shown.columns = [name.replace("%", r"\%") for name in shown.columns]
    latex = shown.style.format(escape="latex").hide(axis="index").to_latex(hrules=True)
    return latex.replace("< ", "$<$ ")


def to_csv(frame: pd.DataFrame) -> str:
    """The numbers of `table` in full."""
    return frame.to_csv(index=False, lineterminator="\n")


FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
