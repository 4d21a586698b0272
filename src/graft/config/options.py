"""Every key of a configuration: its type, default, range and meaning. Merging is in `graft.config`."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from graft.config.schema import Field, amount, dataclass_fields, part_constant, part_fields, part_tensors


@dataclass(frozen=True)
class Part:
    """A named part and the arguments of its entry function, every default filled in."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherPart(Part):
    """A teacher, and how its outputs are lined up with the student's view of the image."""

    view: Annotated[str, "augmented | aligned | unaligned",
                    "augmented: the teacher sees the student's image; aligned: it sees the stored image and its "
                    "token map is moved by the geometry of the student's view (cacheable); unaligned: it sees the "
                    "stored image and tokens are compared index by index, whatever they show"] = "augmented"
    shuffle: Annotated[bool, "", "negative control: give every image the outputs of another image"] = False
    cache: Annotated[str, "auto | none", "keep the outputs for the stored images instead of computing them "
                                        "again every epoch (views aligned and unaligned)"] = "auto"


@dataclass(frozen=True)
class Term(Part):
    """One term of the objective: which loss, on which tokens, with which weight when."""

    weight: Annotated[float, ">= 0", "weight from the end of the warm-up on"] = 1.0
    weight_end: Annotated[float, ">= -1", "weight at the last step; -1: no schedule"] = -1.0
    schedule: Annotated[str, "linear | cosine", "how the weight moves to weight_end"] = "linear"
    warmup: Annotated[str, "duration", "how long `before` holds instead of `weight`"] = "0st"
    before: Annotated[float, ">= 0", "weight during the warm-up"] = 0.0
    layers: Annotated[list[int], ">= 0", "student blocks compared, from 0; empty: the final tokens"] = field(
        default_factory=list)
    teacher_layers: Annotated[list[int], ">= 0", "their partners; empty: the same numbers"] = field(
        default_factory=list)
    tokens: Annotated[str, "patch | cls", "which tokens are compared"] = "patch"
    pool: Annotated[str, "teacher | student", "whose patch tokens may lie on the finer grid; they are averaged to the "
                                              "other's"] = "teacher"

    @property
    def used(self) -> bool:
        """Whether the term ever counts; one that never does is not built at all."""
        return max(self.weight, self.weight_end, self.before if amount(self.warmup)[0] else 0.0) > 0

    @property
    def wants_teacher(self) -> bool:
        """Whether it looks at the teacher; a term with a `target` of its own does not."""
        return (any("teacher" in tensor for tensor in part_tensors("losses", self.name))
                and self.args.get("target", "teacher") == "teacher")


@dataclass(frozen=True)
class Optim:
    """Optimizer and learning rate. The rate is a pure function of the optimizer step."""

    name: Annotated[str, "adamw | adam | sgd | rmsprop", "optimizer (sgd: Nesterov)"] = "adamw"
    lr: Annotated[float, "> 0", "peak learning rate for the batch size as given; never scaled"] = 1e-3
    weight_decay: Annotated[float, ">= 0", "decoupled for adamw, L2 for the others"] = 0.05
    decay: Annotated[str, "matrices | all", "what decays: weight matrices, or every parameter"] = "matrices"
    momentum: Annotated[float, "[0, 1)", "sgd and rmsprop"] = 0.9
    betas: Annotated[list[float], "[0, 1)", "adam and adamw"] = field(default_factory=lambda: [0.9, 0.999])
    clip: Annotated[float, ">= 0", "largest gradient norm; 0: no clipping"] = 1.0
    schedule: Annotated[str, "cosine | step | exponential | cyclic | constant | plateau", "learning rate"] = "cosine"
    warmup: Annotated[str, "duration", "linear rise to lr"] = "5ep"
    min_lr: Annotated[float, ">= 0", "where cosine, cyclic and plateau end"] = 1e-5
    period: Annotated[str, "duration", "step, exponential: once every; cyclic: one cycle"] = "30ep"
    gamma: Annotated[float, "(0, 1]", "factor per period (step, exponential) or per plateau"] = 0.1
    patience: Annotated[int, ">= 1", "plateau: evaluations without improvement before the rate falls"] = 5


@dataclass(frozen=True)
class Train:
    """How long, how large, how precise; what is averaged, evaluated and kept."""

    duration: Annotated[str, "duration", "length of training: 200ep or 5000st"] = "100ep"
    batch_size: Annotated[int, ">= 1", "images per optimizer step over all processes"] = 128
    accumulate: Annotated[int, ">= 1", "micro-batches per optimizer step and process; the fewest that fit "
                                     "into memory are the fastest, and train the same"] = 1
    precision: Annotated[str, "fp32 | bf16", "autocast; losses are fp32 either way"] = "fp32"
    tf32: Annotated[bool, "", "TF32 matrix products on GPUs"] = True
    memory_format: Annotated[str, "auto | contiguous | channels_last", "of convolutions' weights and maps; auto: "
                             "channels_last on a GPU", "", "2026-11"] = "auto"
    compile: Annotated[str, "none | default | reduce-overhead | max-autotune", "torch.compile of the student"] = "none"
    deterministic: Annotated[bool, "", "deterministic kernels on the GPU too (slower): a resumed run then ends "
                                       "bit-identical there as on a CPU"] = False
    average: Annotated[str, "none | ema | swa", "weights that are evaluated beside, and exported instead of, the "
                                                "last ones"] = "none"
    ema_decay: Annotated[float, "(0, 1)", "decay per optimizer step"] = 0.999
    swa_start: Annotated[str, "duration", "swa: equal average of the weights from here on, once an epoch"] = "75%"
    swa_lr: Annotated[float, ">= 0", "swa: constant rate from swa_start on; 0: keep the schedule"] = 0.0
    eval_every: Annotated[str, "duration", "score the validation split; 0: at the end only"] = "5ep"
    checkpoint_every: Annotated[str, "duration", "save; 0: at the end only",
                                "a resumed run is the run that was not interrupted"] = "5ep"
    keep: Annotated[int, ">= 2", "checkpoints kept (the best on validation is kept besides)",
                    "the last one is scored, and the best one is never removed"] = 2
    keep_optimizer: Annotated[bool, "", "its state is in a run's last checkpoint, too; false: a third of the bytes "
                              "where all weights are trained, and nothing is lost, for that run is done",
                              "nothing goes on from the last checkpoint", "2026-11"] = True
    stop_after: Annotated[int, ">= 0", "early stopping: evaluations without a better validation loss; 0: never"] = 0
    min_delta: Annotated[float, ">= 0", "what counts as better"] = 0.0
    log_every: Annotated[int, ">= 1", "optimizer steps between lines of metrics.jsonl",
                         "means of what was computed anyway"] = 10
    tensorboard: Annotated[bool, "", "write TensorBoard events, a view of metrics.jsonl", "a view of the log"] = True
    trackers: Annotated[list[str], "tensorboard | wandb | mlflow | trackio", "further views of metrics.jsonl, through "
                        "accelerate; what fails or is not installed is a warning", "views of the log"] = field(
        default_factory=list)
    workers: Annotated[int, ">= 0", "processes that decode images of streamed data sets",
                       "decoding draws no random number and keeps the order"] = 2


@dataclass(frozen=True)
class Ssl:
    """Self-supervised training of a teacher with DINO (Caron et al. 2021, arXiv:2104.14294)."""

    prototypes: Annotated[int, ">= 2", "outputs of the projection head"] = 1024
    hidden: Annotated[int, ">= 1", "width of the projection head"] = 512
    bottleneck: Annotated[int, ">= 1", "width before the last layer"] = 128
    momentum: Annotated[float, "[0, 1]", "of the EMA teacher at the start; rises to 1 along a cosine"] = 0.99
    student_temp: Annotated[float, "> 0", "softmax temperature of the student"] = 0.1
    teacher_temp: Annotated[float, "> 0", "softmax temperature of the teacher"] = 0.04
    center_momentum: Annotated[float, "[0, 1]", "of the running centre of the teacher's outputs"] = 0.9
    local_crops: Annotated[int, ">= 0", "small crops beside the two large ones"] = 4
    local_scale: Annotated[list[float], "(0, 1]", "area range of the small crops"] = field(
        default_factory=lambda: [0.2, 0.5])
    global_scale: Annotated[list[float], "(0, 1]", "area range of the large crops"] = field(
        default_factory=lambda: [0.5, 1.0])
    knn: Annotated[int, ">= 1", "neighbours of the kNN evaluation"] = 20


@dataclass(frozen=True)
class Evaluate:
    """How checkpoints are scored."""

    topk: Annotated[list[int], ">= 1", "top-k accuracies"] = field(default_factory=lambda: [1, 3])
    batch_size: Annotated[int, ">= 1", "images, or prompts answered together, per forward pass"] = 500
    max_new_tokens: Annotated[int, "> 0", "tokens of a generated answer; a longer one is cut off"] = 512


@dataclass(frozen=True)
class Config:
    """One run, complete. `config.yaml` in the run's folder holds all of it."""

    task: Part
    student: Part
    teacher: TeacherPart
    objective: tuple[Term, ...]
    augment: tuple[Part, ...]
    optim: Optim
    train: Train
    ssl: Ssl
    evaluate: Evaluate
    method: str
    seed: int
    output_dir: str
    resume: str
    files: tuple[str, ...] = ()  # how it was started; no part of what the run is
    overrides: tuple[str, ...] = ()
    dry_run: bool = False
    code_changed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values in the layout of the YAML files."""
        flat = asdict(self)
        for key in ("files", "overrides", "dry_run", "code_changed"):
            del flat[key]
        flatten = lambda part: {"name": part.pop("name"), **part.pop("args"), **part}  # noqa: E731
        for key in PARTS:
            flat[key] = flatten(flat[key])
        for key in PART_LISTS:
            flat[key] = [flatten(part) for part in flat[key]]
        return flat

    @property
    def run_dir(self) -> Path:
        """Where this run lives: `<output_dir>/seed<k>`."""
        return Path(self.output_dir) / f"seed{self.seed}"

    @property
    def reads_text(self) -> bool:
        """Whether the task is of questions and answers, and so student and teacher are language models."""
        return bool(part_constant("tasks", self.task.name, "TEXT"))

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: every key that has an influence on the result (see `schema`)."""
        def matter(values: dict[str, Any], fields: dict[str, Field]) -> dict[str, Any]:
            return {key: value for key, value in values.items() if key not in fields or fields[key].tells(value)}

        flat = self.to_dict()
        for key, cls in SECTIONS.items():
            flat[key] = matter(flat[key], dataclass_fields(cls))
        for key, (kind, cls) in PARTS.items():
            flat[key] = matter(flat[key], {**dataclass_fields(cls), **part_fields(kind, flat[key]["name"])})
        for key, (kind, cls) in PART_LISTS.items():
            flat[key] = [matter(part, {**dataclass_fields(cls), **part_fields(kind, part["name"])})
                         for part in flat[key]]
        return matter(flat, SCALARS)

    @property
    def sha256(self) -> str:
        """Digest of `identity()`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


SECTIONS: dict[str, type] = {"optim": Optim, "train": Train, "ssl": Ssl, "evaluate": Evaluate}
PARTS = {"task": ("tasks", Part), "student": ("students", Part), "teacher": ("teachers", TeacherPart)}
PART_LISTS = {"objective": ("losses", Term), "augment": ("augment", Part)}
METHODS = ("baseline", "distill", "ss_distill", "ssl_teacher")
SCALARS = {
    "method": Field("method", str, "baseline", " | ".join(METHODS), "which training script this is for"),
    "seed": Field("seed", int, 0, ">= 0", "initialisation, order, augmentation, drop-path (--seed)"),
    "output_dir": Field("output_dir", str, "", "", "the condition's folder; the run is its seed<k> (--output_dir)",
                        "where the run lies"),
    "resume": Field("resume", str, "auto", "auto | never | must", "continue from a checkpoint (--resume)",
                    "how the run was started"),
}
DEFAULTS: dict[str, Any] = {"teacher": {"name": "none"}, "objective": [{"name": "ce"}], "augment": [],
                            **{key: item.default for key, item in SCALARS.items()}}
