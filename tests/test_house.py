"""The house rules that a machine can hold: import direction, nothing unsafe, shell scripts clean, every part found."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from graft import schema
from small import ROOT

SOURCE = ROOT / "src/graft"
# A module may import from its own layer's row and from the rows above it.
LAYERS = [
    {"errors", "schema", "keyed", "outputs"},
    {"options"},
    {"config", "parts", "checkpoint", "prompts"},
    {"command_line", "stats", "comparisons", "process", "journal", "figures"},
    {"augment", "tasks", "losses", "students", "results", "tables", "selection", "rebuild"},
    {"teachers", "probes", "scoring", "optim", "resume", "generation", "_vllm", "answers"},
    {"pictures", "learner", "batches"},
    {"sharding"},
    {"update", "saving"},
    {"validation"},
    {"objective"},
    {"run"},
    {"train_baseline", "train_distill", "train_ss_distill", "train_ssl_teacher", "train_ablation"},
]
# The part that lines a teacher up with a run stands between the run and the training scripts.
BETWEEN = {("teachers/_view.py", "objective"), ("teachers/_view.py", "run")}


def layer(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "graft":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def test_imports_run_one_way():
    for path in SOURCE.rglob("*.py"):
        relative = path.relative_to(SOURCE)
        module = relative.parts[0].removesuffix(".py")
        if module == "__init__":
            continue
        for other in imports(path) - {module}:
            assert layer(other) <= layer(module) or (str(relative), other) in BETWEEN, f"{relative} imports {other}"


def test_configuration_does_not_import_torch():
    for module in ("errors", "schema", "options", "config", "command_line"):
        text = (SOURCE / f"{module}.py").read_text()
        assert not re.search(r"^\s*(import|from) (torch|timm|numpy|accelerate)", text, re.M), module


@pytest.mark.parametrize("pattern", [r"weights_only\s*=\s*False", r"pickle\.loads?\(", r"allow_pickle\s*=\s*True",
                                     r"yaml\.load\(", r"shell\s*=\s*True", r"torch\.hub", r"joblib\.load",
                                     r"trust_remote_code\s*=\s*True", r"register_forward_hook"])
def test_nothing_unsafe(pattern):
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        assert not re.search(pattern, path.read_text()), f"{path}: {pattern}"


def test_shell_scripts_are_strict_and_clean():
    scripts = [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci/run"]
    for script in scripts:
        text = script.read_text()
        assert script.name == "run" or "set -euo pipefail" in text or re.search(r'(lib|language)\.sh"', text), script
        assert not re.search(r"\beval ", re.sub(r"#.*", "", text)), script
    shellcheck = shutil.which("shellcheck") or pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, "-x", *map(str, scripts)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", list(schema.ENTRY))
def test_every_file_is_a_part_or_private(kind):
    files = {p.stem for p in (SOURCE / kind).glob("*.py") if not p.stem.startswith("_")}
    assert files and files == set(schema.part_names(kind))
    for name in files:
        assert schema.part_help(kind, name), f"{kind}/{name} has no docstring"


def test_public_functions_have_docstrings():
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                entry = node.name == "loss" or node.name == "apply" or node.name == "build"
                assert ast.get_docstring(node) or (entry and ast.get_docstring(ast.parse(path.read_text()))), \
                    f"{path}: {node.name}"


def test_names_in_the_lock_file_cover_the_dependencies():
    import tomllib
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    locked = {line.split("==")[0].lower().replace("_", "-") for line in
              (ROOT / "requirements.lock").read_text().split()}
    for item in wanted:
        assert re.split(r"[><=\[]", item)[0].lower().replace("_", "-") in locked, item


@pytest.mark.parametrize("study", ["demo", "demo_language"])
def test_the_tables_in_the_readme_are_those_of_the_results(study):
    from graft import results, tables
    shown = tables.shown(results.read_results(ROOT / f"experiments/{study}/results.json"), "test")
    assert f"<!-- results {study} -->\n{shown}<!-- /results {study} -->" in (ROOT / "README.md").read_text()


def test_what_the_readme_says_of_the_language_demo():
    from graft import results
    conditions = results.read_results(ROOT / "experiments/demo_language/results.json")["conditions"]
    closed = {name: conditions[name]["gap_closed"]["test"]["accuracy"]["ci95"] for name in conditions
              if "gap_closed" in conditions[name]}
    assert closed["kd_only"][0] > 0.9, "the context moves into the weights"
    assert closed["kd_only_zeroshot"][1] < 0.1 and closed["kd_only_shuffled"][1] < 0.1, "it is the examples that do it"
    assert all(closed[name][0] > 0.9 for name in ("baseline", "distill", "zeroshot_teacher", "shuffled_answers")), \
        "with labels nothing tells the arms apart"


def test_files_and_scripts_named_in_the_documents_exist():
    for document in ("README.md", "CLAUDE.md", "configs/README.md"):
        text = (ROOT / document).read_text()
        for name in re.findall(r"(?:scripts|src/graft|configs|tests|paper)/[\w./-]+\.(?:py|sh|yaml|tex)", text):
            assert (ROOT / name).exists(), f"{document}: {name}"
