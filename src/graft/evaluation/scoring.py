"""Scoring a classifier example by example, so that comparisons can be paired; a language model token by token."""

import contextlib
import math

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import nn

from graft.augment import to_float
from graft.errors import UserError
from graft.outputs import LOGITS_AT_ONCE
from graft.tasks._text import TextSplit


@torch.no_grad()
def score(model: nn.Module, split, device: torch.device, batch_size: int, rank: int = 0, world: int = 1,
          autocast=contextlib.nullcontext, log_probs: bool = False) -> dict[str, np.ndarray]:
    """One row an example of `split`, in order, the same on every rank and for any number of ranks.

    Columns, each `(N,)`: `index`, `label`, `prediction`, `confidence` (the largest softmax probability),
    `nll` (nats, of the label), `label_rank` (0 if the label has the highest logit; ties count against it);
    with `log_probs` also that, `(N, K)` in float64. A student with a distillation token is read in all three ways:
    `accuracy_cls`, `accuracy_dist` and `accuracy_avg` say whether each predicts the label.
    Every example is scored exactly once. Raises UserError if there is none, or a logit is not finite.
    """
    if not len(split):
        raise UserError("nothing to score: the split is empty (task.val_fraction=0 leaves no validation images)")
    was_training = model.training
    model.eval()
    mine = torch.arange(rank, len(split), world)
    columns: list[dict[str, torch.Tensor]] = []
    for images, labels in split.batches(mine.split(batch_size) if len(mine) else []):  # fewer images than processes
        with autocast():
            out = model(to_float(images))
        log_p = out.logits.double().log_softmax(-1)
        own = log_p.gather(1, labels[:, None])
        above = (log_p >= own).sum(1) - 1
        read = {f"accuracy_{name}": logits.argmax(1) == labels for name, logits in out.readings.items()}
        columns.append({"label": labels, "prediction": log_p.argmax(1), "confidence": log_p.amax(1).exp(),
                        "nll": -own[:, 0], "label_rank": above, **read, **({"log_probs": log_p} if log_probs else {})})
    model.train(was_training)
    names = columns[0] if columns else ("label", "prediction", "confidence", "nll", "label_rank")
    rows = {name: torch.cat([c[name] for c in columns]).cpu().numpy() if columns else np.empty(0) for name in names}
    rows["index"] = mine.numpy()
    if world > 1:
        shares = [share for share in gather_object([rows]) if len(share["index"])]
        rows = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
    order = np.argsort(rows["index"])
    rows = {name: column[order] for name, column in rows.items()}
    assert len(rows["index"]) == len(split) and (rows["index"] == np.arange(len(split))).all()
    if not np.isfinite(rows["nll"]).all():
        raise UserError(f"example {int(np.argmin(np.isfinite(rows['nll'])))}: the model's logits are not finite")
    return rows


@torch.no_grad()
def score_answers(model: nn.Module, split: TextSplit, batch_size: int, rank: int = 0, world: int = 1,
                  autocast=contextlib.nullcontext) -> dict[str, float]:
    """How well the answers of `split` are predicted token by token, each after the true tokens before it.

    `nll` nats per answer token and `token_accuracy`, over all answer tokens of the split; the same on every rank.
    Raises UserError if they are not finite.
    """
    was_training = model.training
    model.eval()
    sums, count = torch.zeros(2, dtype=torch.float64, device=split.device), 0  # the host does not wait for them
    by_length = torch.argsort(split.lengths, descending=True, stable=True)
    own = by_length[rank::world]
    mine = list(own.split(batch_size)) if len(own) else []  # fewer items than processes
    # Where FSDP has parts of the model, a forward pass is everybody's: a process with less to do repeats an item.
    most = -(-len(by_length[::world]) // batch_size)
    spare = [by_length[:1]] * (most - len(mine))
    for number, (tokens, targets) in enumerate(split.batches([*mine, *spare])):
        with autocast():
            out = model(tokens)
            at_once = max(1, LOGITS_AT_ONCE // out.head.vocabulary)
            for hidden, wanted in zip(out.hidden.split(at_once), targets.split(at_once), strict=True):
                log_p = out.head(hidden).float().log_softmax(-1)
                if number < len(mine):
                    sums += torch.stack([-log_p.gather(1, wanted[:, None]).sum(dtype=torch.float64),
                                         (log_p.argmax(1) == wanted).sum()])
                    count += len(wanted)
    model.train(was_training)
    totals = torch.cat([sums, sums.new_tensor([count])])
    if world > 1:
        dist.all_reduce(totals)
    loss, correct, count = totals.tolist()
    if not math.isfinite(loss):
        raise UserError("validation: the model's logits are not finite")
    return {"nll": loss / count, "token_accuracy": correct / count}


def summary(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Accuracy and mean negative log-likelihood (nats) of scored rows."""
    return {"accuracy": float((rows["label"] == rows["prediction"]).mean()), "nll": float(rows["nll"].mean())}
