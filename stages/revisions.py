"""A run of any revision, read through DVC: of a commit, branch, tag, experiment, the workspace."""

import json
import subprocess
from pathlib import Path
from typing import Any

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException

from stages.errors import UserError
from stages.photos.tables import TEXTS
from stages.scoring.comparison import Run

WORKSPACE = "workspace"
PREDICTIONS = "data/aggregate/out_of_fold.csv"
CLASSES = "data/aggregate/f1_per_class.csv"
NAME_ONE = (
    f"name a commit, branch, tag, {WORKSPACE} or an experiment, as `dvc exp list --all-commits` "
    "lists them"
)


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
        raise UserError(f"revision {revision!r} cannot be read ({why}): {NAME_ONE}") from None
    except AttributeError as error:
        if error.name != "tree":  # of the commit that a revision is, where it is one
            raise
        raise UserError(f"revision {revision!r} is no commit: {NAME_ONE}") from None
    return Run(revision, tables[0], tables[1]["class"].to_list())


def read_metrics(revision: str, path: Path) -> dict[str, Any]:
    """A file of metrics that Git has, as it is in a revision; {} where there is none."""
    try:
        content = dvc.api.DVCFileSystem(rev=revision).read_text(path.as_posix(), encoding="utf-8")
    except (DvcException, FileNotFoundError):
        return {}
    metrics: dict[str, Any] = json.loads(content)
    return metrics


def git_state() -> dict[str, Any]:
    """The commit of the workspace, and whether it has changes that are not in it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain") != ""}
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {"commit": "none", "changed": True}
