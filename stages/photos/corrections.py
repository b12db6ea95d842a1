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
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from stages.errors import UserError
from stages.photos.labels import GENDERS, MASKS, OLDEST
from stages.photos.tables import read_text_table

COLUMNS = ["person", "photo", "field", "old", "new", "reason"]
OPTIONAL = ["reviewer", "decision", "score"]
CLAIM = ["person", "photo", "field", "new"]
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
        UserError: a line for each field or value that is not, and for each row that says what
            another row says, or rejects what that accepts, naming its row.
    """
    corrections = read_text_table(path, COLUMNS, OPTIONAL)
    problems, first = list[str](), dict[tuple[str, ...], tuple[object, bool]]()
    for row, cells in corrections.iterrows():
        where = f"{path}, row {row}"
        problems += [f"{where}: {problem}" for problem in _wrong_values(**cells)]
        claim, rejected = tuple(cells[CLAIM]), cells["decision"] == "rejected"
        earlier, was_rejected = first.setdefault(claim, (row, rejected))
        if earlier != row:
            how = "says the same" if rejected == was_rejected else "decides otherwise on the same"
            problems.append(f"{where}: row {earlier} {how}: keep one of them")
    if problems:
        raise UserError("\n".join(problems))
    return corrections


def _wrong_values(
    field: str, old: str, new: str, decision: str, score: str, **_others: str
) -> Iterator[str]:
    if field not in ALLOWED:
        yield f"field {field!r} is not one of {', '.join(ALLOWED)}"
        return
    for column, value in {"old": old, "new": new}.items():
        if value not in ALLOWED[field]:
            yield f"{column} is {value!r}: {_expected(field)}"
    if old == new and field != "drop":
        yield f"old and new are both {old!r}: take the row out"
    if decision not in DECISIONS:
        yield f"decision is {decision!r}: write accepted or rejected"
    if score and not SCORE.fullmatch(score):
        yield f"score is {score!r}: write a number from 0 to 1"


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

    Rejected rows change nothing, but speak of photos that are there.

    Args:
        photos: as they came: person, photo, mask, gender, age.
        source: the file of the corrections, for messages.

    Raises:
        UserError: a line for each row that matches nothing, whose `old` is not what the data says,
            that speaks of what another row has spoken of, or that gives a person one photo more of
            a mask state, as half a swap does.
    """
    corrected = photos.assign(origin="given")
    dropped = pd.Series(False, index=photos.index)
    rows_of_person = photos.groupby("person", sort=False).groups
    changed_by: dict[tuple[object, str], int] = {}
    problems = []
    for row, person, photo, field, old, new, decision in corrections[
        [*COLUMNS[:-1], "decision"]
    ].itertuples(name=None):
        chosen = photos.loc[rows_of_person.get(person, [])]
        if photo:
            chosen = chosen[chosen["photo"] == photo]
        rejected = decision == "rejected"
        problem = _nothing(photos, chosen, person, photo)
        if not problem and not rejected:
            problem = _mismatch(photos, chosen, person, field, old, changed_by)
        if problem:
            problems.append(f"{source}, row {row}: {problem}")
        if problem or rejected:
            continue
        changed_by |= dict.fromkeys([(match, field) for match in chosen.index], row)
        if field == "drop":
            dropped[chosen.index] = True
            continue
        corrected.loc[chosen.index, field] = int(new) if field == "age" else new
        corrected.loc[chosen.index, "origin"] = "corrected"
    problems += [
        f"{source}, row {changed_by[match, 'mask']}: {problem}"
        for match, problem in _too_many(photos, corrected[~dropped])
    ]
    if problems:
        raise UserError("\n".join(problems))
    return corrected[~dropped]


def _nothing(photos: pd.DataFrame, chosen: pd.DataFrame, person: str, photo: str) -> str:
    """That a correction chooses no photo, or ""."""
    if not chosen.empty:
        return ""
    theirs = photos.loc[photos["person"] == person, "photo"]
    if theirs.empty:
        return f"there is no person {person!r}: correct or remove the row"
    return f"{person} has no photo {photo!r}; there are {', '.join(theirs)}"


def _mismatch(
    photos: pd.DataFrame,
    chosen: pd.DataFrame,
    person: str,
    field: str,
    old: str,
    changed_by: dict[tuple[object, str], int],
) -> str:
    """Why a correction cannot be applied to the photos it chooses, or ""."""
    for match in chosen.index:
        if (match, field) in changed_by:
            return (
                f"row {changed_by[match, field]} already changes the {field} of "
                f"{person} {photos.loc[match, 'photo']}: keep one of them"
            )
    if field == "drop":
        return ""
    differs = chosen[chosen[field].astype(str) != old]
    if not differs.empty:
        return (
            f"old is {old!r}, but the data says {str(differs[field].iloc[0])!r} for "
            f"the {field} of {person} {differs['photo'].iloc[0]}: correct or remove the row"
        )
    return ""


def _too_many(photos: pd.DataFrame, corrected: pd.DataFrame) -> Iterator[tuple[object, str]]:
    """Photos whose new mask state more photos of their person then have than before."""
    before, after = (table.groupby(["person", "mask"]).size() for table in (photos, corrected))
    for match in corrected.index[corrected["mask"] != photos.loc[corrected.index, "mask"]]:
        person, photo, mask = corrected.loc[match, ["person", "photo", "mask"]]
        most = before.get((person, mask), 0)
        if after[person, mask] > most:
            yield (
                match,
                f"{photo} becomes {mask!r}, and {person} has {after[person, mask]} photos of that "
                f"kind instead of {most}: add the row of the photo it was swapped with, or drop it "
                "(field drop)",
            )
