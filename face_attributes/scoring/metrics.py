"""Macro F1 and accuracy from confusion counts, with intervals from a bootstrap over people."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from face_attributes.photos.labels import GENDERS, MASKS, NUM_AGE_GROUPS, NUM_CLASSES, Labels

if TYPE_CHECKING:
    import pandas as pd

Counts = NDArray[np.float64]
"""Confusion counts (... x C x C): actual class by predicted class."""
Floats = NDArray[np.float64]
Probabilities = NDArray[np.floating[Any]]
"""Probabilities of the classes (N x 18)."""


def confusion(labels: ArrayLike, predicted: ArrayLike) -> Counts:
    """Confusion counts (18 x 18) from actual and predicted classes (N each)."""
    counts = np.zeros((NUM_CLASSES, NUM_CLASSES))
    np.add.at(counts, (np.asarray(labels), np.asarray(predicted)), 1)
    return counts


def confusion_by_person(labels: Labels, predicted: Labels, people: NDArray[np.str_]) -> Counts:
    """Confusion counts of each person (P x 18 x 18), people in sorted order."""
    names, person_index = np.unique(people, return_inverse=True)
    counts = np.zeros((len(names), NUM_CLASSES, NUM_CLASSES))
    np.add.at(counts, (person_index, labels, predicted), 1)
    return counts


def counts_by_person(table: "pd.DataFrame") -> Counts:
    """Confusion counts of each person (P x 18 x 18) in a table with person, label, predicted."""
    return confusion_by_person(
        table["label"].to_numpy(), table["predicted"].to_numpy(), table["person"].to_numpy(str)
    )


def f1_per_class(counts: Counts) -> Floats:
    """F1 of each class (... x C); NaN for a class with no actual and no predicted photos."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    total = counts.sum(axis=-1) + counts.sum(axis=-2)
    f1 = np.full(hits.shape, np.nan)
    np.divide(2 * hits, total, out=f1, where=total > 0)
    return f1


def macro_f1(counts: Counts) -> Floats:
    """Mean F1 (...) over the classes with actual or predicted photos.

    The same as scikit-learn's `f1_score(average="macro", zero_division=nan)`.
    """
    return np.asarray(np.nanmean(f1_per_class(counts), axis=-1))


def accuracy(counts: Counts) -> Floats:
    """Share of photos on the diagonal (...)."""
    return np.asarray(np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1)))


def attribute_counts(counts: Counts, attribute: str) -> Counts:
    """Confusion counts of mask, gender or age group (... x K x K), summed over the other two."""
    sizes = {"mask": len(MASKS), "gender": len(GENDERS), "age": NUM_AGE_GROUPS}
    axis = list(sizes).index(attribute)
    by_attribute = counts.reshape(*counts.shape[:-2], *sizes.values(), *sizes.values())
    other_axes = tuple(other - 6 for other in range(6) if other not in (axis, axis + 3))
    return np.asarray(by_attribute.sum(axis=other_axes))


SCORES: dict[str, Callable[[Counts], Floats]] = {
    "macro_f1": macro_f1,
    "accuracy": accuracy,
    "mask_macro_f1": lambda counts: macro_f1(attribute_counts(counts, "mask")),
    "gender_macro_f1": lambda counts: macro_f1(attribute_counts(counts, "gender")),
    "age_macro_f1": lambda counts: macro_f1(attribute_counts(counts, "age")),
}

SCORE_NAMES = {
    "macro_f1": "macro F1, 18 classes",
    "accuracy": "accuracy",
    "mask_macro_f1": "macro F1, mask",
    "gender_macro_f1": "macro F1, gender",
    "age_macro_f1": "macro F1, age group",
}
"""Display names."""


def draw_people(people: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """How often each of the people is drawn in each bootstrap sample (resamples x people)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(people, np.full(people, 1 / people), size=resamples)


def resample_people(by_person: Counts, resamples: int, seed: int = 0) -> Counts:
    """Counts of bootstrap samples of people (resamples x ...).

    People are drawn with replacement, each with all their photos, because seven photos of one face
    are not independent (the cluster bootstrap, Davison and Hinkley 1997, section 3.8).

    Args:
        by_person: counts of each person (P x ...), such as P x 18 x 18 for one run, or P x runs x
            18 x 18 for several, which are then resampled with the same people.
    """
    flat = by_person.reshape(len(by_person), -1)
    times_drawn = draw_people(len(by_person), resamples, seed)
    return np.asarray((times_drawn @ flat).reshape(resamples, *by_person.shape[1:]))


def interval(scores: Floats) -> tuple[Floats, Floats]:
    """95% percentile interval along the first axis, NaN ignored."""
    low, high = np.nanquantile(scores, [0.025, 0.975], axis=0)
    return low, high
