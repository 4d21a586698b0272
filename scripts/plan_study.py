"""What a study will cost and what it can decide, before it is run: no GPU, no weights and mostly no data are needed.

    python scripts/plan_study.py cifar10
    python scripts/plan_study.py gsm8k_qwen8b --gpu a100 --share 0.35
    python scripts/plan_study.py mine.yaml --rate 0.05                     # TFLOP/s that a run of it reached here
    python scripts/plan_study.py demo mnist --into configs/README.md       # a row a study, between <!-- plan -->

For every job: parameters, FLOPs, the most memory it holds at once, bytes of caches and checkpoints, hours. FLOPs and
memory are counted by going through each step with tensors that have no data (graft/planning); what an allocator adds,
and norms that CUDA keeps in fp32, come on top. Scores of checkpoints are not among the jobs. Hours are FLOPs over a
rate, and so a lower bound: small models, and models that answer a token at a time, reach less of a GPU's peak.

Then the smallest difference of accuracy that 3, 5 and 10 seeds find four times in five: of one comparison alone
(p < 0.05), as results.json says it of a finished study, and of the first of all conditions that are compared with the
baseline, whose p Holm holds to 0.05 / their number. Both follow from --discordance and --seed_sd, which nobody knows
before: the defaults are what the published studies had, small models and short runs. A pilot of your own says more.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from graft.config import script_options, study
from graft.config.study.graph import Asked, Graph
from graft.errors import exit_cleanly
from graft.planning.power import DISCORDANCE, SEED_SD, decides


def arguments() -> Namespace:
    """The command line."""
    parser = script_options.parser(__doc__)
    parser.add_argument("study", nargs="+", help="of configs/study/ by name, or a file of your own")
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="CONDITION")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    device = parser.add_argument_group("what it runs on")
    device.add_argument("--gpu", default="h100", help="default: h100; a name that is none lists them all")
    device.add_argument("--peak", type=float, metavar="TFLOPS", help="of another device, dense, in bf16")
    device.add_argument("--memory", type=float, metavar="GB", help="of that device; what needs more is marked")
    device.add_argument("--share", type=float, default=0.4, help="of the peak that runs reach (default: 0.4)")
    device.add_argument("--rate", type=float, metavar="TFLOPS", help="that was measured, instead of share and peak")
    device.add_argument("--processes", type=int, default=1, help="that share a run; memory is that of one of them")
    data = parser.add_argument_group("data that are not here")
    data.add_argument("--items", nargs=2, type=int, metavar=("TRAIN", "TEST"), help="how many")
    data.add_argument("--classes", type=int, default=0)
    data.add_argument("--tokens", nargs=2, type=int, metavar=("PROMPT", "ANSWER"), help="means; default: a quarter of "
                      "task.max_length each")
    power = parser.add_argument_group("what it can decide")
    had = "the median of the published studies' comparisons with the baseline: in assets/*/results.json"
    power.add_argument("--discordance", type=float, default=DISCORDANCE, help="share of items on which two runs differ "
                       f"(default: {DISCORDANCE}, {had} the sum of `discordant`)")
    power.add_argument("--seed_sd", type=float, default=SEED_SD, help="standard deviation over seeds of the difference "
                       f"(default: {SEED_SD}, {had} `se_seed` times the root of the number of seeds)")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true")
    shown.add_argument("--markdown", action="store_true")
    shown.add_argument("--into", type=Path, metavar="FILE", help="write one row a study there, over its old one")
    options = parser.parse_args()
    script_options.at_least(options, processes=1, classes=0, items=1, tokens=1)
    script_options.above_zero(options, share=1, discordance=1, peak=math.inf, memory=math.inf, rate=math.inf)
    script_options.at_least(options, seed_sd=0)
    return options


def architectures(graph: Graph, folder: str) -> dict[str, str]:
    """Models that the study makes without weights, made in `folder`: where each will be -> where it is now."""
    found = {}
    for job in graph.jobs.values():
        at = str(job.folder.parent)
        if job.kind == "work" and "--no_weights" in job.words and not Path(at, "config.json").is_file():
            found[at] = f"{folder}/{job.folder.parent.name}"
            words = [found[at] if word == at else word for word in job.words]
            subprocess.run([sys.executable, job.script, *words], check=True, stdout=subprocess.DEVNULL)
    return found


def main() -> None:
    """Plan each study, show."""
    options = arguments()  # before torch is imported
    from graft.planning import tables
    from graft.planning.data import Told
    from graft.planning.devices import device
    from graft.planning.study import as_dict, planned
    from graft.reporting.tables import between, insert

    on = device(options.gpu, options.peak, options.memory, options.share, options.rate)
    told = Told(options.items and tuple(options.items), options.classes, options.tokens and tuple(options.tokens))
    environment = {"DINOV2_CHECKPOINT": "hub", **os.environ}
    plans = []
    for name in options.study:
        graph = Graph(study.load(name), Asked(tuple(options.only), set=tuple(options.set), environment=environment))
        with tempfile.TemporaryDirectory() as folder:
            plans.append(planned(graph, told, options.processes, architectures(graph, folder)))
    if options.into:
        shown = tables.summary(plans, on, options.discordance, options.seed_sd)
        insert(options.into, "plan", tables.joined(between(options.into, "plan"), shown))
    elif options.json:
        print(json.dumps([{
            **as_dict(plan), "device": vars(on),
            "hours_a_run": {row.name: on.hours(row.costs) for row in plan.rows if row.costs},
            "detectable": decides(plan.n, options.discordance, options.seed_sd) if plan.n else None,
            "detectable_in_family": decides(plan.n, options.discordance, options.seed_sd, plan.comparisons)
            if plan.n else None,
        } for plan in plans], indent=1))
    else:
        for plan in plans:
            over = "; !: more than the device has" if on.memory else ""
            print(f"{plan.name}: {on.text}; memory, cache and checkpoints in bytes{over}")
            print((tables.markdown if options.markdown else tables.aligned)(tables.jobs(plan, on)))
            print(tables.power(plan, options.discordance, options.seed_sd))
            print("".join(f"note: {note}\n" for note in plan.notes), end="")


if __name__ == "__main__":
    exit_cleanly(main)
