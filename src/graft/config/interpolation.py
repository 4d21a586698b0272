"""`${key}` in a value: replaced by the value of that key, and nothing else.

Only plain keys from the top are allowed, anywhere in a value. OmegaConf's resolvers (`${oc.env:HF_TOKEN}`) would copy
secrets into config.yaml and TensorBoard, and values that repeat each other many times over would fill the memory.
"""

import re
from collections.abc import Callable
from typing import Any

from graft.config.schema import nearest, shown
from graft.errors import UserError

PLAIN = re.compile(r"\$\{([\w-]+(?:\.[\w-]+)*)\}", re.ASCII)
LONGEST = 4096  # characters of a text with interpolations


def interpolates(value: Any) -> bool:
    """Whether a value, or one inside a list, is known only once the others are. Raises UserError for a resolver."""
    if isinstance(value, (list, dict)):
        return any([interpolates(item) for item in (value if isinstance(value, list) else value.values())])
    if not isinstance(value, str) or "${" not in value:
        return False
    if "${" in PLAIN.sub("", value):
        raise UserError(f"expected plain ${{key}}, resolvers are not allowed, got {shown(value)}")
    return True


def resolve(values: dict[str, Any], who: Callable[[str], str]) -> dict[str, Any]:
    """`values` with every `${key}` replaced; `who` says where a key's value comes from.

    A value that is one `${key}` and nothing else takes over the type. Raises UserError for a key that is not there,
    one that leads back to itself, or text that grows beyond 4096 characters.
    """
    found: dict[str, Any] = {}

    def walk(value: Any, path: str, way: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {key: walk(item, f"{path}.{key}".lstrip("."), way) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, f"{path}.{i}", way) for i, item in enumerate(value)]
        if not isinstance(value, str) or not interpolates(value):
            return value
        if path not in found:
            if path in way:
                raise UserError(f"{who(path)}: {path}: leads back to itself: {' -> '.join([*way, path])}")
            found[path] = fill(value, path, (*way, path))
        return found[path]

    def fill(text: str, path: str, way: tuple[str, ...]) -> Any:
        if whole := PLAIN.fullmatch(text):
            return look_up(whole[1], path, way)
        filled = PLAIN.sub(lambda found: str(look_up(found[1], path, way)), text)
        if len(filled) > LONGEST:
            raise UserError(f"{who(path)}: {path}: longer than {LONGEST} characters once ${{key}} is replaced")
        return filled

    def look_up(key: str, path: str, way: tuple[str, ...]) -> Any:
        value: Any = values
        for name in key.split("."):
            inside = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
            name = int(name) if isinstance(value, list) and name.isdecimal() else name
            if name not in inside:
                raise UserError(f"{who(path)}: {path}: ${{{key}}} is not found{nearest(key, _leaves(values))}")
            value = inside[name]
        if isinstance(value, dict) or (isinstance(value, list) and path.rpartition(".")[2].isdecimal()):
            # Lists of lists of lists would grow without an end, and none is needed.
            raise UserError(f"{who(path)}: {path}: ${{{key}}} is not one value")
        return walk(value, key, way)

    return walk(values, "", ())


def _leaves(values: dict[str, Any]) -> list[str]:
    return [f"{key}.{name}" for key, inside in values.items() if isinstance(inside, dict) for name in inside]
