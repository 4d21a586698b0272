"""timm models by name, with weights from the hub or a local file, and errors that say what does not fit."""

from collections.abc import Mapping
from pathlib import Path

import timm
from timm.models import load_state_dict
from torch import Tensor, nn

from graft.config.schema import nearest
from graft.errors import UserError


def require_arch(arch: str, key: str) -> None:
    """Raise UserError, with the nearest name, if timm does not know `arch` (with or without a weights tag)."""
    name, _, tag = arch.partition(".")
    if name not in timm.list_models():
        raise UserError(f"{key}: timm has no model {name!r}{_near(name, timm.list_models())}")
    tags = [full.partition(".")[2] for full in timm.list_models(f"{name}.*", pretrained=True)]
    if tag and tag not in tags:
        raise UserError(f"{key}: {name} has no weights {tag!r}{_near(tag, tags)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _near(name: str, valid: list[str]) -> str:
    hint = nearest(name, valid)
    return hint if "did you mean" in hint or len(valid) < 20 else "; see timm.list_models()"


def size_option(arch: str, size: int) -> dict[str, int]:
    """`img_size` for architectures that are built for one input size."""
    return {"img_size": size} if timm.get_pretrained_cfg(arch).fixed_input_size else {}


def create(arch: str, **options) -> nn.Module:
    """A timm model. Raises UserError if the architecture does not take the options."""
    try:
        return timm.create_model(arch, **options)
    except TypeError as error:
        raise UserError(f"{arch}: cannot be built: {_one_line(error)}") from None


def from_hub(arch: str, **options) -> nn.Module:
    """A timm model with its published weights. Raises UserError if they cannot be fetched."""
    try:
        return create(arch, pretrained=True, **options)
    except UserError:
        raise
    except Exception as error:  # the hub's and the network's errors have no common base
        published = timm.get_pretrained_cfg(arch)
        where = published.hf_hub_id or published.url or "timm knows none"
        raise UserError(f"{arch}: no weights from the hub ({where}): {type(error).__name__}: {_one_line(error)[:160]}; "
                        "give a local file with checkpoint: FILE.safetensors") from None


def from_file(arch: str, path: str, key: str, **options) -> nn.Module:
    """A timm model with the weights and the number of classes of a local .safetensors or .pth file.

    Formats that timm converts for this architecture are converted, position embeddings resized. Raises
    UserError if the file cannot be read safely or holds another architecture.
    """
    state = _read(path, key)
    classifiers = timm.get_pretrained_cfg(arch).classifier or ()
    first = classifiers if isinstance(classifiers, str) else next(iter(classifiers), "")
    head = state.get(f"{first}.weight")
    classes = 0 if head is None else head.shape[0]
    try:
        return create(arch, pretrained=True, num_classes=classes,
                      pretrained_cfg_overlay={"state_dict": state, "num_classes": classes}, **options)
    except (RuntimeError, KeyError, AttributeError) as error:  # what timm's converters raise on foreign weights
        random = timm.create_model(arch, num_classes=classes, **options)
        problem = mismatch(random.state_dict(), state) or _one_line(error)[:300]
        raise UserError(f"{key}: {path} is no {arch}: {problem}") from None


def _read(path: str, key: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise UserError(f"{key}: {path}: no such file")
    try:
        state = load_state_dict(path, weights_only=True)
    except Exception as error:  # safetensors, pickle and zip errors have no common base
        raise UserError(f"{key}: {path}: cannot be read as safetensors or a weights-only .pth: "
                        f"{_one_line(error)[:200]}") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{key}: {path}: expected a state dict of tensors")
    return dict(state)


def mismatch(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """How two state dicts differ: the first five missing, unexpected and differently shaped keys; empty if equal."""
    missing = [name for name in wanted if name not in got]
    unexpected = [name for name in got if name not in wanted]
    shapes = [f"{name} {tuple(got[name].shape)}, expected {tuple(wanted[name].shape)}"
              for name in wanted if name in got and got[name].shape != wanted[name].shape]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return "; ".join(f"{len(names)} {kind}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
                     for kind, names in kinds.items() if names)
