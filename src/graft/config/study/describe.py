"""A study in words: its conditions as a table for the documents."""

from pathlib import Path

from graft.config.study.options import Condition, Study


def conditions(study: Study) -> str:
    """One row a condition: its configurations over the base (files, or deltas of the study's file by name) and what it
    sets besides, its teacher, what it asks; Markdown."""
    lines = [["condition", f"over `{_short(study.base)}`", "teacher", "asks"], ["---"] * 4]
    for name, condition in study.conditions.items():
        over = [study.deltas[word] if isinstance(study.deltas.get(word), str) else word for word in condition.configs]
        files = " ".join(f"`{word}`" for word in (*map(_short, over), *condition.set))
        lines.append([f"`{name}`", files or "-", _teacher(condition), condition.asks])
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _short(value: object) -> str:
    """A file without the parts that all of them share; a base that stands in the study's file itself is `inline`."""
    return str(Path(str(value)).with_suffix("")).removeprefix("configs/") if isinstance(value, str) else "inline"


def _teacher(condition: Condition) -> str:
    return condition.teacher or ", ".join(f"`{variable}`" for variable in condition.needs) or "-"
