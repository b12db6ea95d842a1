"""Corrections of labels, on record: data/corrections.csv, one row a change.

    person,photo,field,old,new,reason
    000042_female_Asian_25,,gender,female,male,seen on all seven photos
    000043_male_Asian_60,normal.jpg,mask,not_worn,incorrect,swapped with incorrect_mask.jpg

An empty photo is the whole person. Fields are gender (male, female), age (years), mask (worn,
incorrect, not_worn) and drop (old and new stay empty). All rows speak of the data as it came, so
that their order does not matter and two rows can swap the labels of two photos.

Three more columns may be there: `reviewer`, `decision` (accepted, or rejected: somebody has looked,
and the change is not made) and `score` (how likely the label was wrong when that was decided).
"""

import re
from pathlib import Path

import pandas as pd

from stages.errors import UserError
from stages.photos.labels import GENDERS, MASKS, OLDEST
from stages.photos.tables import read_text_table

COLUMNS = ["person", "photo", "field", "old", "new", "reason"]
OPTIONAL = ["reviewer", "decision", "score"]
DECISIONS = ("", "accepted", "rejected")
ALLOWED = {
    "gender": list(GENDERS),
    "age": [str(age) for age in range(OLDEST + 1)],
    "mask": list(MASKS),
    "drop": [""],
}

SCORE = re.compile(r"0(\.\d+)?|1(\.0+)?", re.ASCII)


def read_corrections(path: Path) -> pd.DataFrame:
    """Read the corrections, `COLUMNS` and `OPTIONAL`; every field and value is one that is allowed.

    Raises:
        UserError: naming the row of a field or value that is not.
    """
    corrections = read_text_table(path, COLUMNS, OPTIONAL)
    for row, field, old, new in corrections[["field", "old", "new"]].itertuples(name=None):
        where = f"{path}, row {row}"
        if field not in ALLOWED:
            raise UserError(f"{where}: field {field!r} is not one of {', '.join(ALLOWED)}")
        for column, value in {"old": old, "new": new}.items():
            if value not in ALLOWED[field]:
                raise UserError(f"{where}: {column} is {value!r}: {_expected(field)}")
        if old == new and field != "drop":
            raise UserError(f"{where}: old and new are both {old!r}: take the row out")
    for row, decision, score in corrections[["decision", "score"]].itertuples(name=None):
        if decision not in DECISIONS:
            raise UserError(
                f"{path}, row {row}: decision is {decision!r}: write accepted or rejected"
            )
        if score and not SCORE.fullmatch(score):
            raise UserError(f"{path}, row {row}: score is {score!r}: write a number from 0 to 1")
    return corrections


def _expected(field: str) -> str:
    match field:
        case "age":
            return f"write the age in whole years, 0 to {OLDEST}"
        case "drop":
            return "leave old and new empty to drop a photo or a person"
        case _:
            return f"write one of {', '.join(ALLOWED[field])}"


def apply_corrections(
    photos: pd.DataFrame, corrections: pd.DataFrame, source: Path
) -> pd.DataFrame:
    """The photos with corrected mask, gender and age, without the dropped ones, with `origin`.

    Rejected rows change nothing.

    Args:
        photos: as they came: person, photo, mask, gender, age.
        source: the file of the corrections, for messages.

    Raises:
        UserError: naming the row that matches nothing, whose `old` is not what the data says, that
            speaks of what another row has spoken of, or that is one half of a swap.
    """
    corrections = corrections[corrections["decision"] != "rejected"]
    corrected = photos.assign(origin="given")
    dropped = pd.Series(False, index=photos.index)
    rows_of_person = photos.groupby("person", sort=False).groups
    changed_by: dict[tuple[object, str], int] = {}
    for row, person, photo, field, old, new in corrections[COLUMNS[:-1]].itertuples(name=None):
        where = f"{source}, row {row}"
        if person not in rows_of_person:
            raise UserError(f"{where}: there is no person {person!r}: correct or remove the row")
        chosen = photos.loc[rows_of_person[person]]
        if photo:
            chosen = chosen[chosen["photo"] == photo]
        if chosen.empty:
            raise UserError(
                f"{where}: {person} has no photo {photo!r}; there are "
                f"{', '.join(photos.loc[rows_of_person[person], 'photo'])}"
            )
        for match in chosen.index:
            if (match, field) in changed_by:
                raise UserError(
                    f"{where}: row {changed_by[match, field]} already changes the {field} of "
                    f"{person} {photos.loc[match, 'photo']}: keep one of them"
                )
            changed_by[match, field] = row
        if field == "drop":
            dropped[chosen.index] = True
            continue
        differs = chosen[chosen[field].astype(str) != old]
        if not differs.empty:
            raise UserError(
                f"{where}: old is {old!r}, but the data says {str(differs[field].iloc[0])!r} for "
                f"the {field} of {person} {differs['photo'].iloc[0]}: correct or remove the row"
            )
        corrected.loc[chosen.index, field] = int(new) if field == "age" else new
        corrected.loc[chosen.index, "origin"] = "corrected"
    check_swaps(photos, corrected[~dropped], changed_by, source)
    return corrected[~dropped]


def check_swaps(
    photos: pd.DataFrame,
    corrected: pd.DataFrame,
    changed_by: dict[tuple[object, str], int],
    source: Path,
) -> None:
    """A person whose last photo of a mask state became another one: the other half is missing.

    Raises:
        UserError: naming the row.
    """
    states = corrected.groupby("person")["mask"].agg(set)
    for match in corrected.index[corrected["mask"] != photos.loc[corrected.index, "mask"]]:
        person, photo, old = photos.loc[match, ["person", "photo", "mask"]]
        if old not in states[person]:
            raise UserError(
                f"{source}, row {changed_by[match, 'mask']}: {photo} becomes "
                f"{corrected.loc[match, 'mask']!r}, and {person} has no photo that is {old!r} any "
                "more: add the row of the photo it was swapped with, or drop it (field drop)"
            )
