"""How likely a given label is wrong: out-of-fold evidence against what is usual for that label.

The evidence is a number for each person (gender, age) or for each pair of photos (a swap). How it
is spread among people of a label is estimated from the data: a Student distribution around the
label's median, with the standard deviation of all (mislabelled people included, which makes it
careful). The share of wrong labels of each class and the probability that a label is wrong follow
by expectation-maximisation, on one scale for all fields, so that a doubtful gender and a doubtful
age can be ranked in one list. The shares play the part of the confident joint in confident learning
(Northcutt et al., JAIR 2021).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.isotonic import IsotonicRegression

from stages.photos.labels import Labels

Floats = NDArray[np.float64]

TAILS = 8
"""Degrees of freedom: tails heavier than a normal distribution's."""
EXPECTED_WRONG = 0.02
"""Share of wrong labels that is expected before any are seen."""
EXPECTED_WEIGHT = 50
"""How many labels that expectation counts for."""
AGE_WIDTH = 4.0
"""Years over which people of nearly the same age are taken together (standard deviation)."""
ITERATIONS = 200


def posterior(log_densities: Floats, given: Labels) -> Floats:
    """Probability of each label (N x K), from how well it would explain the evidence.

    Expectation-maximisation over the shares of each label among those that are given as another.

    Args:
        log_densities: of the evidence if the label were 0 .. K - 1 (N x K).
        given: the labels as they are (N).
    """
    kinds = log_densities.shape[1]
    expected = np.full((kinds, kinds), EXPECTED_WRONG / (kinds - 1))
    np.fill_diagonal(expected, 1 - EXPECTED_WRONG)
    shares = expected
    for _ in range(ITERATIONS):
        joint = np.log(shares[given]) + log_densities
        weights: Floats = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
        counts = EXPECTED_WEIGHT * expected
        np.add.at(counts, given, weights)
        shares = counts / counts.sum(axis=1, keepdims=True)
    return weights


def two_class_posterior(log_odds: Floats, given: Labels) -> Floats:
    """Probability of both labels (N x 2) from a person's mean log-odds for label 1 (N)."""
    centres = np.array([np.median(log_odds[given == label]) for label in (0, 1)])
    spread = (log_odds - centres[given]).std()
    return posterior(student.logpdf(log_odds[:, None], TAILS, centres, spread), given)


def ordinal_posterior(evidence: Floats, ages: Labels, given: Labels) -> Floats:
    """Probability of each age group (N x K), from how old people look and are said to be.

    What is usual follows from the age in years, not from the group: somebody of 61 often looks
    under 60, so that such a label is not doubtful for it.

    Args:
        evidence: how old a person looks: the mean of the group's numbers (N, 0 to K - 1).
        ages: given ages in years (N).
        given: the groups of these ages (N).
    """
    known, place, count = np.unique(ages, return_inverse=True, return_counts=True)
    order = np.argsort(evidence)
    near = np.exp(-0.5 * ((known[:, None] - ages[order][None]) / AGE_WIDTH) ** 2)
    half = np.cumsum(near, axis=1) >= near.sum(axis=1, keepdims=True) / 2
    medians = evidence[order][half.argmax(axis=1)]
    usual = IsotonicRegression().fit(known, medians, sample_weight=count).predict(known)
    spread = (evidence - usual[place]).std()

    of_age = student.logpdf(evidence[:, None], TAILS, usual, spread)
    group = np.array([given[place == index][0] for index in range(len(known))])
    densities = np.stack(
        [
            np.logaddexp.reduce(of_age[:, group == label] + np.log(count[group == label]), axis=1)
            - np.log(count[group == label].sum())
            for label in range(int(given.max()) + 1)
        ],
        axis=1,
    )
    people = np.arange(len(ages))
    densities[people, given] = of_age[people, place]
    return posterior(densities, given)


def swap_posterior(log_odds: Floats) -> Floats:
    """Probability of a swap (N), from its log-odds by the network (N), for the likeliest pairs."""
    densities = np.stack([np.zeros_like(log_odds), log_odds], axis=1)
    return posterior(densities, np.zeros(len(log_odds), dtype=np.int64))[:, 1]


def likeliest_swap(log_probabilities: Floats, given: Labels) -> tuple[int, int, float]:
    """Places of the two photos of a person that look most like each other's label; the log-odds.

    Args:
        log_probabilities: of the mask states of each photo (P x K).
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
