"""Logit adjustment by tau, and that no photo influences the tau it is scored with."""

import numpy as np
import pytest

from face_attributes.scoring.logit_adjustment import (
    choose_tau,
    class_prior,
    predict_with_nested_tau,
    predict_with_tau,
)
from face_attributes.scoring.temperature import fit_temperature, scaled_logs


def imbalanced(photos: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities and labels of two classes, 10% of photos in the rare class 7."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(photos) < 0.1, 7, 0)
    evidence = rng.normal(0, 1, photos) + 2 * (labels == 7)
    # Bayes' rule: posterior odds are the likelihood ratio times the prior odds.
    odds = np.exp(2 * evidence - 2) * 0.1 / 0.9
    probabilities = np.zeros((photos, 18))
    probabilities[:, 7] = odds / (1 + odds)
    probabilities[:, 0] = 1 - probabilities[:, 7]
    return probabilities, labels


def test_tau_boosts_rare_classes_by_their_prior() -> None:
    """0.3 to 0.7 with a prior of 0.1 to 0.9: with tau t, 0.3 * 9^t exceeds 0.7 from t = 0.386."""
    probabilities = np.zeros((1, 18))
    probabilities[0, [7, 0]] = 0.3, 0.7
    prior = np.full(18, 1.0)
    prior[[7, 0]] = 0.1, 0.9
    predicted = [predict_with_tau(probabilities, prior, tau)[0] for tau in (0, 0.38, 0.39)]
    assert predicted == [0, 0, 7]


def test_the_prior_is_the_share_of_each_class_and_never_zero() -> None:
    prior = class_prior(np.repeat([0, 7], [3000, 1000]))
    assert prior[[0, 7]] == pytest.approx([0.75, 0.25], abs=0.002)
    assert (prior > 0).all()
    assert prior.sum() == pytest.approx(1)


def test_the_best_tau_is_chosen_and_the_smallest_if_tied() -> None:
    probabilities, labels = imbalanced(4000, 0)
    assert 0.1 <= choose_tau(probabilities, labels) <= 0.8
    assert choose_tau(np.eye(18)[labels], labels) == 0


def test_each_fold_is_predicted_with_the_tau_and_temperature_of_the_other_folds() -> None:
    probabilities, labels = imbalanced(3000, 1)
    folds = np.arange(3000) % 3
    predicted = predict_with_nested_tau(probabilities, labels, folds)
    for fold in range(3):
        held_out = folds == fold
        temperature = fit_temperature(probabilities[~held_out], labels[~held_out])
        calibrated = np.exp(scaled_logs(probabilities, temperature))
        tau = choose_tau(calibrated[~held_out], labels[~held_out])
        prior = class_prior(labels[~held_out])
        expected = predict_with_tau(calibrated[held_out], prior, tau)
        assert (predicted[held_out] == expected).all()
    held_out = folds == 0
    swapped = np.where(held_out, 7 - labels, labels)
    again = predict_with_nested_tau(probabilities, swapped, folds)
    assert (again[held_out] == predicted[held_out]).all(), "own labels have no influence"
