"""Results of the folds on disk, one folder per fold in folds.index."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from face_attributes.photos.tables import PROBABILITIES, read_stage_table
from face_attributes.scoring.metrics import Probabilities
from face_attributes.scoring.temperature import scale_cross_fitted


def fold_folders(results: Path, index: Sequence[int]) -> list[Path]:
    """Folder of each fold, in the order of the index."""
    return [results / f"fold{fold}" for fold in index]


def remove_stale_folds(results: Path, index: Sequence[int]) -> None:
    """Delete the folders of folds that are no longer in folds.index, such as `fold5`.

    DVC leaves them behind, and hashes them as part of the dependency `results` of later stages. Its
    cache still has them.
    """
    for folder in set(results.glob("fold*")) - set(fold_folders(results, index)):
        if folder.is_dir() and folder.name.removeprefix("fold").isdecimal():
            shutil.rmtree(folder)


def read_out_of_fold(results: Path, index: Sequence[int]) -> pd.DataFrame:
    """Out-of-fold predictions of all folds, uncalibrated: person, photo, fold, label, p0 to p17."""
    tables = [
        read_stage_table(folder / "out_of_fold.csv") for folder in fold_folders(results, index)
    ]
    return pd.concat(tables, ignore_index=True)


def calibrated_probabilities(table: pd.DataFrame) -> Probabilities:
    """Probabilities (N x 18) of out-of-fold photos, calibrated on other people of the same fold.

    Args:
        table: person, fold, label, p0 to p17, from `read_out_of_fold`.
    """
    return scale_cross_fitted(
        table[PROBABILITIES].to_numpy(float),
        table["label"].to_numpy(),
        table["fold"].to_numpy(),
        table["person"].to_numpy(),
    )


def read_fold_metrics(results: Path, index: Sequence[int]) -> list[dict[str, Any]]:
    """Metrics of each fold, from its metrics.json, in the order of the index."""
    return [
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        for folder in fold_folders(results, index)
    ]
