"""What the JSON files of a study hold, as shapes for `reading.check`.

A shape is a type or several, `Share`, `Count` or `Optional`, a list of one shape (any length) or of several (that
many), or a dict of them. There "*" stands for every key that has no shape of its own, and "key?" for one that may be
missing.
"""

from typing import Any, NamedTuple


class Share(NamedTuple):
    """A number in [0, 1], as a shape."""


class Count(NamedTuple):
    """A whole number from `least` on, as a shape."""

    least: int = 0


class Optional(NamedTuple):
    """A value of `shape`, or null, as a shape."""

    shape: Any


NUMBER = (int, float)
MAYBE = Optional(NUMBER)
CI95 = [MAYBE, MAYBE]
RUN = {"seed": int, "step": Count(), "split": str, "n": Count(1), "examples": str, "checkpoint_sha256": str,
       "weights": str, "metrics": {"accuracy": {"value": Share(), "n_correct": Count(), "ci95": CI95},
                                   "*": {"value": NUMBER}}}
MEAN = {"mean": NUMBER, "ci95": CI95, "seeds": Count(1), "cut?": [str]}
MEANS = {"accuracy": MEAN, "*": MEAN}
VERSUS = {"difference": NUMBER, "ci95": CI95, "p_holm": Share(), "detectable": MAYBE, "scope": str,
          "seeds": [Count(1), Count(1)], "cut?": [str]}
CHANGES = [[str, object, object]]
CONDITION = {
    "runs": [RUN], "summary": {"*": MEANS}, "vs_baseline": {"*": {"accuracy": VERSUS, "*": VERSUS}},
    "differs?": CHANGES, "recipe_differs?": CHANGES, "label?": str,
    # of text, each where it can be computed
    "curve?": [{"seed": int, "step": Count(), "split": str, "n": Count(1),
                "metrics": {"accuracy": {"value": Share(), "ci95": CI95}, "*": {"value": NUMBER}}}],
    "traits?": {"*": {"*": {"*": {"n": Count(1), "accuracy": MEAN}}}},
    "curve_summary?": {"*": {"*": MEANS}}, "vs_untrained?": {"*": {"*": VERSUS}},
    "gap_closed?": {"*": {"*": {"value": MAYBE, "ci95": CI95, "scope": str}}}}
RESULTS = {
    "study": str, "data": {"id": str, "fingerprint": str, "classes?": (int, list), "sizes?": {"*": Count()}},
    "code_sha": str, "graft_version?": str, "baseline?": str, "order?": [str], "metric_labels?": {"*": str},
    "primary?": [[str, str]], "models?": {"*": {"*": object}}, "conditions": {"*": CONDITION},
    "contrasts?": [{"a": str, "b": str, "split": str, "metric": str, **VERSUS}]}

SPREAD = {"mean": NUMBER, "ci95": CI95, "seeds": Count(1), "n": Count(1), "scope": str}
APART = {"difference": NUMBER, "ci95": CI95, "p": Share(), "scope": str, "seeds": Count(1), "n": Count(1)}
ASKED = {"n": Count(1), "accuracy": SPREAD, "tokens": MEAN, "cut_off": MEAN}
RETENTION = {
    "study": str, "data": {"fingerprint": str}, "code_sha": str, "others": [str], "order?": [str],
    "untrained": {"probes": {"*": {"shots": {"*": ASKED}}}},
    "conditions": {"*": {
        "runs": [{"seed": int, "step": Count(), "weights": str, "checkpoint_sha256": str}],
        "probes": {"trained": {"shots": {"*": {**ASKED, "vs_untrained": APART}}, "kl": SPREAD},
                   "*": {"shots": {"*": {**ASKED, "vs_untrained": APART}}, "kl": SPREAD}},
        "text": {"kl": SPREAD}, "retention": {"accuracy?": {**APART, "shots": Count()}, "kl": SPREAD}}}}

CLEAN = {"n": Count(1), "ece": NUMBER, "ece_calibrated": NUMBER, "macro": {"auc": MAYBE},
         "reliability": [{"low": NUMBER, "high": NUMBER, "n": Count(), "confidence?": MAYBE, "accuracy?": MAYBE}],
         "confusion": [[Count()]], "per_class": [{"class": str, "support": Count(), "recall?": MAYBE}],
         "roc": {"*": {"fpr": [NUMBER], "tpr": [NUMBER]}}}
ROBUSTNESS = {
    "study": str, "data": {"fingerprint": str, "classes": [str], "n?": {"clean": Count(1), "corrupted": Count()}},
    "order": [str], "conditions": {"*": {"runs": [{
        "seed": int, "split": str, "checkpoint_sha256": str, "clean": CLEAN,
        "corruptions?": {"*": {"*": {"accuracy": Share()}}}}], "summary?": {"*": MEAN},
        "vs_baseline?": {"*": {"difference": NUMBER, "ci95": CI95}}}}}

CKA = {"n": Count(), "layers_1": [str], "layers_2": [str], "cka": [[MAYBE]], "null": {"max_abs": MAYBE}}
HESSIAN = {
    "n": Count(1), "parameters": Count(1), "spectrum?": {"eigenvalue": [NUMBER], "density": [NUMBER]},
    "trace": {"value": NUMBER, "standard_error": NUMBER}, "eigenvalues?": {"values": [NUMBER]}}
SEEN = {
    "seed": int, "grid": [Count(1), Count(1)], "layer_distance": [NUMBER], "avg_cls_dispersion": MAYBE,
    "cls_collapse_ratio": MAYBE, "collapsed_heads_ratio_relative": NUMBER,
    "cka": {"self": CKA, "teacher?": Optional(CKA)}, "per_layer_stats": {"*": {"mean_distance": [NUMBER]}},
    "hessian?": HESSIAN}
SUMMARY = {"layer_distance?": [MEAN], "*": MEAN}
LEG = {"claim": str, "difference": NUMBER, "ci95": CI95, "verdict": str, "more?": str, "less?": str,
       "detectable?": MAYBE}
FORENSICS = {
    "study": str, "data": {"fingerprint": str, "n": {"*": Count()}}, "order?": [str],
    "thresholds": {"relative": NUMBER, "cls_collapse_warning": NUMBER},
    "references": {"uniform": {"mean_distance": NUMBER, "cls_dispersion": MAYBE, "*": MAYBE},
                   "random_init": {"runs": [SEEN], "summary?": SUMMARY}, "teacher_cka": {"*": {"*": CKA}}},
    "conditions": {"*": {"runs": [{**SEEN, "checkpoint_sha256": str}], "summary?": SUMMARY, "warnings?": [str]}},
    "hypotheses?": [{"name": str, "statistic": str, "claim": str, "verdict": str, "reason": str, "legs": [LEG]}],
    "imposed?": [{"condition": str, "attention_distance": MEAN, "accuracy": Optional(MEAN)}]}

# What the paper needs besides.
PAPER_RESULTS = {"baseline": str, "data": {"classes": [str],
                                           "sizes": dict.fromkeys(("train", "val", "test"), Count())}}
PAPER_FORENSICS = {
    "data": {"split": str, "n": {"attention": Count(), "cka": Count()}},
    "thresholds": {"relative": NUMBER, "share_of_uniform": NUMBER},
    "references": {"uniform": {"entropy": NUMBER}, "random_init": {"summary": SUMMARY}}, "roles": {"*": str},
    "conditions": {"*": {"summary": SUMMARY,
                         "runs": [{"hessian?": {"trace": {"rank": Count(), "tolerance": NUMBER}}}]}},
    "hypotheses": [dict]}
PAPER_ROBUSTNESS = {
    "conditions": {"*": {"summary": dict.fromkeys(("accuracy", "tta_accuracy", "corrupted_accuracy", "macro_f1", "ece"),
                                                  MEAN),
                         "runs": [{"corruptions": dict}]}}}
