"""A run: the out-of-fold predictions of one revision."""

from dataclasses import dataclass
from io import BytesIO

import pandas as pd

from face_attributes.photos.tables import TEXT_COLUMNS
from face_attributes.revisions import read_outputs

PREDICTIONS = "data/aggregate/out_of_fold.csv"
CLASS_TABLE = "data/aggregate/f1_per_class.csv"


@dataclass(frozen=True)
class Run:
    """Name, out-of-fold predictions and names of the 18 classes of a run.

    predictions: person, photo, fold, label, predicted, p0 to p17.
    """

    name: str
    predictions: pd.DataFrame
    classes: list[str]


def read_run(revision: str) -> Run:
    """Read the run of a revision.

    Raises:
        UserError: if the revision does not exist or has no predictions.
    """
    predictions, classes = (
        pd.read_csv(BytesIO(content), dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False)
        for content in read_outputs(revision, [PREDICTIONS, CLASS_TABLE])
    )
    return Run(revision, predictions, classes["class"].to_list())
