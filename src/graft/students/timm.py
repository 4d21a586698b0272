"""Any timm model by name, at the task's image size."""

from typing import Annotated

from graft.students._backbone import Backbone
from graft.students._weights import create, from_file, from_hub, require_arch, size_option
from graft.tasks._task import Task


def build(task: Task, *,
          arch: Annotated[str, "", "timm model name, with or without a tag of its weights"],
          patch: Annotated[int, ">= 0", "patch side in pixels, for architectures that have one; 0: the "
                                        "architecture's own. Pretrained patches are resampled"] = 0,
          drop_path: Annotated[float, "[0, 1)", "stochastic depth of the last block"] = 0.0,
          dropout: Annotated[float, "[0, 1)", "before the classifier"] = 0.0,
          pretrained: Annotated[bool, "", "start from timm's published weights (hub)"] = False,
          checkpoint: Annotated[str, "", "start from a local .safetensors or .pth file instead; empty: none"] = "",
          ) -> Backbone:
    """A timm model with a classifier for the task; one of another size in the weights is replaced by a new one."""
    require_arch(arch, "student.arch")
    chosen = {"patch_size": patch, "drop_path_rate": drop_path, "drop_rate": dropout}
    options = {"in_chans": task.channels, **size_option(arch, task.size), **{k: v for k, v in chosen.items() if v}}
    if checkpoint:
        model = from_file(arch, checkpoint, "student.checkpoint", **options)
        if model.num_classes != task.num_classes:
            model.reset_classifier(task.num_classes)
    elif pretrained:
        model = from_hub(arch, num_classes=task.num_classes, **options)
    else:
        model = create(arch, num_classes=task.num_classes, **options)
    return Backbone(model, mean=task.mean, std=task.std, image_size=task.size)
