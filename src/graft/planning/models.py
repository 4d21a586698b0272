"""The student, teacher and objective of a run without their weights, or any that are not there yet."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from graft.config import parts
from graft.config.options import Config, Part
from graft.config.study.job import Job
from graft.errors import UserError
from graft.evaluation import rebuild
from graft.planning.architectures import config_of
from graft.planning.data import Data
from graft.runtime import checkpoint
from graft.students import _language
from graft.students.causal_lm import CausalLM, adapted
from graft.teachers._freeze import freeze
from graft.train_ssl_teacher import CLS, Dino
from graft.training.objective import Objective
from graft.training.terms import needs_teacher


@dataclass
class Models:
    """What a run holds; `teacher` computes beside the student, and is None if nothing does."""

    student: nn.Module
    teacher: nn.Module | None
    objective: nn.Module


def images(cfg: Config, data: Data, jobs: Mapping[str, Job]) -> Models:
    """Of a run on images, with weights drawn at random; not yet emptied."""
    student = rebuild.architecture(cfg.student, data.task)
    if cfg.method == "ssl_teacher":
        teacher = freeze(rebuild.architecture(cfg.student, data.task))
        return Models(student, teacher, Dino(student.feature_dim(CLS[0]), cfg.ssl))
    teacher = _image_teacher(cfg, data, jobs) if needs_teacher(cfg.objective) else None
    return Models(student, teacher, Objective(cfg.objective, student, teacher, seed=cfg.seed))


def _image_teacher(cfg: Config, data: Data, jobs: Mapping[str, Job]) -> nn.Module:
    if cfg.teacher.name == "run":
        made = _config_of_run(cfg.teacher.args["path"], jobs)
        teacher = freeze(rebuild.architecture(made.student, data.task))
        if made.method == "ssl_teacher":
            teacher.num_classes = 0
        return teacher
    drawn = {"random_weights": True, "checkpoint": ""}
    args = {**cfg.teacher.args, **{key: value for key, value in drawn.items() if key in cfg.teacher.args}}
    return parts.build("teachers", Part(cfg.teacher.name, args), data.task)


def _config_of_run(path: str, jobs: Mapping[str, Job]) -> Config:
    """The configuration of the run in a folder: one of the study, or one that is there."""
    for job in jobs.values():
        if job.kind == "run" and Path(path) in (job.folder, job.folder.parent):
            return job.config
    for folder in (Path(path), *sorted(Path(path).glob("seed*"))):
        if checkpoint.is_run(folder):
            return rebuild.trained(folder).config
    raise UserError(f"teacher.path: {path}: no run of this study, and none that is there")


def text(cfg: Config, data: Data, jobs: Mapping[str, Job], layers: int = 0) -> Models:
    """Of a run on text, on the meta device; of its models so many layers (0: all)."""
    args = cfg.student.args
    student = language_model(args["model"], args["revision"], args["dtype"], jobs, layers)
    with torch.device("meta"):
        student.lm = adapted(student.lm, args["revision"], *(args[key] for key in (
            "lora", "rank", "alpha", "dropout", "targets", "checkpointing")))
    student.lora = args["lora"]
    teacher, about = None, cfg.teacher.args
    if needs_teacher(cfg.objective) and about["serve"] == "copy":
        own = about["model"] or args["model"]
        teacher = freeze(language_model(own, about["revision"], about["dtype"] if about["model"] else args["dtype"],
                                        jobs, layers))
    return Models(student, teacher, Objective(cfg.objective, student, _Gives(about["k"]) if needs_teacher(cfg.objective)
                                              else None, seed=cfg.seed))


class _Gives(nn.Module):
    """What the objective asks of a language teacher before it meets its logits."""

    positions = ("rows", "next")
    num_classes = 0

    def __init__(self, k: int):
        super().__init__()
        self.k = k


def sizes_of(model: str, revision: str, jobs: Mapping[str, Job]) -> PreTrainedConfig:
    """The configuration of a model, one that the study itself trains among them."""
    for job in jobs.values():
        if job.kind == "run" and Path(model) in (job.folder, job.folder.parent) and job.config.reads_text:
            return sizes_of(job.config.student.args["model"], "", jobs)
    return config_of(model, revision)


def depth_of(config: PreTrainedConfig) -> int:
    """Layers of a language model, which may be a part of a larger one."""
    return config.get_text_config().num_hidden_layers


def shorten(config: PreTrainedConfig, layers: int) -> None:
    """Leave so many layers, and as many entries of what says something of each."""
    depth, config.num_hidden_layers = config.num_hidden_layers, layers
    for name, value in [*vars(config).items()]:
        if isinstance(value, list) and len(value) == depth:
            setattr(config, name, value[:layers])


def language_model(model: str, revision: str, dtype: str, jobs: Mapping[str, Job], layers: int = 0) -> CausalLM:
    """A model, nothing adapted, behind the student's contract; so many of its layers (0: all)."""
    config = sizes_of(model, revision, jobs)
    if layers:
        shorten(config.get_text_config(), layers)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, dtype=_language.DTYPES[dtype], attn_implementation="sdpa")
    return CausalLM(lm, _language.Head(lm), False, "", model, revision, lm.get_input_embeddings().weight.shape[0])


def autocast(cfg: Config) -> torch.autocast:
    """As `Run.autocast`, of the CPU: its list of operations in half precision is CUDA's but for the norms'."""
    return torch.autocast("cpu", torch.bfloat16, enabled=cfg.train.precision == "bf16")
