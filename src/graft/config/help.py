"""What `--help` says: the command line, and every key of a configuration from its own declaration."""

import json
from collections.abc import Sequence

from graft.config import schema
from graft.config.merging import common_fields
from graft.config.options import PART_LISTS, PARTS, SCALARS, SECTIONS
from graft.config.schema import REQUIRED, Field, nearest
from graft.errors import UserError

HEAD = "configuration keys: name, type, default, range, meaning (*: no influence on the result, may change on a resume)"
KINDS = {**PARTS, **PART_LISTS}


def help_text(about: str, asked: Sequence[str]) -> str:
    """The text for the words after `--help`; `about` is the script and its options.

    Nothing: `about` and what can be asked for. `all`: every key. A section (`optim`), a kind of part (`task`), one part
    (`task cifar10`) or a key (`optim.lr`): its keys. Raises UserError for anything else.
    """
    if not asked:
        return f"{about}\n{_topics()}"
    if list(asked) == ["all"]:
        return f"{about}\n{HEAD}\n" + "\n\n".join(_section(topic) for topic in ("run", *SECTIONS, *KINDS))
    topic, *names = asked
    section, _, key = topic.partition(".")
    if section not in ("run", *SECTIONS, *KINDS):
        raise UserError(f"--help {topic}: no such topic{nearest(topic, ['all', 'run', *SECTIONS, *KINDS])}")
    if key:
        lines = [line for line in _section(section).splitlines() if line.split()[:1] and
                 line.split()[0].rstrip("*").rpartition(".")[2] == key]
        if not lines:
            raise UserError(f"--help {topic}: no such key; --help {section} lists them")
        return "\n".join([HEAD, *lines])
    return f"{HEAD}\n{_section(section, names)}"


def _topics() -> str:
    lines = ["configuration keys, given in files and as key=value:",
             f"  {'--help all':<24} every key with type, default, range and meaning",
             f"  {'--help run':<24} {', '.join(SCALARS)}"]
    lines += [f"  --help {section:<17} {cls.__doc__.splitlines()[0]}" for section, cls in SECTIONS.items()]
    lines += [f"  {f'--help {key} [NAME]':<24} {'a list of' if key in PART_LISTS else 'one of'}: "
              f"{', '.join(schema.part_names(kind))}" for key, (kind, _) in KINDS.items()]
    return "\n".join([*lines, f"  {'--help optim.lr':<24} one key"])


def _section(topic: str, names: Sequence[str] = ()) -> str:
    """The keys of a topic; of a kind of part those of all parts, or of the named ones."""
    if topic == "run":
        return "\n".join(_line(key, item) for key, item in SCALARS.items())
    if topic in SECTIONS:
        cls = SECTIONS[topic]
        return "\n".join([f"{topic}: {cls.__doc__.splitlines()[0]}", *(
            _line(f"{topic}.{key}", item) for key, item in schema.dataclass_fields(cls).items())])
    kind, cls = KINDS[topic]
    known = schema.part_names(kind)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--help {topic} {unknown[0]}: no such {topic}{nearest(unknown[0], known)}")
    many = " (a list)" if topic in PART_LISTS else ""
    lines = [f"{topic}{many}: name is one of {', '.join(known)}"]
    lines += [_line(key, item) for key, item in common_fields(cls).items()]
    for name in names or known:
        lines.append(f"  {topic} name: {name}  -  {schema.part_help(kind, name)}")
        lines += [_line(f"  {key}", item) for key, item in schema.part_fields(kind, name).items()]
    return "\n".join(lines)


def _line(path: str, item: Field) -> str:
    kind = getattr(item.type, "__name__", str(item.type)) if not hasattr(item.type, "__args__") else str(item.type)
    default = "required" if item.default is REQUIRED else json.dumps(item.default)
    return f"  {path + '*' * bool(item.same):<28} {kind:<12} {default:<16} {item.rule:<24} {item.help}".rstrip()
