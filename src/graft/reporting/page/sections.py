"""The sections of the report, each from what there is of a study: numbers as text, and charts.

A `sources` is `graft.reporting.report.Sources`. A section that has nothing to show is empty.
"""

from typing import Any

from graft.reporting import reading
from graft.reporting.estimates import estimates
from graft.reporting.page import charts
from graft.reporting.quantities import quantity

LOGGED = ("val/accuracy", "val/nll", "train/loss")  # the curves, those of them that are logged
MEASURES = {"accuracy": ("accuracy %", 100), "corrupted_accuracy": ("accuracy, corrupted %", 100),
            "tta_accuracy": ("accuracy, averaged views %", 100), "ece": ("calibration error (ECE) %", 100),
            "brier": ("Brier score", 1), "nll": ("NLL, nats", 1), "macro_f1": ("macro F1 %", 100)}
FEW = 10  # predictions below which a bin's accuracy says little
SEEN = {"avg_attention_distance": ("attention distance, patches", "mean_distance"),
        "avg_entropy": ("attention entropy, nats", "entropy"),
        "avg_cls_dispersion": ("dispersion of the class token, patches²", "cls_dispersion"),
        "avg_cls_self_attn": ("class token on itself", "cls_self_attn"),
        "receptive_field_radius": ("effective receptive field, radius in pixels", "receptive_field_radius"),
        "avg_patch_mass": ("attention on patches, share", ""),
        "collapsed_heads_ratio_relative": ("collapsed heads, share", ""), "hessian_trace": ("Hessian trace", "")}


def warnings(results: dict[str, Any]) -> list[str]:
    """What a reader should know of the data and of what is compared."""
    data, found = results["data"], []
    if "lossy" in data.get("id", "") and "lossless" not in data["id"]:
        found.append(f"The data are stored with loss ({data['id']}): published accuracies do not hold on them.")
    found += [str(note) for note in data.get("notes", [])]
    if "limit" in results:
        found.append(f"Scored on {results['limit']} questions alone, chosen at random: no full score of the study.")
    for name, condition in results["conditions"].items():
        if any(run.get("other_data") for run in condition["runs"]):
            found.append(f"{name} was trained on other data than it is scored on.")
        if condition.get("same_training_data") is False:
            found.append(f"{name} was trained on other items than {results.get('baseline')}.")
        if condition.get("recipe_differs") and condition["vs_baseline"]:
            keys = ", ".join(change[0] for change in condition["recipe_differs"])
            found.append(f"{name} differs from {results.get('baseline')} also in its recipe ({keys}).")
        if any(run.get("cut_short") for run in condition["runs"]):
            found.append(f"{name}: some prompts were cut to fit.")
    return found


def accuracy(sources: Any) -> Any:
    """Every condition's accuracy with its interval and seeds."""
    content = sources.results
    rows = []
    for name, own in estimates(content, sources.split).items():
        low, high = (None if end != end else end for end in (own["low"], own["high"]))  # NaN: no interval
        points = [100 * run["metrics"]["accuracy"]["value"] for run in content["conditions"][name]["runs"]
                  if run["split"] == sources.split]
        rows.append({"label": sources.label(name), "value": own["accuracy"], "low": low, "high": high,
                     "points": points if len(points) > 1 else [], "i": sources.number(name),
                     "hollow": len(points) == 1 or low is None, "reference": name == content.get("baseline")})
    if not rows:
        return ""
    said = "; ".join(f"{row['label']} {row['value']:.2f}" for row in rows)
    return charts.intervals(rows, f"Accuracy in percent: {said}", f"{sources.split} accuracy, %")


def conditions(sources: Any) -> list[dict[str, Any]]:
    """What each condition asks, what it is over the base, and its exact difference to the baseline."""
    planned = sources.study.conditions if sources.study else {}
    found = []
    for name in sources.names():
        own, scored = planned.get(name), sources.results["conditions"].get(name)
        files = [word if isinstance(word, str) else "in the study's file" for word in (own.configs if own else ())]
        found.append({"name": name, "asks": sources.asks(name), "files": files, "set": own.set if own else [],
                      "scored": scored is not None,
                      "differs": [[key, str(old), str(new)] for key, old, new in (scored or {}).get("differs", ())],
                      "recipe": [[key, str(old), str(new)] for key, old, new in
                                 (scored or {}).get("recipe_differs", ())]})
    return found


def curves(sources: Any) -> list[dict[str, Any]]:
    """One chart a logged value: a line a seed, all seeds of a condition in its colour."""
    logged = {key for seeds in sources.logs.values() for log in seeds.values() for record in log for key in record}
    keys = [*(key for key in LOGGED if key in logged),
            *sorted(key for key in logged if key.startswith("train/") and key not in LOGGED)]
    found = []
    for key in keys:
        title, scale = quantity(key)
        series = [{"label": f"{sources.label(name)}, seed {seed}", "i": sources.number(name),
                   "points": [(record["step"], scale * record[key]) for record in log if record.get(key) is not None]}
                  for name, seeds in sources.logs.items() for seed, log in seeds.items()]
        if series := [one for one in series if one["points"]]:
            chart = charts.lines(series, f"{title} by optimizer step, a line a seed", "optimizer step")
            found.append({"title": title, "first": key in LOGGED, "chart": chart, "legend": charts.legend(
                [(sources.number(name), sources.label(name)) for name in sources.logs])})
    return found


def forensics(sources: Any) -> dict[str, Any]:
    """Attention, curvature and similarity beside their references."""
    if not (content := sources.files.get("forensics")):
        return {}
    uniform, untrained = content["references"]["uniform"], content["references"]["random_init"].get("summary", {})
    means = {name: condition.get("summary", {}) for name, condition in content["conditions"].items()}
    rows = []
    for key, (title, reference) in SEEN.items():
        if any(key in summary for summary in means.values()):
            rows.append([title, *(_mean(summary.get(key)) for summary in means.values()), _mean(untrained.get(key)),
                         f"{uniform[reference]:.4g}" if uniform.get(reference) is not None else "–"])
    layers = [{"label": sources.label(name), "i": sources.number(name), "points": _layers(summary)}
              for name, summary in means.items() if _layers(summary)]
    chart = ""
    if layers:
        last = max(x for one in layers for x, _ in one["points"])
        references = [{"label": "uniform attention", "i": 0, "reference": True,
                       "points": [(1, uniform["mean_distance"]), (last, uniform["mean_distance"])]}]
        references += [{"label": "untrained", "i": 1, "reference": True, "points": _layers(untrained)}]
        chart = charts.lines([*references, *layers], "Mean attention distance by layer, with uniform attention and the "
                             "untrained student for reference", "layer") + charts.legend(
            [(one["i"], one["label"]) for one in layers], ["uniform attention", "untrained"])
    return {"head": [*map(sources.label, means), "untrained", "uniform attention"], "rows": rows, "chart": chart,
            "n": content["data"]["n"], "cka": _similarity(sources, content),
            "warnings": [f"{name}: {text}" for name, condition in content["conditions"].items()
                         for text in condition.get("warnings", [])]}


def _layers(summary: dict[str, Any]) -> list[tuple[int, float]]:
    return [(i, one["mean"]) for i, one in enumerate(summary.get("layer_distance", []), 1)]


def _similarity(sources: Any, content: dict[str, Any]) -> list[Any]:
    """CKA of the first seed's layers with its teacher's, where it has one."""
    found = []
    for name, condition in content["conditions"].items():
        run = condition["runs"][0]
        if matrix := run["cka"].get("teacher"):
            null = matrix["null"]["max_abs"]
            said = "" if null is None else f"; unrelated pairs reach {null:.3f} at most"
            found.append(charts.matrix(_blocks(matrix["layers_1"]), _blocks(matrix["layers_2"]), matrix["cka"],
                                       f"{sources.label(name)}, seed {run['seed']}: CKA with its teacher, "
                                       f"{matrix['n']} images{said}", "student's"))
    return found


def _blocks(layers: list[str]) -> list[str]:
    """Layers as people count them: `patch.0` is block 1; other names stay."""
    return [f"block {int(layer[6:]) + 1}" if layer.startswith("patch.") and layer[6:].isdigit() else layer
            for layer in layers]


def robustness(sources: Any) -> dict[str, Any]:
    """Calibration and corruptions, and the reliability of all seeds together."""
    if not (content := sources.files.get("robustness")):
        return {}
    own = content["conditions"]
    keys = [key for key in MEASURES if any(key in condition.get("summary", {}) for condition in own.values())]
    units = {key: (MEASURES[key][1], 2 if MEASURES[key][1] == 100 else 4) for key in keys}  # scale, decimals
    compared = [key for key in keys if any(key in condition.get("vs_baseline", {}) for condition in own.values())]
    rows = [[sources.label(name), *(_mean(condition.get("summary", {}).get(key), *units[key]) for key in keys),
             *(_change(condition.get("vs_baseline", {}).get(key)) for key in compared)]
            for name, condition in own.items()]
    series = [{"label": sources.label(name), "i": sources.number(name), "points": _reliability(condition["runs"])}
              for name, condition in own.items()]
    diagonal = {"label": "calibrated", "i": 0, "reference": True, "points": [(0, 0), (100, 100)]}
    names = [(sources.number(name), sources.label(name)) for name in own]
    chart = charts.lines([diagonal, *series], "Accuracy in percent by confidence, all seeds of a condition together",
                         "confidence, %", whole=False) + charts.legend(names, ["calibrated"])
    fewer = reading.corrupted_of(content)
    some = f"; corruptions and averaged views on {fewer[0]:,} of {fewer[1]:,} images" if fewer else ""
    head = ["condition", *(MEASURES[key][0] for key in keys),
            *(f"{MEASURES[key][0].removesuffix(' %')}, difference to the baseline, points" for key in compared)]
    return {"head": head, "rows": rows, "chart": chart, "some": some,
            "corruptions": _corruptions(sources, own)}


def _change(found: dict[str, Any] | None) -> str:
    """A difference to the baseline in points, with its interval for new seeds."""
    if found is None:
        return "–"
    between = "" if found["ci95"][0] is None else " [{:+.2f}, {:+.2f}]".format(*(100 * end for end in found["ci95"]))
    return f"{100 * found['difference']:+.2f}{between}"


def _reliability(runs: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Confidence and accuracy in percent of the bins of all runs together, without those of few predictions."""
    bins: dict[float, list[dict[str, Any]]] = {}
    for one in (one for run in runs for one in run["clean"]["reliability"]):
        if one["n"] and one.get("confidence") is not None:
            bins.setdefault(one["low"], []).append(one)
    weighted = [[sum(one["n"] * one[key] for one in own) / sum(one["n"] for one in own)
                 for key in ("confidence", "accuracy")] for _, own in sorted(bins.items())
                if sum(one["n"] for one in own) >= FEW]
    return [(100 * confidence, 100 * right) for confidence, right in weighted]


def _corruptions(sources: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Accuracy in percent by corruption, mean of severities and seeds."""
    kinds = sorted({kind for condition in own.values() for run in condition["runs"]
                    for kind in run.get("corruptions", {})})
    rows = []
    for name, condition in own.items():
        cells = []
        for kind in kinds:
            values = [one["accuracy"] for run in condition["runs"]
                      for one in run.get("corruptions", {}).get(kind, {}).values()]
            cells.append(f"{100 * sum(values) / len(values):.1f}" if values else "–")
        rows.append([sources.label(name), *cells])
    return {"head": ["condition", *(kind.replace("_", " ") for kind in kinds)], "rows": rows} if kinds else {}


def per_class(sources: Any) -> dict[str, Any]:
    """Recall of every class in percent, mean over seeds."""
    if not (content := sources.files.get("robustness")):
        return {}
    own = content["conditions"]
    rows = []
    for k, name in enumerate(content["data"]["classes"]):
        seeds = [[run["clean"]["per_class"][k] for run in condition["runs"]] for condition in own.values()]
        recalls = [[one.get("recall") for one in runs if one.get("recall") is not None] for runs in seeds]
        rows.append([name, str(seeds[0][0]["support"]) if seeds and seeds[0] else "–",
                     *(f"{100 * sum(r) / len(r):.1f}" if r else "–" for r in recalls)])
    return {"head": ["class", "n", *map(sources.label, own)], "rows": rows}


def retention(sources: Any) -> dict[str, Any]:
    """What language models kept of what they could and said before training."""
    if not (content := sources.files.get("retention")):
        return {}
    rows, probes = [], content["untrained"]["probes"]
    for name, own in [("untrained", content["untrained"]), *content["conditions"].items()]:
        cells = [_mean(one["shots"][shots]["accuracy"], 100) for one in own["probes"].values()
                 for shots in sorted(one["shots"], key=int)]
        apart = [_mean(one.get("kl")) for one in (*own["probes"].values(), own.get("text", {}))]
        rows.append([sources.label(name), *cells, *apart])
    head = [f"{probe}, {shots} shots, %" for probe, one in probes.items() for shots in sorted(one["shots"], key=int)]
    return {"head": ["condition", *head, *(f"KL, {probe}" for probe in (*probes, "plain text"))], "rows": rows}


def provenance(sources: Any) -> list[list[str]]:
    """One row a scored run: what a number was made from."""
    rows = []
    for name, condition in sources.results["conditions"].items():
        for run in (run for run in condition["runs"] if run["split"] == sources.split):
            attempt = sources.attempts.get(name, {}).get(run["seed"], {})
            packages = {"graft": attempt["graft_version"]} if "graft_version" in attempt else {}
            packages |= attempt.get("packages", {})
            hours = attempt.get("hours")
            rows.append([sources.label(name), str(run["seed"]), str(run["step"]), run["weights"],
                         str(attempt.get("code_sha", run.get("code_sha", "–")))[:12], run["checkpoint_sha256"][:12],
                         ", ".join(map(str, attempt.get("devices", []))) or "–",
                         f"{hours:.2f}" if hours is not None else "–",
                         ", ".join(f"{key} {value}" for key, value in packages.items()) or "–"])
    return rows


def _mean(found: dict[str, Any] | None, scale: float = 1, decimals: int | None = None) -> str:
    """Mean and interval of a summary, to four digits or to so many decimals."""
    if found is None:
        return "–"
    low, high = found["ci95"]
    form = ".4g" if decimals is None else f".{decimals}f"
    between = "" if low is None or high is None else f" [{scale * low:{form}}, {scale * high:{form}}]"
    return f"{scale * found['mean']:{form}}{between}"
