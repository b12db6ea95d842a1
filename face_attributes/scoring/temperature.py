"""Temperature scaling: one number that makes a network as confident as it is accurate.

Probabilities become proportional to `p ** (1 / T)` (Guo et al., ICML 2017): T above 1 lowers the
confidence, T below 1 raises it, as label smoothing needs. The predicted class stays the same.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from face_attributes.photos.labels import Labels
from face_attributes.scoring.metrics import Probabilities

BOUNDS = (0.2, 5.0)
"""Smallest and largest temperature. If all photos are predicted correctly, T would fall to 0."""

PARTS = 5
"""Parts of a fold's people, each scaled by the temperature of the others."""

Logs = NDArray[np.float64]


def scaled_logs(probabilities: Probabilities, temperature: float) -> Logs:
    """Logarithms of the probabilities (N x C) at this temperature."""
    logs = np.log(np.asarray(probabilities, dtype=float).clip(1e-12)) / temperature
    normalised: Logs = logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)
    return normalised


def fit_temperature(probabilities: Probabilities, labels: Labels) -> float:
    """The temperature within `BOUNDS` with the lowest mean negative log-likelihood.

    Args:
        probabilities: N x C, at temperature 1, of photos that the network was not trained on.
        labels: the true classes (N).
    """
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(scaled_logs(probabilities, np.exp(log_temperature))[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded").x))


def scale_cross_fitted(
    probabilities: Probabilities, labels: Labels, folds: Labels, people: NDArray[Any]
) -> Probabilities:
    """Scale each photo by the temperature that fits other people of its fold.

    As the network of a fold gets its own temperature from the photos of its fold, but no person
    influences their own: the people of a fold are in PARTS parts, and each part is scaled by the
    temperature of the others. A fold of one person stays as it is.

    Args:
        probabilities: out of fold, N x C, at temperature 1.
        labels: the true classes (N).
        folds: the fold of each photo (N).
        people: the person of each photo (N).
    """
    scaled = np.array(probabilities, dtype=float)
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        parts = np.unique(people[rows], return_inverse=True)[1] % PARTS
        for part in np.unique(parts):
            own, others = rows[parts == part], rows[parts != part]
            if len(others):
                temperature = fit_temperature(probabilities[others], labels[others])
                scaled[own] = np.exp(scaled_logs(probabilities[own], temperature))
    return scaled
