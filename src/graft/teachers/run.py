"""A finished run of this project as the teacher: supervised or self-supervised, any student architecture."""

from pathlib import Path
from typing import Annotated

from torch import Tensor, nn

from graft import keyed
from graft.config.options import Part
from graft.errors import UserError
from graft.evaluation import rebuild
from graft.runtime import checkpoint, identity
from graft.students._weights import mismatch
from graft.tasks._task import Task
from graft.teachers._freeze import freeze, isolated


def build(task: Task, *,
          path: Annotated[str, "", "run folder, or a condition's folder with one seed<k> in it"],
          weights: Annotated[str, "auto | average | last", "auto: the averaged weights if the run has them"] = "auto",
          random_weights: Annotated[bool, "", "negative control: the architecture, never trained"] = False,
          init_seed: Annotated[int, ">= 0", "random_weights: which initialisation"] = 0,
          other_data: Annotated[bool, "", "the run may have been trained on other data, on these validation and test "
                                          "images too"] = False) -> nn.Module:
    """The run's student, rebuilt from its checkpoint; logits None if it was self-supervised.

    Raises UserError if it was trained for another number of classes, its weights do not fit, or (without `other_data`)
    it was trained with other classes, validation or test images: it may have learned them.
    """
    folder = rebuild.run_folder(Path(path))
    trained = rebuild.trained(folder)
    part = trained.config.student
    teacher = isolated(lambda: rebuild.architecture(part, task), keyed.key(init_seed, "teacher", part.name))
    ssl = trained.config.method == "ssl_teacher"
    if not random_weights:
        state, _ = checkpoint.load_model(folder, which=weights)
        teacher.load_state_dict(_fitted(state, teacher, folder, part, task, has_classifier=not ssl))
        if not other_data:
            _refuse_other_data(trained, task, ssl)
    if ssl:
        teacher.num_classes = 0  # its head never got a loss
    return freeze(teacher)


def _refuse_other_data(trained: rebuild.Trained, task: Task, ssl: bool) -> None:
    """A teacher must not have seen what its student is chosen and tested by; it may have seen fewer images, or more."""
    found = identity.differences(trained.data, task.about, ("val", "test"))
    if ssl:  # it never met the names of the classes
        found = [text for text in found if not text.startswith(identity.NAMES["classes"])]
    if found:
        raise UserError(f"teacher.path: {trained.folder}: was trained on other data ({'; '.join(found)}) and may have "
                        "learned images by which its student is judged; teacher.other_data: true allows it")


def _fitted(state: dict[str, Tensor], teacher: nn.Module, folder: Path, part: Part, task: Task,
            has_classifier: bool) -> dict[str, Tensor]:
    """`state`, once it fits; a head that is not used need not."""
    wanted = teacher.state_dict()
    problem = mismatch(wanted, state)
    if not problem:
        return state
    changed = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    # trained for other classes: the same keys, and nothing differs but the number of rows of the last layer
    rows = {(len(wanted[name]), len(state[name]), state[name].shape[1:] == wanted[name].shape[1:]) for name in changed}
    if wanted.keys() == state.keys() and len(rows) == 1 and (only := rows.pop())[0] == task.num_classes and only[2]:
        if has_classifier:
            raise UserError(f"teacher.path: {folder}: teacher has {only[1]} classes, data has {task.num_classes}")
        return {**state, **{name: wanted[name] for name in changed}}
    arch = "/".join([part.name, *(str(part.args[key]) for key in ("arch", "variant") if key in part.args)])
    raise UserError(f"teacher.path: {folder}: the weights do not fit its student {arch} for "
                    f"{task.channels}x{task.size}x{task.size} images: {problem}")
