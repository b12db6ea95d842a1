"""Face boxes: substitutes for missing boxes, and the square to crop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from face_attributes.faces.boxes import fill_boxes, median_box, square

A = [0.1, 0.2, 0.3, 0.4]
B = [0.3, 0.2, 0.5, 0.4]
C = [0.8, 0.8, 0.1, 0.1]
MISSING = [np.nan] * 4


def test_a_missing_box_becomes_the_median_of_the_person() -> None:
    boxes = np.array([A, MISSING, B, C])
    filled, ways = fill_boxes(
        boxes, [0] * 4, ["anna", "anna", "anna", "ben"], median_box(boxes, [0] * 4)
    )
    assert ways == ["detected", "person", "detected", "detected"]
    np.testing.assert_allclose(filled[1], [0.2, 0.2, 0.4, 0.4])
    np.testing.assert_array_equal(filled[[0, 2, 3]], boxes[[0, 2, 3]])


def test_without_any_box_of_the_person_it_becomes_the_median_of_all() -> None:
    boxes = np.array([A, B, C, MISSING])
    filled, ways = fill_boxes(
        boxes, [0] * 4, ["anna", "anna", "ben", "cleo"], median_box(boxes, [0] * 4)
    )
    assert ways[3] == "all"
    np.testing.assert_allclose(filled[3], [0.3, 0.2, 0.3, 0.4])


def test_boxes_in_turned_photos_are_kept_and_count_in_no_median() -> None:
    boxes, turns = np.array([A, MISSING, B]), [0, 0, 90]
    filled, ways = fill_boxes(boxes, turns, ["anna"] * 3, median_box(boxes, turns))
    assert ways == ["detected", "person", "turned_90"]
    np.testing.assert_array_equal(filled, [A, A, B])


def test_photos_of_unknown_people_share_no_median() -> None:
    filled, ways = fill_boxes(np.array([A, MISSING]), [0, 0], ["", ""], np.array(B))
    assert ways == ["detected", "all"]
    np.testing.assert_array_equal(filled[1], B)


def test_without_any_box_it_becomes_the_whole_photo_whose_crop_is_the_middle() -> None:
    boxes = np.array([MISSING, MISSING])
    assert median_box(boxes, [0, 0]) is None
    filled, ways = fill_boxes(boxes, [0, 0], ["anna", ""], None)
    assert ways == ["centre", "centre"]
    np.testing.assert_array_equal(filled, [[0, 0, 1, 1]] * 2)
    assert square(filled[0], 384, 512, 2.0) == (0, 64, 384, 448)


def test_the_square_is_margin_times_the_longer_side_around_the_centre_of_the_box() -> None:
    left, top, right, bottom = square(np.array([0.4, 0.4, 0.1, 0.2]), 400, 400, 1.5)
    assert (right - left, bottom - top) == pytest.approx((120, 120))
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((180, 200))


shares = st.floats(0, 1)


@given(st.tuples(shares, shares, shares, shares), st.integers(1, 4000), st.integers(1, 4000),
       st.floats(0.01, 50))  # fmt: skip
def test_the_square_is_inside_the_photo(
    box: tuple[float, ...], width: int, height: int, margin: float
) -> None:
    left, top, right, bottom = square(np.array(box), width, height, margin)
    assert right - left == pytest.approx(bottom - top)
    assert right > left
    tolerance = 1e-6 * max(width, height)
    assert left >= 0 and top >= 0 and right <= width + tolerance and bottom <= height + tolerance


@given(
    st.lists(
        st.one_of(st.none(), st.tuples(shares, shares, shares, shares)), min_size=1, max_size=8
    ),
    st.data(),
)
def test_every_photo_gets_a_box_and_detected_boxes_stay(
    detected: list[tuple[float, ...] | None], data: st.DataObject
) -> None:
    boxes = np.array([MISSING if box is None else box for box in detected], dtype=float)
    people = data.draw(
        st.lists(st.sampled_from(["", "a", "b"]), min_size=len(boxes), max_size=len(boxes))
    )
    turns = [0] * len(boxes)
    filled, ways = fill_boxes(boxes, turns, people, median_box(boxes, turns))
    assert not np.isnan(filled).any()
    present = ~np.isnan(boxes).any(axis=1)
    np.testing.assert_array_equal(filled[present], boxes[present])
    assert [way == "detected" for way in ways] == present.tolist()
    assert ("centre" in ways) == (not present.any())
