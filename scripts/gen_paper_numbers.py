"""Every number and table of the paper that is not the accuracy table, from the JSON files of a study.

    python scripts/gen_paper_numbers.py --study experiments/demo --out paper/generated

Reads results.json and forensics.json, and robustness.json where there is one; they must speak of the same
checkpoints. Writes LaTeX: numbers.tex (macros), conditions.tex, findings.tex, efficiency.tex, forensics.tex,
verdicts.tex and robustness.tex.
"""

import argparse
import math
import re
from pathlib import Path
from typing import Any

from graft.errors import UserError, exit_cleanly
from graft.reporting import reading, results, shapes
from graft.reporting.gains import gains
from graft.runtime.files import write_text

SPLIT = "test"
FORENSICS = {  # column: (key of the summary, its reference under uniform attention, decimals)
    "distance, patches": ("avg_attention_distance", "mean_distance", 3),
    "relative": ("avg_relative_distance", None, 3),
    "entropy, nats": ("avg_entropy", "entropy", 3),
    "collapsed": ("collapsed_heads_ratio_relative", None, 3),
    "trace": ("hessian_trace", None, 0)}
ROBUSTNESS = {"accuracy": "accuracy", "averaged views": "tta_accuracy", "corrupted": "corrupted_accuracy",
              "macro F1": "macro_f1", "ECE": "ece"}


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


def macros(content: dict[str, Any], forensics: dict[str, Any], robust: dict[str, Any] | None, teachers: bool) -> str:
    """numbers.tex: what sentences of the paper need."""
    data, uniform = content["data"], forensics["references"]["uniform"]
    if not _compared(content):
        raise UserError(f"{content['study']}: no condition is compared with the baseline on {SPLIT}")
    seeds = sorted({condition["summary"][SPLIT]["accuracy"]["seeds"] for _, condition in _compared(content)})
    seen = forensics["data"]["n"]
    commit, changed, _ = content["code_sha"].partition("+")  # dirty, untracked
    values = {
        "Study": escape(content["study"]), "DataSet": escape(data["id"]),
        "Fingerprint": escape(data["fingerprint"][:12]), "Classes": len(data["classes"]),
        "Chance": number(100 / len(data["classes"]), 1), "TrainImages": data["sizes"]["train"],
        "ValImages": data["sizes"]["val"], "TestImages": data["sizes"]["test"], "Baseline": code(content["baseline"]),
        "Seeds": " to ".join(map(str, [seeds[0], seeds[-1]] if len(seeds) > 1 else seeds)),
        "Commit": code(commit[:12]) + (" with uncommitted changes" if changed else ""),
        "ForensicsSplit": escape(forensics["data"]["split"]), "AttentionImages": seen["attention"],
        "CkaImages": seen["cka"], "UniformDistance": number(uniform["mean_distance"], 4),
        "UniformEntropy": number(uniform["entropy"], 3),
        "CollapsedBelow": number(forensics["thresholds"]["relative"], 2),
        "ShareOfUniform": number(forensics["thresholds"]["share_of_uniform"], 3)}
    traces = [run["hessian"]["trace"] for condition in forensics["conditions"].values()
              for run in condition["runs"] if "hessian" in run]
    if traces and "hessian" in seen:
        values |= {"HessianImages": seen["hessian"], "HutchRank": traces[0]["rank"],
                   "HutchTolerance": f"{100 * traces[0]['tolerance']:g}\\,\\%"}
    levels = [run["corruptions"] for condition in (robust or {"conditions": {}})["conditions"].values()
              for run in condition["runs"] if run["corruptions"]]
    if levels:
        *others, last = map(escape, sorted(levels[0]))
        values |= {"Corruptions": f"{', '.join(others)} and {last}", "Severities": len(next(iter(levels[0].values())))}
    lines = [rf"\newcommand{{\{name}}}{{{value}}}" for name, value in values.items()]
    for name, on in (("robustness", robust), ("teachers", teachers), ("curvature", _has_trace(forensics))):
        lines.append(rf"\newif\if{name}\{name}{'true' if on else 'false'}")
    return "\n".join(lines) + "\n"


def _has_trace(forensics: dict[str, Any]) -> bool:
    return any("hessian_trace" in condition["summary"] for condition in forensics["conditions"].values())


def conditions_table(content: dict[str, Any]) -> str:
    """What each condition changes: teacher, objective, and how many keys of the recipe."""
    rows = []
    for name, condition in _compared(content):
        changed = {key: (old, new) for key, old, new in condition.get("differs", ())}
        teacher = changed.get("teacher.path", ("", changed.get("teacher.name", ("", "---"))[1]))[1]
        notes = [key for key in ("shuffle", "random_weights") if changed.get(f"teacher.{key}", (0, 0))[1] is True]
        terms = [f"{escape(key.split('.')[1])} {_weight(old) + ' to ' if old != '-' else ''}{_weight(new)}"
                 for key, (old, new) in changed.items() if re.fullmatch(r"objective\.[^.]+\.weight", key)]
        rows.append([code(name), code(Path(teacher).name) + "".join(f", {escape(note)}" for note in notes),
                     "; ".join(terms) or "---", str(len(condition.get("recipe_differs", ())))])
    return tabular(["condition", "teacher", "objective: weights", "recipe"], rows,
                   r"lp{0.25\linewidth}p{0.3\linewidth}r")


def _weight(value: Any) -> str:
    return number(value, 2) if isinstance(value, int | float) else escape(value)


def _compared(content: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, content["conditions"][name]) for name in content.get("order") or content["conditions"]
            if "accuracy" in content["conditions"][name]["vs_baseline"].get(SPLIT, {})]


def finding(name: str, versus: dict[str, Any], baseline: str) -> str:
    """One sentence about a condition, which says no more than its interval and adjusted p-value do."""
    low, high = versus["ci95"]
    if low is None or high is None:
        return f"{code(name)} minus {code(baseline)}: {number(100 * versus['difference'], 2, '+')} points; no interval."
    text = (f"{code(name)} minus {code(baseline)}: {number(100 * versus['difference'], 2, '+')} points, "
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


def efficiency_table(content: dict[str, Any]) -> str:
    """The original's transfer efficiency beside the share of the gap closed."""
    rows = [[code(row.condition), code(row.teacher), number(100 * row.teacher_accuracy, 2), number(100 * row.ratio, 1),
             number(100 * row.gap_closed, 1)] for row in gains(content, SPLIT).itertuples()]
    return tabular(["condition", "teacher", r"its acc., \%", r"ratio, \%", r"gap, \%"], rows, "llrrr")


def forensics_table(forensics: dict[str, Any]) -> str:
    """Attention and curvature of each condition, of untrained students and of uniform attention."""
    columns = {name: spec for name, spec in FORENSICS.items() if spec[0] != "hessian_trace" or _has_trace(forensics)}
    summaries = {code(name): condition["summary"] for name, condition in forensics["conditions"].items()}
    summaries["untrained"] = forensics["references"]["random_init"]["summary"]
    rows = [[name, *(interval(summary[key], decimals) if key in summary else "---"
                     for key, _, decimals in columns.values())] for name, summary in summaries.items()]
    uniform = forensics["references"]["uniform"] | {"relative": 1.0}
    rows.append(["uniform", *(number(uniform.get(key or name), decimals)
                              for name, (_, key, decimals) in columns.items())])
    return tabular(["condition", *columns], rows)


def verdict_table(forensics: dict[str, Any]) -> str:
    """One row a leg of each hypothesis."""
    rows = []
    for claim in forensics["hypotheses"]:
        for leg in claim["legs"] or [{}]:
            first = leg is claim["legs"][0] if claim["legs"] else True
            decimals, scale = {"accuracy": (2, 100), "hessian_trace": (0, 1)}.get(claim["statistic"], (3, 1))
            numbers = interval({"mean": leg["difference"], "ci95": leg["ci95"]}, decimals, scale) if leg else "---"
            rows.append([escape(claim["name"].replace("_", " ")) if first else "",
                         escape(claim["statistic"].replace("_", " ")) if first else "",
                         escape(leg["claim"] if leg else claim["claim"]), numbers,
                         escape(leg["verdict"] if leg else claim["reason"]),
                         rf"\textbf{{{escape(claim['verdict'])}}}" if first else ""])
    return tabular(["hypothesis", "statistic", "claim", r"difference, 95\,\% interval", "leg", "verdict"], rows,
                   r"llllp{0.17\linewidth}l")


def robustness_table(robust: dict[str, Any]) -> str:
    """Means and intervals over seeds, in percent."""
    rows = [[code(name), *(interval(robust["conditions"][name]["summary"][key], 1, 100) for key in ROBUSTNESS.values())]
            for name in robust["order"]]
    return tabular(["condition", *ROBUSTNESS], rows)


def main() -> None:
    """Read, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--study", type=Path, required=True, help="folder of results.json and forensics.json")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    content = results.read_results(args.study / "results.json")
    forensics = results.read_forensics(args.study / "forensics.json")
    reading.check(content, shapes.PAPER_RESULTS, str(args.study / "results.json"))
    reading.check(forensics, shapes.PAPER_FORENSICS, str(args.study / "forensics.json"))
    reading.check_same(content, forensics, args.study / "forensics.json")
    robust = None
    if (args.study / "robustness.json").exists():
        robust = results.read_robustness(args.study / "robustness.json")
        reading.check(robust, shapes.PAPER_ROBUSTNESS, str(args.study / "robustness.json"))
        reading.check_same(content, robust, args.study / "robustness.json")
    teachers = not gains(content, SPLIT).empty
    items = [finding(name, condition["vs_baseline"][SPLIT]["accuracy"], content["baseline"])
             for name, condition in _compared(content)]
    files = {
        "numbers": macros(content, forensics, robust, teachers), "conditions": conditions_table(content),
        "findings": "\\begin{itemize}\n" + "".join(rf"\item {item}" + "\n" for item in items) + "\\end{itemize}\n",
        "forensics": forensics_table(forensics), "verdicts": verdict_table(forensics)}
    if teachers:
        files["efficiency"] = efficiency_table(content)
    if robust:
        files["robustness"] = robustness_table(robust)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(args.out / f"{name}.tex", text)
    print(f"wrote {', '.join(f'{name}.tex' for name in files)} to {args.out}")


if __name__ == "__main__":
    exit_cleanly(main)
