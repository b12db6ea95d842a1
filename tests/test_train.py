"""What a fold learns from."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from stages.errors import UserError
from stages.params import TrainParams, read_params
from stages.train import (
    check_classes,
    check_together,
    labels_to_learn,
    photos_of,
    targets_to_learn,
)

PEOPLE = pd.DataFrame({"age": [29, 30, 57, 58, 59, 60, 58], "label": [0, 1, 1, 1, 1, 2, 16]})


def test_a_fold_that_is_not_there_is_named_with_those_that_are() -> None:
    table = pd.DataFrame({"fold": [1, 0, 1, 2]})
    assert photos_of(table, 1).to_list() == [True, False, True, False]
    with pytest.raises(UserError, match="there is no fold 7: the folds are 0, 1, 2"):
        photos_of(table, 7)


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


@pytest.fixture
def knobs() -> TrainParams:
    return read_params(Path(__file__).parents[1] / "params.yaml").train


def test_a_person_near_an_edge_is_partly_of_both_groups(knobs: TrainParams) -> None:
    """With 2 years, 59 is 0.25 deviations below the edge at 59.5, 62 is 1.25 above it.

    The normal distribution has 0.4013 above 0.25 and 0.1056 above 1.25; the other edge is far.
    """
    labels, ages = pd.Series([1, 17]), pd.Series([59, 62])
    soft = knobs.model_copy(update={"heads": "split", "age_softness": 2.0})
    targets = targets_to_learn(labels, ages, [30, 60], soft)
    expected = torch.zeros(2, 18)
    expected[0, [1, 2]] = torch.tensor([0.5987, 0.4013])
    expected[1, [16, 17]] = torch.tensor([0.1056, 0.8944])
    torch.testing.assert_close(targets, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("old_from", [60, 58])
def test_without_softness_a_person_is_of_one_group(knobs: TrainParams, old_from: int) -> None:
    hard = knobs.model_copy(update={"heads": "split", "age_softness": 0.0})
    targets = targets_to_learn(PEOPLE["label"], PEOPLE["age"], [30, old_from], hard)
    expected = labels_to_learn(PEOPLE, old_from, [30, 60])
    assert targets.nonzero()[:, 1].tolist() == expected.to_list()
    assert targets.sum() == len(PEOPLE)


def test_ages_in_years_come_after_the_classes(knobs: TrainParams) -> None:
    """With 2 years, an age is within half a year of itself with 0.1974, a year off with 0.1747."""
    labels, ages = pd.Series([1, 2, 0]), pd.Series([59, 120, 0])
    sharp = knobs.model_copy(update={"heads": "ages", "age_softness": 0.0})
    targets = targets_to_learn(labels, ages, [30, 60], sharp)
    assert targets.shape == (3, 18 + 121)
    assert targets.nonzero().tolist() == [[0, 1], [0, 77], [1, 2], [1, 138], [2, 0], [2, 18]]
    soft = sharp.model_copy(update={"age_softness": 2.0})
    years = targets_to_learn(labels, ages, [30, 60], soft)[:, 18:]
    torch.testing.assert_close(
        years[0, 58:61], torch.tensor([0.1747, 0.1974, 0.1747]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(years.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": "ages", "loss": "focal"}, "train.loss: focal weighs classes"),
        ({"mix": "cutmix", "cached_views": 4}, "train.mix: cutmix mixes other photos"),
    ],
)
def test_knobs_that_do_not_go_together_are_named(
    knobs: TrainParams, changes: dict[str, object], message: str
) -> None:
    check_together(knobs)
    with pytest.raises(UserError, match=message):
        check_together(knobs.model_copy(update=changes))


def test_a_class_with_nothing_to_learn_from_is_named() -> None:
    check_classes(pd.Series(range(18)), 0)
    with pytest.raises(UserError, match="fold 2: the training part has no photo of class 3, 17:"):
        check_classes(pd.Series([label for label in range(18) if label not in (3, 17)]), 2)
