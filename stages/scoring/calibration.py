"""Calibration: whether a network that is 80% sure is right in 80% of the cases."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.photos.labels import Labels

Probabilities = NDArray[np.float64]


def calibration(probabilities: Probabilities, labels: Labels, bins: int) -> pd.DataFrame:
    """How often the class predicted is right, by how sure the network is of it.

    Args:
        probabilities: N x C.
        labels: the true classes (N).
        bins: bins of equal width from 0 to 1; those without a photo are left out.

    Returns:
        A row a bin: low and high (its edges), photos, confidence (mean), accuracy.
    """
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    table = pd.DataFrame({"bin": place, "confidence": sure, "accuracy": right.astype(float)})
    grouped = table.groupby("bin").agg(
        photos=("confidence", "size"), confidence=("confidence", "mean"),
        accuracy=("accuracy", "mean"),
    )  # fmt: skip
    grouped.insert(0, "low", grouped.index / bins)
    grouped.insert(1, "high", (grouped.index + 1) / bins)
    return grouped.reset_index(drop=True)


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Mean distance of confidence and accuracy over the bins of `calibration`, by photos.

    Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017.
    """
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gaps, weights=table["photos"]))
