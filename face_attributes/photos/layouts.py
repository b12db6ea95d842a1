"""Recognise how a folder or a table of photos is laid out, and read it."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from face_attributes.errors import UserError
from face_attributes.photos.names import names_in
from face_attributes.photos.photo_table import COLUMNS, OPTIONAL, read_photo_table
from face_attributes.photos.raw import (
    Rejection,
    list_evaluation,
    list_photos,
    read_people,
)

EXPECTED = (
    "expected a folder with train.csv (gender, age, path) and images/<path>/, or a table (.csv) "
    "with a row per photo (path, person, mask, gender, age)"
)


class Source(NamedTuple):
    """Photos with labels, as they are found."""

    folder: Path
    table: Path
    photos: pd.DataFrame  # person, photo, path, mask, gender, age, race
    rejections: list[Rejection]
    rows_are_photos: bool
    unused_columns: list[str]


def refuse_link(folder: Path) -> None:
    """Refuse a link in place of a folder: DVC would not notice when the photos behind it change.

    Raises:
        UserError: naming the target to pass instead.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link: pass the folder itself, {folder.resolve()}")


def find_table(photos: Path) -> Path:
    """Find the table of PHOTOS: itself, its `train.csv`, or the one table in it.

    Raises:
        UserError: if there is no such table, or more than one.
    """
    refuse_link(photos)
    if photos.is_file() and photos.suffix.lower() == ".csv":
        return photos
    if not photos.is_dir():
        raise UserError(f"{photos} is neither a folder nor a table: {EXPECTED}")
    tables = [name for name in names_in(photos).values() if name.lower().endswith(".csv")]
    if "train.csv" in tables:
        return photos / "train.csv"
    if (photos / "train/train.csv").is_file():
        raise UserError(
            f"{photos} is the parent of a folder with train.csv: pass {photos / 'train'}"
        )
    if len(tables) == 1:
        return photos / tables[0]
    raise UserError(f"{photos} has {'several tables' if tables else 'no table'}: {EXPECTED}")


def read_source(photos: Path, columns: Mapping[str, str]) -> Source:
    """Read the photos of either layout.

    Args:
        columns: names of columns in a table with a row per photo, where they differ.

    Raises:
        UserError: naming the file and row that is wrong.
    """
    table = find_table(photos)
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = {cell.strip() for cell in next(csv.reader([file.readline(10_000)]), [])}
    if columns or table.name != "train.csv" or {"person", "mask"} <= header:
        used = {columns.get(column, column) for column in (*COLUMNS, *OPTIONAL)}
        unused = sorted(header - used)
        return Source(table.parent, table, read_photo_table(table, columns), [], True, unused)
    images = table.parent / "images"
    refuse_link(images)
    if not images.is_dir():
        raise UserError(f"{table.parent} has no folder images: {EXPECTED}")
    return Source(table.parent, table, *list_photos(read_people(table), table.parent), False, [])


def read_evaluation(folder: Path) -> pd.DataFrame:
    """List the evaluation photos of a folder with info.csv and images/: photo, path.

    Raises:
        UserError: if the folder has another layout or is a link, or a photo is missing.
    """
    refuse_link(folder)
    refuse_link(folder / "images")
    if not (folder / "info.csv").is_file():
        raise UserError(
            f"{folder} has no info.csv: expected a folder with info.csv (ImageID,ans; a row per "
            "photo, ans may be 0) and images/"
        )
    return list_evaluation(folder)
