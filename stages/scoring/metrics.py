"""Macro F1 and accuracy from confusion counts, with intervals from a bootstrap over people."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.photos.labels import AGE_GROUPS, CLASSES, GENDERS, MASKS, Labels

if TYPE_CHECKING:
    import pandas as pd

Counts = NDArray[np.float64]
"""Confusion counts, ... x C x C: actual class, predicted class."""
Figures = NDArray[np.float64]


def confusion(labels: ArrayLike, predicted: ArrayLike) -> Counts:
    """Confusion counts (18 x 18) of photos from their classes and the predicted ones (N each)."""
    counts = np.zeros((CLASSES, CLASSES))
    np.add.at(counts, (np.asarray(labels), np.asarray(predicted)), 1)
    return counts


def confusion_by_person(labels: Labels, predicted: Labels, people: NDArray[np.str_]) -> Counts:
    """Confusion counts of each person apart: P x 18 x 18, people in sorted order."""
    names, person = np.unique(people, return_inverse=True)
    counts = np.zeros((len(names), CLASSES, CLASSES))
    np.add.at(counts, (person, labels, predicted), 1)
    return counts


def counts_of(table: "pd.DataFrame") -> Counts:
    """Confusion counts by person (P x 18 x 18) of a table with person, label, predicted."""
    return confusion_by_person(
        table["label"].to_numpy(), table["predicted"].to_numpy(), table["person"].to_numpy(str)
    )


def f1_per_class(counts: Counts) -> Figures:
    """F1 of each class (... x C); NaN for a class that is neither there nor predicted."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    total = counts.sum(axis=-1) + counts.sum(axis=-2)
    f1 = np.full(hits.shape, np.nan)
    np.divide(2 * hits, total, out=f1, where=total > 0)
    return f1


def macro_f1(counts: Counts) -> Figures:
    """Mean F1 (...) over the classes that are there or predicted.

    As scikit-learn's `f1_score(average="macro", zero_division=nan)`.
    """
    return np.asarray(np.nanmean(f1_per_class(counts), axis=-1))


def accuracy(counts: Counts) -> Figures:
    """Share of the photos on the diagonal (...)."""
    return np.asarray(np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1)))


def of_attribute(counts: Counts, attribute: str) -> Counts:
    """Confusion counts of mask, gender or age alone, summed from those of the 18 classes."""
    sizes = {"mask": len(MASKS), "gender": len(GENDERS), "age": AGE_GROUPS}
    place = list(sizes).index(attribute)
    apart = counts.reshape(*counts.shape[:-2], *sizes.values(), *sizes.values())
    others = tuple(axis - 6 for axis in range(6) if axis not in (place, place + 3))
    return np.asarray(apart.sum(axis=others))


SCORES: dict[str, Callable[[Counts], Figures]] = {
    "macro_f1": macro_f1,
    "accuracy": accuracy,
    "mask_macro_f1": lambda counts: macro_f1(of_attribute(counts, "mask")),
    "gender_macro_f1": lambda counts: macro_f1(of_attribute(counts, "gender")),
    "age_macro_f1": lambda counts: macro_f1(of_attribute(counts, "age")),
}

NAMES = {
    "macro_f1": "macro F1, 18 classes",
    "accuracy": "accuracy",
    "mask_macro_f1": "macro F1, mask",
    "gender_macro_f1": "macro F1, gender",
    "age_macro_f1": "macro F1, age group",
}
"""What people call these scores."""


def resample_people(by_person: Counts, resamples: int, seed: int) -> Counts:
    """Counts of bootstrap samples, such as confusion counts: resamples x ...

    People are drawn with replacement, each with all their photos: seven photos of one face are not
    seven independent ones (the cluster bootstrap, Davison and Hinkley 1997, section 3.8).

    Args:
        by_person: counts of each person (P x ...), such as P x 18 x 18 of one run, or P x runs x
            18 x 18 of several: each sample is then of the same people in all runs.
    """
    people = len(by_person)
    rng = np.random.default_rng(seed)
    times_drawn = rng.multinomial(people, np.full(people, 1 / people), size=resamples)
    flat = by_person.reshape(people, -1)
    return np.asarray((times_drawn @ flat).reshape(resamples, *by_person.shape[1:]))


def interval(figures: Figures) -> tuple[Figures, Figures]:
    """The 95% percentile interval along the first axis, NaN left out."""
    low, high = np.nanquantile(figures, [0.025, 0.975], axis=0)
    return low, high
