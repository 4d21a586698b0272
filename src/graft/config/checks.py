"""What holds between the values of a configuration."""

import re
from collections.abc import Callable
from pathlib import Path

from graft.config import schema
from graft.config.options import PARTS, Config
from graft.config.schema import NAME, NAME_RULE, amount
from graft.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
CUDA_GRAPHS = {"reduce-overhead", "max-autotune"}
LANGUAGE_TENSORS = {"logits", "targets", "teacher_topk"}  # what the terms of a language model are given


Need = Callable[..., None]


def check_together(config: Config, who: Callable[[str], str], sources: list[str]) -> None:
    """Raise UserError for values that are fine alone and wrong together; it names the key that would be changed."""

    def need(ok: bool, path: str, message: str, *others: str) -> None:
        """`others` are the keys the value clashes with; the source named is the last that set one of them."""
        if not ok:
            source = max((who(key) for key in (path, *others)), key=lambda name: sources.index(name))
            raise UserError(f"{source}: {path}: {message}")

    _check_recipe(config, need)
    text = {key: schema.part_constant(PARTS[key][0], getattr(config, key).name, "TEXT") or False
            for key in ("task", "student", "teacher")}
    reads = {True: "text", False: "images"}
    for key in ("student", "teacher"):
        part = getattr(config, key)
        need(part.name == "none" or text[key] == text["task"], f"{key}.name", f"{part.name} reads {reads[text[key]]}, "
             f"task {config.task.name} is of {reads[text['task']]}", "task.name")
    if text["task"]:
        _check_text(config, need)
    _check_shapes(config, need)
    _check_terms(config, need, text["task"])
    _check_views(config, need)
    if config.output_dir:
        name = Path(config.output_dir).name
        need(bool(NAME.fullmatch(name)), "output_dir", f"its last part must be {NAME_RULE}, got {schema.shown(name)}")


def _check_recipe(config: Config, need: Need) -> None:
    """Durations, schedules, batches."""
    train, optim = config.train, config.optim
    for path, value in {"train.duration": train.duration, "optim.period": optim.period}.items():
        need(not value.endswith("%") and not _zero(value), path,
             f"must be a positive 10ep or 500st, got {value!r}")
    need(_comparable(optim.warmup, train.duration) is not False, "optim.warmup",
         f"must be shorter than train.duration {train.duration}, got {optim.warmup!r}", "train.duration")
    need(len(optim.betas) == 2, "optim.betas", f"expected two numbers, got {optim.betas}")
    need(optim.min_lr <= optim.lr or optim.schedule not in ("cosine", "cyclic", "plateau"), "optim.min_lr",
         f"must not exceed optim.lr {optim.lr}, got {optim.min_lr}", "optim.lr")
    need(train.batch_size % train.accumulate == 0, "train.accumulate",
         f"must divide train.batch_size {train.batch_size}, got {train.accumulate}", "train.batch_size")
    need(train.accumulate == 1 or train.compile not in CUDA_GRAPHS, "train.compile",
         f"{train.compile} overwrites its outputs at the next of {train.accumulate} micro-batches; use default",
         "train.accumulate")
    need(optim.schedule != "plateau" or not _zero(train.eval_every), "train.eval_every",
         "schedule plateau needs evaluations, got 0", "optim.schedule")
    need(not train.stop_after or not _zero(train.eval_every), "train.eval_every",
         "early stopping needs evaluations, got 0", "train.stop_after")
    for key in ("local_scale", "global_scale"):
        low_high = getattr(config.ssl, key)
        need(len(low_high) == 2 and low_high[0] <= low_high[1], f"ssl.{key}", f"expected [low, high], got {low_high}")


def _check_shapes(config: Config, need: Need) -> None:
    """Classes, image size, width and heads."""
    classes = schema.part_constant("tasks", config.task.name, "CLASSES")
    for k in config.evaluate.topk:
        need(classes is None or k <= classes, "evaluate.topk",
             f"top-{k} of {classes} classes: must not exceed the classes of {config.task.name}", "task.name")
    size = config.task.args.get("size") or schema.part_constant("tasks", config.task.name, "SIZE")
    patch = config.student.args.get("patch")
    need(not (size and patch) or size % patch == 0, "student.patch", f"must divide the image size {size}, got {patch}",
         "task.name", "task.size")
    dim, heads = config.student.args.get("dim"), config.student.args.get("heads")
    need(not (dim and heads) or dim % heads == 0, "student.heads", f"must divide student.dim {dim}, got {heads}",
         "student.dim")


def _check_terms(config: Config, need: Need, text: bool) -> None:
    """What the terms of the objective compare, and whether it is there."""
    need(bool(config.objective), "objective", "is empty; give at least one term")
    need(any(term.used for term in config.objective), "objective", "every weight is 0; nothing would be learned")
    depth = config.student.args.get("depth")
    for i, term in enumerate(config.objective):
        here = f"objective.{i}"
        need(not term.teacher_layers or len(term.teacher_layers) == len(term.layers), f"{here}.teacher_layers",
             f"expected {len(term.layers)} numbers, one for each of layers {term.layers}, got {term.teacher_layers}")
        need(not depth or max(term.layers, default=0) < depth, f"{here}.layers",
             f"the student has blocks 0 to {(depth or 1) - 1}, got {term.layers}", "student.depth")
        wants = schema.part_tensors("losses", term.name)
        need(text or "teacher_topk" not in wants or not term.used, f"{here}.name",
             f"{term.name} is for language models, task {config.task.name} is of images; use kd", "task.name")
        need(not (term.wants_teacher and term.used) or config.teacher.name != "none", f"{here}.name",
             f"{term.name} needs a teacher; teacher.name is none", "teacher.name")
        need("student_attention" not in wants or bool(term.layers) or not term.used, f"{here}.layers",
             f"{term.name} needs the blocks whose attention it is about, such as [0, 1, 2]; got none")
        args = term.args
        whole = config.teacher.args.get("keep") == "hidden"
        need(term.name != "topk" or whole or "mse" in args["form"] or args["tail"] != "bucket" or args["tau"] == 1,
             f"{here}.tail", f"bucket needs tau 1, the temperature of the teacher's logsumexp, got {args.get('tau')}; "
             "use tail: renormalise", f"{here}.tau", f"{here}.form")
        need(term.name != "topk" or args["form"] != "reverse_kl" or args["tail"] != "ignore", f"{here}.tail",
             "ignore makes form reverse_kl infinite, for the teacher then has no mass outside its K; use bucket or "
             "renormalise", f"{here}.form")


def _check_views(config: Config, need: Need) -> None:
    """What the teacher is shown under the augmentation."""
    teacher = config.teacher
    mixes = {op.name for op in config.augment}
    aligned = teacher.name != "none" and teacher.view == "aligned"
    need(not (aligned and {"mixup", "mix"} & mixes), "teacher.view",
         "aligned is undefined under mixup, where every token shows two images; use cutmix, or view: augmented",
         "augment")
    whole = [t.name for t in config.objective if t.used and (t.tokens == "cls" or t.name == "kd")]
    need(not (aligned and "cutmix" in mixes and whole), "teacher.view",
         f"aligned is undefined for {', '.join(whole)} under cutmix, where an image is two images; use view: augmented",
         "augment", "objective")
    need(config.method != "distill" or teacher.view == "augmented", "teacher.view",
         "train_distill shows the teacher the student's image; aligned and unaligned belong to method: ss_distill",
         "method")


def _check_text(config: Config, need: Need) -> None:
    """What a language model cannot do, or only with something else."""
    need(config.method in ("baseline", "distill"), "method",
         f"{config.method} is for images; text has baseline and distill", "task.name")
    need(not config.augment, "augment", "text is not augmented; remove it", "task.name")
    need(config.train.compile == "none", "train.compile",
         f"{config.train.compile} would make a graph for every length of text; use none", "task.name")
    need(config.train.average == "none", "train.average",
         "averaged weights of a language model are not exported; use none", "task.name")
    teacher, student = config.teacher, config.student.args
    need(not teacher.shuffle and teacher.view == "augmented", "teacher.view", "view and shuffle are for images",
         "teacher.shuffle")
    for i, term in enumerate(config.objective):
        known = set(schema.part_tensors("losses", term.name)) <= LANGUAGE_TENSORS
        need(known or not term.used, f"objective.{i}.name",
             f"{term.name} compares what a language model does not give; use ce and topk", "task.name")
    need(student["lora"] or student["dtype"] == "fp32", "student.dtype",
         f"full fine-tuning needs fp32 master weights, got {student['dtype']}; set student.dtype=fp32 "
         "(train.precision: bf16 computes in bf16)",
         "student.lora")
    need(not student["trust_remote_code"] or bool(COMMIT.fullmatch(student["revision"])), "student.revision",
         f"trust_remote_code needs a commit of 40 hex digits, got {student['revision']!r}",
         "student.trust_remote_code")
    if teacher.name == "context_lm":
        _check_context(config, need)
    precision = teacher.args.get("precision", config.train.precision)
    need(precision == config.train.precision, "teacher.precision",
         f"must be train.precision {config.train.precision}, got {precision}; write ${{train.precision}}",
         "train.precision")


def _check_context(config: Config, need: Need) -> None:
    """What a language teacher reads, of whose answers it says something, and what is kept of that."""
    args, student = config.teacher.args, config.student.args
    context, text = args["context"], args["instruction"]
    reads = context.startswith("instruction")
    need(bool(text.strip()) or not reads, "teacher.instruction",
         f"is empty, and context {context} is nothing else; expected a text", "teacher.context")
    need(reads or not text, "teacher.instruction", f"context {context} does not read it; use context: instruction",
         "teacher.context")
    own = args["targets"] == "student"
    need(config.method == "distill" or args["targets"] == "gold", "teacher.targets",
         f"{args['targets']} is for method: distill, which asks the teacher; got {config.method}", "method")
    need(not own or args["serve"] != "cache", "teacher.serve", "cache knows what the teacher says of given answers, "
         "and targets: student makes new ones; use adapter, copy or ema", "teacher.targets")
    need(not args["only_right"] or args["targets"] == "teacher", "teacher.only_right",
         f"is for targets: teacher, got {args['targets']}", "teacher.targets")
    for i, term in enumerate(config.objective):
        need(not own or not term.used or "targets" not in schema.part_tensors("losses", term.name),
             f"objective.{i}.weight", f"{term.name} wants given answers, and targets: student has none; set it to 0",
             "teacher.targets")
    need(args["serve"] != "ema" or student["lora"], "teacher.serve", "ema averages the student's adapters, and full "
         "fine-tuning has none; set student.lora, or use copy", "student.lora")
    hidden = args["keep"] == "hidden"
    need(not hidden or student["lora"], "teacher.keep", "hidden makes logits by the head that the student shares with "
         "its teacher, and full fine-tuning changes it; use topk, or set student.lora", "student.lora")
    need(hidden or args["cache_dtype"] != "bf16", "teacher.cache_dtype", "bf16 is for keep: hidden; logits need more "
         "digits: use fp16 or fp32", "teacher.keep")


def _zero(duration: str) -> bool:
    return amount(duration)[0] == 0


def _comparable(short: str, long: str) -> bool | None:
    """Whether `short` is shorter than `long`; None if their units differ and only the data can tell."""
    (number, unit), (limit, other) = amount(short), amount(long)
    if unit == "%":
        return number < 100
    return number < limit if unit == other else None
