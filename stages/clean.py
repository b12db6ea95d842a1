"""Clean: check the original data, apply corrections, write one table with one row per photo.

    python -m stages.clean data/sample/train data/sample/eval data/corrections.csv data/clean

Writes to the output folder:

- `photos.csv`: person, photo, path, mask, gender, age (years), race (as in train.csv, or empty),
  origin (given or corrected), label
- `to_crop.csv`: the same photos: person, photo, path, mask before corrections. So a corrected label
  crops no photo again.
- `given_labels.csv`: person, photo, label before corrections; also of photos that are dropped or
  cannot be used
- `evaluation.csv`: photo, path, rejected (the reason, or empty), one row per row of info.csv
- `rejected.csv`: set, person, photo, reason
- `metrics.json`: numbers of photos, also of rejected, corrected and slightly truncated ones

The column `path` of train.csv is the only key of a person. Photos are never modified.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from face_attributes.command import stage_command
from face_attributes.errors import UserError
from face_attributes.files import write_json, write_table
from face_attributes.params import read_params
from face_attributes.photos.label_edits import apply_corrections, read_corrections
from face_attributes.photos.labels import encode
from face_attributes.photos.opening import LOWER_MAX_PIXELS, BadPhotoError, missing_end, open_photo
from face_attributes.photos.raw import (
    NOT_A_PHOTO,
    Rejection,
    list_evaluation,
    list_photos,
    read_people,
)
from face_attributes.processes import map_on_all_cores
from face_attributes.progress import progress
from face_attributes.revisions import hidden_from_dvc


class Decoded(NamedTuple):
    """Why a photo cannot be used, or "", and whether it is used although its end is missing."""

    reason: str
    truncated: bool


def decode(path: str, max_pixels: int) -> Decoded:
    """Decode a photo.

    Raises:
        UserError: if it cannot be read for a reason that lies outside its content.
    """
    try:
        photo = open_photo(Path(path), max_pixels)
    except BadPhotoError as error:
        return Decoded(str(error), False)
    except FileNotFoundError:
        raise UserError(f"{path} was removed while it was read: run `dvc repro` again") from None
    return Decoded("", missing_end(photo) is not None)


def decode_all(paths: Sequence[str], max_pixels: int) -> Iterator[Decoded]:
    """Decode all photos on all cores."""
    decoded = map_on_all_cores(
        partial(decode, max_pixels=max_pixels), paths, chunksize=16, remedy=LOWER_MAX_PIXELS
    )
    yield from progress(decoded, len(paths), "clean: photos decoded")


def check_share(photos: pd.DataFrame, reasons: Sequence[str], name: str, limit: float) -> None:
    """Check the share of photos of a set that cannot be used for a reason, with "" for a good one.

    Raises:
        UserError: if it exceeds the limit.
    """
    bad = [
        f"{path} {reason}" for path, reason in zip(photos["path"], reasons, strict=True) if reason
    ]
    if len(bad) > limit * len(photos):
        raise UserError(
            f"{len(bad)} of {len(photos)} photos of {name} cannot be used, such as {bad[0]}: "
            f"replace them, or raise clean.max_rejected ({limit:g})"
        )


def list_rejections(set_name: str, photos: pd.DataFrame, reasons: Sequence[str]) -> list[Rejection]:
    """List the photos (person, photo) of a set that have a reason."""
    return [
        Rejection(set_name, person, photo, reason)
        for person, photo, reason in zip(photos["person"], photos["photo"], reasons, strict=True)
        if reason
    ]


def encode_all(photos: pd.DataFrame, edges: Sequence[int]) -> list[int]:
    """Encode mask, gender and age of photos as labels (0 to 17)."""
    return [
        encode(mask, gender, age, edges)
        for mask, gender, age in photos[["mask", "gender", "age"]].itertuples(index=False)
    ]


def check_visible(paths: Sequence[str]) -> None:
    """Check that DVC notices when one of the files in a dependency changes.

    Raises:
        UserError: naming the first that it ignores.
    """
    hidden = hidden_from_dvc(paths)
    if hidden:
        raise UserError(
            f"{hidden[0]}: a .dvcignore hides it, so that DVC does not notice when it changes: "
            f"rename it, or change the .dvcignore ({len(hidden)} of {len(paths)} files)"
        )


@stage_command
def main(train: Path, evaluation: Path, corrections: Path, out: Path) -> None:
    """Check TRAIN and EVALUATION, apply CORRECTIONS, write the clean tables to OUT."""
    params = read_params()
    edges = params.labels.age_edges
    original, rejections = list_photos(read_people(train / "train.csv"), train)
    evaluation_photos = list_evaluation(evaluation)
    tables = [str(train / "train.csv"), str(evaluation / "info.csv")]
    check_visible([*tables, *original["path"], *evaluation_photos["path"]])
    corrected = apply_corrections(original, read_corrections(corrections), corrections)
    paths = [*corrected["path"], *evaluation_photos["path"]]
    decoded = list(decode_all(paths, params.clean.max_pixels))
    reasons = [each.reason for each in decoded[: len(corrected)]]
    evaluation_reasons = [each.reason for each in decoded[len(corrected) :]]
    limit = params.clean.max_rejected
    check_share(corrected, reasons, "the training set", limit)
    check_share(evaluation_photos, evaluation_reasons, "the evaluation set", limit)
    rejections += list_rejections("train", corrected, reasons)
    rejections += list_rejections(
        "evaluation", evaluation_photos.assign(person=""), evaluation_reasons
    )

    photos = corrected[[not reason for reason in reasons]] if reasons else corrected
    if photos.empty:
        raise UserError(f"no photo of {train} is left: all are dropped or cannot be used")
    photos = photos.assign(label=encode_all(photos, edges))
    to_crop = original.loc[photos.index, ["person", "photo", "path", "mask"]]
    given_labels = original[["person", "photo"]].assign(label=encode_all(original, edges))

    write_table(out / "photos.csv", photos)
    write_table(out / "to_crop.csv", to_crop)
    write_table(out / "given_labels.csv", given_labels)
    write_table(out / "evaluation.csv", evaluation_photos.assign(rejected=evaluation_reasons))
    write_table(out / "rejected.csv", pd.DataFrame(rejections, columns=list(Rejection._fields)))
    counts = {
        "people": photos["person"].nunique(),
        "photos": len(photos),
        "corrected": int((photos["origin"] == "corrected").sum()),
        "dropped": len(original) - len(corrected),
        "rejected": len(corrected) - len(photos),
        "truncated": sum(each.truncated for each in decoded),
        "not_a_photo": sum(rejection.reason == NOT_A_PHOTO for rejection in rejections),
        "evaluation_photos": len(evaluation_photos),
        "evaluation_rejected": sum(map(bool, evaluation_reasons)),
    }
    write_json(out / "metrics.json", counts)
    print("clean: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
