"""A micro-batch of a run, and a batch of its evaluation, as computations that `measure.cost` can count."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from graft.config.options import Config
from graft.outputs import Outputs, Tokens, TopK
from graft.planning.data import Data
from graft.planning.models import Models, autocast
from graft.teachers._topk import top_k
from graft.train_ssl_teacher import CLS
from graft.training.learner import Learner

Work = Callable[[], None]
MIXES = {"mixup", "cutmix", "mix"}


def kept(cfg: Config) -> bool:
    """Whether an image teacher's outputs are computed once and kept."""
    return cfg.method == "ss_distill" and cfg.teacher.view != "augmented" and cfg.teacher.cache == "auto"


def patterns(models: Models, total: int, per_epoch: int) -> Counter[tuple[float, ...]]:
    """Which terms count at how many steps: weights of 0 and 1."""
    if not hasattr(models.objective, "weights"):  # DINO has one loss
        return Counter({(): total})
    return Counter(tuple(float(weight > 0) for weight in models.objective.weights(step, total, per_epoch))
                   for step in range(total))


def image_micro(cfg: Config, data: Data, models: Models, size: int, weights: Sequence[float]) -> Work:
    """Forward and backward pass of `size` images, the teacher's among it."""
    task = data.task
    images = torch.empty(size, task.channels, task.size, task.size)
    learner = Learner(models.student, models.objective, partial(autocast, cfg))
    if cfg.method == "ssl_teacher":
        return partial(_dino, cfg, learner, models, images)
    mixed = MIXES & {op.name for op in cfg.augment}
    targets = torch.empty(size, task.num_classes) if mixed else torch.zeros(size, dtype=torch.int64)
    objective = models.objective
    grid = objective.student_grid
    visible = torch.ones(size, grid[0] * grid[1], dtype=torch.bool) if grid and cfg.teacher.view == "aligned" and \
        models.teacher is not None else None
    keeps = rows_kept(models) if kept(cfg) and models.teacher is not None else {}

    def work() -> None:
        seen = None
        if keeps:
            held = {name: torch.empty(size, *shape) for name, shape in keeps.items()}
            seen = Outputs(held.pop("logits", None), features=held)
        elif objective.asks_teacher(list(weights)):
            with torch.no_grad(), autocast(cfg):
                seen = models.teacher(images, features=objective.teacher_features)
        loss, _ = learner(images, objective.student_features, seen, targets, visible, list(weights),
                          window=float(size), micro_share=1.0)
        loss.backward()

    return work


def _dino(cfg: Config, learner: Learner, models: Models, images: Tensor) -> None:
    views = torch.cat([images] * (2 + cfg.ssl.local_crops))
    with torch.no_grad(), autocast(cfg):
        seen = models.teacher(views[:2 * len(images)], features=CLS).features[CLS[0]].unflatten(0, (2, -1))
    loss, _ = learner(views, CLS, seen[:, :, 0], float(len(images)))
    loss.backward()


def rows_kept(models: Models) -> dict[str, tuple[int, ...]]:
    """Shapes of what is kept of an image teacher for each image, by name."""
    teacher, shapes = models.teacher, {}
    for name in models.objective.teacher_features:
        height, width = teacher.grid_of_feature(name)
        shapes[name] = (height * width, teacher.feature_dim(name))
    return shapes | ({"logits": (teacher.num_classes,)} if teacher.num_classes else {})


def image_pass(cfg: Config, data: Data, model: torch.nn.Module, size: int, features: Sequence[str] = ()) -> Work:
    """A forward pass of `size` images without gradients."""
    task = data.task

    def work() -> None:
        with torch.no_grad(), autocast(cfg):
            model(torch.empty(size, task.channels, task.size, task.size), features=features)

    return work


def sequences(size: int, width: int, answers: int) -> Tokens:
    """Sequences of one width with so many answer tokens in all."""
    return Tokens(torch.zeros(size, width, dtype=torch.int64), torch.zeros(answers, dtype=torch.int64),
                  torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64), "train")


def text_micro(cfg: Config, models: Models, size: int, width: int, context: int, answers: int,
               weights: Sequence[float]) -> Work:
    """Forward and backward pass of `size` sequences of `width` tokens; the teacher reads `context` tokens each."""
    learner = Learner(models.student, models.objective, partial(autocast, cfg))
    objective, tokens = models.objective, sequences(size, width, answers)
    targets = torch.zeros(answers, dtype=torch.int64)

    def work() -> None:
        seen = None
        if objective.asks_teacher(list(weights)):
            seen = _read_by_teacher(cfg, models, size, context, answers)
        loss, _ = learner(tokens, objective.student_features, seen, targets, None, list(weights), window=float(answers),
                          micro_share=1.0)
        loss.backward()

    return work


def _read_by_teacher(cfg: Config, models: Models, size: int, context: int, answers: int) -> Outputs:
    args, names, k = cfg.teacher.args, models.objective.teacher_features, logits_kept(cfg)
    if args["serve"] != "cache":
        group = max(1, min(size, args["batch_tokens"] // max(context, 1)))
        for start in range(0, size, group):
            count = min(group, size - start)
            reads = sequences(count, context, max(1, answers * count // size))
            with _alone(models, args["serve"]):
                language_pass(cfg, models.teacher or models.student, reads, k, len(names))()
    if not k:
        return Outputs(None, features={name: torch.empty(answers, width(models.student)) for name in names})
    found = TopK(torch.empty(answers, k), torch.zeros(answers, k, dtype=torch.int64), torch.empty(answers))
    return Outputs(None, topk=dict.fromkeys(names, found))


@contextmanager
def _alone(models: Models, serve: str) -> Iterator[None]:
    """Where the student is its own teacher: without its adapters or, as their average does, with them."""
    with models.student.untrained() if serve == "adapter" else nullcontext():
        training = models.student.training
        models.student.eval()
        yield
        models.student.train(training)


def logits_kept(cfg: Config) -> int:
    """How many logits of a position a language teacher hands over; 0: its hidden state."""
    return 0 if cfg.teacher.args["keep"] == "hidden" else cfg.teacher.args["k"]


def width(lm: torch.nn.Module) -> int:
    """Of a language model's hidden states."""
    return lm.model.get_output_embeddings().weight.shape[1]


def language_pass(cfg: Config, lm: torch.nn.Module, tokens: Tokens, k: int = 0, positions: int = 1) -> Work:
    """A forward pass without gradients and the `k` largest of the answers' logits; with 0, their hidden states."""
    def work() -> None:
        with torch.no_grad(), autocast(cfg):
            out = lm(tokens)
            for _ in range(positions if k else 0):
                top_k(out.hidden, out.head, k)

    return work
