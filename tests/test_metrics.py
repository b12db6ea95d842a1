"""Scores from confusion counts, and intervals from resampling people."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, f1_score

from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.scoring import metrics

LABELS = arrays(np.int64, 40, elements=st.integers(0, NUM_CLASSES - 1))


def test_macro_f1_by_hand() -> None:
    # Class 0: 2 of 3 found, F1 0.8; class 1: found, with one false positive, F1 2/3.
    counts = metrics.confusion([0, 0, 0, 1], [0, 0, 1, 1])
    assert metrics.f1_per_class(counts)[:2] == pytest.approx([0.8, 2 / 3])
    assert np.isnan(metrics.f1_per_class(counts)[2:]).all()
    assert metrics.macro_f1(counts) == pytest.approx((0.8 + 2 / 3) / 2)
    assert metrics.accuracy(counts) == pytest.approx(0.75)


def test_mask_gender_and_age_scores_by_hand() -> None:
    # 16 is 2*6 + 1*3 + 1: not worn, female, 30 to 59; 13 is the same for male.
    counts = metrics.confusion([16, 16], [16, 13])
    assert metrics.SCORES["mask_macro_f1"](counts) == pytest.approx(1)
    assert metrics.SCORES["age_macro_f1"](counts) == pytest.approx(1)
    assert metrics.SCORES["gender_macro_f1"](counts) == pytest.approx((2 / 3 + 0) / 2)


@settings(max_examples=40)
@given(LABELS, LABELS)
def test_scores_equal_those_of_scikit_learn(
    labels: metrics.Labels, predicted: metrics.Labels
) -> None:
    counts = metrics.confusion(labels, predicted)
    assert metrics.accuracy(counts) == pytest.approx(accuracy_score(labels, predicted))
    for name, value in {
        "macro_f1": lambda label: label,
        "mask_macro_f1": lambda label: label // 6,
        "gender_macro_f1": lambda label: label // 3 % 2,
        "age_macro_f1": lambda label: label % 3,
    }.items():
        expected = f1_score(value(labels), value(predicted), average="macro")
        assert metrics.SCORES[name](counts) == pytest.approx(expected), name


def test_a_resample_draws_people_with_all_their_photos() -> None:
    labels, predicted = np.arange(6), np.array([0, 1, 2, 0, 0, 0])
    people = np.array(["a", "a", "b", "b", "c", "c"])
    by_person = metrics.confusion_by_person(labels, predicted, people)
    resampled = metrics.resample_people(by_person, 50, seed=1)
    assert resampled.shape == (50, NUM_CLASSES, NUM_CLASSES)
    assert (resampled.sum(axis=(1, 2)) == 6).all()
    photos = resampled.sum(axis=2)
    assert (photos[:, [0, 2, 4]] == photos[:, [1, 3, 5]]).all(), "both photos of a person, or none"


def test_runs_are_resampled_with_the_same_people() -> None:
    labels, people = np.arange(18), np.arange(18)
    runs = [metrics.confusion_by_person(labels, labels[::step], people) for step in (1, -1)]
    together = metrics.resample_people(np.stack(runs, axis=1), 20, seed=2)
    for index, run in enumerate(runs):
        assert (together[:, index] == metrics.resample_people(run, 20, seed=2)).all()


def test_photos_of_one_face_widen_the_interval() -> None:
    """40 people with seven photos each, all correct or all wrong, against 280 independent ones."""
    correct = np.random.default_rng(0).random(40) < 0.5
    labels = np.tile(np.arange(2), 140)
    predicted = np.where(np.repeat(correct, 7), labels, 1 - labels)

    def width(people: np.ndarray) -> float:
        by_person = metrics.confusion_by_person(labels, predicted, people)
        low, high = metrics.interval(metrics.accuracy(metrics.resample_people(by_person, 1000)))
        return float(high - low)

    assert width(np.repeat(np.arange(40), 7)) > 1.8 * width(np.arange(280))


def test_the_seed_determines_the_resamples() -> None:
    by_person = metrics.confusion_by_person(np.arange(18), np.arange(18), np.arange(18))
    first, same, other = (metrics.resample_people(by_person, 10, seed) for seed in (3, 3, 4))
    assert (first == same).all()
    assert (first != other).any()
