"""label = mask*6 + gender*3 + age group."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from face_attributes.photos.labels import (
    GENDERS,
    MASKS,
    MAX_AGE,
    NUM_CLASSES,
    age_group,
    attribute_names,
    class_names,
    encode,
)

EDGES = [30, 60]


@pytest.mark.parametrize(("age", "group"), [(0, 0), (29, 0), (30, 1), (59, 1), (60, 2), (120, 2)])
def test_an_edge_belongs_to_the_older_group(age: int, group: int) -> None:
    assert age_group(age, EDGES) == group


@pytest.mark.parametrize(
    ("mask", "gender", "age", "label"),
    [
        ("worn", "male", 29, 0),
        ("worn", "female", 45, 4),
        ("incorrect", "male", 60, 8),
        ("not_worn", "female", 60, 17),
    ],
)
def test_labels_match_the_competition(mask: str, gender: str, age: int, label: int) -> None:
    assert encode(mask, gender, age, EDGES) == label


@given(
    st.sampled_from(MASKS),
    st.sampled_from(GENDERS),
    st.integers(0, MAX_AGE),
    st.lists(st.integers(1, MAX_AGE), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_a_label_is_mask_times_6_plus_gender_times_3_plus_age_group(
    mask: str, gender: str, age: int, edges: list[int]
) -> None:
    label = encode(mask, gender, age, edges)
    assert 0 <= label < NUM_CLASSES
    assert label // 6 == MASKS.index(mask)
    assert label // 3 % 2 == GENDERS.index(gender)
    assert label % 3 == sum(age >= edge for edge in edges)


def test_class_names_are_in_the_order_of_labels() -> None:
    names = class_names([25, 50])
    assert len(set(names)) == NUM_CLASSES
    assert names[encode("incorrect", "female", 25, [25, 50])] == "incorrect, female, 25 to 49"
    assert attribute_names([25, 50])["age"] == ["under 25", "25 to 49", "50 and over"]
