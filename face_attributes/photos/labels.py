"""The label scheme: `label = mask*6 + gender*3 + age group`, 18 classes."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MASKS = ("worn", "incorrect", "not_worn")
GENDERS = ("male", "female")
NUM_AGE_GROUPS = 3
NUM_CLASSES = len(MASKS) * len(GENDERS) * NUM_AGE_GROUPS

MASK_BY_STEM = {
    "mask1": "worn",
    "mask2": "worn",
    "mask3": "worn",
    "mask4": "worn",
    "mask5": "worn",
    "incorrect_mask": "incorrect",
    "normal": "not_worn",
}
"""Mask state of the seven photos that a person has by default, by file name without suffix."""

MASK_BY_PREFIX = {"mask": "worn", "incorrect_mask": "incorrect", "normal": "not_worn"}
"""Mask state of any number of photos, by file name without suffix and number."""

MAX_AGE = 120
NUM_YEARS = MAX_AGE + 1
"""Number of ages in years, 0 to MAX_AGE."""

Labels = NDArray[np.int64]


def mask_of(stem: str) -> str:
    """Return the mask state of a photo named like mask, mask12 or incorrect_mask2; else ""."""
    return MASK_BY_PREFIX.get(stem.rstrip("0123456789"), "")


def age_group(age: int, edges: Sequence[int]) -> int:
    """Return the group of an age in years: 0 below the first edge, 2 from the second edge on."""
    return bisect_right(edges, age)


def encode(mask: str, gender: str, age: int, edges: Sequence[int]) -> int:
    """Return the label (0 to 17) of a mask state, a gender and an age in years."""
    return (MASKS.index(mask) * 2 + GENDERS.index(gender)) * NUM_AGE_GROUPS + age_group(age, edges)


def attribute_names(edges: Sequence[int]) -> dict[str, list[str]]:
    """Return the display names of all masks, genders and age groups, in the order of labels."""
    low, high = edges
    return {
        "mask": [mask.replace("_", " ") for mask in MASKS],
        "gender": list(GENDERS),
        "age": [f"under {low}", f"{low} to {high - 1}", f"{high} and over"],
    }


def class_names(edges: Sequence[int]) -> list[str]:
    """Return the names of the 18 classes in order, such as "worn, female, 30 to 59"."""
    names = attribute_names(edges)
    return [
        f"{mask}, {gender}, {age}"
        for mask in names["mask"]
        for gender in names["gender"]
        for age in names["age"]
    ]
