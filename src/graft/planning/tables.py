"""A planned study as a table, for people and for documents."""

from collections.abc import Sequence

import pandas as pd

from graft.errors import UserError
from graft.planning.devices import Device
from graft.planning.power import SEEDS, decides
from graft.planning.study import Planned, Row
from graft.reporting import stats
from graft.reporting.tables import cells_to_markdown

PARTS = ("weights", "gradients", "optimizer", "activations", "data", "cache")


def jobs(plan: Planned, device: Device) -> list[list[str]]:
    """A line for each row: parameters, FLOPs, GB at most and of what, GB on disk, hours."""
    head = ["job", "runs", "parameters", "trained", "steps", "FLOP a step", "FLOP a run", "memory", " + ".join(PARTS),
            "logits", "cache", "checkpoints", "time a run, at least", "time, at least"]
    return [head, *(_job(row, device) for row in plan.rows)]


def _job(row: Row, device: Device) -> list[str]:
    found = row.costs
    if found is None:
        return [row.name, str(row.count), "not known: see below", *[""] * 11]
    over = "!" if 0 < device.memory < found.peak else ""
    parts = " + ".join(si(found.memory.get(name, 0)) for name in PARTS)
    hours = device.hours(found)
    steps = f"{found.steps:,}" if found.steps else ""
    return [row.name, str(row.count), si(found.parameters), si(found.trained), steps, si(found.flops_step),
            si(found.flops), si(found.peak) + over, parts, si(found.logits), si(found.cache),
            si(found.checkpoints), time(hours), time(hours * row.count)]


def si(value: float) -> str:
    """Three digits and the prefix of a power of 1000: 4.42 G."""
    for power, prefix in enumerate(("", "k", "M", "G", "T", "P", "E")):
        if value < 999.5 * 1000**power:
            return f"{value / 1000**power:.3g} {prefix}".rstrip()
    return f"{value:.3g}"


def time(hours: float) -> str:
    """Seconds, minutes or hours."""
    seconds = 3600 * hours
    return f"{seconds:.2g} s" if seconds < 60 else f"{seconds / 60:.3g} min" if hours < 1 else f"{hours:,.3g} h"


def aligned(lines: list[list[str]]) -> str:
    """As text in columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() + "\n" for line in lines)


def markdown(lines: list[list[str]]) -> str:
    """As a table of Markdown."""
    return cells_to_markdown(pd.DataFrame(lines[1:], columns=lines[0]))


def power(plan: Planned, discordance: float, seed_sd: float) -> str:
    """What the study can decide, in a few lines."""
    if not plan.n:
        return "test items: not known, so nothing is said of what can be detected\n"
    one, first = (_points(plan, discordance, seed_sd, comparisons) for comparisons in (1, plan.comparisons))
    return (f"{plan.n:,} test items: the smallest difference that {', '.join(map(str, SEEDS))} seeds find four times "
            f"in five, in points: {one} of one comparison alone; {first} of the first of {plan.comparisons} with the "
            f"baseline (Holm's strictest level, {stats.LEVEL:g} / {plan.comparisons}). Two runs are taken to differ on "
            f"{discordance:.0%} of the items, and seeds by a standard deviation of {100 * seed_sd:g} points\n")


def _points(plan: Planned, discordance: float, seed_sd: float, comparisons: int) -> str:
    return ", ".join(f"{100 * value:.2f}" for value in decides(plan.n, discordance, seed_sd, comparisons).values())


def summary(plans: Sequence[Planned], device: Device, discordance: float, seed_sd: float) -> str:
    """One row a study, for the documents."""
    head = ["study", "runs", "parameters", "FLOP", "memory, bytes", "disk, bytes", "time, at least", "test items",
            f"detectable with {', '.join(map(str, SEEDS))} seeds, points", "as the first of those with the baseline"]
    return markdown([head, *(_study(plan, device, discordance, seed_sd) for plan in plans)])


def joined(old: str, new: str) -> str:
    """A table of studies with the rows of `new` in the place of those of the same study, others behind the old ones.

    Raises UserError where rows would be left that were written under another head.
    """
    head, (before, now) = new.splitlines()[:2], ({line.split("|")[1]: line for line in text.splitlines()[2:]}
                                                 for text in (old, new))
    if before.keys() - now.keys() and old.splitlines()[:1] != head[:1]:
        raise UserError(f"the table has other columns; expected all of its studies at once: "
                        f"{', '.join(name.strip() for name in before)}")
    rows = before | now
    return "".join(f"{line}\n" for line in (*head, *rows.values()))


def _study(plan: Planned, device: Device, discordance: float, seed_sd: float) -> list[str]:
    known = [(row, row.costs) for row in plan.rows if row.costs]
    largest = max((costs.parameters for _, costs in known), default=0)
    caches = {costs.cache_of or row.name: costs.cache for row, costs in known}
    disk = sum(caches.values()) + sum(costs.checkpoints * row.count for row, costs in known)
    return [f"`{plan.name}`", str(sum(row.count for row, _ in known if row.kind == "run")), si(largest),
            si(sum(costs.flops * row.count for row, costs in known)),
            si(max((costs.peak for _, costs in known), default=0)), si(disk),
            time(sum(device.hours(costs) * row.count for row, costs in known)), f"{plan.n:,}",
            *_detectable(plan, discordance, seed_sd)]


def _detectable(plan: Planned, discordance: float, seed_sd: float) -> tuple[str, str]:
    if not plan.n:
        return "", ""
    return (_points(plan, discordance, seed_sd, 1),
            f"{_points(plan, discordance, seed_sd, plan.comparisons)} ({plan.comparisons})")
