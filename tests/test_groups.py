"""Scores of groups apart: shares that are right, intervals by person, gaps that show or not."""

import numpy as np
import pandas as pd
import pytest

from stages.photos.labels import attribute_names
from stages.scoring.groups import f1_of_attributes, score_groups
from stages.scoring.metrics import counts_of


def photos(
    people: dict[str, int], right: dict[str, float]
) -> tuple[pd.DataFrame, "pd.Series[str]"]:
    """Seven photos a person, of class 7; so many of a group are right, else the age is wrong."""
    rng = np.random.default_rng(0)
    rows = [
        (f"{group}{person}", group, 7, 7 if rng.uniform() < right[group] else 8)
        for group, count in people.items()
        for person in range(count)
        for _ in range(7)
    ]
    table = pd.DataFrame(rows, columns=["person", "group", "label", "predicted"])
    return table, table["group"]


def test_each_group_has_its_share_of_right_photos() -> None:
    table, group = photos({"a": 40, "b": 20}, {"a": 1.0, "b": 0.0})
    scores, gaps = score_groups(table, group, min_people=10, resamples=200, seed=0)
    assert scores["group"].to_list() == ["a", "b"]
    assert scores["photos"].to_list() == [280, 140]
    assert scores["accuracy"].to_list() == [1, 0]
    assert scores["age"].to_list() == [1, 0]
    assert scores["mask"].to_list() == scores["gender"].to_list() == [1, 1]
    shown = [(gap.answer, gap.best, gap.worst, gap.difference) for gap in gaps if gap.shown]
    assert shown == [("accuracy", "a", "b", 1.0), ("age", "a", "b", 1.0)]


def test_a_group_of_too_few_people_is_named_but_not_scored() -> None:
    table, group = photos({"a": 40, "few": 9}, {"a": 0.8, "few": 0.1})
    scores, gaps = score_groups(table, group, min_people=10, resamples=200, seed=0)
    assert scores["people"].to_list() == [40, 9]
    assert scores["accuracy"].isna().to_list() == [False, True]
    assert gaps == [], "there are no two groups to compare"


def test_a_gap_is_shown_only_where_it_is_more_than_chance() -> None:
    table, group = photos({"a": 100, "b": 100}, {"a": 0.9, "b": 0.6})
    _, (gap, *_) = score_groups(table, group, min_people=10, resamples=1000, seed=0)
    assert gap.shown
    assert gap.low < 0.3 < gap.high
    many = {name: 12 for name in "abcdef"}
    table, group = photos(many, dict.fromkeys(many, 0.7))
    _, (gap, *_) = score_groups(table, group, min_people=10, resamples=1000, seed=0)
    assert not gap.shown, "the widest of 15 pairs of equals"


def test_two_groups_that_are_equal_are_two_groups() -> None:
    table, group = photos({"a": 12, "b": 12}, {"a": 1.0, "b": 1.0})
    _, gaps = score_groups(table, group, min_people=10, resamples=100, seed=0)
    assert {(gap.best, gap.worst, gap.difference, gap.shown) for gap in gaps} == {
        ("a", "b", 0.0, False)
    }


def test_f1_of_each_attribute_s_values() -> None:
    """A photo of an incorrect mask is taken for that of a woman under 30 with a mask worn."""
    table = pd.DataFrame({"person": list("ppqqrs"), "label": [7, 7, 3, 3, 13, 17]})
    table["predicted"] = [7, 3, 3, 3, 13, 17]
    names = attribute_names([30, 60])
    f1 = f1_of_attributes(counts_of(table), names, 100, 0).set_index(["attribute", "value"])
    assert f1.loc["mask", "f1"].to_list() == pytest.approx([4 / 5, 2 / 3, 1])
    assert f1.loc["gender", "f1"].to_list() == pytest.approx([4 / 5, 6 / 7])
    assert f1.loc["age", "f1"].to_list() == pytest.approx([4 / 5, 4 / 5, 1])
    assert f1["photos"].to_list() == [2, 2, 2, 3, 3, 2, 3, 1]
