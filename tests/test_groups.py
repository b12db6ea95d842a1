"""Scores by group: accuracy with intervals over people, and gaps that are significant or not."""

import numpy as np
import pandas as pd
import pytest

from face_attributes.photos.labels import attribute_names
from face_attributes.scoring.groups import Gap, f1_per_attribute, score_groups
from face_attributes.scoring.metrics import counts_by_person


def scored(
    people: dict[str, int], accuracy: dict[str, float], resamples: int = 200
) -> tuple[pd.DataFrame, list[Gap]]:
    """Score groups of people with seven photos of class 7; errors are in the age group alone."""
    rng = np.random.default_rng(0)
    rows = [
        (f"{group}{person}", group, 7, 7 if rng.uniform() < accuracy[group] else 8)
        for group, count in people.items()
        for person in range(count)
        for _ in range(7)
    ]
    table = pd.DataFrame(rows, columns=["person", "group", "label", "predicted"])
    return score_groups(table, table["group"], min_people=10, resamples=resamples)


def test_each_group_has_its_accuracy() -> None:
    scores, gaps = scored({"a": 20, "b": 40}, {"a": 0.0, "b": 1.0})
    assert scores["group"].to_list() == ["b", "a"], "the largest first"
    assert scores["photos"].to_list() == [280, 140]
    assert scores["accuracy"].to_list() == scores["age"].to_list() == [1, 0]
    assert scores["mask"].to_list() == scores["gender"].to_list() == [1, 1]
    assert [gap[:4] for gap in gaps if gap.significant] == [
        ("accuracy", "b", "a", 1.0),
        ("age", "b", "a", 1.0),
    ]


def test_a_group_of_too_few_people_is_listed_without_scores() -> None:
    scores, gaps = scored({"a": 40, "few": 9}, {"a": 0.8, "few": 0.1})
    assert scores["people"].to_list() == [40, 9]
    assert scores["accuracy"].isna().to_list() == [False, True]
    assert gaps == [], "one group with scores has no gap"


def test_a_gap_is_significant_only_beyond_chance() -> None:
    _, (gap, *_) = scored({"a": 100, "b": 100}, {"a": 0.9, "b": 0.6}, resamples=1000)
    assert gap.significant
    assert gap.low < 0.3 < gap.high
    groups = "abcdef"
    _, (gap, *_) = scored(dict.fromkeys(groups, 12), dict.fromkeys(groups, 0.7), resamples=1000)
    assert not gap.significant, "the widest of 15 gaps between equal groups"


def test_equal_groups_have_a_gap_of_zero_between_two_groups() -> None:
    _, gaps = scored({"a": 12, "b": 12}, {"a": 1.0, "b": 1.0})
    assert {(gap.best, gap.worst, gap.difference, gap.significant) for gap in gaps} == {
        ("a", "b", 0.0, False)
    }


def test_f1_of_each_attribute_value_by_hand() -> None:
    """A photo of a man aged 30 to 59, mask incorrect, is predicted as a young woman, mask worn."""
    table = pd.DataFrame({"person": list("ppqqrs"), "label": [7, 7, 3, 3, 13, 17]})
    table["predicted"] = [7, 3, 3, 3, 13, 17]
    f1 = f1_per_attribute(counts_by_person(table), attribute_names([30, 60]), resamples=100)
    assert f1["f1"].to_list() == pytest.approx([4 / 5, 2 / 3, 1, 4 / 5, 6 / 7, 4 / 5, 4 / 5, 1])
    assert f1["attribute"].to_list() == ["mask"] * 3 + ["gender"] * 2 + ["age"] * 3
    assert f1["photos"].to_list() == [2, 2, 2, 3, 3, 2, 3, 1]
