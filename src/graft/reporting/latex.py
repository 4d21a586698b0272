"""Numbers, names and findings as LaTeX."""

import math
import re
from typing import Any


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
    """mean [low, high] of a seed summary."""
    low, high = summary["ci95"]
    ends = "" if low is None else f" {{[}}{number(scale * low, decimals)}, {number(scale * high, decimals)}{{]}}"
    return number(scale * summary["mean"], decimals) + ends


def tabular(header: list[str], rows: list[list[str]], columns: str = "") -> str:
    """A booktabs table."""
    lines = [" & ".join(row) + r" \\" for row in [header, *rows]]
    return "\n".join([rf"\begin{{tabular}}{{{columns or 'l' * len(header)}}}", r"\toprule", lines[0], r"\midrule",
                      *lines[1:], r"\bottomrule", r"\end{tabular}", ""])


def finding(name: str, other: str, versus: dict[str, Any]) -> str:
    """What a comparison shows, in a sentence that says no more than its interval and adjusted p-value do."""
    low, high = versus["ci95"]
    if low is None or high is None:
        return f"{code(name)} minus {code(other)}: {number(100 * versus['difference'], 2, '+')} points; no interval."
    text = (f"{code(name)} minus {code(other)}: {number(100 * versus['difference'], 2, '+')} points, "
            f"95\\,\\% interval {{[}}{number(100 * low, 2, '+')}, {number(100 * high, 2, '+')}{{]}}. ")
    if versus["scope"] == "examples":
        return text + "One seed: this speaks of these checkpoints, not of the method."
    if low <= 0 <= high:
        least = versus["detectable"]
        small = "none" if least is None or least > 1 else f"none smaller than {number(100 * least, 2)} points"
        return text + f"The interval contains zero: no difference is shown, and {small} would have been found reliably."
    p = f"adjusted $p {'< 0.001' if versus['p_holm'] < 0.001 else '= ' + format(versus['p_holm'], '.3f')}$"
    if versus["p_holm"] >= 0.05:
        return text + f"The interval alone excludes zero; over the family of conditions it does not hold ({p})."
    return text + f"The condition is {'more' if low > 0 else 'less'} accurate ({p})."
