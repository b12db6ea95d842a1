"""Reading tables that people and stages wrote, with errors that name file, row and column."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import UserError
from stages.photos.labels import CLASSES

PROBABILITIES = [f"p{label}" for label in range(CLASSES)]

SPACE_AFTER_QUOTE = re.compile(r'"[ \t]+(?=,|[\r\n]|$)')

TEXTS = ["person", "photo", "path", "rejected", "other_person", "other_photo", "given", "race"]
"""Columns of stages' tables that are text, even where they look like numbers."""


def read_text_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a CSV in which every cell is text; spaces around cells and a byte-order mark go.

    Args:
        columns: those that are wanted; others are left out.
        optional: those that are empty where the table has none of the name.

    Returns:
        A row for each row that is not empty; its index is its line, as a text editor counts.

    Raises:
        UserError: if the file is missing, empty, no table, lacks a column or has one twice, or if a
            row has more cells than the header or a quote that is not closed.
    """
    header: list[str] = []
    rows: dict[int, list[str]] = {}
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Strict, so that a quote that is never closed does not swallow the rows below it.
            reader = csv.reader((SPACE_AFTER_QUOTE.sub('"', text) for text in file), strict=True)
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if not header:
                    header = stripped
                elif any(stripped):
                    rows[line] = stripped
                line = reader.line_num + 1
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: put it there, or change its path in params.yaml"
        ) from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path} is no file: check the paths in params.yaml") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8: save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(
            f"{path}, row {line}: {error}: put the whole text in double quotes, and double those "
            "within it"
        ) from None
    if not any(header):
        raise UserError(f"{path} is empty: its first line must name {', '.join(columns)}")
    for column in [*columns, *optional]:
        if header.count(column) != 1 and (column in columns or column in header):
            how = "no column" if column not in header else "more than one column"
            raise UserError(f"{path} has {how} {column!r}; it has {', '.join(header)}")
    for line, cells in rows.items():
        if any(cells[len(header) :]):
            raise UserError(
                f"{path}, row {line}: it has more cells than the header: put a text that holds a "
                "comma in double quotes"
            )
    width = len(header)
    table = pd.DataFrame(
        [(cells + [""] * width)[:width] for cells in rows.values()],
        index=pd.Index(rows.keys(), dtype=int),
        columns=header,
        dtype=str,
    )
    missing = dict.fromkeys(set(optional) - set(header), "")
    return table.assign(**missing).loc[:, [*columns, *optional]]


def read_stage_table(path: Path) -> pd.DataFrame:
    """Read a table that another stage wrote; the columns `TEXTS` are text.

    Raises:
        UserError: if it is not there.
    """
    names = dict.fromkeys(TEXTS, str)
    try:
        return pd.read_csv(path, dtype=names, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `dvc repro` makes it") from None


def probability_table(rows: pd.DataFrame, probabilities: NDArray[np.float32]) -> pd.DataFrame:
    """`rows` with their class probabilities (N x 18) as columns p0 to p17."""
    columns = pd.DataFrame(probabilities, columns=PROBABILITIES, index=rows.index)
    return pd.concat([rows, columns], axis=1)
