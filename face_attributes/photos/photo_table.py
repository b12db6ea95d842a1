"""Read a table of one row per photo, and name its photos as in the competition's layout."""

from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from face_attributes.errors import UserError
from face_attributes.photos.labels import GENDERS, MASK_BY_PREFIX, MASKS
from face_attributes.photos.names import normal_form, readable_name
from face_attributes.photos.opening import SUFFIXES
from face_attributes.photos.raw import child_path, parse_age
from face_attributes.photos.tables import read_text_table

COLUMNS = ["path", "person", "mask", "gender", "age"]
OPTIONAL = ["race"]

MASK_WORDS = {mask: mask for mask in MASKS} | {str(code): mask for code, mask in enumerate(MASKS)}
GENDER_WORDS = {gender: gender for gender in GENDERS} | {gender[0]: gender for gender in GENDERS}


def parse_columns(text: str) -> dict[str, str]:
    """Parse "person=who,mask=state" to the names of columns.

    Raises:
        UserError: if it has another form, an unknown column, or one name twice.
    """
    known, names = [*COLUMNS, *OPTIONAL], dict[str, str]()
    for pair in filter(None, text.split(",")):
        column, equals, name = (part.strip() for part in pair.partition("="))
        if not equals or not name or column not in known or column in names:
            raise UserError(
                f"--columns: {pair!r}: write person=NAME,mask=NAME with the names in your table, "
                f"each of {', '.join(known)} at most once"
            )
        names[column] = name
    if len(set(names.values())) < len(names):
        raise UserError(f"--columns: {text!r} names one column of your table twice")
    return names


def read_photo_table(table: Path, names: Mapping[str, str]) -> pd.DataFrame:
    """Read a row per photo: person, photo, path (of the file), mask, gender, age (years), race.

    `mask_code` is the cell of a mask that is written as a number, else "".

    `photo` is the name of the photo in its person's folder in the competition's layout: mask1,
    mask2, ... if the mask is worn, incorrect_mask, incorrect_mask2, ... and normal, normal2, ...

    Args:
        table: CSV with `COLUMNS` and `OPTIONAL`; its paths are relative to its folder.
        names: names of columns in the file that are not those of `COLUMNS` and `OPTIONAL`.

    Raises:
        UserError: naming the row of an unknown mask, gender or age, of a photo that is missing,
            hidden, repeated or of another format, of a person whose name cannot be that of a
            folder or differs from another one in case only, or of one whose gender, age or race
            differs from an earlier row.
    """
    in_file = {column: names.get(column, column) for column in [*COLUMNS, *OPTIONAL]}
    required = [name for column, name in in_file.items() if column in {*COLUMNS, *names}]
    optional = [name for name in in_file.values() if name not in required]
    cells = read_text_table(table, required, optional)
    if cells.empty:
        raise UserError(f"{table} has no rows below its header: add one per photo")
    cells = cells.rename(columns={name: column for column, name in in_file.items()})

    photos, rows_of_paths = list[dict[str, Any]](), dict[str, int]()
    first_photos: dict[str, tuple[int, dict[str, Any]]] = {}
    spellings = dict[str, str]()
    numbers = Counter[tuple[str, str]]()
    for row, cell in zip(map(int, cells.index), cells.to_dict("records"), strict=True):
        where = f"{table}, row {row}"
        photo = _read_photo(cell, table.parent, where)
        earlier_row = rows_of_paths.setdefault(photo["path"], row)
        if earlier_row != row:
            raise UserError(f"{where}: {cell['path']!r} is already in row {earlier_row}: keep one")
        person, mask = photo["person"], photo["mask"]
        other = spellings.setdefault(person.casefold(), person)
        if other != person:
            raise UserError(
                f"{where}: {person!r} and {other!r} differ in case only, and some systems cannot "
                "tell their folders apart: write one person's name always alike, or rename one"
            )
        first_row, first = first_photos.setdefault(person, (row, photo))
        for field in ("gender", "age", "race"):
            if photo[field] != first[field]:
                raise UserError(
                    f"{where}: {person} has {field} {photo[field]!r}, but {first[field]!r} in row "
                    f"{first_row}: correct one of them, or give two people two names"
                )
        numbers[person, mask] += 1
        photo["photo"] = _stem(mask, numbers[person, mask]) + Path(photo["path"]).suffix.lower()
        photos.append(photo)
    return pd.DataFrame(photos)


def _read_photo(cell: dict[Hashable, str], folder: Path, where: str) -> dict[str, Any]:
    """Check a row's person and file, and translate its labels."""
    path = folder / cell["path"]
    person = normal_form(cell["person"])
    child_path(Path("images"), person, where, {})
    _check_file(path, where)
    return {
        "person": person,
        "path": path.as_posix(),
        "mask": _translate(cell["mask"], MASK_WORDS, f"{where}: mask"),
        "mask_code": cell["mask"] if cell["mask"].isdecimal() else "",
        "gender": _translate(cell["gender"], GENDER_WORDS, f"{where}: gender"),
        "age": parse_age(cell["age"], where),
        "race": cell["race"],
    }


def _check_file(path: Path, where: str) -> None:
    name = readable_name(path)
    if path.name.startswith("."):
        raise UserError(f"{where}: {name} is a hidden file: remove the row")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{where}: {name} is not named like a photo ({', '.join(SUFFIXES)}): convert it, or "
            "remove the row"
        )
    try:
        found = path.is_file()
    except OSError as error:
        raise UserError(f"{where}: {name} cannot be read ({error.strerror}): correct it") from None
    if not found:
        raise UserError(f"{where}: there is no photo {name}: add it, or remove the row")


def _translate(cell: str, words: Mapping[str, str], what: str) -> str:
    word = cell.lower().replace(" ", "_")
    if word not in words:
        raise UserError(f"{what} {cell!r} is unknown: write one of {', '.join(words)}")
    return words[word]


def _stem(mask: str, number: int) -> str:
    """Name of a person's photo of a mask state, counted from 1: mask1, but normal."""
    prefix = next(prefix for prefix, state in MASK_BY_PREFIX.items() if state == mask)
    return prefix if number == 1 and prefix != "mask" else f"{prefix}{number}"


def people_table(photos: pd.DataFrame) -> pd.DataFrame:
    """Make train.csv from the photos of `read_photo_table`: id, gender, race, age, path, photos."""
    people = photos.groupby("person", sort=False, as_index=False).agg(
        gender=("gender", "first"),
        race=("race", "first"),
        age=("age", "first"),
        photos=("photo", "size"),
    )
    people = people.assign(id=people["person"]).rename(columns={"person": "path"})
    return people[["id", "gender", "race", "age", "path", "photos"]]
