"""The data as it came, in the competition's layout: people, their photos, evaluation photos."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stages.errors import UserError
from stages.photos.labels import GENDERS, MASK_OF_PHOTO, OLDEST
from stages.photos.opening import SUFFIXES
from stages.photos.tables import read_text_table

AGE = re.compile(r"\d{1,3}(\.0)?", re.ASCII)
"""A whole number of years, also as spreadsheets and pandas write those."""

NOT_A_PHOTO = "not one of the seven photos"


class Rejected(NamedTuple):
    """A row of rejected.csv: a photo, or a whole folder (no photo), that is not used."""

    set: str
    person: str
    photo: str
    reason: str


def read_people(table: Path) -> pd.DataFrame:
    """Read train.csv: a row a person: gender, age (years, int), path (the person), race.

    Race, of which nothing is predicted, is "" where the table has no such column.

    Raises:
        UserError: naming the row of an unknown gender, an impossible age, a path that is repeated.
    """
    people = read_text_table(table, ["gender", "age", "path"], ["race"])
    if people.empty:
        raise UserError(f"{table} has no row below its header: add one for each person")
    first_row: dict[str, int] = {}
    for row, gender, age, path, _ in people.itertuples(name=None):
        if path in first_row:
            raise UserError(
                f"{table}, row {row}: path {path!r} is already that of row {first_row[path]}: "
                "a person has one row"
            )
        first_row[path] = row
        if gender not in GENDERS:
            raise UserError(
                f"{table}, row {row}: gender {gender!r} is not known: write {' or '.join(GENDERS)}"
            )
        if not AGE.fullmatch(age) or float(age) > OLDEST:
            raise UserError(
                f"{table}, row {row}: age {age!r} is not a whole number of years from 0 to {OLDEST}"
            )
    return people.assign(age=people["age"].astype(float).astype(int))


def inside(folder: Path, name: str, where: str) -> Path:
    """`folder / name`, where name is the plain name of something that lies in the folder itself.

    Raises:
        UserError: if the name is empty, hidden or too long, has folders or a semicolon in it, or is
            a link, which could lead out of the folder or to another person.
    """
    path = folder / name
    # A semicolon parts the photos of a finding.
    plain = (
        0 < len(os.fsencode(name)) < 256 and name == Path(name).name and not set("\\;") & set(name)
    )
    if not plain or name.startswith("."):
        raise UserError(
            f"{where}: {name!r} must be the plain, visible name of something in {folder}, without "
            "/ \\ ; in it"
        )
    if path.is_symlink():
        raise UserError(f"{where}: {path} is a link: put what it leads to in its place")
    return path


def list_photos(people: pd.DataFrame, train: Path) -> tuple[pd.DataFrame, list[Rejected]]:
    """Find the seven photos of each person: person, photo, path, mask, gender, age, race.

    Returns:
        The photos, in the order of train.csv, and what lies in `train/images` beside them.

    Raises:
        UserError: if a folder or a photo is missing, a photo is there twice, or a path leads out.
    """
    images, rows, rejected = train / "images", list[dict[str, Any]](), list[Rejected]()
    for row, gender, age, person, race in people.itertuples(name=None):
        where = f"{train / 'train.csv'}, row {row}"
        folder = inside(images, person, where)
        if not folder.is_dir():
            raise UserError(f"{where}: there is no folder {folder}: add it, or take the row out")
        found: dict[str, str] = {}
        for name in visible(folder):
            stem = Path(name).stem.lower()
            if stem not in MASK_OF_PHOTO or Path(name).suffix.lower() not in SUFFIXES:
                rejected.append(Rejected("train", person, name, NOT_A_PHOTO))
            elif stem in found:
                raise UserError(
                    f"{folder} has {found[stem]} and {name}: a person has one {stem}; "
                    "take one of them out"
                )
            else:
                if not inside(folder, name, str(folder)).is_file():
                    raise UserError(f"{folder / name} is no file: put the photo in its place")
                found[stem] = name
        for stem, mask in MASK_OF_PHOTO.items():
            if stem not in found:
                raise UserError(
                    f"{folder} has no {stem} (with {', '.join(SUFFIXES)}): add it, or take "
                    f"row {row} out of {train / 'train.csv'}"
                )
            rows.append(
                {
                    "person": person,
                    "photo": found[stem],
                    "path": (folder / found[stem]).as_posix(),
                    "mask": mask,
                    "gender": gender,
                    "age": age,
                    "race": race,
                }
            )
    named = set(people["path"])
    rejected += [
        Rejected("train", name, "", "no row in train.csv")
        for name in visible(images)
        if name not in named
    ]
    return pd.DataFrame(rows), rejected


def visible(folder: Path) -> list[str]:
    """Names in a folder, sorted, without hidden ones (`._mask1.jpg`, `.DS_Store`)."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def list_evaluation(evaluation: Path) -> pd.DataFrame:
    """The photos that info.csv names, in its order: photo, path.

    Raises:
        UserError: if a photo is not there, is named twice, or its path leads out of the folder.
    """
    table = evaluation / "info.csv"
    names = read_text_table(table, ["ImageID"])["ImageID"]
    for row, again in names.duplicated().items():
        if again:
            raise UserError(f"{table}, row {row}: its photo has a row above: keep one")
    paths = []
    for row, name in names.items():
        where = f"{table}, row {row}"
        path = inside(evaluation / "images", name, where)
        if not path.is_file():
            raise UserError(f"{where}: there is no photo {path}: add it, or take the row out")
        paths.append(path.as_posix())
    return pd.DataFrame({"photo": names.to_list(), "path": paths}, dtype=str)
