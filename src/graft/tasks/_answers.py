"""From generated text to the answer in it: strictly, as the worked examples write it, and as kindly as is usual.

Every function returns (strict, flexible), "" where there is none. `gold_*` read the same from a data set's own answer,
whole or not at all: "" where anything else stands beside it (`#### 1/2`).
"""

import re
from collections.abc import Callable

_SIGN = r"[-+−]"
# After the mark commas are dropped wherever they stand; anywhere else they must separate thousands, for "1,2 or 3"
# are three numbers. Digits are ASCII, and kept as text: a model may write thousands of them.
# What goes on as another kind of number (1/2, 7:30, 3e5, 2^10, 1.2.3) is not read in part.
_STRICT = re.compile(rf"####\s*({_SIGN}?)\s?\\?\$?\s?({_SIGN}?)([0-9][0-9,]*+|(?=\.[0-9]))(?:\.([0-9]++))?"
                     r"(?![0-9]|\s?[/:^*×]\s?[0-9]|[eE][-+−]?[0-9]|\.[0-9])")
_ANYWHERE = re.compile(
    rf"(?:(?<![\w)])({_SIGN}))?\\?\$?(?:(?<=\$)({_SIGN}))?(?<![A-Za-z_0-9])"
    r"([0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?<![0-9])(?=\.[0-9]))(?:\.([0-9]+))?")


def number(text: str) -> tuple[str, str]:
    """The last number after `####`, and else the last number anywhere, as `normal_number` writes it.

    Signs, `$`, `%`, thousands separators and decimals are understood; a minus between two words is a dash.
    """
    strict = _last_number(_STRICT, text)
    return strict, strict or _last_number(_ANYWHERE, text)


def _last_number(pattern: re.Pattern[str], text: str) -> str:
    found = ""
    for match in pattern.finditer(text):
        found = normal_number(*match.groups(default=""))
    return found


_WHOLE = re.compile(rf"({_SIGN}?)\s?\\?\$?\s?({_SIGN}?)([0-9]{{1,3}}(?:,[0-9]{{3}})+|[0-9]+|(?=\.[0-9]))"
                    r"(?:\.([0-9]+))?\s?(?:\\?%)?\.?")


def whole_number(text: str) -> str:
    """The number that all of a text is, `$`, `%` and a full stop aside."""
    match = _WHOLE.fullmatch(text.strip())
    return normal_number(*match.groups(default="")) if match and not (match[1] and match[2]) else ""


def gold_number(text: str) -> str:
    """The number that is all that stands after the last `####`."""
    return whole_number(text.rsplit("####", 1)[1]) if "####" in text else ""


def normal_number(sign: str, inner_sign: str, whole: str, fraction: str) -> str:
    """One spelling for equal numbers: no separators, no leading or trailing zeros, no plus, no negative zero."""
    whole, fraction = whole.replace(",", "").lstrip("0") or "0", fraction.rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return f"-{value}" if value != "0" and {sign, inner_sign} & {"-", "−"} else value


# --------------------------------------------------------------------------------------------- LaTeX

def boxed(text: str) -> tuple[str, str]:
    r"""The last complete `\boxed{…}` (or `\fbox{…}`, `\boxed 5`) as `normal_latex` writes it; else the last number."""
    found = [inside for inside in _boxes(text) if inside is not None]
    strict = normal_latex(found[-1]) if found else ""
    return strict, strict or number(text)[1]


def gold_boxed(text: str) -> str:
    """What stands in the last box, which must be closed."""
    found = _boxes(text)
    return normal_latex(found[-1]) if found and found[-1] is not None else ""


def _boxes(text: str) -> list[str | None]:
    """What stands in each box of a text; None in one that is not closed."""
    return [_braced(text, match.end()) if match[1] == "{" else match[1]
            for match in re.finditer(r"\\f?box(?:ed)?\s*(\{|[^\s{}$.,]+(?:[.,][0-9]+)*)", text)]


def _braced(text: str, start: int) -> str | None:
    """What stands between an opening brace just before `start` and the one that closes it."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.S).finditer(text, start):  # \{ and \} are no braces
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[start:match.start()]
    return None


_REWRITE = [(re.compile(pattern), by) for pattern, by in [
    (r"(?<!\\)((?:\\\\)*)\\[!,;: ]", r"\1"),  # spacing; two backslashes before a space end a row
    (r"\\q?quad\b|~|\\left(?![a-z])|\\right(?![a-z])", ""),  # spacing, and the size of brackets
    (r"\\?[$%]", ""),
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree|°", ""),
    (r"\\[dt]frac(?![a-z])", r"\\frac"),
    (r"(?<=\S)\s*\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?[0-9]\}?)?\s*$", ""),  # a unit at the end
    (r"\\(?:text|textbf|textit|mbox|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1"),
    (r"\{,\}", ","),
    (r"\s+", ""),
    (r"\\frac([0-9])([0-9])", r"\\frac{\1}{\2}"), (r"\\frac([0-9])\{", r"\\frac{\1}{"),
    (r"\\frac(\{[^{}]*\})([0-9])", r"\\frac\1{\2}"),
    (r"\\sqrt([0-9])", r"\\sqrt{\1}"),
    (r"^(-?)([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}"),
    (r"\.$", ""),
    (r"^[A-Za-z]=(?=.)", ""),
]]
_NUMBER = re.compile(r"([-+]?)()([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.([0-9]+))?")


def normal_latex(answer: str) -> str:
    r"""One spelling for answers that LaTeX can write in several ways; no algebra.

    Dropped: spaces, `$`, `%`, degrees, `\left` and `\right`, a unit in `\text{}` at the end, one `x=` at the
    start, a final full stop. Made alike: `\dfrac`, `\tfrac`, `\frac12`, `1/2`; `\sqrt2`; `\text{A}` and A; numbers.
    """
    for pattern, by in _REWRITE:
        answer = pattern.sub(by, answer)
    match = _NUMBER.fullmatch(answer)
    return normal_number(*match.groups(default="")) if match and answer.strip("+-") else answer


# -------------------------------------------------------------------------------------------- letters

def letter(text: str) -> tuple[str, str]:
    """The letter A to E of the last "answer is (X)"; else of the last "answer is X", the last (X), the last X alone."""
    strict = _last(r"(?i:answer is) \(([A-E])\)", text)
    return strict, (strict or _last(r"(?i:answer is)\W{0,4}([A-E])\b", text) or _last(r"\(([A-E])\)", text)
                    or _last(r"(?<![\w'’])([A-E])(?![\w'’])", text))


def _last(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    return found[-1] if found else ""


def whole_letter(text: str) -> str:
    """The letter A to E that all of a text is, brackets and a full stop aside."""
    match = re.fullmatch(r"\(?([A-E])\)?\.?", text.strip())
    return match[1] if match else ""


# ------------------------------------------------------------------------------------ the user's own data

Extract = Callable[[str], tuple[str, str]]
Gold = Callable[[str], str]


def by_pattern(pattern: str) -> tuple[Extract, Gold]:
    """How answers are read from generated text, and gold ones from data.

    exact: the whole text, runs of space made one. number, boxed, letter: as above, and strictly also where the number
    or letter is all there is. Else a regular expression: the last match, of its first group if it has one; flexibly
    also in other case. Raises re.error if it is none.
    """
    if pattern == "exact":
        return lambda text: (_spaced(text),) * 2, _spaced
    if pattern == "boxed":
        return boxed, gold_boxed
    if pattern in ("number", "letter"):
        find, whole = (number, whole_number) if pattern == "number" else (letter, whole_letter)
        marked = gold_number if pattern == "number" else lambda text: letter(text)[0]
        return (lambda text: _first(whole(text), find(text))), lambda text: whole(text) or marked(text)
    strict, flexible = re.compile(pattern), re.compile(pattern, re.IGNORECASE)

    def extract(text: str) -> tuple[str, str]:
        found = _last_match(strict, text)
        return found, found or _last_match(flexible, text)

    return extract, lambda text: _last_match(strict, text)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _first(whole: str, found: tuple[str, str]) -> tuple[str, str]:
    return (whole, whole) if whole else found


def _last_match(pattern: re.Pattern[str], text: str) -> str:
    matches = list(pattern.finditer(text))
    return _spaced(matches[-1][min(1, pattern.groups)] or "") if matches else ""
