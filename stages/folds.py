"""Folds: assign every person to one fold, so that no network is scored on people it has seen.

    python -m stages.folds data/clean data/duplicates/duplicates.csv data/folds

Writes `folds.csv` (person, photo, label, age, fold; the rows of photos.csv) and `metrics.json`, the
balance of the folds. With `folds.holdout`, a share of the people is in no fold: their `fold` is -1.
"""

import math
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from face_attributes.command import stage_command
from face_attributes.errors import UserError
from face_attributes.files import write_json, write_table
from face_attributes.params import FoldParams, read_params
from face_attributes.photos.labels import MASKS, NUM_CLASSES, Labels, class_names
from face_attributes.photos.tables import HOLDOUT, read_stage_table

CANDIDATES = 20
"""Number of random splits, from consecutive seeds; the most even one is kept. With few people a
single split is often uneven, or leaves a fold without a class."""

Folds = NDArray[np.int64]


def group_people(people: pd.Series, duplicates: pd.DataFrame) -> pd.Series:
    """Return the group of each photo's person: people who share a photo are one group.

    Args:
        people: the person of each photo.
        duplicates: pairs of photos: person, other_person (empty for evaluation photos).
    """
    names, indices = np.unique(people, return_inverse=True)
    across = duplicates[duplicates["other_person"] != ""]
    ends = [np.searchsorted(names, across[column]) for column in ("person", "other_person")]
    links = coo_array((np.ones(len(across)), ends), shape=(len(names), len(names)))
    return pd.Series(connected_components(links, directed=False)[1][indices], index=people.index)


def draw_holdout(
    labels: Labels, people: pd.Series, groups: pd.Series, params: FoldParams
) -> "pd.Series[bool]":
    """Draw the people who are in no fold: a mask of their photos (N).

    Draws the share `params.holdout` of the groups (a person, or people who share a photo) of each
    gender and age group, also if the folds are by photo. The order of the draw is a hash of each
    group's first person: people who come or go later hardly change who else is drawn.
    """
    table = pd.DataFrame({"person": people, "group": groups})
    table["kind"] = labels % (NUM_CLASSES // len(MASKS))
    first = table.groupby("group").agg(person=("person", "min"), kind=("kind", "first"))
    order = [sha256(f"{params.seed} {person}".encode()).hexdigest() for person in first["person"]]
    place = pd.Series(order, index=first.index).groupby(first["kind"]).rank()
    count = first.groupby("kind")["kind"].transform("size")
    drawn = first.index[place <= (params.holdout * count).round()]
    return groups.isin(drawn)


def holdout_deviation(labels: Labels, holdout: "pd.Series[bool]") -> float:
    """Largest relative deviation of a class's share in the holdout from that of all photos.

    A missing class counts as worse than any deviation.
    """
    shares = holdout.groupby(labels).mean()
    if (shares == 0).any():
        return math.inf
    return float((shares / holdout.mean() - 1).abs().max())


def assign_folds(labels: Labels, groups: pd.Series, params: FoldParams) -> Folds:
    """Assign photos to folds (N, int64) with the classes spread evenly.

    Splits by group (a person, or people who share a photo) with scikit-learn's
    StratifiedGroupKFold, or by photo, which leaks, with StratifiedKFold.
    """
    count = len(params.index)
    candidates = [
        _split(labels, groups, count, params.group_by == "photo", params.seed + offset)
        for offset in range(CANDIDATES)
    ]
    return min(candidates, key=lambda folds: class_deviation(labels, folds, count))


def _split(labels: Labels, groups: pd.Series, count: int, by_photo: bool, seed: int) -> Folds:
    splitter = StratifiedKFold if by_photo else StratifiedGroupKFold
    split = splitter(n_splits=count, shuffle=True, random_state=seed).split(
        labels, labels, None if by_photo else groups.to_numpy()
    )
    folds = np.full(len(labels), -1)
    for fold, (_, validation) in enumerate(split):
        folds[validation] = fold
    return folds


def class_counts(labels: Labels, folds: Folds, count: int) -> NDArray[np.int64]:
    """Count the photos of each class in each fold: folds x 18."""
    table = np.zeros((count, NUM_CLASSES), dtype=np.int64)
    np.add.at(table, (folds, labels), 1)
    return table


def class_deviation(labels: Labels, folds: Folds, count: int) -> float:
    """Largest relative deviation of a class's photos in a fold from an even share.

    A missing class in a fold counts as worse than any uneven one.
    """
    table = class_counts(labels, folds, count)
    even_share = table.mean(axis=0)
    present = even_share > 0
    deviation = float(np.abs(table[:, present] / even_share[present] - 1).max())
    return deviation + NUM_CLASSES * count * float((table[:, present] == 0).sum())


def people_per_class(photos: pd.DataFrame) -> "pd.Series[int]":
    """Count the people with photos of each class (18)."""
    people = photos.groupby("label")["person"].nunique()
    return people.reindex(range(NUM_CLASSES), fill_value=0)


def check_people(photos: pd.DataFrame, count: int, names: list[str]) -> None:
    """Check that every class has enough people for every fold.

    Raises:
        UserError: naming each class with too few people, and their number.
    """
    people = people_per_class(photos)
    rare = [
        f"class {label} ({name}) has {people[label]}"
        for label, name in enumerate(names)
        if people[label] < count
    ]
    if rare:
        raise UserError(
            f"folds.index: {count} folds need {count} people in every class; {'; '.join(rare)}: "
            "use fewer folds, or add people"
        )


def check_holdout(
    photos: pd.DataFrame, holdout: "pd.Series[bool]", params: FoldParams, names: list[str]
) -> None:
    """Check that the holdout has every class, and leaves enough people for every fold.

    Args:
        photos: person, label.
        holdout: mask of the photos in the holdout.

    Raises:
        UserError: naming each class with too few people, and their number.
    """
    count, share = len(params.index), f"folds.holdout: {params.holdout:g}"
    people, left = people_per_class(photos), people_per_class(photos[~holdout])
    classes = [f"class {label} ({name})" for label, name in enumerate(names)]
    absent = set(range(NUM_CLASSES)) - set(photos.loc[holdout, "label"])
    if absent:
        missing = "; ".join(
            f"{classes[label]} has {people[label]} people" for label in sorted(absent)
        )
        raise UserError(
            f"{share} holds out nobody of a class: {missing}: use a larger folds.holdout (0 for "
            "none), or add people"
        )
    rare = [label for label in range(NUM_CLASSES) if left[label] < count]
    if rare:
        few = "; ".join(
            f"{classes[label]} keeps {left[label]} of {people[label]}" for label in rare
        )
        raise UserError(
            f"{share} leaves too few people for {count} folds, which need {count} in every class: "
            f"{few}: use a smaller folds.holdout or fewer folds, or add people"
        )


def check_folds(photos: pd.DataFrame, params: FoldParams, names: list[str]) -> dict[str, object]:
    """Check the folds for leaks and missing classes; return their metrics.

    Args:
        photos: person, group, label, fold.

    Raises:
        UserError: if folds are by person and a group is in two of them, or if a fold lacks a class.
    """
    count = len(params.index)
    shared = int((photos.groupby("person")["fold"].nunique() > 1).sum())
    folds_of_group = photos.groupby("group")["fold"].nunique()
    if params.group_by == "person" and (folds_of_group > 1).any():
        people = photos.loc[photos["group"] == folds_of_group.idxmax(), "person"].unique()
        raise UserError(
            f"the same person or people who share a photo are in two folds: {', '.join(people)}"
        )
    labels, folds = photos["label"].to_numpy(), photos["fold"].to_numpy()
    table = class_counts(labels, folds, count)
    if (table == 0).any():
        fold, label = np.argwhere(table == 0)[0]
        people = photos.loc[photos["label"] == label, "person"].nunique()
        smaller = ", a smaller folds.holdout" if params.holdout else ""
        raise UserError(
            f"fold {fold} has no photo of class {label} ({names[label]}), which {people} people "
            f"have: use fewer folds{smaller} or another folds.seed, or add people"
        )
    return {
        "folds": count,
        "people_in_two_folds": shared,
        "people_who_share_photos": int((photos.groupby("group")["person"].nunique() - 1).sum()),
        "photos": {str(fold): int((folds == fold).sum()) for fold in params.index},
        "people": photos.groupby("fold")["person"].nunique().to_dict(),
        "rarest_class_photos": int(table.min()),
        "worst_class_deviation": class_deviation(labels, folds, count),
    }


@stage_command
def main(clean: Path, duplicates: Path, out: Path) -> None:
    """Assign the people in CLEAN to the folds in folds.index; DUPLICATES keep people together."""
    params = read_params()
    names = class_names(params.labels.age_edges)
    table = read_stage_table(clean / "photos.csv")[["person", "photo", "label", "age"]]
    check_people(table, len(params.folds.index), names)

    # All photos with their labels before corrections: so a corrected label or a dropped photo moves
    # nobody to another fold, and scores before and after compare networks for the same people.
    given = read_stage_table(clean / "given_labels.csv")
    rows = pd.MultiIndex.from_frame(given[["person", "photo"]])
    table.index = rows.get_indexer(pd.MultiIndex.from_frame(table[["person", "photo"]]))
    groups = group_people(given["person"], read_stage_table(duplicates))
    labels = given["label"].to_numpy()
    in_holdout = pd.Series(False, index=given.index)
    if params.folds.holdout:
        in_holdout = draw_holdout(labels, given["person"], groups, params.folds)
        check_holdout(table, in_holdout[table.index], params.folds, names)
    folds = pd.Series(HOLDOUT, index=given.index)
    folds[~in_holdout] = assign_folds(labels[~in_holdout], groups[~in_holdout], params.folds)
    table["fold"] = folds
    holdout = table["fold"] == HOLDOUT
    in_folds, held_out = table[~holdout], table[holdout]
    metrics = check_folds(in_folds.assign(group=groups), params.folds, names)
    if holdout.any():
        metrics["holdout"] = {
            "photos": len(held_out),
            "people": held_out["person"].nunique(),
            "rarest_class_photos": int(held_out.groupby("label").size().min()),
            "worst_class_deviation": holdout_deviation(table["label"].to_numpy(), holdout),
        }

    write_table(out / "folds.csv", table)
    write_json(out / "metrics.json", metrics)
    print(
        f"folds: {len(in_folds)} photos of {in_folds['person'].nunique()} people in "
        f"{metrics['folds']} folds, worst class deviation {metrics['worst_class_deviation']:.1%}"
    )
    if holdout.any():
        print(
            f"folds: holdout: {len(held_out)} photos of {held_out['person'].nunique()} people who "
            "are in no fold"
        )
    if params.folds.group_by == "photo":
        print(
            f"warning: folds.group_by: photo puts {metrics['people_in_two_folds']} people in two "
            "folds, so scores are too good: use it only to show the leak"
            + "; the holdout is by person, and its scores do not leak"
            * bool(holdout.any()),
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
