"""Read the original data in the competition's layout: people, their photos, evaluation photos."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from face_attributes.errors import UserError
from face_attributes.files import is_link_into_cache
from face_attributes.photos.labels import (
    GENDERS,
    MASK_BY_STEM,
    MASKS,
    MAX_AGE,
    NUM_CLASSES,
    mask_of,
)
from face_attributes.photos.names import BREAKS_A_LINE, names_in, normal_form, readable_name
from face_attributes.photos.opening import SUFFIXES
from face_attributes.photos.tables import read_text_table

AGE = re.compile(r"\d{1,3}(\.0)?", re.ASCII)
"""A whole number of years, optionally with ".0" as spreadsheets and pandas write it."""

COUNT = re.compile(r"[1-9]\d{0,5}(\.0)?", re.ASCII)
CLASS = re.compile(r"\d{1,2}", re.ASCII)

NOT_A_PHOTO = "not named like a photo of this person"


class Rejection(NamedTuple):
    """A row of rejected.csv: a photo, or a whole folder (empty photo), that is not used."""

    set: str
    person: str
    photo: str
    reason: str


def read_people(table: Path) -> pd.DataFrame:
    """Read train.csv, a row per person: gender, age (years), path (the person), race, photos.

    Paths are in their normal form. Race is never predicted; it is "" if the table has no such
    column. The optional column `photos` is the number of a person's photos; 0 if empty: a person
    then has the seven of `MASK_BY_STEM`.

    Raises:
        UserError: naming the row of an unknown gender, an invalid age or number of photos, or a
            path that is repeated or "evaluation".
    """
    people = read_text_table(table, ["gender", "age", "path"], ["race", "photos"])
    people = people.assign(path=people["path"].map(normal_form))
    if people.empty:
        raise UserError(f"{table} has no rows below its header: add one per person")
    first_row: dict[str, int] = {}
    for row, gender, age, path, _, photos in people.itertuples(name=None):
        if path in first_row:
            raise UserError(
                f"{table}, row {row}: path {path!r} is already in row {first_row[path]}: "
                "keep one row per person"
            )
        first_row[path] = row
        if path == "evaluation":
            raise UserError(
                f"{table}, row {row}: a person cannot be called 'evaluation', which stands for the "
                "evaluation photos in suspects.csv: rename the folder"
            )
        if gender not in GENDERS:
            raise UserError(
                f"{table}, row {row}: gender {gender!r} is unknown: write {' or '.join(GENDERS)}"
            )
        parse_age(age, f"{table}, row {row}")
        if photos and not COUNT.fullmatch(photos):
            raise UserError(
                f"{table}, row {row}: photos {photos!r} is not a number: write how many photos the "
                "person has, or leave it empty for the usual seven"
            )
    numbers = {
        "age": people["age"].astype(float).astype(int),
        "photos": people["photos"].replace("", "0").astype(float).astype(int),
    }
    return people.assign(**numbers)


def parse_age(cell: str, where: str) -> int:
    """Return an age in years.

    Args:
        where: file and row that contain the age, for messages.

    Raises:
        UserError: if it is not a whole number of years from 0 to MAX_AGE.
    """
    if not AGE.fullmatch(cell) or float(cell) > MAX_AGE:
        raise UserError(f"{where}: age {cell!r} is not a whole number of years from 0 to {MAX_AGE}")
    return int(float(cell))


def photo_folder(folder: Path) -> Path:
    """Return the folder `images` in `folder`.

    Raises:
        UserError: if it is a link, behind which DVC does not look for changes.
    """
    images = folder / "images"
    if images.is_symlink():
        raise UserError(
            f"{images} is a link, and DVC does not see what changes behind it: replace it with its "
            f"target, or make {folder} or {folder.parent} the link"
        )
    return images


def child_path(folder: Path, name: str, where: str, names: Mapping[str, str]) -> Path:
    """Return the path of a name in a folder; refuse names and links that could lead out of it.

    Args:
        where: file and row that contain the name, for messages.
        names: the names in the folder, by their normal form.

    Raises:
        UserError: if the name is empty, hidden or too long, contains a folder, a semicolon or a
            line end, or names a link, which could also lead to another person. A link into DVC's
            cache (`cache.type symlink`) is allowed.
    """
    # Semicolons separate the photos of a finding in suspects.csv.
    plain = (
        0 < len(os.fsencode(name)) < 256
        and name == Path(name).name
        and not set("\\;") & set(name)
        and not BREAKS_A_LINE.search(name)
    )
    if not plain or name.startswith("."):
        raise UserError(
            f"{where}: {name!r} must be a plain, visible name in {folder}, without / \\ or ;"
        )
    path = folder / names.get(normal_form(name), name)
    if path.is_symlink() and not is_link_into_cache(path):
        raise UserError(f"{where}: {path} is a link: replace it with its target")
    return path


def list_photos(people: pd.DataFrame, train: Path) -> tuple[pd.DataFrame, list[Rejection]]:
    """Find the photos of each person: person, photo, path, mask, gender, age, race.

    A person has the seven of `MASK_BY_STEM`; or, with the column `photos`, that number of photos
    named mask, mask2, ..., incorrect_mask, incorrect_mask2, ..., normal, normal2, ...

    Returns:
        The photos, in the order of train.csv, and the other files and folders in `train/images`.

    Raises:
        UserError: if a folder or photo is missing, a person has the same photo twice or another
            number of photos than the table says, a path leads out of `train/images`, or that is a
            link.
    """
    images, rows, rejections = photo_folder(train), list[dict[str, Any]](), list[Rejection]()
    people_on_disk = names_in(images)
    for row, gender, age, person, race, number in people.itertuples(name=None):
        where = f"{train / 'train.csv'}, row {row}"
        folder = child_path(images, person, where, people_on_disk)
        if not folder.is_dir():
            raise UserError(f"{where}: folder {folder} is missing: add it, or remove the row")
        file_by_stem: dict[str, str] = {}
        names = names_in(folder)
        for name in names.values():
            stem = Path(name).stem.lower()
            named_like_a_photo = bool(mask_of(stem)) if number else stem in MASK_BY_STEM
            if not named_like_a_photo or Path(name).suffix.lower() not in SUFFIXES:
                rejections.append(Rejection("train", person, readable_name(name), NOT_A_PHOTO))
            elif stem in file_by_stem:
                raise UserError(
                    f"{folder} has {file_by_stem[stem]} and {name}: a person has one {stem}; "
                    "remove one of them"
                )
            else:
                if not child_path(folder, name, str(folder), names).is_file():
                    raise UserError(f"{folder / name} is not a file: replace it with the photo")
                file_by_stem[stem] = name
        missing = [stem for stem in MASK_BY_STEM if stem not in file_by_stem]
        if missing and not number:
            raise UserError(
                f"{folder} has no {missing[0]} ({', '.join(SUFFIXES)}): add it, or remove "
                f"row {row} from {train / 'train.csv'}"
            )
        if number and len(file_by_stem) != number:
            raise UserError(
                f"{where}: photos is {number}, but {folder} has {len(file_by_stem)} (mask, mask2, "
                "..., incorrect_mask, ..., normal, ...): add the photos, or correct the number"
            )
        for stem in sorted(file_by_stem, key=_place):
            rows.append(
                {
                    "person": person,
                    "photo": file_by_stem[stem],
                    "path": (folder / file_by_stem[stem]).as_posix(),
                    "mask": mask_of(stem),
                    "gender": gender,
                    "age": age,
                    "race": race,
                }
            )
    known = set(people["path"])
    rejections += [
        Rejection("train", readable_name(name), "", "no row in train.csv")
        for form, name in people_on_disk.items()
        if form not in known
    ]
    return pd.DataFrame(rows), rejections


def _place(stem: str) -> tuple[int, int]:
    """Sort key of a person's photos: by mask state, then by number."""
    return MASKS.index(mask_of(stem)), int("0" + stem.lstrip("_abcdefghijklmnopqrstuvwxyz"))


def list_evaluation(evaluation: Path) -> pd.DataFrame:
    """List the photos in info.csv, in its order: photo, path.

    Raises:
        UserError: if a photo is missing or repeated, a path leads out of `images`, or that is a
            link.
    """
    table = evaluation / "info.csv"
    names = read_text_table(table, ["ImageID"])["ImageID"]
    for row, name in names[names.map(normal_form).duplicated()].items():
        raise UserError(f"{table}, row {row}: {name!r} is already in a row above: keep one of them")
    images, paths = photo_folder(evaluation), []
    names_on_disk = names_in(images)
    for row, name in names.items():
        where = f"{table}, row {row}"
        path = child_path(images, name, where, names_on_disk)
        if not path.is_file():
            raise UserError(f"{where}: photo {path} is missing: add it, or remove the row")
        paths.append(path.as_posix())
    return pd.DataFrame({"photo": names.to_list(), "path": paths}, dtype=str)


def read_answers(table: Path, photos: Iterable[str]) -> pd.DataFrame:
    """Read the known labels of evaluation photos: ImageID, ans (0 to 17).

    Args:
        photos: names of all evaluation photos.

    Raises:
        UserError: naming the row whose answer is not a class, whose photo is not among `photos`, or
            whose photo has an earlier row.
    """
    answers = read_text_table(table, ["ImageID", "ans"])
    for row, answer in answers["ans"].items():
        if not CLASS.fullmatch(answer) or int(answer) >= NUM_CLASSES:
            raise UserError(f"{table}, row {row}: ans {answer!r} is not a class from 0 to 17")
    known = {normal_form(photo): photo for photo in photos}
    answers["ImageID"] = [known.get(normal_form(photo), photo) for photo in answers["ImageID"]]
    for row, photo in answers["ImageID"].items():
        if normal_form(photo) not in known:
            raise UserError(f"{table}, row {row}: photo {photo!r} is not in info.csv: remove it")
    for row, photo in answers.loc[answers["ImageID"].duplicated(), "ImageID"].items():
        raise UserError(f"{table}, row {row}: photo {photo!r} has an earlier row: keep one")
    return answers.assign(ans=answers["ans"].astype(int))
