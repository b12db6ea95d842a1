"""What a fold learns from."""

import pandas as pd
import pytest

from stages.errors import UserError
from stages.train import check_classes, labels_to_learn

PEOPLE = pd.DataFrame({"age": [29, 30, 57, 58, 59, 60, 58], "label": [0, 1, 1, 1, 1, 2, 16]})


@pytest.mark.parametrize(
    ("old_from", "expected"),
    [(60, [0, 1, 1, 1, 1, 2, 16]), (59, [0, 1, 1, 1, 2, 2, 16]), (58, [0, 1, 1, 2, 2, 2, 17])],
)
def test_people_may_be_old_a_little_earlier_in_training(old_from: int, expected: list[int]) -> None:
    assert labels_to_learn(PEOPLE, old_from, [30, 60]).to_list() == expected


@pytest.mark.parametrize("old_from", [30, 61])
def test_who_is_old_is_of_the_middle_group_or_the_last(old_from: int) -> None:
    with pytest.raises(UserError, match=r"train.old_from: \d+ must be above 30 and not above 60"):
        labels_to_learn(PEOPLE, old_from, [30, 60])


def test_a_class_with_nothing_to_learn_from_is_named() -> None:
    check_classes(pd.Series(range(18)), 0)
    with pytest.raises(UserError, match="fold 2: the training part has no photo of class 3, 17:"):
        check_classes(pd.Series([label for label in range(18) if label not in (3, 17)]), 2)
