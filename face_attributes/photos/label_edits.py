"""Label corrections in data/corrections.csv, one row per change.

    person,photo,field,old,new,reason
    000042_female_Asian_25,,gender,female,male,seen on all seven photos
    000043_male_Asian_60,normal.jpg,mask,not_worn,incorrect,swapped with incorrect_mask.jpg

An empty photo means the whole person. Fields are gender (male, female), age (years), mask (worn,
incorrect, not_worn), drop and duplicate (old and new stay empty). Every row refers to the original
data, so the order of rows does not matter and two rows can swap the labels of two photos. A
duplicate can only be rejected: then it is no reason to drop the photo, and there may be others.

Three columns are optional: `reviewer`, `decision` (accepted, or rejected: reviewed, no change) and
`score` (probability that the label was wrong at the time of the decision).
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from face_attributes.errors import UserError
from face_attributes.photos.labels import GENDERS, MASK_BY_STEM, MASKS, MAX_AGE
from face_attributes.photos.names import normal_form
from face_attributes.photos.tables import read_text_table

COLUMNS = ["person", "photo", "field", "old", "new", "reason"]
OPTIONAL = ["reviewer", "decision", "score"]
CLAIM = ["person", "photo", "field", "new"]
DECISIONS = ("", "accepted", "rejected")
ALLOWED_VALUES = {
    "gender": list(GENDERS),
    "age": [str(age) for age in range(MAX_AGE + 1)],
    "mask": list(MASKS),
    "drop": [""],
    "duplicate": [""],
}

SCORE = re.compile(r"0(\.\d+)?|1(\.0+)?", re.ASCII)


def read_corrections(path: Path) -> pd.DataFrame:
    """Read and check corrections: `COLUMNS` and `OPTIONAL`.

    Raises:
        UserError: a line for each invalid field or value, and for each row that repeats or
            contradicts the claim of an earlier row.
    """
    corrections = read_text_table(path, COLUMNS, OPTIONAL)
    corrections["person"] = corrections["person"].map(normal_form)
    problems, first = list[str](), dict[tuple[str, ...], tuple[object, bool]]()
    for row, cells in corrections.iterrows():
        where = f"{path}, row {row}"
        problems += [f"{where}: {problem}" for problem in _invalid_values(**cells)]
        claim, rejected = tuple(cells[CLAIM]), cells["decision"] == "rejected"
        earlier_row, earlier_rejected = first.setdefault(claim, (row, rejected))
        if earlier_row != row:
            verb = "repeats" if rejected == earlier_rejected else "contradicts"
            problems.append(f"{where} {verb} row {earlier_row}: keep one of them")
    if problems:
        raise UserError("\n".join(problems))
    return corrections


def _invalid_values(
    field: str, old: str, new: str, decision: str, score: str, **_others: str
) -> Iterator[str]:
    if field not in ALLOWED_VALUES:
        yield f"field {field!r} is not one of {', '.join(ALLOWED_VALUES)}"
        return
    for column, value in {"old": old, "new": new}.items():
        if value not in ALLOWED_VALUES[field]:
            yield f"{column} is {value!r}: {_remedy(field)}"
    if field == "duplicate" and decision != "rejected":
        yield "field duplicate needs the decision rejected: write drop to drop the photo"
    if old == new and old:
        yield f"old and new are both {old!r}: remove the row"
    if decision not in DECISIONS:
        yield f"decision is {decision!r}: write accepted or rejected"
    if score and not SCORE.fullmatch(score):
        yield f"score is {score!r}: write a number from 0 to 1"


def _remedy(field: str) -> str:
    match field:
        case "age":
            return f"write the age in whole years, 0 to {MAX_AGE}"
        case "drop":
            return "leave old and new empty to drop a photo or a person"
        case "duplicate":
            return "leave old and new empty"
        case _:
            return f"write one of {', '.join(ALLOWED_VALUES[field])}"


def apply_corrections(
    photos: pd.DataFrame, corrections: pd.DataFrame, source: Path
) -> pd.DataFrame:
    """Correct mask, gender and age, remove dropped photos, add the column `origin`.

    Rejected rows change nothing, but their photos must exist.

    Args:
        photos: original data: person, photo, mask, gender, age.
        source: file of the corrections, for messages.

    Raises:
        UserError: a line for each row that matches no photo, whose `old` differs from the data,
            that changes the same field of a photo as an earlier row, or that leaves a person of
            the seven photos of `MASK_BY_STEM` with too many of a mask state, as half a swap does.
    """
    corrected = photos.assign(origin="given")
    dropped = pd.Series(False, index=photos.index)
    rows_of_person = photos.groupby("person", sort=False).groups
    changed_by: dict[tuple[object, str], int] = {}
    problems = []
    for row, person, photo, field, old, new, decision in corrections[
        [*COLUMNS[:-1], "decision"]
    ].itertuples(name=None):
        matches = photos.loc[rows_of_person.get(person, [])]
        if photo:
            matches = matches[matches["photo"] == photo]
        rejected = decision == "rejected"
        problem = _missing_photo(photos, matches, person, photo)
        if not problem and not rejected:
            problem = _conflict(photos, matches, person, field, old, changed_by)
        if problem:
            problems.append(f"{source}, row {row}: {problem}")
        if problem or rejected:
            continue
        changed_by |= dict.fromkeys([(match, field) for match in matches.index], row)
        if field == "drop":
            dropped[matches.index] = True
            continue
        corrected.loc[matches.index, field] = int(new) if field == "age" else new
        corrected.loc[matches.index, "origin"] = "corrected"
    problems += [
        f"{source}, row {changed_by[match, 'mask']}: {problem}"
        for match, problem in _surplus_masks(photos, corrected[~dropped])
    ]
    if problems:
        raise UserError("\n".join(problems))
    return corrected[~dropped]


def _missing_photo(photos: pd.DataFrame, matches: pd.DataFrame, person: str, photo: str) -> str:
    """Say that a correction matches no photo, or return ""."""
    if not matches.empty:
        return ""
    names = photos.loc[photos["person"] == person, "photo"]
    if names.empty:
        return f"there is no person {person!r}: correct or remove the row"
    return f"{person} has no photo {photo!r}: write one of {', '.join(names)}"


def _conflict(
    photos: pd.DataFrame,
    matches: pd.DataFrame,
    person: str,
    field: str,
    old: str,
    changed_by: dict[tuple[object, str], int],
) -> str:
    """Say why a correction conflicts with an earlier row or with the data, or return ""."""
    for match in matches.index:
        if (match, field) in changed_by:
            return (
                f"row {changed_by[match, field]} already changes the {field} of "
                f"{person} {photos.loc[match, 'photo']}: keep one of them"
            )
    if field == "drop":
        return ""
    differing = matches[matches[field].astype(str) != old]
    if not differing.empty:
        return (
            f"old is {old!r}, but the {field} of {person} {differing['photo'].iloc[0]} is "
            f"{str(differing[field].iloc[0])!r} in the data: correct or remove the row"
        )
    return ""


def _surplus_masks(photos: pd.DataFrame, corrected: pd.DataFrame) -> Iterator[tuple[object, str]]:
    """Find corrected photos whose person now has more photos of that mask state than before.

    Only people with exactly the seven photos of `MASK_BY_STEM` have a fixed number per state.
    """
    stems = photos["photo"].map(lambda photo: Path(photo).stem)
    has_usual_photos = stems.groupby(photos["person"]).agg(
        lambda own: set(own) == set(MASK_BY_STEM)
    )
    before, after = (table.groupby(["person", "mask"]).size() for table in (photos, corrected))
    for match in corrected.index[corrected["mask"] != photos.loc[corrected.index, "mask"]]:
        person, photo, mask = corrected.loc[match, ["person", "photo", "mask"]]
        expected = before.get((person, mask), 0)
        if has_usual_photos[person] and after[person, mask] > expected:
            yield (
                match,
                f"{photo} becomes {mask!r}, which gives {person} {after[person, mask]} such photos "
                f"instead of {expected}: add a row for the photo it was swapped with, or drop that "
                "photo (field drop)",
            )
