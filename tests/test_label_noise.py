"""Probabilities that labels are wrong, on cases with results by hand."""

import numpy as np
import pytest

from face_attributes.scoring.label_noise import (
    likeliest_swap,
    ordinal_posterior,
    posterior,
    two_class_posterior,
)


def test_the_posterior_of_clear_evidence_is_bayes_rule() -> None:
    """Of 100 labels the evidence contradicts one, by a factor of e^6."""
    given = np.array([0] * 50 + [1] * 50)
    densities = np.where(np.eye(2)[given] > 0, 0.0, -50.0)
    densities[0] = [-6.0, 0.0]
    probabilities = posterior(densities, given)
    # The error rate of class 0 at the fixed point: prior errors plus this one, over all its labels.
    rate = (50 * 0.02 + probabilities[0, 1]) / 100
    expected = rate / (rate + (1 - rate) * np.exp(-6))
    assert probabilities[0, 1] == pytest.approx(expected, abs=1e-6)
    assert probabilities[1:, 0][given[1:] == 0] == pytest.approx(1)


def test_evidence_counts_the_same_for_both_labels() -> None:
    log_odds = np.array([2.0, 2.5, 1.5, 2.0, -2.0, -2.0, -2.5, -1.5, -2.0, 2.0])
    given = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    probabilities = two_class_posterior(log_odds, given)
    assert probabilities[4, 0] == pytest.approx(probabilities[9, 1])
    assert probabilities[4, 0] > probabilities[0, 0]


def test_ages_are_compared_with_people_of_the_same_age_not_of_the_group() -> None:
    """People of 61 usually look under 60; of 75 only a mislabelled person does."""
    ages = np.repeat([25, 45, 61, 75], 40)
    evidence = np.repeat([0.0, 1.0, 1.1, 2.0], 40) + np.tile(np.linspace(-0.1, 0.1, 40), 4)
    evidence[-1] = 1.0
    probabilities = ordinal_posterior(evidence, ages, np.digitize(ages, [30, 60]))
    assert (probabilities[80:120, 2] > 0.5).all()
    assert probabilities[-1, 2] < 0.1


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_an_age_group_without_people_leaves_the_others_comparable(missing: int) -> None:
    ages = np.repeat([age for group, age in enumerate([25, 45, 75]) if group != missing], 40)
    given = np.digitize(ages, [30, 60])
    evidence = given + np.tile(np.linspace(-0.1, 0.1, 40), 2)
    evidence[-1] = given[0]
    probabilities = ordinal_posterior(evidence, ages, given)
    assert np.isfinite(probabilities).all()
    assert (probabilities[:, missing] == 0).all()
    assert probabilities[-1, given[-1]] < 0.1
    assert (probabilities[np.arange(79), given[:-1]] > 0.5).all()


def test_a_gender_that_nobody_has_is_no_suggestion() -> None:
    given = np.ones(20, dtype=int)
    probabilities = two_class_posterior(np.linspace(-3, 3, 20), given)
    np.testing.assert_array_equal(probabilities, np.tile([0.0, 1.0], (20, 1)))


def test_the_likeliest_swap_is_the_pair_with_most_evidence() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    first, second, log_odds = likeliest_swap(np.log(probabilities), np.array([0, 0, 1]))
    assert (first, second) == (1, 2)
    assert log_odds == pytest.approx(np.log(0.8 / 0.2 * 0.6 / 0.4))
