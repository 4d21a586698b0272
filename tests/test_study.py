"""A study in one file: read and checked strictly, and what runs follow from it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from graft.config import difference, load, study
from graft.config.study import describe
from graft.config.study.followups import steps
from graft.config.study.graph import Asked, Graph
from graft.config.study.job import command
from graft.errors import UserError
from graft.runtime import runs
from small import ROOT

HUB = {"DINOV2_CHECKPOINT": "hub"}
BASE = "base: configs/base/digits_vit.yaml\n"
GOOD = BASE + "conditions: {baseline: {}, other: {configs: [configs/distill/digits_cnn.yaml]}}\n"
INLINE = """
base: {task: {name: digits}, student: {name: vit, patch: 1, dim: 16, depth: 2, heads: 2}}
deltas: {soft: {objective: [{name: ce, smoothing: 0.2}]}}
conditions: {baseline: {}, soft: {configs: [soft]}}
"""


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def written(tmp_path: Path, text: str, name: str = "mine") -> str:
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def graph_of(tmp_path: Path, text: str, **asked) -> Graph:
    return Graph(study.load(written(tmp_path, text)), Asked(**asked))


# --------------------------------------------------------------------------------------------- reading

@pytest.mark.parametrize("text, said", [
    ("", "base: missing"),
    (BASE, "conditions: missing"),
    (GOOD + "tachers: {}", "tachers: unknown key; did you mean teachers?"),
    (GOOD + "seeds: 3", "seeds: expected a list, got 3"),
    (GOOD + "seeds: [0, 0]", "seeds: expected different numbers, got [0, 0]"),
    (GOOD + "seeds: [-1]", "seeds: must be >= 0, got -1"),
    (GOOD + "splits: [train]", "splits: must be one of val | test, got 'train'"),
    (GOOD + "then: [score]", "then: must be one of scores |"),
    (GOOD + "study: A b", "study: must be "),
    (GOOD + "roles: ${x}", "roles: expected a mapping, got '${x}'"),
    (GOOD + "roles: {cnn: []}", "roles.cnn: expected text, got []"),
    ("base: configs/base/digts.yaml", "base: no such config file: configs/base/digts.yaml"),
    (GOOD.replace("other:", "'a;b':"), "conditions.a;b: must be "),
    (GOOD.replace("other:", "'$(x)':"), "conditions.$(x): must be "),
    (GOOD.replace("other:", "then:"), "conditions.then: must be "),
    (GOOD.replace("other: {", "other: {ask: x, "), "conditions.other.ask: unknown key; did you mean asks?"),
    (GOOD.replace("other: {", "other: {script: train_distil, "), "no such script: 'train_distil'; did you mean"),
    (GOOD.replace("other: {", "other: {teacher: cnn, "), "conditions.other.teacher: unknown: 'cnn'"),
    (GOOD.replace("other: {", "other: {set: [x], "), "conditions.other.set: expected key=value, got 'x'"),
    (GOOD.replace("other: {", "other: {set: [seed=7], "), "conditions.other.set: seed is given to every run"),
    (GOOD + "set: [output_dir=x]\n", "set: output_dir is given to every run by the study; use study"),
    (GOOD.replace("digits_cnn", "digits_cn"), "other.configs: no such config file: configs/distill/digits_cn."),
    (GOOD + "contrasts: [other:basline]", "contrasts: unknown: 'basline'; did you mean baseline?"),
    (GOOD + "contrasts: [other]", "contrasts: expected two conditions as a:b, got 'other'"),
    (GOOD + "roles: {baseline: bas}", "roles.baseline: unknown: 'bas'"),
    (GOOD + "roles: {cnm: other}", "roles: unknown: 'cnm'"),
    (GOOD + "work: {other: {script: scripts/make_tiny_lm.py}}", "conditions.other: is the name of one of work too"),
    (GOOD + "work: {w: {script: scripts/no.py}}", "work.w.script: no such file"),
    (GOOD + "options: {scores: --engine}", "options.scores: expected a list of words"),
    (GOOD + "icl: {contexts: {a b: []}}", "icl.contexts.a b: must be "),
    (GOOD + "icl: {contexts: {4shot: []}}", "icl.contexts.4shot: must be "),
    (GOOD + "icl: {contexts: {told: no.yaml}}", "icl.contexts.told: expected a list of files or names"),
    (GOOD + "icl: {contexts: {told: [no.yaml]}}", "icl.contexts.told: no such config file: no.yaml"),
    (GOOD + "teachers: {t: {}}", "teachers.t: needs a base and a seed"),
    ("extends: demoo", "configs/study/demoo.yaml: no such study; did you mean demo?"),
    ("extends: csqa_qwen1b7", "extends: configs/study/csqa_qwen1b7.yaml extends another study itself"),
    (GOOD + "icl: {contexts: {told: [{a: 1}]}}", "icl.contexts.told: expected files or names of deltas, as text, got"),
    ("extends: demo\nconditions: [{baseline: null}]", "conditions: expected names, as text, got {'baseline': None}"),
    ("extends: demo\nconditions: 3", "conditions: expected a mapping, got 3"),
    ("extends: demo\nconditions: [basline]", "conditions: 'basline' is none of configs/study/demo.yaml; did you mean"),
])
def test_bad_studies_are_one_line_with_file_and_key(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        study.load(written(tmp_path, text))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert "extends: demoo" in text or str(error.value).startswith(f"{tmp_path}/mine.yaml: ")


def test_a_study_has_its_files_name_unless_it_says_another(tmp_path):
    for name in ("vögel", "My_Birds", "two words"):
        with pytest.raises(UserError, match=rf"/{name}\.yaml: a study has its file's name, and '{name}' is not a"):
            study.load(written(tmp_path, GOOD, name))
        assert study.load(written(tmp_path, GOOD + "study: mine", name)).study == "mine"


@pytest.mark.parametrize("text, said", [
    (GOOD.replace("other: {", "other: {script: train_baseline, "), "other.script: train_baseline is for"),
    (GOOD.replace("other: {", "other: {set: [optim.lrr=1], "), "optim.lrr: unknown key; did you mean lr?"),
    (INLINE.replace("smoothing", "smothing"), "mine.yaml: deltas.soft: objective.0.smothing: unknown key"),
    (GOOD + "study: demo\nteachers: {a: {base: configs/base/digits_vit.yaml, set: [student.checkpoint=experiments/x]}}",
     "student.checkpoint: unknown key"),
    ("study: s\nbase: configs/base/strings_qwen3.yaml\nconditions: {baseline: {set: [student.model="
     "experiments/s/a]}}\nteachers:\n" + "".join(
         f"  {one}: {{base: configs/base/strings_qwen3.yaml, set: [student.model=experiments/s/{other}/seed0]}}\n"
         for one, other in ("ab", "ba")), "a: needs itself: a/seed0 -> b/seed0 -> a/seed0"),
])
def test_what_no_run_accepts_is_one_line_too(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        graph_of(tmp_path, text)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("asked, said", [
    ({"only": ("bas",)}, "--only: unknown: 'bas'"), ({"name": "../x"}, "--name: must be "),
    ({"set": ("seed=7",)}, "--set: seed is given to every run by the study; use --seeds"),
    ({"set": ("optim.lrr=1",)}, "optim.lrr: unknown key; did you mean lr?"),
    ({"set": ("student.depth=x",)}, "student.depth: expected an integer, got 'x'"),
])
def test_what_is_asked_is_checked(asked, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        Graph(study.load("demo"), Asked(**asked))


# ---------------------------------------------------------------------------------- the project's studies

@pytest.mark.parametrize("name", study.names())
def test_the_studies_start_runs_that_load_after_what_they_need(name):
    whole = study.load(name)
    graph = Graph(whole, Asked(environment=HUB))
    done = set()
    for job in graph.jobs.values():
        assert set(job.needs) <= done, f"{job.name} needs {job.needs}"
        done.add(job.name)
        if job.kind != "run":
            continue
        words = list(job.words)
        end = words.index("--output_dir")
        written = [word for word in words[:end] if word.endswith(".yaml")]
        if job.config.seed == 0 and not graph.layers.files:
            cfg = load(written, words[end + 4:], seed=int(words[end + 3]), output_dir=words[end + 1])
            assert cfg.sha256 == job.digest and cfg.run_dir == job.folder
        assert job.script in (f"src/graft/train_{job.config.method}.py", "src/graft/train_ablation.py")
    assert all(item.asks for item in whole.conditions.values())
    assert {job.name for job in graph.jobs.values() if job.kind == "run"} >= {
        f"{name}/seed{seed}" for name, item in whole.conditions.items() for seed in item.seeds or whole.seeds}
    assert not graph.left_out
    for job in steps(graph, list(whole.conditions), whole.references, whole.icl is not None):
        assert (ROOT / job.script).is_file(), job.script


def test_a_path_among_the_words_of_a_work_is_made_by_it():
    graph = Graph(study.load("words_smollm2"), Asked())
    assert graph.makes("cache/models/smollm2-135m") is not (ROOT / "cache/models/smollm2-135m").exists()
    assert graph.makes("experiments/words_smollm2/model") and not graph.makes("cache/models")
    for job in graph.jobs.values():
        assert ("model/work" in job.needs) is (job.name != "model/work"), job.name
    moved = Graph(study.load("words_smollm2"), Asked(set=("student.model=elsewhere/lm",)))
    assert not any("model/work" in job.needs for job in moved.jobs.values())


def test_the_untrained_model_reads_what_teachers_read():
    job = Graph(study.load("words_smollm2"), Asked()).jobs["icl/work"]
    words = " ".join(job.words)
    assert "--context instruction configs/ablation/instruction.yaml --context " in words
    with_it = study.load("words_smollm2")
    without = replace(with_it, icl=replace(with_it.icl, contexts={}))
    assert Graph(without, Asked()).jobs["icl/work"].digest != job.digest


def test_language_runs_read_the_caches_that_are_built_for_them():
    graph = Graph(study.load("gsm8k_qwen1b7"), Asked(set=("student.model=tiny", "teacher.cache_dtype=fp32")))
    caches = {job.folder.parent.name: job.config for job in graph.jobs.values() if job.name.startswith("cache-")}
    assert set(caches) == {f"cache-{name}" for name in (
        "fewshot", "zeroshot_teacher", "shuffled_answers", "wrong_shots", "random_shots", "published_position",
        "hidden_cache", "teacher_targets")}
    served = [job for job in graph.jobs.values() if job.kind == "run" and job.config.teacher.name == "context_lm"]
    assert len(served) == 3 * 26
    samples = "experiments/gsm8k_qwen1b7/cache/samples-teacher_targets"
    for name in ("cache-teacher_targets/work", *(f"teacher_targets/seed{seed}" for seed in range(3))):
        job = graph.jobs[name]
        assert "samples-teacher_targets/work" in job.needs and f"teacher.samples={samples}" in job.words
    assert graph.jobs["samples-teacher_targets/work"].script == "scripts/sample_teacher.py"
    for job in served:
        if job.config.teacher.args["targets"] == "student" or job.config.teacher.args["serve"] == "ema":
            assert not job.needs, "what it says is not known before"
            continue
        *_, need = job.needs
        cache, args = caches[need.split("/")[0]], job.config.teacher.args
        assert args["serve"] == "cache" and args["path"] == f"experiments/gsm8k_qwen1b7/cache/{need[6:-5]}"
        assert job.config.task == cache.task and job.config.student == cache.student and args["cache_dtype"] == "fp32"
        same = ("context", "shots", "fewshot_seed", "max_length", "precision", "cache_dtype", "model", "keep")
        assert all(args[key] == cache.teacher.args[key] for key in same) and args["k"] <= cache.teacher.args["k"]
        term, = (term for term in job.config.objective if term.name == "topk")
        cached, = (term for term in cache.objective if term.name == "topk")
        assert term.args["position"] == cached.args["position"], job.name
    assert "student.model=tiny" in graph.jobs["baseline/seed0"].words
    assert not any(word.startswith("teacher.") for word in graph.jobs["baseline/seed0"].words), "it has no teacher"


def test_answers_that_depend_on_the_seed_are_made_for_each(tmp_path):
    text = """base: configs/base/gsm8k_qwen1b7.yaml
cache: true
seeds: [0, 1, 2]
deltas: {method: configs/distill/fewshot.yaml, own: {teacher: {targets: teacher}}}
conditions: {baseline: {}, distill: {configs: [method]}, own: {configs: [method, own]}}
"""
    jobs = graph_of(tmp_path, text, set=("teacher.fewshot_seed=${seed}",)).jobs
    made = [job for job in jobs.values() if job.kind == "work"]
    assert len(made) == 9 and len({job.digest for job in made}) == len({job.folder for job in made}) == 9
    for job in made:
        words = list(job.words)
        assert words[words.index("--seed") + 1] == str(job.config.teacher.args["fewshot_seed"]), job.name
    for seed in range(3):
        for name in (need for condition in ("distill", "own") for need in jobs[f"{condition}/seed{seed}"].needs):
            assert jobs[name].config.teacher.args["fewshot_seed"] == seed, name


def test_the_command_for_all_weights_is_one_that_eight_processes_can_share():
    text = (ROOT / "configs/study/gsm8k_qwen8b.yaml").read_text()
    launch, gpus, name, words = re.search(r"ACCELERATE=(\w+) GPUS_PER_JOB=(\d+) .* --name (\S+) \\\n# +--set (.*)",
                                          text).groups()
    graph = Graph(study.load("gsm8k_qwen8b"), Asked(name=name, set=tuple(words.split())))
    for job in (job for job in graph.jobs.values() if job.kind == "run"):
        assert not job.config.student.args["lora"] and f"experiments/{name}" in str(job.folder)
        assert job.config.train.batch_size % (int(gpus) * job.config.train.accumulate) == 0
        line = " ".join(command(job, "python", launch, int(gpus)))
        assert "accelerate/fsdp.yaml --num_processes 8" in line


def test_what_needs_weights_that_are_not_there_is_left_out(tmp_path):
    graph = Graph(study.load("cifar10"))
    assert set(graph.left_out) == {f"dinov2_{kind}" for kind in ("cka", "gram", "token", "correlation")}
    assert graph.left_out["dinov2_cka"] == "set DINOV2_CHECKPOINT to a file, or to hub"
    with pytest.raises(UserError, match="DINOV2_CHECKPOINT: no such file: nowhere"):
        Graph(study.load("cifar10"), Asked(environment={"DINOV2_CHECKPOINT": "nowhere"}))
    file = tmp_path / "weights.safetensors"
    file.touch()
    graph = Graph(study.load("cifar10"), Asked(only=("dinov2_cka",), environment={"DINOV2_CHECKPOINT": str(file)}))
    assert {job.config.teacher.args["checkpoint"] for job in graph.jobs.values()} == {str(file)}
    assert list(graph.jobs) == [f"dinov2_cka/seed{seed}" for seed in range(3)]


def test_smoke_runs_are_short_and_in_a_folder_of_their_own():
    graph = Graph(study.load("cifar10"), Asked(smoke=True, set=("train.compile=default",), environment=HUB))
    assert {job.folder.parts[1] for job in graph.jobs.values()} == {"cifar10-smoke"}
    assert {job.config.seed for job in graph.jobs.values()} == {0}
    asked = Graph(study.load("demo"), Asked(smoke=True, seeds=(1, 2)))
    assert {job.config.seed for name, job in asked.jobs.items() if "teacher" not in name} == {1, 2}, "as asked for"
    assert all(job.config.train.duration == "4st" and job.config.train.compile == "default"
               for job in graph.jobs.values())
    assert graph.jobs["ssl_cka/seed0"].config.teacher.args["path"] == "experiments/cifar10-smoke/ssl_teacher/seed0"
    last = {name: job.config.files[-1] for name, job in graph.jobs.items() if "ablation" in job.script}
    assert last.pop("ce_longer/seed0") == "configs/smoke/cpu.yaml", "its length is cut too"
    assert last and all(file.startswith("configs/ablation/") for file in last.values()), \
        "train_ablation.py prints what the last file changes"
    for name, key in (("cifar100", "another task"), ("cifar10_small", "a length and more images")):
        jobs = Graph(study.load(name), Asked(smoke=True, set=("task.split_seed=1",), environment=HUB)).jobs.values()
        assert {(job.config.train.duration, job.config.task.args["subset"], job.config.task.args["split_seed"])
                for job in jobs} == {("4st", 32, 1)}, f"what the study's own words undo ({key}) is laid over them"
    language = Graph(study.load("demo_language"), Asked(smoke=True))
    model = "experiments/demo_language-smoke/pretrain/seed0"
    assert language.jobs["baseline/seed0"].config.student.args["model"] == model
    assert language.jobs["baseline/seed0"].needs == ("architecture/work", "pretrain/seed0")
    words = Graph(study.load("words_smollm2"), Asked(smoke=True)).jobs
    assert words["teacher_targets/seed0"].config.teacher.args["targets"] == "gold", "sampled answers are all cut off"
    assert not any("samples" in name for name in words)
    assert any("samples" in name for name in Graph(study.load("words_smollm2"), Asked()).jobs)


# ------------------------------------------------------------------------------------------- one's own

def test_a_study_may_hold_its_configurations_itself(tmp_path):
    graph = graph_of(tmp_path, INLINE, seeds=(4,), set=("train.batch_size=32",))
    assert list(graph.jobs) == ["baseline/seed4", "soft/seed4"]
    soft = graph.jobs["soft/seed4"]
    assert [re.sub(r"-[0-9a-f]{8}\.", ".", word) for word in soft.words[:4]] == [
        "--base_config", "experiments/mine/configs/base.yaml", "--config", "experiments/mine/configs/deltas/soft.yaml"]
    assert soft.config.objective[0].args["smoothing"] == 0.2 and soft.config.train.batch_size == 32
    assert soft.script == "src/graft/train_baseline.py"
    changed = {key for key, _, _ in difference(graph.jobs["baseline/seed4"].config, soft.config)}
    assert changed == {"objective.ce.smoothing"}


def test_jobs_that_were_given_to_a_queue_read_what_they_were_started_with(tmp_path, monkeypatch):
    """Another value goes into another file, whoever asks; the run that is done stays the one that is asked for."""
    before, after = (graph_of(tmp_path, INLINE.replace("0.2", value)) for value in ("0.2", "0.3"))
    job = before.jobs["soft/seed0"]
    monkeypatch.chdir(tmp_path)
    runs.prepare(before.layers.files)
    runs.prepare(after.layers.files)
    words = list(job.words)
    files = [word for word in words[:words.index("--output_dir")] if word.endswith(".yaml")]
    assert load(files, output_dir=words[words.index("--output_dir") + 1]).sha256 == job.digest
    assert sorted(path.name[:4] for path in Path("experiments").rglob("*.yaml")) == ["base", "soft", "soft"]
    written = [Path(file).stat().st_mtime_ns for file in files]
    runs.prepare(before.layers.files)
    assert [Path(file).stat().st_mtime_ns for file in files] == written, "what others read is not written again"


def test_what_is_done_does_not_depend_on_the_names_of_its_files(tmp_path):
    """The untrained model's command line is part of what it is; two files of one meaning are one."""
    told = "deltas: {told: {teacher: {max_length: 500, shots: 2}}, method: configs/distill/fewshot.yaml}\n"
    text = ("base: configs/base/gsm8k_qwen1b7.yaml\nconditions: {baseline: {}}\n" + told +
            "icl: {configs: [method], contexts: {told: [told]}}\n")
    one, other = (graph_of(tmp_path, words).jobs["icl/work"]
                  for words in (text, text.replace("max_length: 500, shots: 2", "shots: 2, max_length: 500")))
    assert one.words != other.words and one.digest == other.digest


def test_seeds_of_teachers_and_conditions(tmp_path):
    text = GOOD.replace("other: {", "other: {teacher: cnn, seeds: [0, 1], ") + \
        "seeds: [0, 1, 2]\nteachers: {cnn: {base: configs/base/digits_cnn.yaml, seeds: [0, 1]}}"
    graph = graph_of(tmp_path, text)
    assert [name for name in graph.jobs if name.startswith("other")] == ["other/seed0", "other/seed1"]
    for seed in (0, 1):
        job = graph.jobs[f"other/seed{seed}"]
        assert job.needs == (f"cnn/seed{seed}",)
        assert job.config.teacher.args["path"] == f"experiments/mine/cnn/seed{seed}"
    assert list(graph_of(tmp_path, text, only=("other",), seeds=(1,)).jobs) == ["cnn/seed1", "other/seed1"]


def test_a_teacher_that_the_study_replaces_is_not_waited_for(tmp_path):
    teachers = "".join(f"  {name}: {{base: configs/base/digits_cnn.yaml}}\n" for name in ("cnn", "rich"))
    delta = "deltas: {soft: {method: distill, teacher: {name: run, path: experiments/mine/cnn/seed0}}}\n"
    text = f"""study: mine
base: configs/base/digits_vit.yaml
{delta}teachers:
{teachers}conditions:
  baseline: {{}}
  one: {{configs: [soft]}}
  other: {{configs: [soft], teacher: rich}}
"""
    jobs = graph_of(tmp_path, text).jobs
    assert jobs["one/seed0"].needs == ("cnn/seed0",)
    assert jobs["other/seed0"].needs == ("rich/seed0",)


def test_what_is_made_for_runs_can_be_asked_for_alone():
    graph = Graph(study.load("words_smollm2"), Asked(only=("cache-fewshot",)))
    assert list(graph.jobs) == ["model/work", "cache-fewshot/work"] and graph.icl.name == "icl/work"
    assert "icl/work" in Graph(study.load("words_smollm2"), Asked(only=("baseline",))).jobs


def test_what_is_done_is_told_from_what_is_another_run(tmp_path, monkeypatch):
    job, other = (graph_of(tmp_path, GOOD, set=words).jobs["baseline/seed0"] for words in ((), ("optim.lr=0.5",)))
    monkeypatch.chdir(tmp_path)
    assert runs.state(job).name == "new"
    checkpoint = job.folder / "checkpoint-3"
    checkpoint.mkdir(parents=True)

    def leave(cfg, state):
        (checkpoint / "trainer.json").write_text(json.dumps({"config_sha256": cfg.sha256, "config": cfg.identity()}))
        (job.folder / "status.json").write_text(json.dumps({"state": state}))

    leave(job.config, "done")
    assert runs.state(job).name == "done"
    leave(job.config, "preempted")
    assert runs.state(job).name == "begun"
    leave(other.config, "done")
    assert runs.state(job) == runs.State("other", "optim.lr: 0.5 -> 0.006")
    younger = job.config.identity()
    del younger["train"]["min_delta"], younger["optim"]["gamma"]
    (checkpoint / "trainer.json").write_text(json.dumps({"config_sha256": "of then", "config": younger}))
    assert runs.state(job).name == "done", "keys that are younger than the run had their defaults"
    (checkpoint / "trainer.json").unlink()
    assert runs.state(job).name == "other", "done, and nothing says of which configuration"


# ----------------------------------------------------------------------------------------- documents

def test_the_tables_of_conditions_are_those_of_the_studies():
    found = []
    for document in (ROOT / "configs/README.md", ROOT / "README.md"):
        text = document.read_text()
        for name in re.findall(r"^<!-- conditions (\S+) -->$", text, re.MULTILINE):
            table = describe.conditions(study.load(name))
            assert f"<!-- conditions {name} -->\n{table}<!-- /conditions {name} -->\n" in text, \
                f"{document}: {name}: python scripts/lib/conditions.py {document}"
            found.append(name)
    assert {"cifar10", "mnist", "demo", "demo_language", "gsm8k_qwen1b7"} <= set(found)


def test_every_script_has_its_line():
    text = (ROOT / "scripts/README.md").read_text()
    for path in [*ROOT.glob("scripts/*.*"), *ROOT.glob("scripts/lib/*.*")]:
        assert f"`{path.relative_to(ROOT / 'scripts')}`" in text or path.name == "README.md", path
