"""Targets of training: the class shares of each photo, from its label and age."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from face_attributes.errors import UserError
from face_attributes.params import Heads, TargetParams
from face_attributes.photos.labels import NUM_AGE_GROUPS, NUM_CLASSES, NUM_YEARS


def training_edges(age_edges: Sequence[int], old_from: int, heads: Heads) -> tuple[int, int]:
    """Ages at which the second and the third age group begin in training.

    Raises:
        UserError: if the last group would begin outside the middle group, or heads that learn ages
            in years would contradict it.
    """
    middle, last = age_edges
    if not middle < old_from <= last:
        raise UserError(
            f"train.targets.old_from: {old_from} must be above {middle} and at most {last}, the "
            "ages in labels.age_edges"
        )
    if heads == "ages" and old_from != last:
        raise UserError(
            f"train.targets.old_from: {old_from} must be {last}, as in labels.age_edges, with "
            "train.heads: ages, which learns each age in years"
        )
    return middle, old_from


def shares_by_age(
    ages: "pd.Series[int]", edges: Sequence[int], softness: float
) -> NDArray[np.float64]:
    """Share of each photo in the age groups that `edges` separate.

    An age becomes a normal distribution around it with a standard deviation of `softness` years,
    since a person of 59 looks much like one of 60 (label distribution learning, Gao et al., TIP
    2017). With 0, each photo is in one group.

    Returns:
        N x (number of edges + 1), rows that sum to 1.
    """
    # Ages are whole years: 59 is below 59.5, 60 is above it.
    distances = np.subtract(edges, 0.5) - ages.to_numpy()[:, None]
    if softness:
        below = torch.special.ndtr(torch.from_numpy(distances / softness)).numpy()
    else:
        below = (distances > 0).astype(float)
    return np.diff(below, prepend=0, append=1)


def make_targets(
    labels: "pd.Series[int]",
    ages: "pd.Series[int]",
    edges: Sequence[int],
    heads: Heads,
    params: TargetParams,
) -> Tensor:
    """Make the class shares that the network learns for each photo (N x 18, float32).

    With `heads: ages`, the shares of the years 0 to 120 follow (N x (18 + 121)).

    Args:
        labels: only for mask and gender; the age group follows from `ages` and `edges`.
        edges: ages at which the second and the third age group begin in training.
    """
    mask_and_gender = np.eye(NUM_CLASSES // NUM_AGE_GROUPS)[labels.to_numpy() // NUM_AGE_GROUPS]
    age_group = shares_by_age(ages, edges, params.age_softness)
    targets = (mask_and_gender[:, :, None] * age_group[:, None, :]).reshape(-1, NUM_CLASSES)
    if heads == "ages":
        years = shares_by_age(ages, range(1, NUM_YEARS), params.age_softness)
        targets = np.concatenate([targets, years], axis=1)
    return torch.from_numpy(targets).float()


def check_classes(targets: Tensor, fold: int) -> None:
    """Check that every class has a training photo.

    Args:
        targets: class shares of the training photos (N x 18 or more).

    Raises:
        UserError: naming the classes without one.
    """
    missing = sorted(set(range(NUM_CLASSES)) - set(main_class(targets).tolist()))
    if missing:
        raise UserError(
            f"fold {fold}: the training part has no photo of class {', '.join(map(str, missing))}: "
            "use more folds, add people, or lower train.targets.age_softness"
        )


def main_class(targets: Tensor) -> Tensor:
    """Class with the largest share in each photo (N, int64), for samplers and class weights."""
    return targets[:, :NUM_CLASSES].argmax(dim=1)
