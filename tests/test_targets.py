"""Targets: class shares from labels and ages."""

from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from face_attributes.errors import UserError
from face_attributes.params import Heads
from face_attributes.training.targets import (
    check_classes,
    main_class,
    make_targets,
    training_edges,
)
from tests.small import train_params

AGES = pd.Series([29, 30, 57, 58, 59, 60, 58])
LABELS = pd.Series([0, 1, 1, 1, 1, 2, 16])


def targets(
    labels: "pd.Series[int]",
    ages: "pd.Series[int]",
    edges: tuple[int, int] = (30, 60),
    heads: Heads = "split",
    softness: float = 0.0,
) -> Tensor:
    changes: dict[str, Any] = {"targets.age_softness": softness}
    return make_targets(labels, ages, edges, heads, train_params(**changes).targets)


@pytest.mark.parametrize(
    ("old_from", "expected"),
    [(60, [0, 1, 1, 1, 1, 2, 16]), (59, [0, 1, 1, 1, 2, 2, 16]), (58, [0, 1, 1, 2, 2, 2, 17])],
)
def test_last_group_can_begin_earlier_in_training(old_from: int, expected: list[int]) -> None:
    shares = targets(LABELS, AGES, training_edges([30, 60], old_from, "split"))
    assert main_class(shares).tolist() == expected
    assert shares.sum() == (shares == 1).sum() == len(AGES), "each photo is in one class"


@pytest.mark.parametrize("old_from", [30, 61])
def test_last_group_begins_within_the_middle_group(old_from: int) -> None:
    with pytest.raises(UserError, match=r"old_from: \d+ must be above 30 and at most 60"):
        training_edges([30, 60], old_from, "split")


def test_heads_for_ages_learn_the_true_edge() -> None:
    assert training_edges([30, 60], 60, "ages") == (30, 60)
    with pytest.raises(UserError, match=r"old_from: 58 must be 60, .* with train.heads: ages"):
        training_edges([30, 60], 58, "ages")


def test_softness_divides_a_person_near_an_edge_between_both_groups() -> None:
    """With 2 years, 59 is 0.25 deviations below the edge at 59.5, 62 is 1.25 above it.

    The normal distribution has 0.4013 above 0.25 and 0.1056 above 1.25; the other edge is far.
    """
    expected = torch.zeros(2, 18)
    expected[0, [1, 2]] = torch.tensor([0.5987, 0.4013])
    expected[1, [16, 17]] = torch.tensor([0.1056, 0.8944])
    shares = targets(pd.Series([1, 17]), pd.Series([59, 62]), softness=2.0)
    torch.testing.assert_close(shares, expected, atol=1e-4, rtol=0)


def test_shares_of_years_follow_those_of_classes() -> None:
    """With 2 years, an age within half a year of itself has 0.1974, a year off 0.1747."""
    labels, ages = pd.Series([1, 2, 0]), pd.Series([59, 120, 0])
    sharp = targets(labels, ages, heads="ages")
    assert sharp.shape == (3, 18 + 121)
    assert sharp.nonzero().tolist() == [[0, 1], [0, 77], [1, 2], [1, 138], [2, 0], [2, 18]]
    years = targets(labels, ages, heads="ages", softness=2.0)[:, 18:]
    near_59 = torch.tensor([0.1747, 0.1974, 0.1747])
    torch.testing.assert_close(years[0, 58:61], near_59, atol=1e-4, rtol=0)
    torch.testing.assert_close(years.sum(dim=1), torch.ones(3))


def test_classes_without_a_training_photo_are_named() -> None:
    check_classes(torch.eye(18), 0)
    some = torch.eye(18)[[label for label in range(18) if label not in (3, 17)]]
    with pytest.raises(UserError, match="fold 2: the training part has no photo of class 3, 17:"):
        check_classes(some, 2)
