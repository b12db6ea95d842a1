"""Clean: the tables and folders as they came -> one table, a row a photo, with labels to trust.

    python -m stages.clean data/sample/train data/sample/eval data/corrections.csv data/clean

Writes to the output folder:

- `photos.csv`: person, photo, path, mask, gender, age (years), label, origin (given or corrected)
- `evaluation.csv`: photo, path, rejected (why it cannot be used, or empty), a row for each of
  info.csv
- `rejected.csv`: set, person, photo, reason
- `metrics.json`: how many photos came in, were rejected, were corrected

The folder that `path` in train.csv names is the one key of a person. Photos are only read.
"""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stages.command import stage_command
from stages.errors import UserError
from stages.files import write_json, write_table
from stages.params import CleanParams, read_params
from stages.photos.corrections import apply_corrections, read_corrections
from stages.photos.labels import GENDERS, MASK_OF_PHOTO, OLDEST, encode
from stages.photos.opening import SUFFIXES, BadPhotoError, open_photo
from stages.photos.tables import read_text_table
from stages.progress import progress

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
    """Read train.csv: one row a person, with gender, age (years, int) and path (the person).

    Raises:
        UserError: naming the row of an unknown gender, an impossible age, a path that is repeated.
    """
    people = read_text_table(table, ["gender", "age", "path"])
    if people.empty:
        raise UserError(f"{table} has no row below its header: add one for each person")
    first_row: dict[str, int] = {}
    for row, (gender, age, path) in zip(people.index, people.to_numpy(), strict=True):
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
        UserError: if the name is empty, hidden or too long, has folders in it, or is a link, which
            could lead out of the folder or to another person.
    """
    path = folder / name
    plain = 0 < len(os.fsencode(name)) < 256 and name == Path(name).name and "\\" not in name
    if not plain or name.startswith("."):
        raise UserError(
            f"{where}: {name!r} must be the plain, visible name of something in {folder}"
        )
    if path.is_symlink():
        raise UserError(f"{where}: {path} is a link: put what it leads to in its place")
    return path


def list_photos(people: pd.DataFrame, train: Path) -> tuple[pd.DataFrame, list[Rejected]]:
    """Find the seven photos of each person: person, photo, path, mask, gender, age.

    Returns:
        The photos, in the order of train.csv, and what lies in `train/images` beside them.

    Raises:
        UserError: if a folder or a photo is missing, a photo is there twice, or a path leads out.
    """
    images, rows, rejected = train / "images", list[dict[str, Any]](), list[Rejected]()
    for row, (gender, age, person) in zip(people.index, people.to_numpy(), strict=True):
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


def decode_all(paths: Sequence[str], max_pixels: int) -> Iterator[str]:
    """Decode every photo, on all cores: for each, why it cannot be used, or ""."""
    with ProcessPoolExecutor() as pool:
        reasons = pool.map(partial(reason_to_reject, max_pixels=max_pixels), paths, chunksize=16)
        yield from progress(reasons, len(paths), "clean: photos read")


def reason_to_reject(path: str, max_pixels: int) -> str:
    """Why a photo cannot be used, or ""."""
    try:
        open_photo(Path(path), max_pixels)
    except BadPhotoError as bad:
        return str(bad)
    return ""


def reasons_to_reject(photos: pd.DataFrame, name: str, params: CleanParams) -> list[str]:
    """Decode all photos of a set: why each cannot be used, or "".

    Raises:
        UserError: if more than the share that params allow cannot be used.
    """
    reasons = list(decode_all(photos["path"].to_list(), params.max_pixels))
    bad = [(path, why) for path, why in zip(photos["path"], reasons, strict=True) if why]
    if len(bad) > params.max_rejected * len(photos):
        raise UserError(
            f"{len(bad)} of {len(photos)} photos of {name} cannot be used, more than "
            f"clean.max_rejected allows ({params.max_rejected:g}); the first: {' '.join(bad[0])}"
        )
    return reasons


@stage_command
def main(train: Path, evaluation: Path, corrections: Path, out: Path) -> None:
    """Check TRAIN and EVALUATION, apply CORRECTIONS, write the clean tables to OUT."""
    params = read_params()
    given, rejected = list_photos(read_people(train / "train.csv"), train)
    asked = list_evaluation(evaluation)
    corrected = apply_corrections(given, read_corrections(corrections), corrections)
    reasons = reasons_to_reject(corrected, "the training set", params.clean)
    evaluation_reasons = reasons_to_reject(asked, "the evaluation set", params.clean)

    photos = corrected[[not reason for reason in reasons]] if reasons else corrected
    if photos.empty:
        raise UserError(f"no photo of {train} is left: all are dropped or cannot be used")
    labels = [
        encode(mask, gender, age, params.labels.age_edges)
        for mask, gender, age in photos[["mask", "gender", "age"]].itertuples(index=False)
    ]
    photos.insert(list(photos).index("origin"), "label", labels)
    rejected += [
        Rejected("train", person, photo, reason)
        for person, photo, reason in zip(
            corrected["person"], corrected["photo"], reasons, strict=True
        )
        if reason
    ] + [
        Rejected("evaluation", "", photo, reason)
        for photo, reason in zip(asked["photo"], evaluation_reasons, strict=True)
        if reason
    ]

    write_table(out / "photos.csv", photos)
    write_table(out / "evaluation.csv", asked.assign(rejected=evaluation_reasons))
    write_table(out / "rejected.csv", pd.DataFrame(rejected, columns=list(Rejected._fields)))
    counts = {
        "people": photos["person"].nunique(),
        "photos": len(photos),
        "corrected": int((photos["origin"] == "corrected").sum()),
        "dropped": len(given) - len(corrected),
        "rejected": len(corrected) - len(photos),
        "not_a_photo": sum(entry.reason == NOT_A_PHOTO for entry in rejected),
        "evaluation_photos": len(asked),
        "evaluation_rejected": sum(map(bool, evaluation_reasons)),
    }
    write_json(out / "metrics.json", counts)
    print("clean: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
