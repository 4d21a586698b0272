"""A planned study as a table, for people and for documents."""

from collections.abc import Sequence

import pandas as pd

from graft.planning.devices import Device
from graft.planning.study import SEEDS, Planned, Row, decides
from graft.reporting.tables import cells_to_markdown

PARTS = ("weights", "gradients", "optimizer", "activations", "data", "cache")


def jobs(plan: Planned, device: Device) -> list[list[str]]:
    """A line for each row: parameters, FLOPs, GB at most and of what, GB on disk, hours."""
    head = ["job", "runs", "parameters", "trained", "steps", "FLOP a step", "FLOP a run", "memory", " + ".join(PARTS),
            "logits", "cache", "checkpoints", "time a run", "time"]
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
    """What the study can decide, in one line."""
    if not plan.n:
        return "test items: not known, so nothing is said of what can be detected\n"
    found = ", ".join(f"{points * 100:.2f} with {seeds}" for seeds, points in
                      decides(plan.n, discordance, seed_sd).items())
    return (f"{plan.n:,} test items: the smallest difference found four times in five, in points: {found} seeds (where "
            f"two runs differ on {discordance:.0%} of the items and seeds by a standard deviation of "
            f"{100 * seed_sd:g} points)\n")


def summary(plans: Sequence[Planned], device: Device, discordance: float, seed_sd: float) -> str:
    """One row a study, for the documents."""
    head = ["study", "runs", "parameters", "FLOP", "memory, bytes", "disk, bytes", "time", "test items",
            f"detectable with {', '.join(map(str, SEEDS))} seeds, points"]
    return markdown([head, *(_study(plan, device, discordance, seed_sd) for plan in plans)])


def joined(old: str, new: str) -> str:
    """A table of studies with the rows of `new` in the place of those of the same study, others behind the old ones."""
    head, rows = new.splitlines()[:2], {line.split("|")[1]: line for text in (old, new)
                                        for line in text.splitlines()[2:]}
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
            ", ".join(f"{100 * value:.2f}" for value in decides(plan.n, discordance, seed_sd).values())]
