"""A run: the predictions of one revision for people its networks were not trained on."""

from dataclasses import dataclass
from io import BytesIO

import pandas as pd

from face_attributes.photos.tables import PROBABILITIES, TEXT_COLUMNS
from face_attributes.revisions import read_outputs

PREDICTIONS = "data/aggregate/out_of_fold.csv"
HOLDOUT_PREDICTIONS = "data/predict/holdout.csv"
CLASS_TABLE = "data/aggregate/f1_per_class.csv"


@dataclass(frozen=True)
class Run:
    """Name, out-of-fold predictions and names of the 18 classes of a run.

    predictions: person, photo, fold, label, predicted, p0 to p17.
    holdout: the ensemble's predictions of the people in no fold, same columns; None without any.
    """

    name: str
    predictions: pd.DataFrame
    classes: list[str]
    holdout: pd.DataFrame | None = None


def read_run(revision: str) -> Run:
    """Read the run of a revision.

    Raises:
        UserError: if the revision does not exist or has no predictions.
    """
    predictions, classes, *others = (
        pd.read_csv(BytesIO(content), dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False)
        for content in read_outputs(revision, [PREDICTIONS, CLASS_TABLE], [HOLDOUT_PREDICTIONS])
    )
    holdout = None
    if others and len(others[0]):
        predicted = others[0][PROBABILITIES].to_numpy().argmax(axis=1)
        holdout = others[0].assign(predicted=predicted)
    return Run(revision, predictions, classes["class"].to_list(), holdout)
