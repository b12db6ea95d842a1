"""Post-hoc logit adjustment: a boost for rare classes, tuned on out-of-fold predictions.

The predicted class has the largest `log p - tau * log prior` (Menon et al., ICLR 2021). Tau 0 keeps
the network's own prediction; the best macro F1 is often between 0 and 1. Tau is chosen for, and
applied to, calibrated probabilities, so that it means the same for every network.
"""

import numpy as np

from face_attributes.photos.labels import NUM_CLASSES, Labels
from face_attributes.scoring.metrics import Probabilities, confusion, macro_f1
from face_attributes.scoring.temperature import fit_temperature, scaled_logs

TAUS = np.linspace(0, 1.5, 31)


def class_prior(labels: Labels) -> Probabilities:
    """Share of each class (18); a class without photos counts as half a photo."""
    counts = np.maximum(np.bincount(labels, minlength=NUM_CLASSES), 0.5)
    prior: Probabilities = counts / counts.sum()
    return prior


def predict_with_tau(probabilities: Probabilities, prior: Probabilities, tau: float) -> Labels:
    """Predicted classes (N) from probabilities (N x 18)."""
    predicted: Labels = (np.log(probabilities.clip(1e-12)) - tau * np.log(prior)).argmax(axis=1)
    return predicted


def choose_tau(probabilities: Probabilities, labels: Labels) -> float:
    """The tau of `TAUS` with the best macro F1 on these predictions; the smallest if tied."""
    prior = class_prior(labels)
    scores = []
    for tau in TAUS:
        predicted = predict_with_tau(probabilities, prior, tau)
        scores.append(float(macro_f1(confusion(labels, predicted))))
    return float(TAUS[int(np.argmax(scores))])


def predict_with_nested_tau(probabilities: Probabilities, labels: Labels, folds: Labels) -> Labels:
    """Predicted classes (N), those of each fold with the tau that is best on the other folds.

    The score of these predictions is unbiased: no photo influences its own tau or temperature.

    Args:
        probabilities: out of fold, N x 18, uncalibrated; each tau is for calibrated ones.
        labels: the true classes (N).
        folds: the fold of each photo (N).
    """
    predicted = np.empty_like(labels)
    for fold in np.unique(folds):
        held_out = folds == fold
        temperature = fit_temperature(probabilities[~held_out], labels[~held_out])
        calibrated = np.exp(scaled_logs(probabilities, temperature))
        tau = choose_tau(calibrated[~held_out], labels[~held_out])
        prior = class_prior(labels[~held_out])
        predicted[held_out] = predict_with_tau(calibrated[held_out], prior, tau)
    return predicted
