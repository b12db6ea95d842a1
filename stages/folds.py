"""Folds: every person gets a fold, so that no score is of a person the network has seen.

    python -m stages.folds data/clean/photos.csv data/duplicates/duplicates.csv data/folds

Writes `folds.csv` (person, photo, label, age, fold; the rows of photos.csv) and `metrics.json`, the
figures of the fold gate.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from stages.command import stage_command
from stages.errors import UserError
from stages.files import write_json, write_table
from stages.params import FoldParams, read_params
from stages.photos.labels import CLASSES, Labels, class_names
from stages.photos.tables import read_stage_table

DRAWS = 20
"""Splits drawn from consecutive seeds; the most even one is kept. One draw of few people is often
uneven, and may leave a fold without a class that another draw spreads over all."""

Folds = NDArray[np.int64]


def linked_people(people: pd.Series, duplicates: pd.DataFrame) -> pd.Series:
    """For each photo the group of its person: people who share a photo are one group.

    Args:
        people: the person of each photo.
        duplicates: pairs of photos: person, other_person (empty for evaluation photos).
    """
    names, place = np.unique(people, return_inverse=True)
    across = duplicates[duplicates["other_person"] != ""]
    ends = [np.searchsorted(names, across[side]) for side in ("person", "other_person")]
    links = coo_array((np.ones(len(across)), ends), shape=(len(names), len(names)))
    return pd.Series(connected_components(links, directed=False)[1][place], index=people.index)


def assign_folds(labels: Labels, groups: pd.Series, params: FoldParams) -> Folds:
    """Fold of each photo (N, int64), the classes spread evenly.

    By group (a person, or people who share a photo) with scikit-learn's StratifiedGroupKFold; by
    photo, which leaks, with StratifiedKFold.
    """
    count = len(params.index)
    draws = [
        _draw(labels, groups, count, params.group_by == "photo", params.seed + draw)
        for draw in range(DRAWS)
    ]
    return min(draws, key=lambda folds: class_deviation(labels, folds, count))


def _draw(labels: Labels, groups: pd.Series, count: int, by_photo: bool, seed: int) -> Folds:
    splitter = StratifiedKFold if by_photo else StratifiedGroupKFold
    split = splitter(n_splits=count, shuffle=True, random_state=seed).split(
        labels, labels, None if by_photo else groups.to_numpy()
    )
    folds = np.full(len(labels), -1)
    for fold, (_, validation) in enumerate(split):
        folds[validation] = fold
    return folds


def class_counts(labels: Labels, folds: Folds, count: int) -> NDArray[np.int64]:
    """Photos of each class in each fold: count x 18."""
    table = np.zeros((count, CLASSES), dtype=np.int64)
    np.add.at(table, (folds, labels), 1)
    return table


def class_deviation(labels: Labels, folds: Folds, count: int) -> float:
    """Worst deviation of a class's photos in a fold from an even share, as a part of that share.

    A fold without a class counts as worse than any uneven one.
    """
    table = class_counts(labels, folds, count)
    even = table.mean(axis=0)
    there = even > 0
    deviation = float(np.abs(table[:, there] / even[there] - 1).max())
    return deviation + CLASSES * count * float((table[:, there] == 0).sum())


def check_people(photos: pd.DataFrame, count: int, names: list[str]) -> None:
    """Stop where the data cannot have every class in every fold.

    Raises:
        UserError: naming each class that too few people have, and how many they are.
    """
    people = photos.groupby("label")["person"].nunique().reindex(range(CLASSES), fill_value=0)
    rare = [
        f"class {label} ({name}) has {people[label]}"
        for label, name in enumerate(names)
        if people[label] < count
    ]
    if rare:
        raise UserError(
            f"folds.index: {count} folds need {count} people of every class; {'; '.join(rare)}: "
            "take fewer folds, or add people"
        )


def check_gate(photos: pd.DataFrame, params: FoldParams, names: list[str]) -> dict[str, object]:
    """The gate: figures of the folds, an error where one could not be scored honestly.

    Args:
        photos: person, group, label, fold.

    Raises:
        UserError: if a person, or people who share a photo, are in two folds although folds are by
            person, or a class is missing in a fold.
    """
    count = len(params.index)
    shared = int((photos.groupby("person")["fold"].nunique() > 1).sum())
    folds_of_group = photos.groupby("group")["fold"].nunique()
    if params.group_by == "person" and (folds_of_group > 1).any():
        people = photos.loc[photos["group"] == folds_of_group.idxmax(), "person"].unique()
        raise UserError(f"in two folds, but the same person or photo: {', '.join(people)}")
    labels, folds = photos["label"].to_numpy(), photos["fold"].to_numpy()
    table = class_counts(labels, folds, count)
    if (table == 0).any():
        fold, label = np.argwhere(table == 0)[0]
        people = photos.loc[photos["label"] == label, "person"].nunique()
        raise UserError(
            f"fold {fold} has no photo of class {label} ({names[label]}), which {people} people "
            "have: take fewer folds, another folds.seed, or add people"
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
def main(photos: Path, duplicates: Path, out: Path) -> None:
    """Spread the people of PHOTOS over the folds of folds.index, those of DUPLICATES together."""
    params = read_params()
    names = class_names(params.labels.age_edges)
    known = read_stage_table(photos)
    table = known[["person", "photo", "label", "age"]].copy()

    check_people(table, len(params.folds.index), names)
    groups = linked_people(table["person"], read_stage_table(duplicates))
    # By the labels as they came: so corrections move nobody to another fold, and the scores before
    # and after them are of the same networks' people.
    table["fold"] = assign_folds(known["given_label"].to_numpy(), groups, params.folds)
    gate = check_gate(table.assign(group=groups), params.folds, names)

    write_table(out / "folds.csv", table)
    write_json(out / "metrics.json", gate)
    print(
        f"folds: {len(table)} photos of {table['person'].nunique()} people in {gate['folds']} "
        f"folds, worst class deviation {gate['worst_class_deviation']:.1%}"
    )
    if params.folds.group_by == "photo":
        print(
            f"warning: folds.group_by: photo puts {gate['people_in_two_folds']} people in two "
            "folds: the scores are too good, only to show the leak",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
