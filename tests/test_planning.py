"""What a study will cost: against runs that were made, against what is published, and as the documents say it."""

import gc
import re
import statistics
import subprocess
import sys

import pytest
import scipy.stats
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import small
import small_lm
from graft.config import study
from graft.config.study.graph import Asked, Graph
from graft.errors import UserError
from graft.planning import architectures, costs, models, power, reading, tables
from graft.planning.data import Told, data_of
from graft.planning.devices import device
from graft.planning.measure import cost, emptied, size_of, state_of, without_data
from graft.planning.study import planned
from graft.reporting import stats
from graft.reporting.reading import read_results
from small import ROOT

H100 = device("h100", None, None, 0.4, None)


def of_study(name: str, **asked) -> dict[str, costs.Costs]:
    """The costs by name of what a shipped study computes."""
    plan = planned(Graph(study.load(name), Asked(environment={"DINOV2_CHECKPOINT": "hub"}, **asked)), Told())
    assert not [row.missing for row in plan.rows if row.missing]
    return {row.name: row.costs for row in plan.rows}


def most_held(done: profile) -> int:
    """Bytes of tensors at once, at most, as the allocator saw it."""
    now = most = 0
    for event in sorted((event for event in done.profiler.kineto_results.events() if event.name() == "[memory]"),
                        key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


IMAGES = ["student.dim=64", "optim.warmup=0st", "evaluate.batch_size=32"]
TEXT = ["optim.warmup=0st", "evaluate.batch_size=8"]
TEACHER = ["teacher.name=context_lm", "teacher.shots=2", "teacher.k=8", "objective=[{name: ce},{name: topk}]"]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "method", "words"), [
    (small, "baseline", IMAGES), (small, "ssl_teacher", [*IMAGES, "train.accumulate=2"]),
    (small_lm, "baseline", [*TEXT, "student.lora=false"]),
    (small_lm, "distill", [*TEXT, *TEACHER]), (small_lm, "distill", [*TEXT, *TEACHER, "teacher.keep=hidden"]),
    (small_lm, "distill", [*TEXT, *TEACHER, "teacher.serve=ema"]),
    (small_lm, "distill", [*TEXT, *TEACHER, "teacher.targets=student", "evaluate.max_new_tokens=12",
                           "objective=[{name: topk}]"])],
    ids=["vit", "dino", "whole_lm", "lora_with_teacher", "lora_with_hidden_states", "ema_teacher", "own_answers"])
def test_flops_and_memory_are_those_of_a_real_run(tmp_path, where, method, words):
    cfg = where.tiny(tmp_path / "counted", *words, "train.duration=1ep", method=method)
    plan = costs.of_run(cfg, data_of(cfg, Told()), {})
    with FlopCounterMode(display=False) as counted:
        where.run_main(cfg)
    assert plan.flops == pytest.approx(counted.get_total_flops(), rel=0.05)
    cfg = where.tiny(tmp_path / "held", *words, "train.duration=1ep", method=method)
    gc.collect()  # what an earlier profile saw come would be seen to go in this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as done:
        where.run_main(cfg)
    assert plan.peak == pytest.approx(most_held(done), rel=0.25)
    saved = [file.stat().st_size for file in cfg.run_dir.glob("checkpoint-*/*")
             if file.suffix in (".safetensors", ".pt")]
    assert plan.checkpoints == pytest.approx(sum(saved), rel=0.25, abs=30_000)  # headers


def test_known_models_have_the_parameters_that_are_published():
    found = {}
    for name in architectures.PUBLISHED:
        found[name] = sum(p.numel() for p in models.language_model(name, "", "bf16", {}).parameters())
    assert found == {"Qwen/Qwen3-1.7B": 1_720_574_976, "Qwen/Qwen3-8B": 8_190_735_360,
                     "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824, "google/gemma-3-270m": 268_098_176}


def test_what_a_backward_pass_lets_go_of_is_not_counted_twice():
    with torch.device("meta"):
        layers = torch.nn.Sequential(*[torch.nn.Linear(100, 100, bias=False) for _ in range(4)])
    with without_data():
        emptied(layers)
        inputs = torch.empty(10, 100)
        found = cost(lambda: layers(inputs).sum().backward(), [*state_of(layers), inputs])
    assert size_of(state_of(layers)) == 4 * 40_000
    assert found.flops == 4 * 2 * 10 * 100 * 100 * 3 - 2 * 10 * 100 * 100  # no gradient of the inputs
    assert 4 * 40_000 < found.bytes < 4 * 40_000 + 5 * 4_000 + 1_000


def test_recomputed_activations_do_not_pile_up():
    held = {}
    for depth in (2, 8):
        with torch.device("meta"):
            stack = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(64, 640), torch.nn.Linear(640, 64))
                                        for _ in range(depth))
        with without_data():
            emptied(stack)
            x = torch.empty(1000, 64, requires_grad=True)

            def work(stack=stack, x=x):
                for part in stack:
                    x = torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False)
                x.sum().backward()

            held[depth] = cost(work, [*state_of(stack), x]).bytes
    assert held[8] - held[2] < 6 * (2 * 256_000 + 2 * 64 * 640 * 4 + 10_000)  # not the 2.5 MB inside each


def test_a_deep_model_is_known_from_its_first_layers(tmp_path, monkeypatch):
    deep = small_lm.lm(layers=9)
    cfg = small_lm.tiny(tmp_path, f"student.model={deep}", "student.checkpointing=true", "train.precision=bf16")
    data = data_of(cfg, Told())
    found = costs.of_run(cfg, data, {})
    monkeypatch.setattr(costs, "DEPTHS", (9, 10))
    whole = costs.of_run(cfg, data, {})
    assert (found.parameters, found.trained, found.flops_step, found.checkpoints, found.half) == (
        whole.parameters, whole.trained, whole.flops_step, whole.checkpoints, True)
    assert found.peak == pytest.approx(whole.peak, rel=0.01)


@pytest.mark.slow
def test_a_language_studys_teacher_costs_what_it_reads():
    found = of_study("gsm8k_gemma270m", only=("baseline", "distill", "zeroshot_teacher"), seeds=(0,))
    assert found["cache-fewshot"].flops > 5 * found["cache-zeroshot_teacher"].flops
    assert found["distill"].flops == found["baseline"].flops  # it reads the cache
    tokens = 7_099 * 128  # of 7,473 items 5 % are held out; half of 256 tokens assumed for each
    assert found["cache-fewshot"].cache == tokens * (256 * 6 + 8)
    assert found["baseline"].trained == found["baseline"].parameters and found["baseline"].memory["optimizer"] == \
        2 * found["baseline"].memory["gradients"]


def test_hidden_states_are_as_large_as_their_cache(tmp_path):
    cfg = small_lm.tiny(tmp_path, *TEXT, *TEACHER, "teacher.keep=hidden", "teacher.cache_dtype=bf16", method="distill")
    data = data_of(cfg, Told())
    about = small_lm.task()
    tokens, width = int(about.splits["train"].answers.offsets[-1]), small_lm.student(about).model.config.hidden_size
    assert reading.of_cache(cfg, data, {}).cache == pytest.approx(tokens * width * 2, rel=0.01)
    logits = small_lm.tiny(tmp_path, *TEXT, *TEACHER, method="distill")
    assert reading.of_cache(logits, data, {}).cache == pytest.approx(tokens * (8 * (2 + 4) + 4 + 4), rel=0.01)


@pytest.mark.slow
def test_image_caches_are_as_large_as_they_are():
    found = of_study("cifar10", only=("ssl_cka", "cls_only"), seeds=(0,))
    assert found["ssl_cka"].cache == 45_000 * 4 * 64 * 192 * 2 and found["cls_only"].cache == 45_000 * 4 * 192 * 2
    assert found["ssl_cka"].memory["cache"] == found["ssl_cka"].cache


def test_what_is_not_known_is_one_line():
    graph = Graph(study.load("example_images"), Asked(only=("baseline",), seeds=(0,)))
    row, = [row for row in planned(graph, Told()).rows if row.name == "baseline"]
    assert row.costs is None and "\n" not in row.missing
    told = planned(graph, Told(items=(1_281_167, 50_000), classes=1000))
    assert told.n == 50_000 and told.rows[-1].costs.steps > 1000
    assert "not known: see below" in tables.aligned(tables.jobs(planned(graph, Told()), H100))
    note, = planned(Graph(study.load("example_images"), Asked()), Told()).notes  # of many jobs
    assert re.match(r"\w+, \w+, \w+ and \d+ more: ", note)
    with pytest.raises(UserError, match="--gpu: expected one of h100"):
        device("h1000", None, None, 0.4, None)
    with pytest.raises(UserError, match="no config"):
        architectures.config_of("nobody/no-such-model")


def test_hours_and_what_can_be_decided_follow():
    plan = planned(Graph(study.load("demo"), Asked(only=("baseline",))), Told())
    row, = plan.rows
    assert row.count == 10 and plan.n == 360
    assert H100.hours(row.costs) == pytest.approx(row.costs.flops / (0.4 * 0.5 * 989.4e12) / 3600)
    assert device("", None, None, 0.4, 0.05).hours(row.costs) == pytest.approx(row.costs.flops / 0.05e12 / 3600)
    assert "360 test items" in tables.power(plan, 0.1, 0.005)
    assert [name for name in tables.jobs(plan, H100)[0] if "time" in name] == ["time a run, at least", "time, at least"]
    assert [tables.si(value) for value in (0, 999, 1000, 4.4237e9, 1e24)] == ["0", "999", "1 k", "4.42 G", "1e+24"]


def test_what_is_assumed_of_a_studys_power_is_what_the_published_studies_had():
    found = [one for file in sorted(ROOT.glob("assets/*/results.json"))
             for condition in read_results(file)["conditions"].values()
             for one in [condition["vs_baseline"].get("test", {}).get("accuracy")] if one and one["se_seed"]]
    assert len(found) > 20
    seed_sd = statistics.median(one["se_seed"] * min(one["seeds"]) ** 0.5 for one in found)
    discordance = statistics.median(sum(one["discordant"]) for one in found)
    assert 0.5 < power.SEED_SD / seed_sd < 2 and 0.5 < power.DISCORDANCE / discordance < 2


def test_many_comparisons_detect_less():
    plan = planned(Graph(study.load("demo"), Asked()), Told())
    assert plan.comparisons == 4  # conditions besides the baseline; teachers are no arms
    alone, first = (power.decides(360, 0.3, 0.03, count) for count in (1, plan.comparisons))
    assert all(first[seeds] > alone[seeds] for seeds in power.SEEDS)
    z = [scipy.stats.norm.isf(0.05 / 2 / count) + scipy.stats.norm.isf(0.2) for count in (1, 4)]  # examples alone
    assert [stats.detectable(360, 0.3, 1, 0.0, comparisons=count) for count in (1, 4)] == pytest.approx(
        [width * (0.3 / 360)**0.5 for width in z], rel=1e-3)
    said = tables.power(plan, 0.3, 0.03)
    assert "of one comparison alone" in said and f"{100 * first[3]:.2f}" in said and "0.05 / 4" in said


def test_the_table_in_the_documents_is_the_plan():
    text = (ROOT / "configs/README.md").read_text()
    shown = re.search(r"<!-- plan -->\n(.*)<!-- /plan -->", text, re.DOTALL)[1].splitlines()
    for name in ("demo", "mnist"):
        row = tables.summary([planned(Graph(study.load(name), Asked()), Told())], H100, power.DISCORDANCE,
                             power.SEED_SD).splitlines()[-1]
        assert row in shown
    assert {line.split("`")[1] for line in shown[2:]} == {*study.names()} - {"example_images", "example_text"}


def test_rows_of_other_studies_stay():
    old, new = (f"| study | runs |\n| --- | --- |\n{rows}" for rows in ("| `a` | 1 |\n| `b` | 2 |\n",
                                                                       "| `b` | 3 |\n| `c` | 4 |\n"))
    assert tables.joined(old, new).splitlines()[2:] == ["| `a` | 1 |", "| `b` | 3 |", "| `c` | 4 |"]
    assert tables.joined("", new) == new
    with pytest.raises(UserError, match=r"other columns.* `a`, `b`"):  # rows under a head that is not theirs
        tables.joined(old.replace("runs", "time"), new)


@pytest.mark.slow
def test_the_script(tmp_path):
    done = subprocess.run([sys.executable, "scripts/plan_study.py", "demo", "--only", "baseline", "--memory", "0.01"],
                          env=small.environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"baseline +10 +.* M!", done.stdout) and "360 test items" in done.stdout
    done = subprocess.run([sys.executable, "scripts/plan_study.py", "demo", "--share", "2"], env=small.environment(),
                          cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --share: expected a number above 0 and at most 1, got 2\n")
