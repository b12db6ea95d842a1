"""Read CSV tables from users and from stages; errors name file, row and column."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from face_attributes.errors import UserError
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.photos.names import readable_name

PROBABILITIES = [f"p{label}" for label in range(NUM_CLASSES)]

HOLDOUT = -1
"""In the column `fold`: people of the holdout, whom no network is trained on."""

SPACE_AFTER_QUOTE = re.compile(r'"[ \t]+(?=,|[\r\n]|$)')

OTHER_SEPARATOR = re.compile(r"\w[;\t|]\w")
"""Between the names of columns, as some spreadsheets write them."""

TEXT_COLUMNS = [
    "person", "photo", "path", "rejected", "other_person", "other_photo", "given", "race",
    "ImageID",
]  # fmt: skip
"""Columns of stages' tables that are text even if they look like numbers."""


def read_text_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a CSV file as text; strip spaces around cells and a byte-order mark.

    Args:
        columns: required columns. Columns not listed here or in `optional` are left out.
        optional: columns that are empty if the file lacks them.

    Returns:
        All rows that are not empty, indexed by line number in the file, as in a text editor.

    Raises:
        UserError: if the file is missing, empty or not a table; if it lacks a column or repeats
            one; if a row has more cells than the header, an unclosed quote or a null character.
    """
    header: list[str] = []
    rows: dict[int, list[str]] = {}
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # strict: otherwise an unclosed quote would swallow the rows below it.
            reader = csv.reader((SPACE_AFTER_QUOTE.sub('"', text) for text in file), strict=True)
            for cells in reader:
                if any("\0" in cell for cell in cells):
                    raise UserError(f"{path}, row {line} has a null character: save it as UTF-8")
                stripped = [cell.strip() for cell in cells]
                if not header:
                    header = stripped
                elif any(stripped):
                    rows[line] = stripped
                line = reader.line_num + 1
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: create it, or correct its path (in params.yaml or the command)"
        ) from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path} is not a file: check the paths in params.yaml") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(
            f"{path}, row {line}: {error}: put the whole text in double quotes, and double the "
            "quotes inside it"
        ) from None
    if not any(header):
        raise UserError(f"{path} is empty: its first line must name {', '.join(columns)}")
    for column in [*columns, *optional]:
        if header.count(column) != 1 and (column in columns or column in header):
            number = "no" if column not in header else "more than one"
            found = readable_name(", ".join(header))
            remedy = ": separate columns by commas" if OTHER_SEPARATOR.search(header[0]) else ""
            raise UserError(f"{path} has {number} column {column!r}; it has {found}{remedy}")
    for line, cells in rows.items():
        if any(cells[len(header) :]):
            raise UserError(
                f"{path}, row {line} has more cells than the header: put text with commas in "
                "double quotes"
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
    """Read a table that another stage wrote; `TEXT_COLUMNS` are text.

    Raises:
        UserError: if the file is missing.
    """
    try:
        return pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `dvc repro` makes it") from None


def read_stage_tables(paths: Sequence[Path]) -> pd.DataFrame:
    """Concatenate tables with the same columns that other stages wrote.

    Raises:
        UserError: if a file is missing.
    """
    tables = [read_stage_table(path) for path in paths]
    # Empty tables have object columns, which would change the dtype of the others.
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def probability_table(rows: pd.DataFrame, probabilities: NDArray[np.float32]) -> pd.DataFrame:
    """Append class probabilities (N x 18) to `rows` as columns p0 to p17."""
    columns = pd.DataFrame(probabilities, columns=PROBABILITIES, index=rows.index)
    return pd.concat([rows, columns], axis=1)
