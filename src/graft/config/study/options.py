"""What the file of a study may say: every key, its type and meaning. `graft.config.study` reads and checks it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from graft.config.options import METHODS

SCRIPTS = tuple(f"train_{name}" for name in (*METHODS, "ablation"))
STEPS = ("scores", "table", "robustness", "forensics", "retention", "figures", "report")
FIGURES = ("accuracy", "forest", "ablation", "checkpoint", "teacher", "curves", "losses", "locality", "layer", "cka",
           "forensics", "hessian", "dose", "reliability", "confusion", "roc", "retention", "gap")
GIVEN = {"seed": ("seeds", "seeds"), "output_dir": ("study", "name")}  # of a run -> what says it: study's key, option
ROLES = ("baseline", "cnn", "ssl")


def claimed(conditions: Iterable[str], roles: Mapping[str, str], doses: Iterable[str]) -> list[str]:
    """The conditions that the forensics' claims are about, in their order; all where there are no claims."""
    about = {*doses, *(name for role, name in roles.items() if role != "baseline")}
    return [name for name in conditions if not about or name in {*about, roles.get("baseline")}]


@dataclass(frozen=True)
class Teacher:
    """A run that others start from: a teacher, or a model that is made first."""

    base: Any = ""
    configs: Annotated[list[str], "", "files or names of deltas over base"] = field(default_factory=list)
    script: Annotated[str, "", "derived where it is empty"] = ""
    seeds: Annotated[list[int], ">= 0", "a student of one of these reads that one, any other the first"] = field(
        default_factory=lambda: [0])
    set: Annotated[list[str], "", "key=value over this run"] = field(default_factory=list)
    threads: Annotated[int, ">= 1", "CPU threads, where there is no GPU"] = 1


@dataclass(frozen=True)
class Condition:
    """An arm of the study: the base with these configurations over it."""

    asks: Annotated[str, "", "the question it answers, one line"] = ""
    label: Annotated[str, "", "its name in tables and figures"] = ""
    configs: Annotated[list[str], "", "files or names of deltas over the study's base"] = field(default_factory=list)
    teacher: Annotated[str, "", "one of `teachers`: teacher.path is its run"] = ""
    script: Annotated[str, "", "derived where it is empty: train_ablation if the last of configs is an ablation, "
                               "else the script of the method"] = ""
    seeds: Annotated[list[int], ">= 0", "empty: the study's"] = field(default_factory=list)
    set: Annotated[list[str], "", "key=value over this condition"] = field(default_factory=list)
    needs: Annotated[dict[str, str], "", "environment variable -> the key it fills; left out where it is empty, "
                                         "`hub` leaves the key as it is"] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """A program that makes what runs start from, in experiments/<study>/<name>."""

    script: Annotated[str, "", "a file of scripts/"] = ""
    args: Annotated[list[str], "", "its words"] = field(default_factory=list)


@dataclass(frozen=True)
class Icl:
    """The untrained model with worked examples: scripts/eval_icl.py, as references of the scores."""

    configs: Annotated[list[str], "", "files or names of deltas, with the teacher that reads them"] = field(
        default_factory=list)
    shots: Annotated[list[int], ">= 0", "numbers of worked examples"] = field(default_factory=lambda: [0, 4, 8])
    contexts: dict[str, Any] = field(default_factory=dict)  # name -> deltas over `configs`, with a teacher that reads


@dataclass(frozen=True)
class Study:
    """A study as its file says it, checked."""

    study: Annotated[str, "name", "its folder below experiments/; empty: the file's name"] = ""
    about: Annotated[str, "", "what it is about, one line"] = ""
    base: Any = ""
    seeds: Annotated[list[int], ">= 0", "of every condition"] = field(default_factory=lambda: [0, 1, 2])
    set: Annotated[list[str], "", "key=value over every run that has such a key"] = field(default_factory=list)
    deltas: dict[str, Any] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)
    teachers: dict[str, Teacher] = field(default_factory=dict)
    conditions: dict[str, Condition] = field(default_factory=dict)
    cache: Annotated[bool, "", "language: the teachers' logits are computed once, for all runs that read them"] = False
    icl: Icl | None = None
    references: Annotated[list[str], "", "teachers scored beside the conditions, not compared"] = field(
        default_factory=list)
    contrasts: Annotated[list[str], "", "pairs of conditions a:b compared besides"] = field(default_factory=list)
    primary: Annotated[list[str], "", "the main comparisons, fixed before any score is seen: conditions, against the "
                                      "baseline, or contrasts; p is adjusted among these and among the others"] = field(
        default_factory=list)
    roles: Annotated[dict[str, str], "", "baseline, cnn, ssl -> the condition that is this in the forensics"] = field(
        default_factory=dict)
    doses: Annotated[list[str], "", "conditions that impose an attention distance, the most local one first: forensics "
                                    "asks whether the cnn's effect is what they predict"] = field(default_factory=list)
    metrics: Annotated[dict[str, str], "", "metric -> its name in tables and figures"] = field(default_factory=dict)
    splits: Annotated[list[str], "val | test", "what is scored"] = field(default_factory=lambda: ["val", "test"])
    then: Annotated[list[str], " | ".join(STEPS), "what follows the runs"] = field(
        default_factory=lambda: ["scores", "table", "figures"])
    figures: Annotated[list[str], " | ".join(FIGURES), "which ones"] = field(
        default_factory=lambda: ["accuracy", "curves"])
    options: dict[str, Any] = field(default_factory=dict)
    queue: dict[str, Any] = field(default_factory=dict)
    file: str = ""

    @property
    def baseline(self) -> str:
        """The condition that the others are compared with."""
        return self.roles.get("baseline", "baseline")
