"""A run of any revision, read through DVC: of a commit, branch, tag, experiment, the workspace."""

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException

from stages.errors import UserError
from stages.photos.tables import TEXTS
from stages.scoring.comparison import Run

WORKSPACE = "workspace"
PREDICTIONS = "data/aggregate/out_of_fold.csv"
CLASSES = "data/aggregate/f1_per_class.csv"


def read_run(revision: str) -> Run:
    """The out-of-fold predictions of a revision, and what its classes are called.

    Raises:
        UserError: if there is no such revision, or it has no predictions.
    """
    if not revision:
        raise UserError("a revision is empty: name one, or leave it out")
    tables = []
    try:
        files = dvc.api.DVCFileSystem(rev=None if revision == WORKSPACE else revision)
        for path in (PREDICTIONS, CLASSES):
            with files.open(path) as file:
                types = dict.fromkeys(TEXTS, str)
                tables.append(pd.read_csv(file, dtype=types, keep_default_na=False))
    except FileNotFoundError:
        how = "`dvc repro` makes it"
        if revision != WORKSPACE:
            how = (
                "name a revision whose dvc.lock was committed after `dvc repro`, and whose results "
                "DVC still has (`dvc fetch --all-commits` gets those of a remote)"
            )
        raise UserError(f"{revision} has no {path}: {how}") from None
    except DvcException as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"revision {revision!r} cannot be read ({why}): name a commit, branch, tag, "
            f"{WORKSPACE} or an experiment, as `dvc exp list --all-commits` lists them"
        ) from None
    return Run(revision, tables[0], tables[1]["class"].to_list())
