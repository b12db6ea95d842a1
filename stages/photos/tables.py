"""Reading tables that people and stages wrote, with errors that name file, row and column."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import UserError
from stages.photos.labels import CLASSES

PROBABILITIES = [f"p{label}" for label in range(CLASSES)]
FIRST_ROW = 2
"""Line of a table's first row, as a text editor counts: the header is line 1."""


def read_text_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV in which every cell is text; spaces around cells and a byte-order mark go.

    Args:
        columns: those that must be there; others are kept.

    Raises:
        UserError: if the file is missing, empty, no table, or lacks a column.
    """
    try:
        table = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False
        )
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: put it there, or change its path in params.yaml"
        ) from None
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty: its first line must name {', '.join(columns)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8: save it as UTF-8") from None
    except pd.errors.ParserError as error:
        raise UserError(f"{path} is no table: {str(error).strip()}") from None
    table.columns = table.columns.str.strip()
    for column in columns:
        if column not in table.columns:
            raise UserError(f"{path} has no column {column!r}; it has {', '.join(table.columns)}")
    for column in list(table.columns):
        table[column] = table[column].fillna("").str.strip()
    return table.loc[(table != "").any(axis=1)]


def read_stage_table(path: Path) -> pd.DataFrame:
    """Read a table that another stage wrote; names are text, even where they look like numbers.

    Raises:
        UserError: if it is not there.
    """
    names = dict.fromkeys(["person", "photo", "path", "rejected"], str)
    try:
        return pd.read_csv(path, dtype=names, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `dvc repro` makes it") from None


def row_of(index: object) -> int:
    """Line of a table's file, as an editor counts, of a row of `read_text_table`."""
    assert isinstance(index, int)
    return index + FIRST_ROW


def probability_table(rows: pd.DataFrame, probabilities: NDArray[np.float32]) -> pd.DataFrame:
    """`rows` with their class probabilities (N x 18) as columns p0 to p17."""
    columns = pd.DataFrame(probabilities, columns=PROBABILITIES, index=rows.index)
    return pd.concat([rows, columns], axis=1)
