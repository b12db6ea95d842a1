"""Boxes and captions drawn on a copy of a photo."""

import numpy as np
import pytest
from PIL import Image

from face_attributes.faces.marking import mark


@pytest.mark.parametrize("background", ["black", "white", "grey"])
def test_captions_are_white_on_black_inside_the_photo_and_do_not_overlap(background: str) -> None:
    boxes, captions = [(0, 0, 60, 90), (30, 20, 70, 79)], ["worn 93%\nmale 60%", "not worn"]
    photo = Image.new("RGB", (100, 100), background)
    bare = np.asarray(mark(photo, boxes, ["", ""])).astype(int)
    assert bare.shape == (480, 480, 3), "small photos are enlarged"
    with_both = np.asarray(mark(photo, boxes, captions))
    with_first = np.asarray(mark(photo, boxes, [captions[0], ""]))
    changed_by_both, first = ((each != bare).any(axis=2) for each in (with_both, with_first))
    second = changed_by_both & ~first
    for caption in (first, second):
        assert caption.sum() > 300
        rows, columns = (np.flatnonzero(caption.any(axis=axis)) for axis in (1, 0))
        area = with_both[rows[0] : rows[-1], columns[0] : columns[-1]]
        assert (area.min(), area.max()) == (0, 255)


@pytest.mark.parametrize("size", [(1, 1600), (2, 1500), (1600, 1), (1, 1), (3, 65_500)])
def test_the_narrowest_photos_can_be_drawn_on(size: tuple[int, int]) -> None:
    photo = Image.new("RGB", size)
    for box in [(0, 0, *size), (0, 0, 0, 0)]:
        assert mark(photo, [box], ["mask worn: 93%\nmale: 60%"]).width >= size[0]
