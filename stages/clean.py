"""Clean: check the original data, apply corrections, write one table with one row per photo.

    python -m stages.clean data/sample/train data/sample/eval data/corrections.csv data/clean

Writes to the output folder:

- `photos.csv`: person, photo, path, mask, gender, age (years), race (as in train.csv, or empty),
  origin (given or corrected), label, given_label (before corrections)
- `evaluation.csv`: photo, path, rejected (the reason, or empty), one row per row of info.csv
- `rejected.csv`: set, person, photo, reason
- `metrics.json`: numbers of photos, rejected photos and corrected photos

The column `path` of train.csv is the only key of a person. Photos are never modified.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from face_attributes.command import stage_command
from face_attributes.errors import UserError
from face_attributes.files import write_json, write_table
from face_attributes.params import CleanParams, read_params
from face_attributes.photos.label_edits import apply_corrections, read_corrections
from face_attributes.photos.labels import encode
from face_attributes.photos.opening import BadPhotoError, open_photo
from face_attributes.photos.raw import (
    NOT_A_PHOTO,
    Rejection,
    list_evaluation,
    list_photos,
    read_people,
)
from face_attributes.processes import map_on_all_cores
from face_attributes.progress import progress


def reason_to_reject(path: str, max_pixels: int) -> str:
    """Decode a photo; return why it cannot be used, or ""."""
    try:
        open_photo(Path(path), max_pixels)
    except BadPhotoError as error:
        return str(error)
    return ""


def decode_all(paths: Sequence[str], max_pixels: int) -> Iterator[str]:
    """Decode all photos on all cores; yield why each cannot be used, or ""."""
    reason = partial(reason_to_reject, max_pixels=max_pixels)
    reasons = map_on_all_cores(reason, paths, chunksize=16)
    yield from progress(reasons, len(paths), "clean: photos decoded")


def reasons_to_reject(photos: pd.DataFrame, name: str, params: CleanParams) -> list[str]:
    """Decode all photos of a set; return why each cannot be used, or "".

    Raises:
        UserError: if the share of unusable photos exceeds `max_rejected`.
    """
    reasons = list(decode_all(photos["path"].to_list(), params.max_pixels))
    bad = [
        f"{path} {reason}" for path, reason in zip(photos["path"], reasons, strict=True) if reason
    ]
    if len(bad) > params.max_rejected * len(photos):
        raise UserError(
            f"{len(bad)} of {len(photos)} photos of {name} cannot be used, such as {bad[0]}: "
            f"replace them, or raise clean.max_rejected ({params.max_rejected:g})"
        )
    return reasons


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


@stage_command
def main(train: Path, evaluation: Path, corrections: Path, out: Path) -> None:
    """Check TRAIN and EVALUATION, apply CORRECTIONS, write the clean tables to OUT."""
    params = read_params()
    edges = params.labels.age_edges
    original, rejections = list_photos(read_people(train / "train.csv"), train)
    evaluation_photos = list_evaluation(evaluation)
    corrected = apply_corrections(original, read_corrections(corrections), corrections)
    reasons = reasons_to_reject(corrected, "the training set", params.clean)
    evaluation_reasons = reasons_to_reject(evaluation_photos, "the evaluation set", params.clean)
    rejections += list_rejections("train", corrected, reasons)
    rejections += list_rejections(
        "evaluation", evaluation_photos.assign(person=""), evaluation_reasons
    )

    photos = corrected[[not reason for reason in reasons]] if reasons else corrected
    if photos.empty:
        raise UserError(f"no photo of {train} is left: all are dropped or cannot be used")
    photos = photos.assign(
        label=encode_all(photos, edges), given_label=encode_all(original.loc[photos.index], edges)
    )

    write_table(out / "photos.csv", photos)
    write_table(out / "evaluation.csv", evaluation_photos.assign(rejected=evaluation_reasons))
    write_table(out / "rejected.csv", pd.DataFrame(rejections, columns=list(Rejection._fields)))
    counts = {
        "people": photos["person"].nunique(),
        "photos": len(photos),
        "corrected": int((photos["origin"] == "corrected").sum()),
        "dropped": len(original) - len(corrected),
        "rejected": len(corrected) - len(photos),
        "not_a_photo": sum(rejection.reason == NOT_A_PHOTO for rejection in rejections),
        "evaluation_photos": len(evaluation_photos),
        "evaluation_rejected": sum(map(bool, evaluation_reasons)),
    }
    write_json(out / "metrics.json", counts)
    print("clean: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
