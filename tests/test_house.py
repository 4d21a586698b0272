"""The house rules that a machine can hold: import direction, nothing unsafe, shell scripts clean, every part found."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from graft.config import schema
from small import ROOT

SOURCE = ROOT / "src/graft"
# A file imports from its own room and from the rows above it.
ROOMS = [
    {"errors", "keyed", "outputs"},
    {"config"},
    {"runtime"},
    {"tasks", "losses", "augment", "reporting"},
    {"students"},
    {"probes"},
    {"evaluation"},
    {"training"},
    {"teachers"},
    {"train_baseline", "train_distill", "train_ss_distill", "train_ssl_teacher", "train_ablation"},
    {"planning"},
]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))


def row(room: str) -> int:
    return next(i for i, names in enumerate(ROOMS) if room in names)


def imports(path: Path) -> set[str]:
    """The modules and packages that a file imports, with dots: `graft.tasks._text`, `torch`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = (SOURCE.parent / node.module.replace(".", "/")).is_dir()
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if inside and module_file(name) else node.module for name in names}
    return found


def module_file(name: str) -> Path | None:
    stem = SOURCE.parent / name.replace(".", "/")
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def own_imports(path: Path) -> set[Path]:
    return {module_file(name) for name in imports(path) if name.split(".")[0] == "graft"}


def test_imports_run_one_way():
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for other in own_imports(path) - {SOURCE / "__init__.py"}:
            theirs = other.relative_to(SOURCE).parts[0].removesuffix(".py")
            if room != "__init__":
                assert theirs == room or row(theirs) < row(room), f"{path}: imports {other}"


def test_no_file_imports_itself_by_way_of_others():
    below = {path: own_imports(path) for path in SOURCE.rglob("*.py")}
    done: set[Path] = set()

    def visit(path: Path, way: list[Path]) -> None:
        assert path not in way, f"a circle: {' -> '.join(str(p) for p in [*way, path])}"
        if path not in done:
            for other in below[path]:
                visit(other, [*way, path])
            done.add(path)

    for path in below:
        visit(path, [])


def test_scripts_import_the_package_and_never_each_other():
    stems = {path.stem for path in SCRIPTS}
    for path in SCRIPTS:
        assert not {name.split(".")[0] for name in imports(path)} & stems, path


def test_configuration_does_not_import_torch():
    for path in [SOURCE / "errors.py", *(SOURCE / "config").rglob("*.py")]:
        assert not imports(path) & {"torch", "timm", "numpy", "accelerate", "transformers"}, path


@pytest.mark.parametrize("pattern", [r"weights_only\s*=\s*False", r"pickle\.loads?\(", r"allow_pickle\s*=\s*True",
                                     r"yaml\.load\(", r"shell\s*=\s*True", r"torch\.hub", r"joblib\.load",
                                     r"trust_remote_code\s*=\s*True", r"register_forward_hook"])
def test_nothing_unsafe(pattern):
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        assert not re.search(pattern, path.read_text()), f"{path}: {pattern}"


def test_shell_scripts_are_strict_and_clean():
    scripts = [*(ROOT / "scripts").rglob("*.sh"), ROOT / ".ci/run"]
    for script in scripts:
        text = script.read_text()
        assert script.name == "run" or "set -euo pipefail" in text, script
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
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                entry = node.name == "loss" or node.name == "apply" or node.name == "build"
                assert ast.get_docstring(node) or (entry and ast.get_docstring(ast.parse(path.read_text()))), \
                    f"{path}: {node.name}"


def test_the_version_has_one_home_and_is_told_everywhere():
    import tomllib

    import graft
    from graft.reporting import results
    from graft.runtime.provenance import provenance
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in about["project"] and about["tool"]["setuptools"]["dynamic"] == {
        "version": {"attr": "graft.__version__"}}
    newest = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    cited = dict(line.split(": ", 1) for line in (ROOT / "CITATION.cff").read_text().splitlines() if ": " in line)
    assert newest.groups() == (cited["version"], cited["date-released"]) and cited["version"] == graft.__version__
    assert about["project"]["license"] == cited["license"] == "MIT"
    assert provenance()["graft_version"] == graft.__version__
    assert results.assemble("s", {}, [], ".", "")["graft_version"] == graft.__version__


def test_names_in_the_lock_file_cover_the_dependencies():
    import tomllib
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    locked = {line.split("==")[0].lower().replace("_", "-") for line in
              (ROOT / "requirements.lock").read_text().split()}
    for item in wanted:
        assert re.split(r"[><=\[]", item)[0].lower().replace("_", "-") in locked, item


@pytest.mark.parametrize("study", [path.parent.name for path in sorted((ROOT / "assets").glob("*/results.json"))])
def test_the_tables_in_the_documents_are_those_of_the_results(study):
    import write_results
    from graft.reporting import results, tables
    path = ROOT / f"assets/{study}/results.json"
    shown = {f"{mark} {study}": text
             for mark, text in write_results.blocks(results.read_results(path), path).items()}
    marked = [(ROOT / file, mark) for mark in shown for file in ("README.md", "assets/README.md")
              if f"<!-- {mark} -->" in (ROOT / file).read_text()]
    assert marked and all(tables.between(path, mark) == shown[mark] for path, mark in marked)


def contrasts(content: dict) -> dict[tuple[str, str], dict]:
    """Those in test accuracy."""
    return {(one["a"], one["b"]): one for one in content["contrasts"]
            if (one["split"], one["metric"]) == ("test", "accuracy")}


def test_what_the_readme_says_of_the_vision_study():
    from graft.reporting import results, stats
    content = results.read_results(ROOT / "assets/cifar10_small/results.json")
    against = {name: condition["vs_baseline"]["test"]["accuracy"] for name, condition in content["conditions"].items()
               if "test" in condition["vs_baseline"]}
    pair = contrasts(content)["cnn", "shuffled_logits"]
    decided = {name for name, one in against.items() if stats.decided(one["ci95"], one["p_holm"])}
    assert decided == {"cnn", "ssl_cnn", "local_1", "uniform"} and stats.decided(pair["ci95"], pair["p_holm"])
    seeds = {one["seeds"][0] for one in against.values()}
    assert len(content["primary"]) == 6 and seeds == {2, 3, 5}

    def said(one: dict, unit: str = "", factor: float = 100) -> str:
        low, value, high = sorted(factor * x for x in (*one["ci95"], one["difference"]))
        return f"{value:.2f}{unit} [{low:+.2f}, {high:+.2f}]"

    forensics = results.read_forensics(ROOT / "assets/cifar10_small/forensics.json")
    claims = {claim["name"]: claim for claim in forensics["hypotheses"]}
    assert {name: claim["verdict"] for name, claim in claims.items()} == {
        "locality_curse": "undecided", "sharper_minima": "undecided", "structure_equals_logits": "contradicted",
        "distillation_makes_local": "supported", "imposed_locality_harms": "contradicted",
        "local_equals_wide": "contradicted", "locality_explains": "contradicted"}
    moved, (_, predicted, seen, _) = claims["distillation_makes_local"], claims["locality_explains"]["legs"]
    assert moved["reason"].endswith("; 1% of the range that was imposed")
    assert min(len(forensics["conditions"][name]["runs"]) for name in ("local_1", "local_2", "local_4", "uniform")) == 3
    for name in ("baseline", "ssl_cka"):
        traces = [run["hessian"]["trace"]["value"] for run in forensics["conditions"][name]["runs"]]
        assert max(traces) > 4 * min(traces) > 0

    mean = {name: 100 * condition["summary"]["test"]["accuracy"]["mean"]
            for name, condition in content["conditions"].items()}
    text = " ".join((ROOT / "README.md").read_text().split())
    for words in (f"{said(against['cnn'], ' points')} to {mean['baseline']:.1f} %", f"and {said(pair)} more",
                  said(against["local_1"], " points"), f"costs {said(against['uniform'], factor=-100)}",
                  said(against["ssl_cnn"]), said(against["ssl_cka"]),
                  f"by {said(moved['legs'][0], ' patches', 1)}", f"CNN's, {said(predicted, ' points')}, is not",
                  f"does, {said(seen)} on", f"{said(contrasts(content)['ssl_cka', 'cnn'], factor=-100)} below",
                  f"({mean['ssl_teacher']:.0f} and {mean['ssl_untrained']:.0f} % by neighbours)"):
        assert words in text, words


def test_what_the_readme_says_of_the_vision_demo():
    from graft.reporting import results, stats
    content = results.read_results(ROOT / "assets/demo/results.json")
    said = {name: stats.decided(one["ci95"], one["p_holm"]) for name, condition in content["conditions"].items()
            if (one := condition["vs_baseline"].get("test", {}).get("accuracy"))}
    assert said == {"distill": True, "shuffled_logits": False, "ss_distill": False, "shuffled_features": False}
    assert content["conditions"]["distill"]["vs_baseline"]["test"]["accuracy"]["difference"] > 0


def test_what_the_readme_says_of_the_language_study():
    from graft.reporting import results, stats
    content = results.read_results(ROOT / "assets/words_smollm2/results.json")
    conditions = content["conditions"]
    pairs = contrasts(content)
    controls = [f"kd_only_{name}" for name in ("zeroshot", "shuffled", "random", "other_rule", "fixed", "one",
                                               "instruction")]
    for name in controls:
        one = pairs["kd_only", name]
        assert one["difference"] > 0 and stats.decided(one["ci95"], one["p_holm"]), f"more than {name}"
        assert conditions[name]["vs_untrained"]["test"]["accuracy"]["ci95"][0] <= 0, f"{name} moves nothing"
    gained = conditions["kd_only"]["gap_closed"]["test"]["accuracy"]
    assert gained["ci95"][0] > 0 and gained["ci95"][1] < 1, "a part"
    own = pairs["kd_only", "teacher_targets"]
    assert own["ci95"][0] < 0 < own["ci95"][1], "as much"
    kept = json.loads((ROOT / "assets/words_smollm2/retention.json").read_text())["conditions"]
    lost = kept["kd_only_random"]["retention"]["accuracy"]
    assert lost["ci95"][1] < 0, "also where nothing is gained"
    means = [100 * conditions[name]["summary"]["test"]["accuracy"]["mean"] for name in results.GAP]
    share, *ends = (100 * value for value in (gained["value"], *gained["ci95"]))
    more = -100 * conditions["kd_only"]["vs_baseline"]["test"]["accuracy"]["difference"]
    text = " ".join((ROOT / "README.md").read_text().split())
    for said in (f"from {means[0]:.0f} to {means[1]:.0f} %",
                 f"move {share:.0f} % [{ends[0]:.0f}, {ends[1]:.0f}] of that",
                 f"reach {more:.0f} points more", f"random order cost {-100 * lost['difference']:.0f} points"):
        assert said in text, said
    for name in ("distill", "kd_only"):
        versus = conditions[name]["vs_baseline"]["test"]["accuracy"]
        assert versus["difference"] < 0 and not stats.decided(versus["ci95"], versus["p_holm"]), "not decided"
    assert conditions["base_instruction"]["summary"]["test"]["accuracy"]["mean"] < 0.01


def test_what_the_readme_says_of_the_study_of_all_weights():
    from graft.reporting import results, stats
    content = results.read_results(ROOT / "assets/words_gemma270m/results.json")
    conditions, pairs = content["conditions"], contrasts(content)
    for name in ("kd_only_zeroshot", "kd_only_shuffled"):
        one = pairs["kd_only", name]
        assert one["difference"] > 0 and stats.decided(one["ci95"], one["p_holm"]), f"more than {name}"
    versus = conditions["kd_only"]["vs_baseline"]["test"]["accuracy"]
    assert not stats.decided(versus["ci95"], versus["p_holm"]), "undecided"
    assert conditions["kd_only_zeroshot"]["summary"]["test"]["accuracy"]["mean"] == 0, "nothing moves"
    means = [100 * conditions[name]["summary"]["test"]["accuracy"]["mean"] for name in (*results.GAP, "kd_only")]

    def closed(name: str) -> str:
        one = conditions[name]["gap_closed"]["test"]["accuracy"]
        value, low, high = (100 * x for x in (one["value"], *one["ci95"]))
        return f"{value:.0f} % [{low:.0f}, {high:.0f}]"

    less = 100 * pairs["kd_only", "kd_only_shuffled"]["difference"]
    kept = json.loads((ROOT / "assets/words_gemma270m/retention.json").read_text())["conditions"]
    lost = sorted(-100 * one["retention"]["accuracy"]["difference"] for one in kept.values())
    assert len(lost) == 4 and all(one["retention"]["accuracy"]["ci95"][1] < 0 for one in kept.values())
    text = " ".join((ROOT / "README.md").read_text().split())
    for said in (f"from {means[0]:.0f} to {means[1]:.0f} %",
                 f"to {means[2]:.0f} %: all of the gap, {closed('kd_only')}",
                 f"move {closed('kd_only_shuffled')}, {less:.0f} points less",
                 f"Labels reach {-100 * versus['difference']:.0f} points more",
                 f"lose {lost[0]:.0f} to {lost[-1]:.0f} points"):
        assert said in text, said


def test_files_and_scripts_named_in_the_documents_exist():
    for document in ("README.md", "CLAUDE.md", "configs/README.md", "scripts/README.md", "experiments/README.md"):
        text = (ROOT / document).read_text()
        for name in re.findall(r"(?:scripts|src/graft|configs|tests|paper)/[\w./-]+\.(?:py|sh|yaml|tex)", text):
            assert (ROOT / name).exists(), f"{document}: {name}"
