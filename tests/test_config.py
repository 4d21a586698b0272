"""Configuration: what merges, what is refused, and that refusing is fast and says where."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from graft import config
from graft.config import options, schema
from graft.errors import UserError, exit_cleanly

ROOT = Path(__file__).parent.parent
BASE = str(ROOT / "configs/base/digits_vit.yaml")

GOOD = """
task: {name: digits}
student: {name: vit, patch: 1, dim: 8, depth: 2, heads: 2}
"""

# (what the override file says, the key the message must name, what it must say)
BAD_FILES = [
    ("optim: {lrr: 1.0}", "optim.lrr", "did you mean lr"),
    ("optm: {lr: 1.0}", "optm", "did you mean optim"),
    ("student: {pach: 2}", "student.pach", "did you mean patch"),
    ("student: {name: vitt}", "student.name", "did you mean vit"),
    ("task: {name: cifar}", "task.name", "did you mean cifar10"),
    ("teacher: {name: resnet}", "teacher.name", "unknown"),
    ("objective: [{name: cee}]", "objective.0.name", "did you mean ce"),
    ("objective: [{name: ce, smooth: 0.1}]", "objective.0.smooth", "did you mean smoothing"),
    ("objective: [{weight: 1.0}]", "objective.0.name", "missing"),
    ("objective: {kd: {weight: 1.0}}", "objective.kd", "is not there"),
    ("objective: 3", "objective", "expected a list"),
    ("objective: []", "objective", "is empty"),
    ("objective: [{name: ce, weight: 0}]", "objective", "every weight is 0"),
    ("augment: [{name: flop}]", "augment.0.name", "did you mean flip"),
    ("optim: {lr: -5}", "optim.lr", "must be > 0, got -5"),
    ("optim: {lr: 0}", "optim.lr", "must be > 0"),
    ("optim: {lr: '5e-4'}", "optim.lr", "expected a number, got '5e-4'"),
    ("optim: {lr: .nan}", "optim.lr", "finite"),
    ("optim: {lr: fast}", "optim.lr", "expected a number"),
    ("optim: {betas: [0.9, 1.5]}", "optim.betas", "[0, 1)"),
    ("optim: {betas: [0.9]}", "optim.betas", "two numbers"),
    ("optim: {name: lion}", "optim.name", "adamw | adam"),
    ("optim: {schedule: linear}", "optim.schedule", "cosine"),
    ("optim: {warmup: 5}", "optim.warmup", "expected text"),
    ("optim: {warmup: 5epochs}", "optim.warmup", "a duration such as 10ep"),
    ("optim: {warmup: 200ep}\ntrain: {duration: 100ep}", "optim.warmup", "shorter than train.duration"),
    ("optim: {lr: 1.0e-6}", "optim.min_lr", "must not exceed optim.lr"),
    ("train: {duration: 50%}", "train.duration", "positive"),
    ("train: {duration: 0ep}", "train.duration", "positive"),
    ("train: {batch_size: 0}", "train.batch_size", "must be >= 1"),
    ("train: {batch_size: 12.5}", "train.batch_size", "expected an integer"),
    ("train: {batch_size: true}", "train.batch_size", "expected an integer"),
    ("train: {batch_size: 128, accumulate: 3}", "train.accumulate", "must divide"),
    ("train: {batch_size: 128, accumulate: 2, compile: reduce-overhead}", "train.compile", "use default"),
    ("train: {keep: 1}", "train.keep", "must be >= 2"),
    ("train: {precision: fp16}", "train.precision", "fp32 | bf16"),
    ("train: {tensorboard: 'no'}", "train.tensorboard", "true or false"),
    ("train: {stop_after: 3, eval_every: 0}", "train.eval_every", "early stopping needs evaluations"),
    ("train: [1]", "train", "expected a mapping"),
    ("evaluate: {topk: [1, 11]}", "evaluate.topk", "top-11 of 10 classes"),
    ("student: {patch: 3}", "student.patch", "must divide the image size 8"),
    ("student: {dim: 7}", "student.heads", "must divide student.dim 7"),
    ("objective: [{name: kd}]", "objective.0.name", "needs a teacher"),
    ("objective: [{name: kd, tau: 0}]\nteacher: {name: random}", "objective.0.tau", "must be > 0"),
    ("objective: [{name: cka, layers: [9]}]\nteacher: {name: dinov2}", "objective.0.layers", "blocks 0 to 1"),
    ("teacher: {name: run}", "teacher.path", "missing"),
    ("teacher: {name: dinov2, view: same}", "teacher.view", "augmented | aligned"),
    ("teacher: {name: dinov2, view: aligned}\naugment: [{name: mixup}]", "teacher.view", "undefined under mixup"),
    ("method: distil", "method", "baseline | distill"),
    ("study: mine\nconditions: {baseline: {}}", "", "is a study, not a configuration of one run; "),
    ("seed: -1", "seed", ">= 0"),
    ("ssl: {local_scale: [0.5, 0.2]}", "ssl.local_scale", "[low, high]"),
    ("optim: {lr: '${oc.env:HOME}'}", "optim.lr", "resolvers are not allowed"),
    ("optim: {lr: '${optim.nothing}'}", "optim.lr", "${optim.nothing} is not found; did you mean"),
    ("method: '${oc.env:HOME}'", "method", "resolvers are not allowed"),
    ("task: {name: imagefolder, root: '${method}-${oc.env:HOME}'}", "task.root", "resolvers are not allowed"),
    ("task: {name: imagefolder, root: '${${method}}'}", "task.root", "resolvers are not allowed"),
    ("task: {name: imagefolder, root: '${method'}", "task.root", "not valid YAML"),
    ("optim: {betas: [0.9, '${oc.env:HOME}']}", "optim.betas", "resolvers are not allowed"),
    ("optim: {lr: '${optim.min_lr}', min_lr: '${optim.lr}'}", "optim.lr", "back to itself: optim.lr -> optim.min_lr"),
    ("optim: {betas: [0.9, '${optim.betas}']}", "optim.betas.1", "is not one value"),
    ("optim: {lr: '${optim}'}", "optim.lr", "is not one value"),
    ("task: {name: imagefolder, root: '" + "${train.duration}" * 900 + "'}\ntrain: {duration: 123456st}", "task.root",
     "longer than 4096 characters"),
    ("seed: 1" + "0" * 400, "seed", "expected a number of at most 9007199254740992"),
    ("optim: {lr: 1" + "0" * 400 + "}", "optim.lr", "expected a number of at most"),
    ("seed: 1" + "0" * 5000, "", "not valid YAML"),
    ("optim: {warmup: 1" + "0" * 400 + "ep}", "optim.warmup", "a duration"),
    ("train: {duration: 0.0ep}", "train.duration", "positive"),
    ('task: {name: imagefolder, root: "a\\0b"}', "task.root", "without control characters"),
    ('train: {duration: "3ep\\n"}', "train.duration", "control characters"),
    ("a: &a [*a]", "", "holds itself"),
    ("[" * 100_000, "", "too many brackets"),
    ("a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)), "", "more than 10000 values"),
    ("student: {patch: " + "x" * 5000 + "}", "student.patch", "xxx…"),
    ("optim: {lr: 1.0\n", "", "not valid YAML"),
    ("optim: {lr: 1.0}\noptim: {lr: 2.0}", "", "duplicate key optim"),
    ("- 1", "", "expected a mapping at the top"),
]


def write(tmp_path: Path, text: str, name: str) -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("text, key, says", BAD_FILES, ids=[f"{i}-{b[1]}" for i, b in enumerate(BAD_FILES)])
def test_bad_config_is_one_line_with_file_and_key(tmp_path, text, key, says):
    base, bad = write(tmp_path, GOOD, "good.yaml"), write(tmp_path, text, "bad.yaml")
    with pytest.raises(UserError) as caught:
        config.load([base, bad])
    message = str(caught.value)
    assert "\n" not in message
    assert key in message and says in message, message
    assert "bad.yaml" in message or "default" in message, message
    assert len(message) < 600


def test_a_word_that_a_study_would_have_is_an_unknown_key():
    with pytest.raises(UserError, match="command line: conditions: unknown key"):
        config.load([BASE], ["conditions=x"])


def test_there_are_enough_bad_configs():
    assert len(BAD_FILES) >= 40


@pytest.mark.parametrize("overrides, key, says", [
    (["optim.lr"], "optim.lr", "expected key=value"),
    (["optim.lr=1", "optim.lr=2"], "optim.lr", "given twice"),
    (["optim=3"], "optim", "expected a mapping"),
    (["optim=3", "optim.lr=2"], "optim.lr", "conflicts with"),
    (["optim.lr=2", "optim=3"], "optim", "conflicts with"),
    (["optim.lr=[1"], "optim.lr", "expected a number, got '[1'"),
    (["optim.lr=1 #2"], "optim.lr", "expected a number, got '1 #2'"),
    (["optim.betas=[1"], "optim.betas", "cannot read"),
    (["augment=[{name: flip, name: crop}]"], "augment", "duplicate key name"),
    (["augment=&a [*a]"], "augment", "expected a list"),
    (["augment=[&a [*a]]"], "augment", "holds itself"),
    (["train.keep=1e3"], "train.keep", "expected an integer, got '1e3'"),
    (["train.tensorboard=0"], "train.tensorboard", "true or false"),
    (["optim={lr: 3}", "optim.lr=2"], "optim.lr", "given twice"),
    (["task={name: imagefolder, root: \"${method}-${oc.env:HOME}\"}"], "task.root", "resolvers are not allowed"),
    (["task.root=\udcff", "task.name=imagefolder"], "task.root", "text in UTF-8"),
    (["objective.kd.weight=1"], "objective.kd", "is not there"),
    (["output_dir=/tmp/Bad Name"], "output_dir", "must be a name"),
    (["output_dir=/tmp/" + "a" * 70], "output_dir", "1 to 64"),
    (["output_dir=/tmp/a\n"], "output_dir", "control characters"),
])
def test_bad_override_names_the_command_line(tmp_path, overrides, key, says):
    with pytest.raises(UserError, match=r"^command line: ") as caught:
        config.load([write(tmp_path, GOOD, "good.yaml")], overrides)
    assert key in str(caught.value) and says in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^/no/such\.yaml: no such config file"):
        config.load(["/no/such.yaml"])
    with pytest.raises(UserError, match=f"^{tmp_path}: is a folder"):
        config.load([tmp_path])


@pytest.mark.parametrize("text", ["/data #2", "a: b", "off", "1", "1e3", "[1]", "{a: b}", "~", "", "'q'", " x ", "é"])
def test_text_on_the_command_line_is_taken_as_it_stands(text):
    assert config.load([BASE], ["task.name=imagefolder", f"task.root={text}"]).task.args["root"] == text


def test_other_values_on_the_command_line_are_read_by_the_type_of_their_key():
    read = config.load([BASE], ["optim.lr=1e-2", "optim.betas=[.5, 1e-1]", "train.tensorboard=no", "train.keep=3",
                                "train.eval_every=0", "optim.clip=2", "optim.min_lr=${optim.lr}",
                                "train.checkpoint_every=${train.eval_every}", "augment=[{name: crop, padding: 2}]"])
    assert (read.optim.lr, read.optim.betas, read.train.tensorboard, read.train.keep) == (0.01, [0.5, 0.1], False, 3)
    assert (read.train.eval_every, read.optim.clip, read.optim.min_lr) == ("0st", 2.0, 0.01)
    assert read.train.checkpoint_every == "0st" and read.augment[0].args["padding"] == 2


def test_a_key_may_follow_a_mapping_and_a_mapping_replaces_the_keys_before_it():
    mapping, key = "task={name: imagefolder, size: 8}", "task.root=b #3"
    assert [config.load([BASE], words).task.args["root"] for words in ([mapping, key], [key, mapping])] == ["b #3", ""]


def test_keys_without_influence_on_the_result_are_no_part_of_the_run():
    one = config.load([BASE])
    two = config.load([BASE], ["train.workers=7", "train.keep=9", "train.log_every=3", "train.tensorboard=false",
                               "train.trackers=[wandb]", "train.checkpoint_every=1ep", "resume=never", "output_dir=x"])
    assert config.difference(one, two) == [] and one.sha256 == two.sha256
    fields = {key: field for cls in options.SECTIONS.values() for key, field in schema.dataclass_fields(cls).items()}
    assert {key for key, field in fields.items() if field.same} == {
        "workers", "keep", "keep_optimizer", "log_every", "tensorboard", "trackers", "checkpoint_every"}
    roots = [config.load([BASE], ["task.name=imagefolder", f"task.root={root}"]).sha256 for root in "ab"]
    assert roots[0] == roots[1]


def test_a_key_that_came_later_changes_no_run_that_has_its_default(tmp_path):
    run = write(tmp_path, """
task: {name: words, tokenizer: t}
student: {name: causal_lm, model: m}
method: distill
teacher: {name: context_lm}
objective: [{name: ce}, {name: topk}]
""", "a.yaml")
    before = "fec384edef2ee1782b3b1e87a9da3627459d6773ca234d42a69169ce06575856"  # made when there were no such keys
    assert config.load([run]).sha256 == config.load([run], ["task.donors=[]"]).sha256 == before
    other = config.load([run], ["task.donors=[ing]"])
    assert other.sha256 != before and config.difference(config.load([run]), other) == [("task.donors", "-", ["ing"])]


@pytest.mark.parametrize(("words", "says"), [
    (["teacher.context=instruction"], "teacher.instruction: is empty, and context instruction is nothing else"),
    (["teacher.context=instruction_shuffled", "teacher.instruction=  "], "teacher.instruction: is empty"),
    (["teacher.instruction=Do it."], "teacher.instruction: context fewshot does not read it"),
    (["teacher.context=documents"], "teacher.context: must be one of")])
def test_what_a_teacher_reads_is_there(words, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        config.load([str(ROOT / f"configs/{name}.yaml") for name in ("base/words_smollm2", "distill/words_fewshot")],
                    words)
    assert "\n" not in str(caught.value)


def test_later_sources_win_and_lists_are_replaced(tmp_path):
    base = write(tmp_path, GOOD + "optim: {lr: 0.1, clip: 2.0}\naugment: [{name: flip}, {name: crop}]\n", "a.yaml")
    delta = write(tmp_path, "optim: {lr: 0.2}\naugment: [{name: crop, padding: 2}]\n", "b.yaml")
    merged = config.load([base, delta], ["optim.clip=3"], seed=4)
    assert (merged.optim.lr, merged.optim.clip, merged.seed) == (0.2, 3.0, 4)
    assert [op.name for op in merged.augment] == ["crop"] and merged.augment[0].args["padding"] == 2


def test_a_mapping_over_a_list_changes_one_element(tmp_path):
    base = write(tmp_path, GOOD + "objective: [{name: ce, smoothing: 0.1}, {name: cka, weight: 0.5}]\n"
                                  "teacher: {name: dinov2}\n", "a.yaml")
    merged = config.load([base], ["objective.cka.weight=0.25"])
    assert [(t.name, t.weight) for t in merged.objective] == [("ce", 1.0), ("cka", 0.25)]
    assert merged.objective[0].args["smoothing"] == 0.1


def test_a_part_of_another_name_does_not_inherit_arguments(tmp_path):
    base = write(tmp_path, GOOD, "a.yaml")
    other = write(tmp_path, "student: {name: cnn, arch: small}", "b.yaml")
    assert "patch" not in config.load([base, other]).student.args


def test_interpolation_is_resolved_and_checked(tmp_path):
    base = write(tmp_path, GOOD + "optim: {lr: 0.25, min_lr: '${optim.lr}', betas: [0.9, '${optim.gamma}']}\n"
                                  "output_dir: 'x/${method}-${train.keep}'\n", "a.yaml")
    read = config.load([base])
    assert (read.optim.min_lr, read.optim.betas, read.output_dir) == (0.25, [0.9, 0.1], "x/baseline-2")


def test_a_saved_config_loads_to_the_same_run(tmp_path):
    from omegaconf import OmegaConf
    first = config.load([BASE], ["optim.lr=0.01"])
    saved = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(first.to_dict()), saved)
    assert config.load([saved]).sha256 == first.sha256
    assert config.load([BASE]).sha256 != first.sha256


def test_config_is_frozen():
    loaded = config.load([BASE])
    with pytest.raises(AttributeError):
        loaded.optim.lr = 1.0


def test_difference_names_terms(tmp_path):
    one = config.load([BASE])
    two = config.load([BASE], ["objective.ce.smoothing=0.3", "optim.lr=0.5"])
    assert config.difference(one, two) == [("objective.ce.smoothing", 0.1, 0.3), ("optim.lr", one.optim.lr, 0.5)]


def run_script(*args: str) -> subprocess.CompletedProcess:
    """Run `train_baseline.py` with a torch that cannot be imported: what takes seconds is not even tried."""
    fake = ROOT / "tests/no_torch"
    return subprocess.run([sys.executable, str(ROOT / "src/graft/train_baseline.py"), *args], text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": f"{fake}:{ROOT / 'src'}"}, cwd=ROOT)


@pytest.mark.parametrize("args, code, says", [
    (["--base_config", BASE, "--output_dir", "x", "--seed", "0", "seed=7"], 2, "twice, as --seed 0 and as seed=7"),
    (["--base_config", BASE, "--output_dir", ""], 2, "output_dir: expected the condition's folder, got ''"),
    (["--base_config", BASE, "--output_dir", "x", "augment=[{name: flip, q: 1}]"], 2, "unknown key for augment flip"),
    (["--base_config", BASE, "--output_dir", "x", "optim.lr=-1"], 2, "command line: optim.lr: must be > 0, got -1"),
    (["--base_config", BASE, "--output_dir", "x", "--no_such"], 2, "--no_such: unknown option"),
    (["--base_config", BASE, "--output_dir", "x", "method=distill"], 2, "use train_distill.py"),
    (["--base_config", BASE, "--output_dir", "x", "--resume", "perhaps"], 2, "auto | never | must"),
    (["--base_config", BASE, "--output_dir", "x", "--print_config"], 0, ""),
    (["--help"], 0, ""),
    (["--help", "optm"], 2, "--help optm: no such topic; did you mean optim?"),
    (["--help", "task", "cifar"], 2, "--help task cifar: no such task; did you mean cifar10?"),
    (["--help", "optim.lrr"], 2, "--help optim lists them"),
])
def test_command_line_ends_before_torch_is_imported(args, code, says):
    done = run_script(*args)
    assert done.returncode == code, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_print_config_says_where_values_come_from():
    out = run_script("--base_config", BASE, "--output_dir", "runs/x", "optim.lr=0.5", "--print_config").stdout
    assert re.search(r"lr: 0\.5 +# command line", out)
    assert re.search(r"patch: 1 +# .*digits_vit\.yaml", out)
    assert re.search(r"clip: 1\.0 +# default", out)


def test_help_lists_every_key():
    out = run_script("--help", "all").stdout
    for section, cls in options.SECTIONS.items():
        for key in schema.dataclass_fields(cls):
            assert f"{section}.{key}" in out
    for kind in schema.ENTRY:
        for name in schema.part_names(kind):
            assert f"name: {name} " in out
            for key, field in schema.part_fields(kind, name).items():
                assert key in out
                assert field.help, f"{kind}/{name}: {key} has no help"


def test_help_shows_a_part():
    short, optim, task, key = (run_script("--help", *words).stdout for words in ([], ["optim"], ["task", "digits"],
                                                                                ["train.keep"]))
    assert len(short.splitlines()) < 60 and "--help task [NAME]" in short and "--code_changed" in short
    assert "optim.lr " in optim and "train." not in optim
    assert "task name: digits" in task and "name: cifar10" not in task and "optim" not in task
    assert "train.keep*" in key and len(key.splitlines()) == 2


@pytest.mark.parametrize("command", ["src/graft/train_baseline.py --help all", "scripts/cache_teacher.py --help",
                                     "src/graft/train_baseline.py --base_config BASE --output_dir x --print_config"])
def test_a_reader_that_leaves_is_no_traceback(command):
    words = [sys.executable, *command.replace("BASE", BASE).split()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "src")}) as running:
        running.stdout.close()
        assert running.stderr.read() == b"" and running.wait() in (0, 128 + signal.SIGPIPE)  # 0: argparse looks away


def test_a_file_may_have_an_equals_sign_in_its_name(tmp_path):
    odd = write(tmp_path, "optim: {lr: 0.125}", "a=b.yaml")
    done = run_script("--base_config", BASE, "--output_dir", "x", "--config", odd, "optim.clip=3", "--print_config")
    assert re.search(r"lr: 0\.125 +# .*a=b\.yaml", done.stdout) and re.search(r"clip: 3\.0 +# command", done.stdout)


@pytest.mark.parametrize("key, value, says", [
    ("train.duration", "0.01ep", "0.01ep is less than half a step, where an epoch has 10"),
    ("train.eval_every", "0.01ep", "expected at least 1st, or 0"), ("train.checkpoint_every", "0.04ep", "half a step"),
    ("optim.period", "0.01ep", "optim.period: 0.01ep")])
def test_an_interval_of_no_step_is_refused_before_the_first(key, value, says):
    from types import SimpleNamespace

    from graft.training.batches import plan
    task = SimpleNamespace(splits={"train": range(105), "val": range(5)}, unit="images")
    words = {"train.batch_size": "10", "optim.warmup": "0", "optim.schedule": "step", "train.duration": "0.5ep"}
    assert plan(config.load([BASE], [f"{k}={v}" for k, v in words.items()]), task, 1) == (10, 5)
    with pytest.raises(UserError, match=says):
        plan(config.load([BASE], [f"{k}={v}" for k, v in {**words, key: value}.items()]), task, 1)


@pytest.mark.parametrize("value, steps", [("3ep", 30), ("7st", 7), ("50%", 100), ("0.5ep", 5)])
def test_durations(value, steps):
    assert schema.to_steps(value, 10, 200) == steps


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        exit_cleanly(lambda: (tmp_path / "nowhere" / "x.json").write_text(""))
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/nowhere/x.json: No such file or directory\n"


@pytest.mark.parametrize("main, code, says", [("raise errors.Locked('held')", 4, "error: held\n"), ("print()", 0, "")])
def test_threads_of_a_process_group_cannot_change_the_exit_code(main, code, says):
    """What they do now and then while Python shuts down, always."""
    ends = ("import atexit, os\nfrom graft import errors\natexit.register(os.abort)\nerrors.leave_at_once()\n"
            f"def main():\n    {main}\nerrors.exit_cleanly(main)")
    done = subprocess.run([sys.executable, "-c", ends], env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, says)
