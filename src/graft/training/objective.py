"""The objective of a run: its loss terms, their weights over time, one reduction, and the formula."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from graft import keyed
from graft.config import parts, schema
from graft.config.options import Term
from graft.errors import UserError
from graft.outputs import LOGITS_AT_ONCE, Outputs, TopK
from graft.training.terms import Built, fewest, needs_teacher, pairs_of, position_of, text_of, weight_at

Grid = tuple[int, int]


class Objective(nn.Module):
    """Weighted sum of the terms with a weight above 0 at some step; owns their projectors.

    `terms` are the configuration's, in order. `student` and `teacher` (None: no teacher) are only looked
    at: depths, widths, grids and classes are compared before anything is trained. Projectors are drawn
    under `seed`, the term and the layer alone, so they neither read nor move the global generator.
    Raises `UserError` naming the term, the layer, and what student and teacher have there.
    """

    def __init__(self, terms: tuple[Term, ...], student: nn.Module, teacher: nn.Module | None, *, seed: int):
        super().__init__()
        assert teacher is None or not any(p.requires_grad for p in teacher.parameters()), "the teacher is not frozen"
        self.student_grid: Grid | None = None  # of the patch tokens that are compared
        self.projectors = nn.ModuleDict()
        built: list[Built] = []
        for index, term in enumerate(terms):
            if not term.used:
                continue
            earlier = [other.name for other in terms[:index]].count(term.name)
            name = f"{term.name}#{earlier + 1}" if earlier else term.name
            where = f"objective.{index} ({term.name})"
            tensors = tuple(schema.part_tensors("losses", term.name))
            if teacher is None and needs_teacher((term,)):
                raise UserError(f"{where}: needs a teacher; teacher.name is none")
            if "teacher_logits" in tensors and teacher.num_classes != student.num_classes:
                raise UserError(f"{where}: the teacher has {teacher.num_classes or 'no'} classes, "
                                f"the student {student.num_classes}")
            if "teacher_topk" in tensors and not hasattr(teacher, "k"):
                raise UserError(f"{where}: needs a teacher that gives its largest logits, such as context_lm")
            if "teacher_topk" in tensors and position_of(term) not in teacher.positions:
                raise UserError(f"{where}: the teacher's cache has no logits for position {term.args['position']}")
            pairs = pairs_of(term) if {"student_tokens", "student_attention"} & set(tensors) else ()
            built.append(Built(name, term, tensors, pairs))
            projectors = [self._pair(f"{where}, {s} with {t}", name, term, (s, t), student, teacher, seed)
                          for s, t in pairs]
            if any(projectors):
                self.projectors[name] = nn.ModuleList(projectors)
        self.terms = tuple(built)

    def _pair(self, where: str, name: str, term: Term, pair: tuple[str, str], student: nn.Module,
              teacher: nn.Module, seed: int) -> nn.Module | None:
        """Check one layer of a term and make its projector."""
        try:
            both = [(model, feature) for model, feature in zip((student, teacher), pair) if feature]
            widths = [model.feature_dim(feature) for model, feature in both]
            tokens = 1
            if "student_attention" in schema.part_tensors("losses", term.name):
                self._check_maps([tuple(model.grid_of_feature(feature)) for model, feature in both])
                return None
            if term.tokens == "patch":
                self._check_grids([tuple(model.grid_of_feature(feature)) for model, feature in both], widths, term.pool)
                tokens = math.prod(self.student_grid)
            least = fewest(term)
            if tokens < least and term.args.get("over", "tokens") == "tokens":
                raise UserError(f"compares at least {least} tokens of an image, got {tokens}"
                                + ("; over: batch compares images" if "over" in term.args else ""))
            if "projector" not in schema.part_tensors("losses", term.name):
                return None
            module = importlib.import_module(f"graft.losses.{term.name}")
            with torch.random.fork_rng(devices=[]):
                # Not torch.manual_seed, which would seed the GPUs' generators for good.
                torch.default_generator.manual_seed(keyed.key(seed, "objective", name, *pair))
                return module.projector(*widths, project=term.args["project"])
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def _check_grids(self, grids: list[Grid], widths: list[int], pool: str) -> None:
        ours, theirs = grids
        fine, coarse, other = (theirs, ours, "student") if pool == "teacher" else (ours, theirs, "teacher")
        factor = max(1, fine[0] // coarse[0])
        if fine != (factor * coarse[0], factor * coarse[1]):
            raise UserError(f"the {pool}'s token grid must be the {other}'s times an integer, got teacher "
                            f"{theirs[0]}x{theirs[1]} of width {widths[1]}, student {ours[0]}x{ours[1]} "
                            f"of width {widths[0]}" + ("; pool: student averages the student's tokens"
                                                       if pool == "teacher" and theirs < ours else ""))
        self._keep_grid(coarse)

    def _check_maps(self, grids: list[Grid]) -> None:
        """Attention over patches is compared place by place: nothing can be pooled."""
        if len(set(grids)) > 1:
            raise UserError(f"the teacher attends over {grids[1][0]}x{grids[1][1]} patches, the student over "
                            f"{grids[0][0]}x{grids[0][1]}")
        self._keep_grid(grids[0])

    def _keep_grid(self, grid: Grid) -> None:
        if self.student_grid not in (None, grid):
            raise UserError(f"all terms must compare patches at one grid of the student, got {grid[0]}x{grid[1]} "
                            f"after {self.student_grid[0]}x{self.student_grid[1]}")
        self.student_grid = grid

    @property
    def student_features(self) -> tuple[str, ...]:
        """Names of the features the student must return."""
        later = ["next" for built in self.terms if built.position == "next"]
        return tuple(dict.fromkeys([s for built in self.terms for s, _ in built.pairs] + later))

    @property
    def teacher_features(self) -> tuple[str, ...]:
        """Names of the features, or the positions of a language model, that the teacher must return."""
        positions = [built.position for built in self.terms if "teacher_topk" in built.tensors]
        return tuple(dict.fromkeys([t for built in self.terms for _, t in built.pairs if t] + positions))

    def formula(self) -> str:
        """One line such as `L = 1·ce(smoothing=0.1) + 0.5·cka(layers=[3, 6])`, without what is at its default."""
        return "L = " + " + ".join(text_of(built) for built in self.terms)

    def weights(self, step: int, total_steps: int, steps_per_epoch: int) -> list[float]:
        """The weight of each term at optimizer step `step` (from 0) of `total_steps`; a pure function.

        `before` during the warm-up, then `weight`, which moves to `weight_end` at step total_steps - 1.
        """
        return [weight_at(built.term, step, total_steps, steps_per_epoch) for built in self.terms]

    def asks_teacher(self, weights: list[float]) -> bool:
        """Whether any term of a weight above 0 looks at the teacher, so that it has to say something at this step."""
        return any(weight and built.term.wants_teacher for built, weight in zip(self.terms, weights))

    def forward(self, student: Outputs, teacher: Outputs | None, targets: Tensor, visible: Tensor | None,
                weights: list[float], *, window: float, micro_share: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, 0-d, and its unweighted terms by name, detached.

        Values per sample (N,) are summed and divided by `window`, terms that are one number a batch are
        multiplied by `micro_share`, so that the micro-batches of an optimizer step add up to its mean;
        layers are averaged. visible (B, T) holds for `patch` tokens. A term of weight 0 is not
        computed and has no value.
        """
        assert len(weights) == len(self.terms), f"{len(weights)} weights for {len(self.terms)} terms"
        if student.head is not None:
            return self._by_piece(student, teacher, targets, weights, window)
        known = {"logits": student.logits, "distill_logits": student.distill_logits, "targets": targets,
                 "teacher_logits": teacher.logits if teacher is not None else None}

        def layers(built: Built) -> list[dict[str, Any]]:
            take = self._maps if "student_attention" in built.tensors else self._tokens
            return [known | take(built, layer, student, teacher, visible)
                    for layer in range(len(built.pairs))] or [known]

        return self._sum(weights, layers, student.logits, window, micro_share)

    def _sum(self, weights: list[float], layers: Callable[[Built], list[dict[str, Any]]], states: Tensor,
             window: float, micro_share: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the terms and each of them; `layers(term)` are the tensors by name of each its layers."""
        total, values = None, {}
        for built, weight in zip(self.terms, weights):
            if weight == 0:
                continue
            loss = parts.get("losses", built.term.name)
            each = [loss(*(layer[name] for name in built.tensors), **built.term.args) for layer in layers(built)]
            value = sum(x.sum() / window if x.ndim else x * micro_share for x in each) / len(each)
            values[built.name] = value.detach()
            total = weight * value if total is None else total + weight * value
        if total is None:  # every term waits for its warm-up; the step still needs a graph
            total = 0.0 * states.float().sum()
        return total, values

    def _by_piece(self, student: Outputs, teacher: Outputs | None, targets: Tensor, weights: list[float],
                  window: float) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, for a language model: logits over the vocabulary exist for one piece of positions at a time.

        Where there are several pieces, each is computed again in the backward pass instead of being kept.
        """
        hidden, said = {"rows": student.hidden, **student.features}, teacher.features if teacher is not None else {}
        at_once = max(1, LOGITS_AT_ONCE // student.head.vocabulary)
        total, values = 0.0, {}
        for start in range(0, len(targets), at_once):
            piece = slice(start, start + at_once)
            tops = {name: TopK(top.values[piece], top.indices[piece], top.logsumexp[piece])
                    for name, top in (teacher.topk if teacher is not None else {}).items()}
            states, theirs = ({name: state[piece] for name, state in of.items()} for of in (hidden, said))
            given = (states, student.head, tops, theirs, targets[piece], weights, window)
            if len(targets) > at_once and torch.is_grad_enabled():
                loss, terms = checkpoint(self._piece, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                loss, terms = self._piece(*given)
            total = total + loss
            values = {name: values.get(name, 0.0) + term for name, term in terms.items()}
        return total, values

    def _piece(self, states: dict[str, Tensor], head: Callable[[Tensor], Tensor], tops: dict[str, TopK],
               theirs: dict[str, Tensor], targets: Tensor, weights: list[float],
               window: float) -> tuple[Tensor, dict[str, Tensor]]:
        logits = {name: head(states[name])
                  for name in {built.position for built, weight in zip(self.terms, weights) if weight}}
        with torch.no_grad():  # of a teacher's hidden states, by the head that it shares with the student
            all_of_theirs = {name: head(theirs[name]).float() for name in logits.keys() & theirs.keys()}
        tops = {**tops, **{name: TopK(all_, None, all_.logsumexp(-1)) for name, all_ in all_of_theirs.items()}}

        def layers(built: Built) -> list[dict[str, Any]]:
            return [{"logits": logits[built.position], "targets": targets, "teacher_topk": tops.get(built.position)}]

        return self._sum(weights, layers, states["rows"], window, micro_share=1.0)  # every term is per position

    def _maps(self, built: Built, layer: int, student: Outputs, teacher: Outputs | None,
              visible: Tensor | None) -> dict[str, Any]:
        """The attention of one layer of a term; what is visible matters only beside a teacher."""
        ours, theirs = built.pairs[layer]
        return {"student_attention": student.features[ours],
                "teacher_attention": teacher.features[theirs] if theirs else None,
                "visible": visible if theirs else None}

    def _tokens(self, built: Built, layer: int, student: Outputs, teacher: Outputs,
                visible: Tensor | None) -> dict[str, Any]:
        """The token arguments of one layer of a term."""
        ours, theirs = built.pairs[layer]
        student_tokens, teacher_tokens = student.features[ours], teacher.features[theirs]
        if built.term.args.get("over") == "batch" and len(teacher_tokens) < fewest(built.term):
            raise UserError(f"{built.name}: over: batch compares at least {fewest(built.term)} images "
                            f"of a micro-batch, got {len(teacher_tokens)}")
        if built.term.tokens == "patch":
            student_tokens = pool_tokens(student_tokens, self.student_grid)  # as it is, but for pool: student
            teacher_tokens = pool_tokens(teacher_tokens, self.student_grid)
        projectors = self.projectors[built.name] if built.name in self.projectors else None  # noqa: SIM401 (no get)
        return {"student_tokens": student_tokens, "teacher_tokens": teacher_tokens,
                "visible": visible if built.term.tokens == "patch" else None,
                "projector": projectors[layer] if projectors is not None else None}


def pool_tokens(tokens: Tensor, grid: Grid) -> Tensor:
    """Average-pool the token map of a grid `f` times as fine as `grid`, (B, T, D) -> (B, grid[0] * grid[1], D).

    A map that is at `grid` already (f = 1) is returned as it is.
    """
    height, width = grid
    factor = math.isqrt(tokens.shape[1] // (height * width))
    assert tokens.shape[1] == factor**2 * height * width, f"{tokens.shape[1]} tokens for a {height}x{width} grid"
    if factor == 1:
        return tokens
    blocks = tokens.unflatten(1, (height, factor, width, factor))
    return blocks.mean((2, 4), dtype=torch.float32).to(tokens.dtype).flatten(1, 2)
