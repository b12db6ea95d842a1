"""Post-hoc logit adjustment: how much rare classes are helped, tuned on out-of-fold predictions.

The class predicted is the one with the largest `log p - tau log prior` (Menon et al., ICLR 2021).
Tau 0 is the network as it is; macro F1 is often best between 0 and 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.photos.labels import CLASSES, Labels
from stages.scoring.metrics import macro_f1

TAUS = np.linspace(0, 1.5, 31)

Probabilities = NDArray[np.floating[Any]]


def class_prior(labels: Labels) -> Probabilities:
    """Share of each class (18); a class that is not there counts as half a photo."""
    counts = np.maximum(np.bincount(labels, minlength=CLASSES), 0.5)
    prior: Probabilities = counts / counts.sum()
    return prior


def adjusted(probabilities: Probabilities, prior: Probabilities, tau: float) -> Labels:
    """Predicted classes (N) of probabilities (N x 18)."""
    chosen: Labels = (np.log(probabilities.clip(1e-12)) - tau * np.log(prior)).argmax(axis=1)
    return chosen


def choose_tau(probabilities: Probabilities, labels: Labels) -> float:
    """The tau of `TAUS` with the best macro F1 on these predictions; the smallest of equals."""
    prior = class_prior(labels)
    scores = []
    for tau in TAUS:
        counts = np.zeros((CLASSES, CLASSES))
        np.add.at(counts, (labels, adjusted(probabilities, prior, tau)), 1)
        scores.append(float(macro_f1(counts)))
    return float(TAUS[int(np.argmax(scores))])


def nested(probabilities: Probabilities, labels: Labels, folds: Labels) -> Labels:
    """Predicted classes (N), each fold's with the tau that is best on the other folds.

    So the score of these predictions stays honest: no photo has a say in its own tau.
    """
    predicted = np.empty_like(labels)
    for fold in np.unique(folds):
        here = folds == fold
        tau = choose_tau(probabilities[~here], labels[~here])
        predicted[here] = adjusted(probabilities[here], class_prior(labels[~here]), tau)
    return predicted
