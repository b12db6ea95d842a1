"""Scores from confusion counts, and intervals that resample people."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, f1_score

from stages.photos.labels import CLASSES
from stages.scoring import metrics

LABELS = arrays(np.int64, 40, elements=st.integers(0, CLASSES - 1))


def counts_of(labels: list[int], predicted: list[int]) -> metrics.Counts:
    people = np.zeros(len(labels), dtype=str)
    return metrics.confusion_by_person(np.array(labels), np.array(predicted), people)[0]


def test_macro_f1_by_hand() -> None:
    # Class 0: 2 of 3 found, 1 taken for class 1 (F1 0.8); class 1: 1 of 1, 1 wrong (F1 2/3).
    counts = counts_of([0, 0, 0, 1], [0, 0, 1, 1])
    assert metrics.f1_per_class(counts)[:2] == pytest.approx([0.8, 2 / 3])
    assert metrics.macro_f1(counts) == pytest.approx((0.8 + 2 / 3) / 2)
    assert metrics.accuracy(counts) == pytest.approx(0.75)


def test_mask_gender_and_age_by_hand() -> None:
    # 16 is 2*6 + 1*3 + 1: not worn, female, 30 to 59; 13 is the same for male.
    counts = counts_of([16, 16], [16, 13])
    assert metrics.SCORES["mask_macro_f1"](counts) == pytest.approx(1)
    assert metrics.SCORES["age_macro_f1"](counts) == pytest.approx(1)
    assert metrics.SCORES["gender_macro_f1"](counts) == pytest.approx((2 / 3 + 0) / 2)


@given(LABELS, LABELS)
def test_scores_are_those_of_scikit_learn(labels: metrics.Labels, other: metrics.Labels) -> None:
    counts = counts_of(list(labels), list(other))

    def f1(actual: metrics.Labels, guessed: metrics.Labels) -> float:
        return float(f1_score(actual, guessed, average="macro"))

    assert metrics.accuracy(counts) == pytest.approx(accuracy_score(labels, other))
    assert metrics.macro_f1(counts) == pytest.approx(f1(labels, other))
    for name, part in {
        "mask_macro_f1": lambda label: label // 6,
        "gender_macro_f1": lambda label: label // 3 % 2,
        "age_macro_f1": lambda label: label % 3,
    }.items():
        expected = f1(part(labels), part(other))
        assert metrics.SCORES[name](counts) == pytest.approx(expected), name


def test_a_resample_takes_people_whole() -> None:
    labels, predicted = np.arange(6), np.array([0, 1, 2, 0, 0, 0])
    people = np.array(["a", "a", "b", "b", "c", "c"])
    by_person = metrics.confusion_by_person(labels, predicted, people)
    resampled = metrics.resample_people(by_person, 50, seed=1)
    assert resampled.shape == (50, CLASSES, CLASSES)
    assert (resampled.sum(axis=(1, 2)) == 6).all()
    rows = resampled.sum(axis=2)  # photos of each class: of one person, always the same number
    assert (rows[:, [0, 2, 4]] == rows[:, [1, 3, 5]]).all()


def test_runs_that_are_resampled_together_are_of_the_same_people() -> None:
    counts = [
        metrics.confusion_by_person(np.arange(18), np.arange(18)[::step], np.arange(18))
        for step in (1, -1)
    ]
    together = metrics.resample_people(np.stack(counts, axis=1), 20, seed=2)
    for place, run in enumerate(counts):
        assert (together[:, place] == metrics.resample_people(run, 20, seed=2)).all()


def test_photos_of_the_same_face_make_the_interval_wider() -> None:
    rng = np.random.default_rng(0)
    right_for_person = rng.random(40) < 0.5
    labels = np.tile(np.arange(2), 140)
    predicted = np.where(np.repeat(right_for_person, 7), labels, 1 - labels)
    together = metrics.confusion_by_person(labels, predicted, np.repeat(np.arange(40), 7))
    apart = metrics.confusion_by_person(labels, predicted, np.arange(280))

    def width(by_person: metrics.Counts) -> float:
        low, high = metrics.interval(
            metrics.accuracy(metrics.resample_people(by_person, 1000, seed=0))
        )
        return float(high - low)

    assert width(together) > 1.8 * width(apart)


def test_a_seed_fixes_the_interval() -> None:
    by_person = metrics.confusion_by_person(np.arange(18), np.arange(18), np.arange(18))
    first = metrics.resample_people(by_person, 10, seed=3)
    assert (first == metrics.resample_people(by_person, 10, seed=3)).all()
    assert (first != metrics.resample_people(by_person, 10, seed=4)).any()
