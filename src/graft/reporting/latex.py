"""Numbers, names and findings as LaTeX."""

import math
import re
from typing import Any

from graft.reporting import stats


def escape(text: Any) -> str:
    """Plain text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "<": r"$<$", ">": r"$>$", "~": r"\textasciitilde{}",
               "^": r"\textasciicircum{}"}
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return re.sub(r"[\\<>~^&%$#_{}]", lambda m: special.get(m[0], "\\" + m[0]), line)


def code(text: Any) -> str:
    """A name as it stands in the files; it may break after _ and /."""
    return r"\texttt{" + re.sub(r"(\\_|/|\.)", r"\1\\allowbreak{}", escape(text)) + "}"


def number(value: float | None, decimals: int, sign: str = "") -> str:
    """In math mode, so that a minus is one; an em dash for None and NaN."""
    return "---" if value is None or math.isnan(value) else f"${round(value, decimals) + 0.0:{sign}.{decimals}f}$"


def interval(summary: dict[str, Any], decimals: int, scale: float = 1) -> str:
    """mean [low, high] of a seed summary; * at an end beyond which there is nothing, but the interval would go on."""
    low, high = (number(None if end is None else scale * end, decimals) + "*" * (name in summary.get("cut", ()))
                 for name, end in zip(("low", "high"), summary["ci95"]))
    ends = "" if summary["ci95"][0] is None else f" {{[}}{low}, {high}{{]}}"
    return number(scale * summary["mean"], decimals) + ends


def tabular(header: list[str], rows: list[list[str]], columns: str = "") -> str:
    """A booktabs table."""
    lines = [" & ".join(row) + r" \\" for row in [header, *rows]]
    return "\n".join([rf"\begin{{tabular}}{{{columns or 'l' * len(header)}}}", r"\toprule", lines[0], r"\midrule",
                      *lines[1:], r"\bottomrule", r"\end{tabular}", ""])


OUTCOMES = {  # what a comparison's interval and adjusted p-value allow to be said, and what stands in parentheses
    "more": "The first is more accurate (adjusted $p$)",
    "less": "The first is less accurate (adjusted $p$)",
    "family": "The interval alone excludes zero; over the family of comparisons it does not hold (adjusted $p$)",
    "zero": "No difference is shown: the interval contains zero (smallest difference that would have been found "
            "reliably, in points)",
    "checkpoints": "One seed: this speaks of these checkpoints, not of the method",
    "": "No interval"}


def findings(compared: list[tuple[str, str, dict[str, Any]]]) -> list[str]:
    """What comparisons show, a sentence an outcome: no more than intervals and adjusted p-values do.

    A comparison is two names, written for LaTeX, and the entry of results.json.
    """
    found: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for name, other, versus in compared:
        outcome, words = outcome_of(versus), [f"{name} minus {other}"]
        words.append(number(100 * versus["difference"], 2, "+"))
        if outcome:
            low, high = (number(100 * end, 2, "+") for end in versus["ci95"])
            words.append(f"{{[}}{low}, {high}{{]}}")
        if outcome == "zero":
            least = versus["detectable"]
            words.append("(none)" if least is None or least > 1 else f"({number(100 * least, 2)})")
        elif outcome in ("more", "less", "family"):
            words.append("($< 0.001$)" if versus["p_holm"] < 0.001 else f"({number(versus['p_holm'], 3)})")
        found[outcome].append(" ".join(words))
    return [f"{OUTCOMES[outcome]}: {'; '.join(ones)}." for outcome, ones in found.items() if ones]


def outcome_of(versus: dict[str, Any]) -> str:
    """A comparison's key of `OUTCOMES`."""
    if None in versus["ci95"]:
        return ""
    if versus["scope"] == "examples":
        return "checkpoints"
    if not stats.beyond_zero(versus["ci95"]):
        return "zero"
    if not stats.decided(versus["ci95"], versus["p_holm"]):
        return "family"
    return "more" if versus["ci95"][0] > 0 else "less"
