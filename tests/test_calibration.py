"""Calibration against values computed by hand."""

import numpy as np
import pytest

from face_attributes.scoring.calibration import calibration_table, expected_calibration_error


def test_photos_are_binned_by_confidence() -> None:
    probabilities = np.array([[0.95, 0.05], [0.85, 0.15], [0.3, 0.7], [0.25, 0.75]])
    table = calibration_table(probabilities, np.array([0, 1, 1, 1]), bins=5)
    assert list(table) == ["low", "high", "photos", "confidence", "accuracy"]
    assert table.iloc[0].to_list() == pytest.approx([0.6, 0.8, 2, 0.725, 1.0])
    assert table.iloc[1].to_list() == pytest.approx([0.8, 1.0, 2, 0.9, 0.5])
    # (2 * |0.725 - 1| + 2 * |0.9 - 0.5|) / 4
    assert expected_calibration_error(table) == pytest.approx(0.3375)


def test_full_confidence_falls_into_the_last_bin() -> None:
    table = calibration_table(np.eye(2), np.array([0, 1]), bins=10)
    assert table["low"].to_list() == [0.9]
    assert expected_calibration_error(table) == 0


def test_a_calibrated_network_has_no_error() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0.5, 1, 200_000)
    labels = (rng.uniform(size=len(first)) > first).astype(int)
    table = calibration_table(np.stack([first, 1 - first], axis=1), labels)
    assert expected_calibration_error(table) < 0.005
