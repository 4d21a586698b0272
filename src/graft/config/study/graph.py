"""What a study runs: every job's command line, folder and what it needs. `graft.config.study` reads the study itself.

What a job needs follows from its resolved configuration: a value that lies in experiments/<study>/<name> needs the
job of that name, whoever wrote it, and a path that is one of the words of a work needs that work. Where the study is
put into another folder (--name, --smoke) what lies in its own moves with it. No torch here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from graft.config import schema
from graft.config.options import PARTS, Config
from graft.config.study.caches import served
from graft.config.study.job import Job, work
from graft.config.study.layers import Layers, Source, last_wins, words_of
from graft.config.study.options import GIVEN, Condition, Study, Teacher
from graft.errors import UserError


@dataclass(frozen=True)
class Asked:
    """What is asked of a study on the command line."""

    only: tuple[str, ...] = ()  # these conditions and what they need; empty: all
    seeds: tuple[int, ...] = ()  # of every condition; empty: the study's
    set: tuple[str, ...] = ()  # key=value over every run that has such a key
    name: str = ""  # another folder below experiments/
    smoke: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


class Graph:
    """The jobs of a study by name, each after what it needs, and the conditions that are left out, with the reason.

    Raises UserError, one line with file and key, for what no run accepts, a circle, or an unknown condition.
    """

    def __init__(self, study: Study, asked: Asked = Asked()):
        self.study, self.asked = study, asked
        self.home = Path("experiments") / study.study
        self.at = Path("experiments") / ((asked.name or study.study) + "-smoke" * asked.smoke)
        if asked.name and not schema.NAME.fullmatch(asked.name):
            raise UserError(f"--name: must be {schema.NAME_RULE}, got {asked.name!r}")
        for word in asked.set:
            if (key := word.partition("=")[0]) in GIVEN:
                raise UserError(f"--set: {key} is given to every run by the study; use --{GIVEN[key][1]}, got {word!r}")
        self.splits = ["val"] if asked.smoke else study.splits
        self.left_out: dict[str, str] = {}
        self.contexts: dict[str, Config] = {}  # what else the untrained model reads: icl.contexts, resolved
        self.layers = Layers(study, self.at, asked.set, asked.smoke)
        self.base = self.layers.source(study.base, "base")
        found = self._works() | self._teachers() | self._conditions()
        self.icl = found.get("icl/work")  # also where it is not asked for
        self.jobs = self._chosen(_sorted(study.file, found))
        given = {word for job in self.jobs.values() for word in job.words}
        for word in asked.set:
            if word not in given:
                self.layers.resolve([self.base], [word])  # names the key that is none, and the nearest
                raise UserError(f"--set: {word}: no run of {study.study} that is asked for has such a key")

    def _placed(self, cfg: Config, own: str = "") -> tuple[list[str], list[str]]:
        """Words that move what lies in the study's folder to where it is put, and the jobs that `cfg` needs."""
        words, needs = [], []
        for key in PARTS:
            for name, value in getattr(cfg, key).args.items():
                if isinstance(value, str) and (moved := self._moved(value)):
                    needs += self._makers(Path(moved), own)
                    words += [f"{key}.{name}={moved}"] * (moved != value)
                elif isinstance(value, str) and "/" in value:
                    needs += [f"{work}/work" for work, item in self.study.work.items() if value in item.args]
        return words, needs

    def makes(self, value: str) -> bool:
        """Whether a path of a configuration is made by a job of the study, and not there yet or in its folder."""
        works = (item.args for item in self.study.work.values())
        return value.startswith(f"{self.at}/") or (any(value in words for words in works) and not Path(value).exists())

    def _moved(self, value: str) -> str:
        """A path in the folder of one of the study's jobs, where that is now; empty for any other."""
        for home in (self.home, self.at):
            parts = Path(value).parts[len(home.parts):] if value.startswith(f"{home}/") else ()
            if parts and parts[0] in (*self.study.work, *self.study.teachers):
                return str(self.at.joinpath(*parts))
        return ""

    def _makers(self, path: Path, own: str) -> list[str]:
        name, *rest = path.parts[len(self.at.parts):]
        if name == own:
            raise UserError(f"{self.study.file}: {name}: starts from its own folder {path}")
        if name in self.study.work:
            return [f"{name}/work"]
        seeds = [f"seed{seed}" for seed in self._teacher_seeds(name)]
        if rest and rest[0] not in seeds:
            raise UserError(f"{self.study.file}: teachers.{name}.seeds: {path} is read, and is none of "
                            f"{', '.join(seeds)}")
        return [f"{name}/{seed}" for seed in (rest[:1] or seeds)]

    def _teacher_seeds(self, name: str) -> list[int]:
        return self.study.teachers[name].seeds[:1 if self.asked.smoke else None]

    # --------------------------------------------------------------------------------------------- jobs

    def _works(self) -> dict[str, Job]:
        found = {}
        for name, item in self.study.work.items():
            own = str(self.home / name)
            words = [str(self.at / name) if word == own else self._moved(word) or word for word in item.args]
            needs = [need for word in words if word != str(self.at / name) and self._moved(word)
                     for need in self._makers(Path(word), name)]
            found[f"{name}/work"] = work(name, self.at, item.script, words, needs, {"words": words}, gpus="none")
        if self.study.icl:
            found["icl/work"] = self._icl()
        return found

    def _icl(self) -> Job:
        sources = self.layers.sources(self.base, self.study.icl.configs)
        words = self.layers.over(sources)
        sources, words, cfg = self.layers.smoked(sources, words, 0)
        moved, needs = self._placed(cfg)
        words = last_wins(words, moved)
        own = ["--shots", *map(str, self.study.icl.shots), "--split", *self.splits,
               *self.asked.environment.get("EVAL_ARGS", "").split()]
        cfg = self.layers.resolve(sources, words)
        identity = {key: cfg.identity()[key] for key in ("task", "student", "teacher", "evaluate")}
        places = {}
        for name, configs in self.study.icl.contexts.items():
            over = self.layers.sources(self.base, configs)[1:]
            own += ["--context", name, *(source.file for source in over)]
            places |= {source.file: source.place for source in over}
            self.contexts[name] = self.layers.resolve([*sources, *over], words)
            identity |= {f"context {name}": self.contexts[name].identity()["teacher"]}
        words = [*words_of(sources), "--output", str(self.at / "icl.json"), *own, *words]
        return work("icl", self.at, "scripts/eval_icl.py", words, needs,
                    {**identity, "words": [places.get(word, word) for word in own]}, gpus="eval", config=cfg)

    def _teachers(self) -> dict[str, Job]:
        found = {}
        for name, teacher in self.study.teachers.items():
            base = self.layers.source(teacher.base, f"teachers.{name}")
            for seed in self._teacher_seeds(name):
                job = self._run(name, teacher, self.layers.sources(base, teacher.configs), seed)
                found[job.name] = replace(job, threads=teacher.threads)
        return found

    def _conditions(self) -> dict[str, Job]:
        runs = []
        for name, condition in self.study.conditions.items():
            filled = self._filled(name, condition)
            if filled is not None:
                seeds = self.asked.seeds or (condition.seeds or self.study.seeds)[:1 if self.asked.smoke else None]
                runs += [(seed, name, condition, filled) for seed in seeds]
        order = list(dict.fromkeys(seed for seed, *_ in runs))
        runs.sort(key=lambda run: order.index(run[0]))
        jobs = [self._run(name, condition, self.layers.sources(self.base, condition.configs), seed, words)
                for seed, name, condition, words in runs]
        return served(jobs, self.at, self.study.cache)

    def _filled(self, name: str, condition: Condition) -> list[str] | None:
        """The words that the environment fills; None if the condition is left out."""
        words = []
        for variable, key in condition.needs.items():
            value = self.asked.environment.get(variable, "")
            if not value:
                self.left_out[name] = f"set {variable} to a file, or to hub"
                return None
            if value != "hub":
                if not Path(value).is_file():
                    raise UserError(f"{variable}: no such file: {value}")
                words.append(f"{key}={value}")
        return words

    def _run(self, name: str, item: Teacher | Condition, sources: list[Source], seed: int,
             filled: Iterable[str] = ()) -> Job:
        words = self.layers.over(sources, filled, item.set)
        layered, words, cfg = self.layers.smoked(sources, words, seed)
        moved, needs = self._placed(cfg, name)
        moved = [*moved, *(_for_smoke(cfg) if self.asked.smoke else ())]
        words = last_wins(words, moved)
        if teacher := getattr(item, "teacher", ""):
            seeds = self._teacher_seeds(teacher)
            folder = self.at / teacher / f"seed{seed if seed in seeds else seeds[0]}"
            now = dict(word.split("=", 1) for word in words).get("teacher.path", cfg.teacher.args.get("path"))
            if now != str(folder) and (now != str(folder.parent) or len(seeds) > 1):
                words = last_wins(words, [f"teacher.path={folder}"])
            if named := self._moved(cfg.teacher.args.get("path", "")):  # by a configuration; the study says another
                for need in self._makers(Path(named), name):
                    needs.remove(need)
            needs = [need for need in needs if need.split("/")[0] != teacher] + [f"{teacher}/{folder.name}"]
        if words != list(cfg.overrides):
            cfg = self.layers.resolve(layered, words, seed)
        script = item.script or ("train_ablation" if Path(sources[-1].file).parent.name == "ablation" else
                                 f"train_{cfg.method}")
        if script not in ("train_ablation", f"train_{cfg.method}"):
            raise UserError(f"{self.study.file}: {name}.script: {script} is for another method than {cfg.method}")
        return self._as_run(name, script, layered, words, cfg, needs)

    def _as_run(self, name: str, script: str, sources: list[Source], words: list[str], cfg: Config,
                needs: Iterable[str]) -> Job:
        out = str(self.at / name)
        cfg = replace(cfg, output_dir=out, files=tuple(source.file for source in sources), overrides=tuple(words))
        return Job(f"{name}/seed{cfg.seed}", "run", f"src/graft/{script}.py",
                   (*words_of(sources), "--output_dir", out, "--seed", str(cfg.seed), *words), cfg.run_dir,
                   tuple(dict.fromkeys(needs)), cfg, cfg.sha256)

    # ----------------------------------------------------------------------------------- what is asked for

    def _chosen(self, jobs: dict[str, Job]) -> dict[str, Job]:
        """Those asked for and all that they need, in the order of `jobs`."""
        known = list(dict.fromkeys([*self.study.conditions, *self.study.teachers,
                                    *(name.split("/")[0] for name in jobs)]))
        for name in self.asked.only:
            if name not in known:
                raise UserError(f"--only: unknown: {name!r}{schema.nearest(name, known)}")
        if not self.asked.only:
            return jobs
        scored = {"icl"} if {*self.asked.only} & {*self.study.conditions} else set()
        left = [name for name in jobs if name.split("/")[0] in {*self.asked.only} | scored]
        wanted: set[str] = set()
        while left:
            name = left.pop()
            wanted.add(name)
            left += [need for need in jobs[name].needs if need not in wanted]
        return {name: job for name, job in jobs.items() if name in wanted}


def _sorted(file: str, jobs: dict[str, Job]) -> dict[str, Job]:
    """The jobs, each after those it needs. Raises UserError for a circle."""
    found: dict[str, Job] = {}

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            raise UserError(f"{file}: {name.split('/')[0]}: needs itself: {' -> '.join([*way, name])}")
        if name not in found:
            for need in jobs[name].needs:
                visit(need, [*way, name])
            found[name] = jobs[name]

    for name in jobs:
        visit(name, [])
    return found


def _for_smoke(cfg: Config) -> list[str]:
    """What a run of four steps cannot have: a term that starts later, and sampled answers, none of which ends in so few
    tokens."""
    words = [f"objective.{i}.warmup=1st" for i, term in enumerate(cfg.objective) if term.warmup != "0st"]
    return words + ["teacher.targets=gold"] * (cfg.teacher.args.get("targets") == "teacher")
