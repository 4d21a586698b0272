"""A term of the objective: what its loss wants, its weight over time, how it is written."""

import math
from dataclasses import dataclass

from graft.config import schema
from graft.config.options import Term


@dataclass(frozen=True)
class Built:
    """A term that counts, ready to be called."""

    name: str  # unique in the run: the second `cka` of the configuration is `cka#2`
    term: Term
    tensors: tuple[str, ...]  # what its loss wants, by name
    pairs: tuple[tuple[str, str], ...]  # (student feature, teacher feature) per layer; empty: logits only

    @property
    def position(self) -> str:
        """Of a language model's logits: `rows` predict the answer tokens, `next` is one position later."""
        return position_of(self.term)


def needs_teacher(terms: tuple[Term, ...]) -> bool:
    """Whether any term that is ever used looks at the teacher."""
    return any(term.used and term.wants_teacher for term in terms)


def pairs_of(term: Term) -> tuple[tuple[str, str], ...]:
    """(student feature, teacher feature) of each layer that the term compares; "" where no teacher is looked at."""
    ours = term.layers or ["final"]
    if "student_attention" in schema.part_tensors("losses", term.name):
        return tuple((f"heads.{s}", f"attention.{t}" if term.wants_teacher else "")
                     for s, t in zip(ours, term.teacher_layers or ours))
    return tuple((f"{term.tokens}.{s}", f"{term.tokens}.{t}") for s, t in zip(ours, term.teacher_layers or ours))


def position_of(term: Term) -> str:
    """Of a language model's logits: `rows` predict the answer tokens, `next` is one position later."""
    return "next" if term.args.get("position") == "published" else "rows"


def fewest(term: Term) -> int:
    """The fewest tokens (or images) the term's loss can compare."""
    return schema.part_constant("losses", term.name, "MIN_TOKENS") or 1


def weight_at(term: Term, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Its weight at optimizer step `step` (from 0): `before`, then `weight`, which moves to `weight_end`."""
    start = schema.to_steps(term.warmup, steps_per_epoch, total_steps)
    if step < start:
        return term.before
    if term.weight_end < 0:
        return term.weight
    last = total_steps - 1
    done = min(1.0, (step - start) / (last - start)) if last > start else 1.0
    if term.schedule == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return term.weight + (term.weight_end - term.weight) * done


def text_of(built: Built) -> str:
    """`weight·name(what differs from its default)`."""
    term = built.term
    defaults = schema.part_fields("losses", term.name)
    shown = {key: value for key, value in term.args.items() if value != defaults[key].default}
    common = schema.dataclass_fields(Term)
    options = ("layers", "teacher_layers", "tokens", "pool", "warmup", "before", "schedule")
    shown |= {key: getattr(term, key) for key in options
              if getattr(term, key) != common[key].default}
    weight = f"{term.weight:g}" + (f"→{term.weight_end:g}" if term.weight_end >= 0 else "")
    listed = ", ".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                       for key, value in shown.items())
    return f"{weight}·{built.name}" + (f"({listed})" if listed else "")
