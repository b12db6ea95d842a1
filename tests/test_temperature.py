"""Temperature scaling on probabilities whose right temperature is known."""

import numpy as np
import pytest

from face_attributes.scoring.calibration import calibration_table, expected_calibration_error
from face_attributes.scoring.temperature import (
    BOUNDS,
    Probabilities,
    fit_temperature,
    scale_cross_fitted,
    scaled_logs,
)


def drawn_labels(photos: int, temperature: float) -> tuple[Probabilities, np.ndarray]:
    """Probabilities (photos x 18) and labels for which this temperature is right."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (photos, 18))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((photos, 1)) > true.cumsum(axis=1)).sum(axis=1)
    return np.exp(scaled_logs(true, 1 / temperature)), labels


def test_probabilities_at_a_temperature_are_a_normalised_power() -> None:
    scaled = np.exp(scaled_logs(np.array([[0.8, 0.2]]), 0.5))
    assert scaled == pytest.approx(np.array([[0.64, 0.04]]) / 0.68)
    assert np.isfinite(scaled_logs(np.array([[1.0, 0.0]]), BOUNDS[0])).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_over_and_underconfident_probabilities_become_calibrated(temperature: float) -> None:
    probabilities, labels = drawn_labels(20_000, temperature)
    fitted = fit_temperature(probabilities, labels)
    assert fitted == pytest.approx(temperature, rel=0.03)
    scaled = np.exp(scaled_logs(probabilities, fitted))
    assert (scaled.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert scaled.sum(axis=1) == pytest.approx(1)
    assert expected_calibration_error(calibration_table(scaled, labels)) < 0.015


@pytest.mark.parametrize(
    ("labels", "bound"), [([0, 0, 0], BOUNDS[0]), ([1, 1, 1], BOUNDS[1])], ids=["right", "wrong"]
)
def test_a_fold_of_a_few_photos_stays_within_the_bounds(labels: list[int], bound: float) -> None:
    probabilities = np.full((3, 18), 0.2 / 17)
    probabilities[:, 0] = 0.8
    assert fit_temperature(probabilities, np.array(labels)) == pytest.approx(bound, rel=1e-3)


def test_each_photo_is_scaled_by_the_temperature_of_other_people_of_its_fold() -> None:
    probabilities, labels = drawn_labels(600, 2.0)
    folds, people = np.arange(600) % 3, np.arange(600) // 12
    scaled = scale_cross_fitted(probabilities, labels, folds, people)
    assert (scaled.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    own = people == 7
    flipped = np.where(own, 17 - labels, labels)
    again = scale_cross_fitted(probabilities, flipped, folds, people)
    assert (again[own] == scaled[own]).all(), "own labels have no influence"
    assert (again[~own] != scaled[~own]).any(), "those of other people do"
    flipped = np.where(folds == 1, 17 - labels, labels)
    again = scale_cross_fitted(probabilities, flipped, folds, people)
    assert (again[folds != 1] == scaled[folds != 1]).all(), "other folds have no influence"


def test_a_fold_of_one_person_stays_as_it_is() -> None:
    probabilities, labels = drawn_labels(20, 2.0)
    folds, people = np.arange(20) % 2, np.arange(20) % 2
    assert (scale_cross_fitted(probabilities, labels, folds, people) == probabilities).all()
