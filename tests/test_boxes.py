"""Boxes: what stands in where no face was found, and the square that is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.faces.boxes import CENTRE, fill_boxes, median_box, square

A = [0.1, 0.2, 0.3, 0.4]
B = [0.3, 0.2, 0.5, 0.4]
C = [0.8, 0.8, 0.1, 0.1]
LOST = [np.nan] * 4


def test_a_face_not_found_takes_the_median_of_the_persons_other_photos() -> None:
    boxes = np.array([A, LOST, B, C])
    filled, ways = fill_boxes(boxes, ["anna", "anna", "anna", "ben"], median_box(boxes))
    assert ways == ["detected", "person", "detected", "detected"]
    np.testing.assert_allclose(filled[1], [0.2, 0.2, 0.4, 0.4])
    np.testing.assert_array_equal(filled[[0, 2, 3]], boxes[[0, 2, 3]])


def test_a_person_without_any_takes_the_median_of_all() -> None:
    boxes = np.array([A, B, C, LOST])
    filled, ways = fill_boxes(boxes, ["anna", "anna", "ben", "cleo"], median_box(boxes))
    assert ways[3] == "all"
    np.testing.assert_allclose(filled[3], [0.3, 0.2, 0.3, 0.4])


def test_nobodys_photos_share_nothing() -> None:
    filled, ways = fill_boxes(np.array([A, LOST]), ["", ""], np.array(B))
    assert ways == ["detected", "all"]
    np.testing.assert_array_equal(filled[1], B)


def test_without_any_face_it_is_the_middle_of_the_photo() -> None:
    boxes = np.array([LOST, LOST])
    assert median_box(boxes) is None
    filled, ways = fill_boxes(boxes, ["anna", ""], None)
    assert ways == ["centre", "centre"]
    assert square(filled[0], 384, 512, 2.0) == (0, 64, 384, 448)


def test_the_square_is_margin_times_the_longer_side_around_the_faces_centre() -> None:
    left, top, right, bottom = square(np.array([0.4, 0.4, 0.1, 0.2]), 400, 400, 1.5)
    assert (right - left, bottom - top) == pytest.approx((120, 120))
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((180, 200))


shares = st.floats(0, 1)


@given(st.tuples(shares, shares, shares, shares), st.integers(1, 4000), st.integers(1, 4000),
       st.floats(0.01, 50))  # fmt: skip
def test_the_square_is_a_square_inside_the_photo(
    box: tuple[float, ...], width: int, height: int, margin: float
) -> None:
    left, top, right, bottom = square(np.array(box), width, height, margin)
    assert right - left == pytest.approx(bottom - top)
    assert right > left
    slack = 1e-6 * max(width, height)
    assert left >= 0 and top >= 0 and right <= width + slack and bottom <= height + slack


@given(
    st.lists(
        st.one_of(st.none(), st.tuples(shares, shares, shares, shares)), min_size=1, max_size=8
    ),
    st.data(),
)
def test_every_photo_gets_a_box_and_found_ones_stay(
    found: list[tuple[float, ...] | None], data: st.DataObject
) -> None:
    boxes = np.array([LOST if box is None else box for box in found], dtype=float)
    people = data.draw(
        st.lists(st.sampled_from(["", "a", "b"]), min_size=len(boxes), max_size=len(boxes))
    )
    filled, ways = fill_boxes(boxes, people, median_box(boxes))
    assert not np.isnan(filled).any()
    there = ~np.isnan(boxes).any(axis=1)
    np.testing.assert_array_equal(filled[there], boxes[there])
    assert [way == "detected" for way in ways] == there.tolist()
    assert ("centre" in ways) == (not there.any())


def test_the_whole_photo_is_the_last_resort() -> None:
    np.testing.assert_array_equal(CENTRE, [0, 0, 1, 1])
