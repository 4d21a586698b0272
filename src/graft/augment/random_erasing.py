"""Random erasing: a rectangle of one colour (Zhong et al. 2020, arXiv:1708.04896)."""

from dataclasses import replace
from typing import Annotated

from graft.augment._boxes import check_range, filled, inside, proposals
from graft.keyed import Draw
from graft.outputs import View


def apply(view: View, draw: Draw, *,
          p: Annotated[float, "[0, 1]", "probability"] = 0.5,
          scale: Annotated[list[float], "(0, 1]", "range of the area, as a part of the image"] = (0.02, 0.33),
          ratio: Annotated[list[float], "> 0", "range of height/width"] = (0.3, 3.3),
          fill: Annotated[list[float], "[0, 1]", "colour, one number or one per channel; give the data set's mean "
                                                 "for zero once normalised"] = (0.5,)) -> View:
    """Fill one rectangle smaller than the image with probability `p`; none if ten tries do not fit.

    Raises `UserError` if `scale` or `ratio` is not a range.
    """
    check_range("random_erasing.scale", scale)
    check_range("random_erasing.ratio", ratio)
    height, width = view.inputs.shape[-2:]
    uniform = draw("random_erasing", 23)
    boxes, found = proposals(uniform[:, 1:], scale, ratio, height, width, (height - 1, width - 1))
    boxes[~(found & (uniform[:, 0] < p))] = 0
    mask = inside(boxes, height, width, view.inputs.device)
    return replace(view, inputs=filled(view.inputs, mask, fill, "random_erasing.fill"))
