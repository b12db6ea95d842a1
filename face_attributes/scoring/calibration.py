"""Calibration: whether predictions made with 80% confidence are correct 80% of the time."""

import numpy as np
import pandas as pd

from face_attributes.photos.labels import Labels
from face_attributes.scoring.metrics import Probabilities

BINS = 10
"""Bins of equal width from 0 to 1."""


def calibration_table(
    probabilities: Probabilities, labels: Labels, bins: int = BINS
) -> pd.DataFrame:
    """Accuracy of the predicted class by its confidence.

    Args:
        probabilities: N x C.
        labels: the true classes (N).
        bins: number of bins of equal width from 0 to 1; empty bins are left out.

    Returns:
        One row per bin: low and high (its edges), photos, confidence (mean), accuracy.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_index = np.minimum((confidence * bins).astype(int), bins - 1)
    table = pd.DataFrame(
        {"bin": bin_index, "confidence": confidence, "accuracy": correct.astype(float)}
    )
    grouped = table.groupby("bin").agg(
        photos=("confidence", "size"), confidence=("confidence", "mean"),
        accuracy=("accuracy", "mean"),
    )  # fmt: skip
    grouped.insert(0, "low", grouped.index / bins)
    grouped.insert(1, "high", (grouped.index + 1) / bins)
    return grouped.reset_index(drop=True)


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Mean gap between confidence and accuracy over the bins, weighted by their photos.

    Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017.

    Args:
        table: from `calibration_table`.
    """
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gaps, weights=table["photos"]))
