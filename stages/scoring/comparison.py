"""Runs compared on the same photos, people and labels: differences, with paired intervals.

The intervals say what other people could change. What another `train.seed` would change comes on
top: they are of these networks, not of all that their settings could give (Bouthillier et al.,
MLSys 2021).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import UserError
from stages.photos.labels import AGE_GROUPS, Labels
from stages.scoring.metrics import (
    Counts,
    Figures,
    confusion_by_person,
    interval,
    resample_people,
)

FEWEST_PEOPLE = 6
"""In fewer people than these a difference is never shown, whatever the bootstrap says: five who all
got better are no rare chance (two-sided sign test: 2 / 2**5 = 0.06)."""

Score = Callable[[Counts], Figures]
"""One figure of confusion counts (...), or several (... x S)."""


@dataclass(frozen=True)
class Run:
    """A run's name, its out-of-fold predictions, and what it calls its 18 classes.

    predictions: person, photo, fold, label, predicted, p0 to p17.
    """

    name: str
    predictions: pd.DataFrame
    classes: list[str]


class Difference(NamedTuple):
    """What a run has more than another, its 95% interval, and in how many people they differ."""

    value: Figures
    low: Figures
    high: Figures
    people: NDArray[np.int64]


def paired_difference(
    score: Score, before: Counts, after: Counts, resamples: int, seed: int
) -> Difference:
    """The score after minus the score before: a figure, or several (S).

    Both runs are scored on the same bootstrap samples of people, so that what makes some people
    hard for both does not blur the difference. A sample in which a figure is not defined, such as
    F1 of a class of which nobody was drawn, does not count for that figure.

    Args:
        before, after: confusion counts of the same people (P x 18 x 18).
    """
    value = score(after.sum(axis=0)) - score(before.sum(axis=0))
    both = score(resample_people(np.stack([before, after], axis=1), resamples, seed))
    low, high = interval(both[:, 1] - both[:, 0])
    return Difference(value, low, high, people_who_differ(score, before, after))


def people_who_differ(score: Score, before: Counts, after: Counts) -> NDArray[np.int64]:
    """Number of people whose own score is another in the other run: one, or several (S)."""
    same = np.isclose(score(before), score(after), equal_nan=True)
    return np.asarray((~same).sum(axis=0))


def verdict(low: float, high: float, people: int) -> str:
    """The word for a difference with this interval, of so many people."""
    if low <= 0 <= high:
        return "no difference shown"
    if people < FEWEST_PEOPLE:
        return "too few people"
    return "better" if low > 0 else "worse"


def signed(value: float, low: float, high: float) -> str:
    """A difference and its interval, such as "+0.023 (-0.004 to +0.050)"."""
    return f"{value:+z.3f} ({low:+z.3f} to {high:+z.3f})"


def shared_photos(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The rows of each table for the photos that are in all, in the same order.

    Raises:
        UserError: if there are none.
    """
    keyed = [table.set_index(["person", "photo"]) for table in tables]
    shared = reduce(lambda index, other: index.intersection(other), [each.index for each in keyed])
    if shared.empty:
        raise UserError("the runs have no photo in common: there is nothing to compare")
    return [each.loc[shared].reset_index() for each in keyed]


def without_age(run: Run) -> Run:
    """The run with all ages in the first group, so that mask and gender alone count."""
    told_apart = {
        column: run.predictions[column] - run.predictions[column] % AGE_GROUPS
        for column in ("label", "predicted")
    }
    return replace(run, predictions=run.predictions.assign(**told_apart))


def leaks(predictions: pd.DataFrame) -> int:
    """People who are in more than one fold: the networks that judge them have seen them."""
    return int((predictions.groupby("person")["fold"].nunique() > 1).sum())


def remarks(before: Run, after: Run) -> list[str]:
    """What two runs differ in besides their predictions, and what follows for comparing them."""
    first, second = shared_photos([before.predictions, after.predictions])
    lines = []
    for run, other in ((before, after), (after, before)):
        alone = len(run.predictions) - len(first)
        if alone:
            lines.append(f"photos of {run.name} that {other.name} has not, left out: {alone}")
    if before.classes != after.classes:
        lines.append(f"{after.name} has other age groups: mask and gender alone can be compared")
    relabelled = (first["label"] != second["label"]).sum()
    if relabelled:
        lines.append(f"photos with another label in {after.name}: {relabelled}")
    leaked = {run.name: leaks(run.predictions) for run in (before, after)}
    moved = (first["fold"] != second["fold"]).sum()
    if moved and not any(leaked.values()):
        lines.append(
            f"photos in another fold in {after.name}: {moved}; other people were trained on, which "
            "alone makes some difference"
        )
    lines += [
        f"{name} leaks: its folds are by photo ({count} people are in more than one), and its "
        "networks know the faces that they judge. Its scores say nothing about new people and "
        "cannot be compared with honest ones"
        for name, count in leaked.items()
        if count
    ]
    if first["predicted"].equals(second["predicted"]):
        lines.append(f"{after.name} predicts the same as {before.name} for every photo")
    return lines


def judge(
    before: pd.DataFrame,
    after: pd.DataFrame,
    labels: Labels,
    scores: Mapping[str, Score],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Two runs by the same labels, score by score.

    Returns:
        score, before, after, difference, low, high, verdict, photos, people.

    Args:
        before, after: person, predicted; of the same photos in the same order (N).
        labels: those that both are judged by (N).
    """
    people = before["person"].to_numpy(str)
    first, second = (
        confusion_by_person(labels, run["predicted"].to_numpy(), people) for run in (before, after)
    )

    def all_scores(counts: Counts) -> Figures:
        return np.stack([score(counts) for score in scores.values()], axis=-1)

    difference = paired_difference(all_scores, first, second, resamples, seed)
    return pd.DataFrame(
        {
            "score": list(scores),
            "before": all_scores(first.sum(axis=0)),
            "after": all_scores(second.sum(axis=0)),
            "difference": difference.value,
            "low": difference.low,
            "high": difference.high,
            "verdict": list(map(verdict, difference.low, difference.high, difference.people)),
            "photos": len(before),
            "people": len(first),
        }
    )


def simultaneous_interval(figures: Figures) -> tuple[Figures, Figures]:
    """95% intervals of several figures (R x K) that hold for all of them at once (K).

    They are widened until 95% of the resamples are inside of all: of many figures, one is outside
    of its own by chance alone. Of one figure it is the percentile interval (Mandel and Betensky,
    Computational Statistics and Data Analysis 52, 2008).
    """
    resamples = len(figures)
    table = pd.DataFrame(figures)
    from_below, from_above = (
        table.rank(method="max", ascending=upwards).to_numpy() for upwards in (True, False)
    )
    depth = np.minimum(from_below, from_above).min(axis=1)
    last = int(np.quantile(depth, 0.05, method="lower"))
    ordered = np.sort(figures, axis=0)
    return ordered[last - 1], ordered[resamples - last]


def lead_by_chance(figures: Figures) -> float:
    """How far the best of K equally good runs is seen above its true score, on average.

    Args:
        figures: scores of the runs in each resample (R x K).

    As White's reality check has it (Econometrica 68, 2000): the largest of the resamples'
    deviations, each from its own run's mean.
    """
    return float((figures - figures.mean(axis=0)).max(axis=1).mean())
