"""Scores of groups of people apart, and the gaps between them."""

from collections.abc import Hashable
from typing import NamedTuple

import pandas as pd
from scipy.stats import t as student

from stages.scoring.metrics import (
    SCORES,
    Counts,
    counts_of,
    f1_per_class,
    interval,
    of_attribute,
    resample_people,
)

ANSWERS = ("accuracy", "mask", "gender", "age")
"""What a photo can be right in: all three, or each alone."""


class Gap(NamedTuple):
    """The widest gap between two groups in how often an answer is right.

    The 95% interval is widened for having picked this gap among all pairs of groups and all
    answers.
    """

    answer: str
    best: str
    worst: str
    difference: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the gap is more than chance would make it."""
        return self.low > 0


def score_groups(
    table: pd.DataFrame, group: "pd.Series[str]", min_people: int, resamples: int, seed: int
) -> tuple[pd.DataFrame, list[Gap]]:
    """Accuracy of each group, with 95% intervals from a bootstrap over its people.

    Accuracy, not macro F1: F1 depends on how many there are of each class, which differs from group
    to group; the share of a group's photos that are seen rightly does not.

    Args:
        table: person, label, predicted, a row a photo.
        group: of each photo, all of a person the same.
        min_people: groups of fewer people get no scores.

    Returns:
        A row a group, the largest first: group, people, photos, and each of `ANSWERS` with `_low`
        and `_high`; NaN where there are too few people. And the widest gap in each of `ANSWERS`,
        none where there are no two groups to compare.
    """
    rows, resampled = list[dict[Hashable, object]](), dict[str, Counts]()
    for place, (name, part) in enumerate(table.groupby(group.to_numpy())):
        people = part["person"].nunique()
        row: dict[Hashable, object] = {"group": name, "people": people, "photos": len(part)}
        if people >= min_people:
            counts = counts_of(part)
            resampled[str(name)] = resample_people(counts, resamples, seed + place)
            for answer in ANSWERS:
                right = _right(counts.sum(axis=0), answer)
                low, high = interval(_right(resampled[str(name)], answer))
                row |= {answer: float(right), f"{answer}_low": low, f"{answer}_high": high}
        rows.append(row)
    columns = ["group", "people", "photos"] + [
        f"{answer}{end}" for answer in ANSWERS for end in ("", "_low", "_high")
    ]
    scores = pd.DataFrame(rows, columns=columns)
    scores = scores.sort_values("people", ascending=False, kind="stable", ignore_index=True)
    known = scores.dropna(subset="accuracy").set_index("group")
    enough = len(known) > 1
    return scores, [_widest_gap(known, resampled, answer) for answer in ANSWERS if enough]


def _right(counts: Counts, answer: str) -> Counts:
    return SCORES["accuracy"](counts if answer == "accuracy" else of_attribute(counts, answer))


def _widest_gap(known: pd.DataFrame, resampled: dict[str, Counts], answer: str) -> Gap:
    share = known[answer]
    best = str(share.idxmax())
    worst = str(share.drop(best).idxmin())
    difference = _right(resampled[best], answer) - _right(resampled[worst], answer)
    # The widest of all gaps is picked, which would make one out of chance: so the interval is
    # wider, by Bonferroni's correction. That far out, a few people's bootstrap is too sure of
    # itself: Student's distribution is not.
    picked_from = len(ANSWERS) * len(known) * (len(known) - 1) / 2
    fewest = int(known.loc[[best, worst], "people"].min())
    spread = float(difference.std()) * (fewest / (fewest - 1)) ** 0.5
    reach = float(student.ppf(1 - 0.025 / picked_from, fewest - 1)) * spread
    gap = float(share[best] - share[worst])
    return Gap(answer, best, worst, gap, gap - reach, gap + reach)


def f1_of_attributes(
    by_person: Counts, names: dict[str, list[str]], resamples: int, seed: int
) -> pd.DataFrame:
    """F1 of each value of mask, gender and age apart, with 95% intervals.

    Args:
        by_person: confusion counts, P x 18 x 18.
        names: of each attribute's values.

    Returns:
        A row a value: attribute, value, f1, low, high, photos.
    """
    resampled = resample_people(by_person, resamples, seed)
    tables = []
    for attribute, values in names.items():
        counts = of_attribute(by_person.sum(axis=0), attribute)
        low, high = interval(f1_per_class(of_attribute(resampled, attribute)))
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
