"""The box around a face: where it comes from when no face was found, and the square cut from it.

Boxes are relative: (left, top, width, height) as shares of the photo's width and height, so that
the median of boxes of differently sized photos means something.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
Way = Literal["detected", "person", "all", "centre"]

CENTRE = np.array([0.0, 0.0, 1.0, 1.0])


def median_box(boxes: Boxes) -> Boxes | None:
    """Median of each side of the boxes found (M x 4, a row of NaN is a face not found)."""
    found = boxes[~np.isnan(boxes).any(axis=1)]
    return np.median(found, axis=0) if len(found) else None


def fill_boxes(
    boxes: Boxes, people: Sequence[str], of_all: Boxes | None
) -> tuple[Boxes, list[Way]]:
    """Give every photo a box: its own, its person's median, the median of all, the whole photo.

    Args:
        boxes: N x 4, NaN where no face was found.
        people: the person of each photo; an empty name is nobody's, and shares with no one.
        of_all: the median box of the training photos, or None if no face was found in any.

    Returns:
        N x 4 without NaN, and for each photo the way its box was found.
    """
    rows_of = defaultdict[str, list[int]](list)
    for row, person in enumerate(people):
        rows_of[person].append(row)
    of_person = {person: median_box(boxes[rows]) for person, rows in rows_of.items() if person}
    filled, ways = boxes.copy(), list[Way]()
    for row, person in enumerate(people):
        median = of_person.get(person)
        if not np.isnan(boxes[row]).any():
            ways.append("detected")
        elif median is not None:
            filled[row] = median
            ways.append("person")
        elif of_all is not None:
            filled[row] = of_all
            ways.append("all")
        else:
            filled[row] = CENTRE
            ways.append("centre")
    return filled, ways


def square(box: Boxes, width: int, height: int, margin: float) -> tuple[float, float, float, float]:
    """The square to cut: `margin` times the longer side of the box, around its centre.

    It never leaves the photo, so that no padding has to be invented: one that is too large
    shrinks to the photo's shorter side, one that reaches over an edge moves inside.

    Returns:
        left, top, right, bottom in pixels of a photo of `width` x `height`.
    """
    left, top, box_width, box_height = box * [width, height, width, height]
    side = min(margin * max(box_width, box_height), width, height)
    side = max(side, min(width, height) * 0.05)
    x = float(np.clip(left + box_width / 2 - side / 2, 0, width - side))
    y = float(np.clip(top + box_height / 2 - side / 2, 0, height - side))
    return x, y, x + side, y + side
