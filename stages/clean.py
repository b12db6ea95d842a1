"""Clean: the tables and folders as they came -> one table, a row a photo, with labels to trust.

    python -m stages.clean data/sample/train data/sample/eval data/corrections.csv data/clean

Writes to the output folder:

- `photos.csv`: person, photo, path, mask, gender, age (years), race (as it came, or empty), origin
  (given or corrected), label, given_label (the one before corrections)
- `evaluation.csv`: photo, path, rejected (why it cannot be used, or empty), a row for each of
  info.csv
- `rejected.csv`: set, person, photo, reason
- `metrics.json`: how many photos came in, were rejected, were corrected

The folder that `path` in train.csv names is the one key of a person. Photos are only read.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd

from stages.command import stage_command
from stages.errors import UserError
from stages.files import write_json, write_table
from stages.params import CleanParams, read_params
from stages.photos.corrections import apply_corrections, read_corrections
from stages.photos.labels import encode
from stages.photos.opening import BadPhotoError, open_photo
from stages.photos.raw import (
    NOT_A_PHOTO,
    Rejected,
    list_evaluation,
    list_photos,
    read_people,
)
from stages.progress import progress


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


def encode_all(photos: pd.DataFrame, edges: Sequence[int]) -> list[int]:
    """Labels (0 to 17) of photos: mask, gender, age."""
    return [
        encode(mask, gender, age, edges)
        for mask, gender, age in photos[["mask", "gender", "age"]].itertuples(index=False)
    ]


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
    photos = photos.assign(
        label=encode_all(photos, params.labels.age_edges),
        given_label=encode_all(given.loc[photos.index], params.labels.age_edges),
    )
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
