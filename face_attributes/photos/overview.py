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


def count_folds(people: "pd.Series[int]", edges: Sequence[int], holdout: float) -> int:
    """Number of folds for which every class has enough people beside the holdout.

    Exact where every person has photos of all mask states; else the holdout is drawn by chance, and
    this is the expected number.

    Args:
        people: number of people of each class (18).
        holdout: share of the people that no fold sees.

    Raises:
        UserError: naming the classes of which fewer than two people are left for the folds, or none
            is in the holdout.
    """
    held_out = (people * holdout).round().astype(int)  # as the stage `folds` rounds
    left = people - held_out
    if (left < 2).any():
        beside = f" beside folds.holdout: {holdout:g}" if holdout else ""
        remedy = ", lower folds.holdout" if holdout else ""
        raise UserError(
            f"too few people in a class, which needs two or more{beside} "
            f"({_list_classes(left[left < 2], edges)}): add people{remedy}, or first change "
            "labels.age_edges in params.yaml"
        )
    if holdout and not held_out.all():
        raise UserError(
            f"folds.holdout: {holdout:g} holds out nobody of a class "
            f"({_list_classes(people[held_out == 0], edges)}): set a larger folds.holdout in "
            "params.yaml (0 for none), or add people"
        )
    return int(left.min())


def _list_classes(people: "pd.Series[int]", edges: Sequence[int]) -> str:
    """The first four classes and their number of people."""
    names = class_names(edges)
    classes = [f"{names[label]}: {number}" for label, number in people.items()]  # type: ignore[call-overload]
    more = f"; and {len(classes) - 4} more classes" if len(classes) > 4 else ""
    return "; ".join(classes[:4]) + more


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
