"""Temperature scaling: one number that makes a network as confident as it is accurate.

Probabilities become proportional to `p ** (1 / T)` (Guo et al., ICML 2017): T above 1 lowers the
confidence, T below 1 raises it, as label smoothing needs. The predicted class stays the same.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from face_attributes.photos.labels import Labels

BOUNDS = (0.2, 5.0)
"""Smallest and largest temperature. If all photos are predicted correctly, T would fall to 0."""

Probabilities = NDArray[np.floating[Any]]
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


def scale_nested(probabilities: Probabilities, labels: Labels, folds: Labels) -> Probabilities:
    """Scale the probabilities of each fold by the temperature that fits the other folds.

    No photo influences its own temperature, so that the calibration error of the result is honest.

    Args:
        probabilities: out of fold, N x C, at temperature 1.
        labels: the true classes (N).
        folds: the fold of each photo (N).
    """
    scaled = np.empty(np.shape(probabilities))
    for fold in np.unique(folds):
        held_out = folds == fold
        temperature = fit_temperature(probabilities[~held_out], labels[~held_out])
        scaled[held_out] = np.exp(scaled_logs(probabilities[held_out], temperature))
    return scaled
