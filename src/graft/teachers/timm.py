"""Any timm model with published or local weights, frozen."""

from typing import Annotated

import timm

from graft import keyed
from graft.errors import UserError
from graft.students._backbone import Backbone
from graft.students._weights import from_file, from_hub, require_arch, size_option
from graft.tasks._task import Task
from graft.teachers._freeze import freeze, isolated


def build(task: Task, *,
          arch: Annotated[str, "", "timm model name, with or without a tag of its weights"],
          checkpoint: Annotated[str, "", "local .safetensors or .pth file; empty: timm's published weights (hub)"] = "",
          size: Annotated[int, ">= 0", "side in pixels that images are resized to; 0: that of the weights"] = 0,
          classifier: Annotated[bool, "", "use its logits; false: its features only"] = True,
          random_weights: Annotated[bool, "", "negative control: the architecture, never trained"] = False,
          init_seed: Annotated[int, ">= 0", "random_weights: which initialisation"] = 0) -> Backbone:
    """The model as it was published: its own normalisation and input size; grey images are repeated to RGB.

    Raises UserError if its classifier is for another number of classes.
    """
    require_arch(arch, "teacher.arch")
    published = timm.get_pretrained_cfg(arch)
    size = size or published.input_size[-1]
    options = size_option(arch, size)

    def make():
        if random_weights:
            return timm.create_model(arch, num_classes=task.num_classes, **options)
        return from_file(arch, checkpoint, "teacher.checkpoint", **options) if checkpoint else from_hub(arch, **options)

    model = isolated(make, keyed.key(init_seed, "teacher", arch))
    if classifier and model.num_classes != task.num_classes:
        raise UserError(f"teacher.arch: teacher {arch} has {model.num_classes} classes, data has {task.num_classes}; "
                        "classifier: false uses its features only")
    return freeze(Backbone(model, mean=published.mean, std=published.std, image_size=task.size, size=size,
                           classifier=classifier))
