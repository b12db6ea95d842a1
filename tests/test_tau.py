"""Tau: what it does, and that no photo has a say in the tau it is scored with."""

import numpy as np
import pytest

from stages.scoring.tau import adjusted, choose_tau, class_prior, nested


def skewed(photos: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a classifier that is right about two classes, one rare, and shy of it."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(photos) < 0.1, 7, 0)
    evidence = rng.normal(0, 1, photos) + 2 * (labels == 7)
    # Bayes' rule: the log odds are the evidence's likelihood ratio and the prior's.
    odds = np.exp(2 * evidence - 2) * 0.1 / 0.9
    probabilities = np.zeros((photos, 18))
    probabilities[:, 7] = odds / (1 + odds)
    probabilities[:, 0] = 1 - probabilities[:, 7]
    return probabilities, labels


def test_tau_is_a_help_for_rare_classes_by_the_prior() -> None:
    """0.3 to 0.7 with a prior of 0.1 to 0.9: with tau t, 0.3 * 9^t exceeds 0.7 from t = 0.386."""
    probabilities = np.zeros((1, 18))
    probabilities[0, [7, 0]] = 0.3, 0.7
    prior = np.full(18, 1.0)
    prior[[7, 0]] = 0.1, 0.9
    assert [adjusted(probabilities, prior, tau)[0] for tau in (0, 0.38, 0.39)] == [0, 0, 7]


def test_the_prior_is_the_share_of_each_class() -> None:
    prior = class_prior(np.repeat([0, 7], [3000, 1000]))
    assert prior[[0, 7]] == pytest.approx([0.75, 0.25], abs=0.002)
    assert (prior > 0).all()
    assert prior.sum() == pytest.approx(1)


def test_the_best_tau_is_chosen_and_the_smallest_of_equals() -> None:
    probabilities, labels = skewed(4000, 0)
    tau = choose_tau(probabilities, labels)
    assert 0.1 <= tau <= 0.8
    assert choose_tau(np.eye(18)[labels], labels) == 0


def test_each_fold_is_predicted_with_the_tau_of_the_others() -> None:
    probabilities, labels = skewed(3000, 1)
    folds = np.arange(3000) % 3
    predicted = nested(probabilities, labels, folds)
    for fold in range(3):
        here = folds == fold
        tau = choose_tau(probabilities[~here], labels[~here])
        own = adjusted(probabilities[here], class_prior(labels[~here]), tau)
        assert (predicted[here] == own).all()
    upside_down = labels.copy()
    upside_down[folds == 0] = 7 - labels[folds == 0]
    here = folds == 0
    assert (nested(probabilities, upside_down, folds)[here] == predicted[here]).all()
