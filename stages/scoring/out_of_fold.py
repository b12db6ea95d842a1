"""The folds' results on disk: a folder for each fold of folds.index, none for any other."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.photos.tables import read_stage_table


def fold_folders(results: Path, index: Sequence[int]) -> list[Path]:
    """The folder of each fold in the index, in its order; those of other folds are deleted.

    A fold that folds.index no longer names would otherwise stay behind, and be counted by DVC as
    part of what the stages that read `results` depend on. DVC's cache still has it.
    """
    folders = [results / f"fold{fold}" for fold in index]
    for stale in set(results.glob("fold*")) - set(folders):
        shutil.rmtree(stale)
    return folders


def read_out_of_fold(results: Path, index: Sequence[int]) -> pd.DataFrame:
    """Out-of-fold predictions of all folds: person, photo, fold, label, p0 to p17."""
    tables = [
        read_stage_table(folder / "out_of_fold.csv") for folder in fold_folders(results, index)
    ]
    return pd.concat(tables, ignore_index=True)


def read_fold_metrics(results: Path, index: Sequence[int]) -> list[dict[str, Any]]:
    """Each fold's metrics.json, in the order of the index."""
    return [
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        for folder in fold_folders(results, index)
    ]
