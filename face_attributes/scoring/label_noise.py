"""Probability that a given label is wrong, from out-of-fold predictions.

The evidence is one number per person (gender, age) or per pair of photos (a swap). For each label
it follows a Student's t distribution around the label's median. The scale is the standard deviation
over all people, mislabelled ones included, which errs on the side of trusting labels.
Expectation-maximisation then estimates the rate of wrong labels per class and the probability that
each label is wrong. All fields share that scale, so a doubtful gender and a doubtful age can be
ranked in one list. The estimated rates play the part of the confident joint in confident learning
(Northcutt et al., JAIR 2021).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.isotonic import IsotonicRegression

from face_attributes.photos.labels import NUM_AGE_GROUPS, Labels

Floats = NDArray[np.float64]

DEGREES_OF_FREEDOM = 8
"""Of Student's t: tails heavier than a normal distribution's."""
PRIOR_ERROR_RATE = 0.02
"""Expected share of wrong labels before any evidence."""
PRIOR_WEIGHT = 50
"""Number of labels that the prior counts for."""
AGE_BANDWIDTH = 4.0
"""Standard deviation, in years, of the kernel that pools people of similar ages."""
ITERATIONS = 200


def posterior(log_densities: Floats, given: Labels) -> Floats:
    """Probability that each label is the true one (N x K), by expectation-maximisation.

    The rates of true labels among those given as each label are estimated along with it.

    Args:
        log_densities: log density of the evidence if the label were 0 .. K - 1 (N x K).
        given: the given labels (N).
    """
    num_labels = log_densities.shape[1]
    prior = np.full((num_labels, num_labels), PRIOR_ERROR_RATE / (num_labels - 1))
    np.fill_diagonal(prior, 1 - PRIOR_ERROR_RATE)
    rates = prior
    for _ in range(ITERATIONS):
        joint = np.log(rates[given]) + log_densities
        probabilities: Floats = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
        counts = PRIOR_WEIGHT * prior
        np.add.at(counts, given, probabilities)
        rates = counts / counts.sum(axis=1, keepdims=True)
    return probabilities


def two_class_posterior(log_odds: Floats, given: Labels) -> Floats:
    """Probability of both labels (N x 2) from each person's mean log-odds for label 1 (N).

    A label that nobody has is never suggested.
    """
    labels_present = np.unique(given)
    medians = np.zeros(2)
    medians[labels_present] = [np.median(log_odds[given == label]) for label in labels_present]
    scale = (log_odds - medians[given]).std()
    densities = np.full((len(given), 2), -np.inf)
    densities[:, labels_present] = student.logpdf(
        log_odds[:, None], DEGREES_OF_FREEDOM, medians[labels_present], scale
    )
    return posterior(densities, given)


def ordinal_posterior(evidence: Floats, ages: Labels, given: Labels) -> Floats:
    """Probability of each age group (N x 3) from apparent and given ages.

    A group without people is never suggested.

    The expected evidence depends on the age in years, not on the group: people of 61 often look
    under 60, which does not make their label doubtful.

    Args:
        evidence: apparent age, as the mean of the group's number (N, 0 to 2).
        ages: given ages in years (N).
        given: the groups of these ages (N).
    """
    years, year_index, count = np.unique(ages, return_inverse=True, return_counts=True)
    order = np.argsort(evidence)
    weights = np.exp(-0.5 * ((years[:, None] - ages[order][None]) / AGE_BANDWIDTH) ** 2)
    past_half = np.cumsum(weights, axis=1) >= weights.sum(axis=1, keepdims=True) / 2
    medians = evidence[order][past_half.argmax(axis=1)]
    expected = IsotonicRegression().fit(years, medians, sample_weight=count).predict(years)
    scale = (evidence - expected[year_index]).std()

    by_year = student.logpdf(evidence[:, None], DEGREES_OF_FREEDOM, expected, scale)
    group = np.array([given[year_index == index][0] for index in range(len(years))])
    densities = np.full((len(ages), NUM_AGE_GROUPS), -np.inf)
    for label in np.unique(given):
        people = count[group == label]
        weighted = by_year[:, group == label] + np.log(people)
        densities[:, label] = np.logaddexp.reduce(weighted, axis=1) - np.log(people.sum())
    rows = np.arange(len(ages))
    densities[rows, given] = by_year[rows, year_index]
    return posterior(densities, given)


def swap_posterior(log_odds: Floats) -> Floats:
    """Probability of a swap (N) from the network's log-odds for it (N), one pair per person."""
    densities = np.stack([np.zeros_like(log_odds), log_odds], axis=1)
    return posterior(densities, np.zeros(len(log_odds), dtype=np.int64))[:, 1]


def likeliest_swap(log_probabilities: Floats, given: Labels) -> tuple[int, int, float]:
    """Indices of the two photos of a person whose labels are most likely swapped, and the log-odds.

    Args:
        log_probabilities: log probabilities of the mask states of each photo (P x K).
        given: mask state of each photo (P); at least two differ.
    """
    pairs = [
        (
            first,
            second,
            float(
                log_probabilities[first, given[second]]
                + log_probabilities[second, given[first]]
                - log_probabilities[first, given[first]]
                - log_probabilities[second, given[second]]
            ),
        )
        for first in range(len(given))
        for second in range(first + 1, len(given))
        if given[first] != given[second]
    ]
    return max(pairs, key=lambda pair: pair[2])
