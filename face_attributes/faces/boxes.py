"""Face boxes: substitutes for faces that were not detected, and the square to crop.

Boxes are relative: (left, top, width, height) as shares of the photo's width and height, so that
medians make sense across photo sizes.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
BOX = ["left", "top", "width", "height"]
"""The columns of a box in tables."""

Way = Literal["detected", "turned_90", "turned_180", "turned_270", "person", "all", "centre"]
"""How a box was found: detected, detected in the photo turned clockwise by so many degrees, median
of the person, median of all, or the whole photo."""

DETECTED: dict[int, Way] = {0: "detected", 90: "turned_90", 180: "turned_180", 270: "turned_270"}
"""The way of a detected face, by the turn that makes it upright."""
TURNS: dict[Way, int] = {way: turn for turn, way in DETECTED.items()}

WHOLE_PHOTO = np.array([0.0, 0.0, 1.0, 1.0])


def median_box(boxes: Boxes, turns: Sequence[int] | NDArray[np.int64]) -> Boxes | None:
    """Median of each coordinate over the boxes of upright faces (N x 4, NaN: not detected)."""
    detected = boxes[~np.isnan(boxes).any(axis=1) & (np.asarray(turns) == 0)]
    return np.median(detected, axis=0) if len(detected) else None


def fill_boxes(
    boxes: Boxes, turns: Sequence[int], people: Sequence[str], overall_median: Boxes | None
) -> tuple[Boxes, list[Way]]:
    """Fill missing boxes: with the person's median, else the overall median, else the whole photo.

    Args:
        boxes: N x 4, NaN where no face was detected.
        turns: clockwise turn of each photo that makes its face upright, in degrees.
        people: the person of each photo; "" is unknown and has no median.
        overall_median: median box of the training photos, or None if no face was detected.

    Returns:
        N x 4 without NaN, and how each box was found.
    """
    rows_by_person = defaultdict[str, list[int]](list)
    for row, person in enumerate(people):
        rows_by_person[person].append(row)
    all_turns = np.asarray(turns)
    medians = {
        person: median_box(boxes[rows], all_turns[rows])
        for person, rows in rows_by_person.items()
        if person
    }
    filled, ways = boxes.copy(), list[Way]()
    for row, person in enumerate(people):
        person_median = medians.get(person)
        if not np.isnan(boxes[row]).any():
            ways.append(DETECTED[turns[row]])
        elif person_median is not None:
            filled[row] = person_median
            ways.append("person")
        elif overall_median is not None:
            filled[row] = overall_median
            ways.append("all")
        else:
            filled[row] = WHOLE_PHOTO
            ways.append("centre")
    return filled, ways


def square(box: Boxes, width: int, height: int, margin: float) -> tuple[float, float, float, float]:
    """Compute the square to crop: `margin` times the longer side of the box, around its centre.

    The square stays inside the photo, so that no padding is needed: if too large, it shrinks to
    the photo's shorter side; if it crosses an edge, it moves inside.

    Returns:
        left, top, right, bottom in pixels of a photo of `width` x `height`.
    """
    left, top, box_width, box_height = box * [width, height, width, height]
    side = min(margin * max(box_width, box_height), width, height)
    side = max(side, min(width, height) * 0.05)
    x = float(np.clip(left + box_width / 2 - side / 2, 0, width - side))
    y = float(np.clip(top + box_height / 2 - side / 2, 0, height - side))
    return x, y, x + side, y + side
