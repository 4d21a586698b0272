"""Every number and table of the paper that is not the accuracy table, from the JSON files of a study.

    python scripts/gen_paper_numbers.py --study experiments/demo --out paper/generated

Reads results.json and forensics.json, and robustness.json where there is one; they must speak of the same
checkpoints. Writes LaTeX: numbers.tex (macros), conditions.tex, findings.tex, efficiency.tex, forensics.tex,
verdicts.tex and robustness.tex; and the conditions of its figures, those of the claims in central.txt, the arms among
them in arms.txt. With `--language`, a second study, of text: language.tex (macros), language_findings.tex and
language_table.tex.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from graft.config.study.options import claimed
from graft.errors import UserError, exit_cleanly
from graft.reporting import comparisons, reading, results, shapes, tables
from graft.reporting.gains import gains, run_name
from graft.reporting.latex import code, escape, findings, interval, number, outcome_of, tabular
from graft.runtime.files import write_text

SPLIT = "test"
FORENSICS = {  # column: (key of the summary, its reference under uniform attention, decimals)
    "distance, patches": ("avg_attention_distance", "mean_distance", 3),
    "relative": ("avg_relative_distance", None, 3),
    "entropy, nats": ("avg_entropy", "entropy", 3),
    "field, pixels": ("receptive_field_radius", "receptive_field_radius", 2),
    "on patches": ("avg_patch_mass", None, 3),
    "collapsed": ("collapsed_heads_ratio_relative", None, 3),
    "trace": ("hessian_trace", None, 0)}
ROBUSTNESS = {"accuracy": "accuracy", "averaged views": "tta_accuracy", "corrupted": "corrupted_accuracy",
              "macro F1": "macro_f1", "ECE": "ece"}


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
        "ValImages": data["sizes"]["val"], "TestImages": data["sizes"]["test"],
        "Baseline": _shown(content, content["baseline"]),
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
        fewer = reading.corrupted_of(robust)
        values |= {"Corruptions": f"{', '.join(others)} and {last}", "Severities": len(next(iter(levels[0].values()))),
                   "CorruptedImages":
                       f"Averaged views and corruptions: on {fewer[0]} of {fewer[1]} images." if fewer else ""}
    lines = [rf"\newcommand{{\{name}}}{{{value}}}" for name, value in values.items()]
    for name, on in (("robustness", robust), ("teachers", teachers), ("curvature", _has_trace(forensics)),
                     ("doses", forensics.get("imposed"))):
        lines.append(rf"\newif\if{name}\{name}{'true' if on else 'false'}")
    return "\n".join(lines) + "\n"


def _has_trace(forensics: dict[str, Any]) -> bool:
    return any("hessian_trace" in condition["summary"] for condition in forensics["conditions"].values())


def conditions_table(content: dict[str, Any]) -> str:
    """What each condition changes: teacher, objective, and which keys of the recipe.

    Of a term its weight, and what sets it apart from most terms of that name in other conditions.
    """
    rows = []
    changes = {name: {key: (old, new) for key, old, new in condition.get("differs", ())}
               for name, condition in _compared(content)}
    values: dict[str, list[str]] = {}  # of a key of a term, in the conditions that have it
    for changed in changes.values():
        for key, (_, new) in changed.items():
            values.setdefault(key, []).append(str(new))
    usual = {key: max(found, key=found.count) for key, found in values.items()
             if re.fullmatch(r"objective\.[^.]+\.(?!weight$|name$).+", key)}
    for name, condition in _compared(content):
        changed = changes[name]
        path = changed.get("teacher.path", ("", ""))[1]
        teacher = _shown(content, run_name(str(path))) if path else code(changed.get("teacher.name", ("", "---"))[1])
        notes = [key for key in ("shuffle", "random_weights") if changed.get(f"teacher.{key}", (0, 0))[1] is True]
        notes += [f"view {changed['teacher.view'][1]}"] if "teacher.view" in changed else []
        terms = [_term(key.split(".")[1], changed, usual) for key in changed
                 if re.fullmatch(r"objective\.[^.]+\.weight", key)]
        recipe = "; ".join(f"{code(key)} {escape(old)} to {escape(new)}"
                           for key, old, new in condition.get("recipe_differs", ()))
        rows.append([_shown(content, name), teacher + "".join(f", {escape(note)}" for note in notes),
                     "; ".join(terms) or "---", recipe or "---"])
    return tabular(["condition", "teacher", "objective: weights", "recipe"], rows,
                   r"lp{0.22\linewidth}p{0.22\linewidth}p{0.25\linewidth}")


def _term(name: str, changed: dict[str, tuple[Any, Any]], usual: dict[str, str]) -> str:
    """A term's weight, and in brackets its keys whose value is not the usual one."""
    old, new = changed[f"objective.{name}.weight"]
    own = [f"{key.split('.')[2]} {changed[key][1]}" for key, value in usual.items()
           if key.startswith(f"objective.{name}.") and key in changed and str(changed[key][1]) != value]
    return (f"{escape(name)} {_weight(old) + ' to ' if old != '-' else ''}{_weight(new)}"
            + (f" ({escape(', '.join(own))})" if own else ""))


def _weight(value: Any) -> str:
    return number(value, 2) if isinstance(value, int | float) else escape(value)


def _compared(content: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, content["conditions"][name]) for name in content.get("order") or content["conditions"]
            if "accuracy" in content["conditions"][name]["vs_baseline"].get(SPLIT, {})]


def to_baseline(content: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Every condition against the baseline: two names and the entry of results.json."""
    return [(name, content["baseline"], condition["vs_baseline"][SPLIT]["accuracy"])
            for name, condition in _compared(content)]


def _contrasts(content: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(one["a"], one["b"], one) for one in reading.contrasts(content, SPLIT)]


def told(content: dict[str, Any], compared: list[tuple[str, str, dict[str, Any]]]) -> str:
    """What comparisons show, as a list of sentences."""
    sentences = findings([(_shown(content, a), _shown(content, b), versus) for a, b, versus in compared])
    return "\\begin{itemize}\n" + "".join(rf"\item {one}" + "\n" for one in sentences) + "\\end{itemize}\n"


def all_findings(content: dict[str, Any]) -> str:
    """Every comparison; where main ones were fixed beforehand, these, and of the others what is decided."""
    compared = [*to_baseline(content), *_contrasts(content)]
    fixed = reading.primary(content)
    main, others = ([one for one in compared if (one[:2] in fixed) is inside] for inside in (True, False))
    if not main:
        return told(content, compared)
    decided = [one for one in others if outcome_of(one[2]) in ("more", "less")]
    rest = f"Decided of the {len(others)} other comparisons"
    return f"Main comparisons, fixed beforehand:\n{told(content, main)}" + (
        f"{rest}:\n{told(content, decided)}" if decided else f"{rest}: none.\n" if others else "")


def _shown(content: dict[str, Any], name: str) -> str:
    label = reading.labels(content).get(name)
    return code(name) if label is None else rf"\textit{{{escape(label)}}}"


def efficiency_table(content: dict[str, Any]) -> str:
    """The original's transfer efficiency beside the share of the gap closed."""
    rows = [[_shown(content, row.condition), _shown(content, row.teacher), number(100 * row.teacher_accuracy, 2),
             number(100 * row.ratio, 1), number(100 * row.gap_closed, 1)] for row in gains(content, SPLIT).itertuples()]
    return tabular(["condition", "teacher", r"its acc., \%", r"ratio, \%", r"gap, \%"], rows, "llrrr")


def forensics_table(forensics: dict[str, Any], content: dict[str, Any]) -> str:
    """Attention and curvature of each condition, of untrained students and of uniform attention."""
    columns = {name: spec for name, spec in FORENSICS.items() if spec[0] != "hessian_trace" or _has_trace(forensics)}
    summaries = {_shown(content, name): condition["summary"] for name, condition in forensics["conditions"].items()}
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


def robustness_table(robust: dict[str, Any], content: dict[str, Any]) -> str:
    """Means and intervals over seeds, in percent."""
    summaries = {name: robust["conditions"][name]["summary"] for name in robust["order"]}
    rows = [[_shown(content, name), *(interval(summary[key], 1, 100) for key in ROBUSTNESS.values())]
            for name, summary in summaries.items()]
    return tabular(["condition", *ROBUSTNESS], rows)


def language(content: dict[str, Any], where: str) -> dict[str, str]:
    """The files of the language section: macros, findings, conditions and contrasts of a study of text."""
    scored = {name: condition["summary"][SPLIT]["accuracy"]["mean"] for name, condition in
              content["conditions"].items() if SPLIT in condition["summary"]}
    if missing := [name for name in comparisons.GAP if name not in scored]:
        raise UserError(f"{where}: no {' and no '.join(missing)} on {SPLIT}; scripts/eval_icl.py scores them")
    if not _compared(content):
        raise UserError(f"{where}: no condition is compared with the baseline on {SPLIT}")
    _, first = _compared(content)[0]
    untrained, shown = (number(100 * scored[one], 1) for one in comparisons.GAP)
    values = {"LanguageStudy": escape(content["study"]), "LanguageData": escape(content["data"]["id"]),
              "LanguageQuestions": next(run["n"] for run in first["runs"] if run["split"] == SPLIT),
              "LanguageSeeds": first["summary"][SPLIT]["accuracy"]["seeds"], "ZeroShot": untrained, "KShot": shown,
              "LanguageBaseline": _shown(content, content["baseline"])}
    kept = "true" if (Path(where).parent / "retention.json").is_file() else "false"
    return {"language": f"\\newif\\iflanguage\\languagetrue\n\\newif\\ifretention\\retention{kept}\n" + "".join(
                rf"\newcommand{{\{name}}}{{{value}}}" + "\n" for name, value in values.items()),
            "language_findings": told(content, _contrasts(content) or to_baseline(content)),
            "language_table": tables.to_latex(tables.of_split(tables.table(content), SPLIT))}


def main() -> None:
    """Read, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--study", type=Path, required=True, help="folder of results.json and forensics.json")
    parser.add_argument("--language", type=Path, metavar="DIR", help="folder of the results.json of a study of text")
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
    files = {
        "numbers": macros(content, forensics, robust, teachers), "conditions": conditions_table(content),
        "findings": all_findings(content),
        "forensics": forensics_table(forensics, content), "verdicts": verdict_table(forensics)}
    if teachers:
        files["efficiency"] = efficiency_table(content)
    if robust:
        files["robustness"] = robustness_table(robust, content)
    path = args.language and args.language / "results.json"
    files |= language(results.read_results(path), str(path)) if path else {
        "language": "\\newif\\iflanguage\\languagefalse\n\\newif\\ifretention\\retentionfalse\n"}
    doses = [dose["condition"] for dose in forensics.get("imposed", ())]
    chosen = {"central": claimed(forensics["conditions"], forensics["roles"], doses),
              "arms": claimed(forensics["conditions"], forensics["roles"], [])}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(args.out / f"{name}.tex", text)
    for name, conditions in chosen.items():
        write_text(args.out / f"{name}.txt", "\n".join(conditions) + "\n")
    print(f"wrote {', '.join(f'{name}.tex' for name in files)} to {args.out}")


if __name__ == "__main__":
    exit_cleanly(main)
