"""Scores of each group of people, and the gaps between groups."""

from collections.abc import Hashable
from typing import NamedTuple

import pandas as pd
from scipy.stats import t as student

from face_attributes.scoring.metrics import (
    SCORES,
    Counts,
    attribute_counts,
    counts_by_person,
    f1_per_class,
    interval,
    resample_people,
)

CRITERIA = ("accuracy", "mask", "gender", "age")
"""What must be correct for a photo to count: all three attributes ("accuracy"), or one of them."""


class Gap(NamedTuple):
    """The widest gap in accuracy between two groups, with its 95% interval.

    The interval is widened because this gap is the largest of all pairs of groups and all criteria.
    """

    criterion: str
    best: str
    worst: str
    difference: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0


def score_groups(
    table: pd.DataFrame, group: "pd.Series[str]", min_people: int, resamples: int
) -> tuple[pd.DataFrame, list[Gap]]:
    """Accuracy of each group, with 95% intervals from a bootstrap over its people.

    Accuracy rather than macro F1: F1 depends on the share of each class, which differs between
    groups; accuracy does not.

    Args:
        table: person, label, predicted; one row per photo.
        group: the group of each photo, the same for all photos of a person.
        min_people: smaller groups get no scores.

    Returns:
        One row per group, the largest first: group, people, photos, and each of `CRITERIA` with
        `_low` and `_high`; NaN for groups with too few people. Then the widest gap for each of
        `CRITERIA`; none if fewer than two groups have scores.
    """
    rows, resampled = list[dict[Hashable, object]](), dict[str, Counts]()
    for seed, (name, photos) in enumerate(table.groupby(group.to_numpy())):
        people = photos["person"].nunique()
        row: dict[Hashable, object] = {"group": name, "people": people, "photos": len(photos)}
        if people >= min_people:
            counts = counts_by_person(photos)
            resampled[str(name)] = resample_people(counts, resamples, seed)
            for criterion in CRITERIA:
                score = _accuracy(counts.sum(axis=0), criterion)
                low, high = interval(_accuracy(resampled[str(name)], criterion))
                row |= {criterion: float(score), f"{criterion}_low": low, f"{criterion}_high": high}
        rows.append(row)
    columns = ["group", "people", "photos"] + [
        f"{criterion}{suffix}" for criterion in CRITERIA for suffix in ("", "_low", "_high")
    ]
    scores = pd.DataFrame(rows, columns=columns)
    scores = scores.sort_values("people", ascending=False, kind="stable", ignore_index=True)
    scored = scores.dropna(subset="accuracy").set_index("group")
    if len(scored) < 2:
        return scores, []
    return scores, [_widest_gap(scored, resampled, criterion) for criterion in CRITERIA]


def _accuracy(counts: Counts, criterion: str) -> Counts:
    if criterion != "accuracy":
        counts = attribute_counts(counts, criterion)
    return SCORES["accuracy"](counts)


def _widest_gap(scored: pd.DataFrame, resampled: dict[str, Counts], criterion: str) -> Gap:
    scores = scored[criterion]
    best = str(scores.idxmax())
    worst = str(scores.drop(best).idxmin())
    difference = _accuracy(resampled[best], criterion) - _accuracy(resampled[worst], criterion)
    # Bonferroni, because the widest of all gaps was picked. Student's t, because the bootstrap's
    # far quantiles are too narrow for a few people.
    comparisons = len(CRITERIA) * len(scored) * (len(scored) - 1) / 2
    fewest = int(scored.loc[[best, worst], "people"].min())
    standard_error = float(difference.std()) * (fewest / (fewest - 1)) ** 0.5
    margin = float(student.ppf(1 - 0.025 / comparisons, fewest - 1)) * standard_error
    gap = float(scores[best] - scores[worst])
    return Gap(criterion, best, worst, gap, gap - margin, gap + margin)


def f1_per_attribute(
    by_person: Counts, names: dict[str, list[str]], resamples: int
) -> pd.DataFrame:
    """F1 of each value of mask, gender and age group, with 95% intervals.

    Args:
        by_person: confusion counts, P x 18 x 18.
        names: names of each attribute's values.

    Returns:
        One row per value: attribute, value, f1, low, high, photos.
    """
    resampled = resample_people(by_person, resamples)
    tables = []
    for attribute, values in names.items():
        counts = attribute_counts(by_person.sum(axis=0), attribute)
        low, high = interval(f1_per_class(attribute_counts(resampled, attribute)))
        tables.append(
            pd.DataFrame(
                {
                    "attribute": attribute,
                    "value": values,
                    "f1": f1_per_class(counts),
                    "low": low,
                    "high": high,
                    "photos": counts.sum(axis=1).astype(int),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
