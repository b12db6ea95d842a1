"""Overview of a data set: its classes, the folds that they allow, photos that cannot be read."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd

from face_attributes.errors import UserError
from face_attributes.photos.labels import NUM_CLASSES, class_names, encode
from face_attributes.photos.opening import BadPhotoError, open_photo
from face_attributes.progress import progress


def count_classes(photos: pd.DataFrame, edges: Sequence[int]) -> tuple["pd.Series[int]", ...]:
    """Count the photos and the people of each of the 18 classes."""
    rows = photos[["mask", "gender", "age"]].itertuples(index=False)
    labels = pd.Series(
        [encode(mask, gender, age, edges) for mask, gender, age in rows], index=photos.index
    )
    people = photos["person"].groupby(labels).nunique()
    classes = range(NUM_CLASSES)
    return (
        labels.value_counts().reindex(classes, fill_value=0),
        people.reindex(classes, fill_value=0),
    )


def count_folds(people: "pd.Series[int]", edges: Sequence[int]) -> int:
    """Number of folds for which every class has enough people.

    Raises:
        UserError: naming the classes with fewer than two people.
    """
    names = class_names(edges)
    rare = [f"{names[label]}: {number}" for label, number in enumerate(people) if number < 2]
    if rare:
        more = f"; and {len(rare) - 4} more classes" if len(rare) > 4 else ""
        raise UserError(
            f"too few people in a class, which needs two or more ({'; '.join(rare[:4])}{more}): "
            "add people, or first change labels.age_edges in params.yaml"
        )
    return int(people.min())


def find_unreadable(paths: Sequence[str], max_pixels: int) -> list[str]:
    """Decode all photos; return the path of each that cannot be used, with the reason."""
    with ThreadPoolExecutor() as pool:
        reasons = pool.map(partial(_reason, max_pixels=max_pixels), paths)
        return [
            f"{path} {reason}"
            for path, reason in zip(paths, progress(reasons, len(paths), "photos"), strict=True)
            if reason
        ]


def _reason(path: str, max_pixels: int) -> str:
    try:
        open_photo(Path(path), max_pixels)
    except BadPhotoError as error:
        return str(error)
    return ""
