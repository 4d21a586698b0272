"""The claims that a study can decide, each with the interval that decides it: the report's cards."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from graft.reporting import reading, stats, tables
from graft.reporting.comparisons import GAP

MAIN = "Main comparisons, fixed beforehand"
UNITS = {"accuracy": (100, ".2f", " points"), "attention_distance": (1, ".3f", " patches"),
         "hessian_trace": (1, ".4g", "")}  # of a statistic: what it is shown times, its format, its unit


def of_results(content: dict[str, Any], split: str, label: Callable[[str], str]) -> dict[str, list[dict[str, Any]]]:
    """Is each condition more accurate than what it is compared with? One card a comparison on a split, by a title, and
    first those that were fixed beforehand, if any were.
    """
    def claim(a: str, b: str) -> str:
        return f"{label(a)} is more accurate than {label(b)}"

    fixed = reading.primary(content)
    found: dict[str, list[dict[str, Any]]] = {title: [] for title in (
        MAIN, "Against the baseline", "Contrasts", "Against the untrained model")}
    for key, title, other in (("vs_baseline", "Against the baseline", content.get("baseline", "")),
                              ("vs_untrained", "Against the untrained model", GAP[0])):
        for name, condition in content["conditions"].items():
            if versus := condition.get(key, {}).get(split, {}).get("accuracy"):
                found[MAIN if (name, other) in fixed else title].append(_card(claim(name, other), versus, [name]))
    for one in reading.contrasts(content, split):
        pair = one["a"], one["b"]
        found[MAIN if pair in fixed else "Contrasts"].append(_card(claim(*pair), one, [*pair]))
    return {title: cards for title, cards in found.items() if cards}


def _card(claim: str, versus: dict[str, Any], about: list[str]) -> dict[str, Any]:
    """Decided where the interval excludes zero, its p, adjusted for the comparisons beside it, says so too, and there
    are seeds enough to speak of a method. `about`: the conditions in it, the baseline and the untrained model apart."""
    low, high = versus["ci95"]
    beyond = stats.beyond_zero(versus["ci95"])
    note = ""
    if versus["scope"] == "examples":
        note = "one seed, or seeds without spread: the interval speaks of these checkpoints, not of the method"
    elif beyond and not stats.decided(versus["ci95"], versus["p_holm"]):
        note = "the interval alone excludes zero; adjusted for the comparisons beside it that is no decision"
    said = "undecided" if note or not beyond else "supported" if low > 0 else "contradicted"
    return {"claim": claim, "verdict": said, "about": about, "note": note,
            "difference": f"{100 * versus['difference']:+.2f} points",
            "interval": "none" if low is None else tables.ends(low, high, "+", versus.get("cut", ())),
            "p": tables.p_value(versus["p_holm"]), "detectable": tables.detectable(versus["detectable"])}


def of_forensics(content: dict[str, Any], label: Callable[[str], str]) -> list[dict[str, Any]]:
    """The claims as `graft.probes.hypotheses` and `.mediation` judged them: one card a claim, its legs in it."""
    found = []
    for claim in content.get("hypotheses", []):
        scale, form, unit = UNITS.get(claim["statistic"], (1, ".4g", ""))
        legs = [{"claim": leg["claim"], "verdict": leg["verdict"],
                 "difference": f"{scale * leg['difference']:+{form}}{unit}",
                 "of": f"{label(leg['more'])} − {label(leg['less'])}" if "more" in leg and "less" in leg else "",
                 "interval": "none" if leg["ci95"][0] is None else
                             "[" + ", ".join(f"{scale * end:+{form}}" for end in leg["ci95"]) + "]",
                 "detectable": f"{scale * leg['detectable']:{form}}" if leg.get("detectable") is not None else ""}
                for leg in claim["legs"]]
        found.append({"claim": f"{claim['name'].replace('_', ' ')}: {claim['claim']}", "verdict": claim["verdict"],
                      "statistic": claim["statistic"].replace("_", " "), "legs": legs, "reason": claim["reason"]})
    return found


def verdicts(content: dict[str, Any], label: Callable[[str], str]) -> pd.DataFrame:
    """The same as a table of text, a line a leg; a claim without legs says why."""
    lines = []
    for card in of_forensics(content, label):
        legs = card["legs"] or [{"claim": card["reason"], "of": "", "difference": "", "interval": "", "verdict": ""}]
        lines += [{"claim": "" if i else card["claim"], "verdict": "" if i else f"**{card['verdict']}**",
                   "step": leg["claim"], "difference": " ".join(filter(None, (leg["of"] and leg["of"] + ":",
                                                                              leg["difference"], leg["interval"]))),
                   "its verdict": leg["verdict"]} for i, leg in enumerate(legs)]
    return pd.DataFrame(lines)
