"""Differences between runs on the same photos, people and labels, with paired intervals.

The intervals cover the choice of people, not the choice of `train.seed`: they are about these
networks, not about every network that the same settings could give (Bouthillier et al., MLSys
2021).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from face_attributes.errors import UserError
from face_attributes.photos.labels import NUM_AGE_GROUPS, Labels
from face_attributes.scoring.metrics import (
    Counts,
    Floats,
    confusion_by_person,
    interval,
    macro_f1,
    resample_people,
)
from face_attributes.scoring.nested_choice import (
    NestedChoice,
    nested_choice,
    obstacle_to_nested_choice,
)
from face_attributes.scoring.runs import Run

MIN_PEOPLE = 6
"""With fewer changed people a difference is never significant, whatever the bootstrap says: five
people who all improve are not rare by chance (two-sided sign test: 2 / 2**5 = 0.06)."""

FIRST = "the first"
LEAK = "leak: no verdict"
"""Instead of a verdict: for the run that others are compared with, and if people leak."""

Score = Callable[[Counts], Floats]
"""Computes one score from confusion counts (... x C x C), or several (... x S)."""


class Difference(NamedTuple):
    """Difference between two runs' scores, its 95% interval, and how many people changed."""

    value: Floats
    low: Floats
    high: Floats
    people: NDArray[np.int64]


def paired_difference(score: Score, before: Counts, after: Counts, resamples: int) -> Difference:
    """Score of `after` minus score of `before`: one score, or several (S).

    Both runs are scored on the same bootstrap samples of people, so people who are hard for both
    runs do not widen the interval. Samples in which a score is undefined, such as F1 of a class
    without photos, are ignored for that score.

    Args:
        before, after: confusion counts of the same people (P x 18 x 18).
    """
    value = score(after.sum(axis=0)) - score(before.sum(axis=0))
    resampled = score(resample_people(np.stack([before, after], axis=1), resamples))
    low, high = interval(resampled[:, 1] - resampled[:, 0])
    return Difference(value, low, high, count_changed_people(score, before, after))


def count_changed_people(score: Score, before: Counts, after: Counts) -> NDArray[np.int64]:
    """Number of people whose own score differs between the runs, for each score (S)."""
    same = np.isclose(score(before), score(after), equal_nan=True)
    return np.asarray((~same).sum(axis=0))


def verdict(low: float, high: float, people: int) -> str:
    """Verdict on a difference with this interval and this many changed people."""
    if low <= 0 <= high:
        return "no difference shown"
    if people < MIN_PEOPLE:
        return "too few people"
    return "better" if low > 0 else "worse"


def format_difference(value: float, low: float, high: float) -> str:
    """Format a difference and its interval, such as "+0.023 (-0.004 to +0.050)"."""
    return f"{value:+z.3f} ({low:+z.3f} to {high:+z.3f})"


def shared_photos(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Rows of the photos that all tables contain, in the same order in each.

    Raises:
        UserError: if there are no such photos.
    """
    keyed = [table.set_index(["person", "photo"]) for table in tables]
    shared = reduce(lambda first, second: first.intersection(second), [t.index for t in keyed])
    if shared.empty:
        raise UserError("the runs have no photo in common: compare runs on the same data set")
    return [table.loc[shared].reset_index() for table in keyed]


def without_age(run: Run) -> Run:
    """Move all labels and predictions to the first age group, so only mask and gender count."""

    def mask_and_gender(table: pd.DataFrame) -> pd.DataFrame:
        columns = table[["label", "predicted"]]
        return table.assign(**(columns - columns % NUM_AGE_GROUPS))

    return replace(
        run,
        predictions=mask_and_gender(run.predictions),
        holdout=None if run.holdout is None else mask_and_gender(run.holdout),
    )


def people_in_two_folds(predictions: pd.DataFrame) -> int:
    """Number of people in more than one fold, which their networks were therefore trained on."""
    return int((predictions.groupby("person")["fold"].nunique() > 1).sum())


def remarks(before: Run, after: Run) -> list[str]:
    """Differences between two runs besides their predictions, and what follows for comparing."""
    first, second = shared_photos([before.predictions, after.predictions])
    lines = []
    for run, other in ((before, after), (after, before)):
        unshared = len(run.predictions) - len(first)
        if unshared:
            lines.append(
                f"photos of {run.name} that are missing in {other.name}, ignored: {unshared}"
            )
    if before.classes != after.classes:
        lines.append(f"{after.name} has different age groups: only mask and gender can be compared")
    relabelled = (first["label"] != second["label"]).sum()
    if relabelled:
        lines.append(f"photos with a different label in {after.name}: {relabelled}")
    leaks = {run.name: people_in_two_folds(run.predictions) for run in (before, after)}
    moved = (first["fold"] != second["fold"]).sum()
    if moved and not any(leaks.values()):
        lines.append(
            f"photos in a different fold in {after.name}: {moved}; each network was trained on "
            "different people, which alone changes scores a little"
        )
    lines += [
        f"{name} leaks: its folds are by photo ({count} people are in more than one), so its "
        "networks are scored on faces they were trained on. Its scores say nothing about new "
        "people and cannot be compared with scores of runs that do not leak"
        for name, count in leaks.items()
        if count
    ]
    if first["predicted"].equals(second["predicted"]):
        lines.append(f"{after.name} predicts the same as {before.name} for every photo")
    return lines


def compare_scores(
    before: pd.DataFrame,
    after: pd.DataFrame,
    labels: Labels,
    scores: Mapping[str, Score],
    resamples: int,
) -> pd.DataFrame:
    """Compare two runs against the same labels, one row per score.

    Returns:
        score, before, after, difference, low, high, verdict, photos, people.

    Args:
        before, after: person, predicted; the same photos in the same order (N).
        labels: the classes that count as correct for both runs (N).
    """
    people = before["person"].to_numpy(str)
    first, second = (
        confusion_by_person(labels, run["predicted"].to_numpy(), people) for run in (before, after)
    )

    def all_scores(counts: Counts) -> Floats:
        return np.stack([score(counts) for score in scores.values()], axis=-1)

    difference = paired_difference(all_scores, first, second, resamples)
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


def simultaneous_interval(scores: Floats) -> tuple[Floats, Floats]:
    """95% intervals (K) that hold for all scores at once, from their resamples (R x K).

    The intervals are widened until 95% of the resamples lie inside all of them: of many scores, one
    leaves its own interval by chance alone. For one score, this is the percentile interval (Mandel
    and Betensky, Computational Statistics and Data Analysis 52, 2008).
    """
    resamples = len(scores)
    table = pd.DataFrame(scores)
    from_below, from_above = (
        table.rank(method="max", ascending=ascending).to_numpy() for ascending in (True, False)
    )
    depth = np.minimum(from_below, from_above).min(axis=1)
    cutoff = int(np.quantile(depth, 0.05, method="lower"))
    ordered = np.sort(scores, axis=0)
    return ordered[cutoff - 1], ordered[resamples - cutoff]


def lead_by_chance(scores: Floats) -> float:
    """How much the best of K equally good runs exceeds its true score by chance, on average.

    This is the mean over resamples of the largest deviation of any run from its own mean, as in
    White's reality check (Econometrica 68, 2000).

    Args:
        scores: scores of the runs in each resample (R x K).
    """
    return float((scores - scores.mean(axis=0)).max(axis=1).mean())


class Ranking(NamedTuple):
    """Runs ranked by macro F1, and what choosing the best of them is worth.

    table: run, macro_f1, low, high, difference, difference_low, difference_high, verdict,
        folds_choosing, photos, people: the best run first, runs that leak last. The intervals of
        the differences hold for all runs at once. `folds_choosing` is the number of folds whose
        nested choice is this run, missing where there is no nested choice.
    lead: `lead_by_chance` of the runs that do not leak; NaN for fewer than two.
    nested: the nested choice between the runs that do not leak; None if there is an `obstacle`.
    """

    table: pd.DataFrame
    lead: float
    nested: NestedChoice | None
    obstacle: str


def rank_runs(runs: Sequence[Run], resamples: int) -> Ranking:
    """Rank runs by macro F1, each compared with the first.

    Raises:
        UserError: if the runs have different classes.
    """
    for run in runs[1:]:
        if run.classes != runs[0].classes:
            raise UserError(
                f"{run.name} and {runs[0].name} have different age groups: compare these two alone"
            )
    tables = shared_photos([run.predictions for run in runs])
    labels, people = tables[0]["label"].to_numpy(), tables[0]["person"].to_numpy(str)
    counts = np.stack(
        [confusion_by_person(labels, run["predicted"].to_numpy(), people) for run in tables], axis=1
    )
    scores = macro_f1(counts.sum(axis=0))
    resampled = macro_f1(resample_people(counts, resamples))
    low, high = interval(resampled)
    difference_low, difference_high = simultaneous_interval(resampled - resampled[:, :1])
    leaking = np.array([people_in_two_folds(run.predictions) > 0 for run in runs])
    changed = [
        int(count_changed_people(macro_f1, counts[:, 0], counts[:, run]))
        for run in range(len(runs))
    ]
    verdicts = [
        LEAK if leaking[0] or leak else verdict(*evidence)
        for leak, *evidence in zip(leaking, difference_low, difference_high, changed, strict=True)
    ]
    candidates = np.flatnonzero(~leaking)
    obstacle = obstacle_to_nested_choice(
        [runs[int(run)].name for run in candidates], [tables[run] for run in candidates]
    )
    nested, folds_choosing = None, pd.array([pd.NA] * len(runs), dtype="Int64")
    if not obstacle:
        first_photos = np.unique(people, return_index=True)[1]
        fold_of_person = tables[candidates[0]]["fold"].to_numpy()[first_photos]
        nested = nested_choice(counts[:, candidates], fold_of_person, resamples)
        folds_choosing[candidates] = nested.folds
    table = pd.DataFrame(
        {
            "run": [run.name for run in runs],
            "macro_f1": scores,
            "low": low,
            "high": high,
            "difference": scores - scores[0],
            "difference_low": difference_low,
            "difference_high": difference_high,
            "verdict": [FIRST, *verdicts[1:]],
            "folds_choosing": folds_choosing,
            "photos": len(labels),
            "people": len(counts),
        }
    )
    lead = lead_by_chance(resampled[:, candidates]) if len(candidates) > 1 else math.nan
    return Ranking(table.iloc[np.lexsort((-scores, leaking))], lead, nested, obstacle)


def worth_of_the_best(ranking: Ranking) -> str:
    """What the best run's score is worth: a text for the reader of a ranking."""
    if ranking.nested is None:
        text = f"There is no score of nested choice: {ranking.obstacle}."
        if math.isnan(ranking.lead):
            return text
        return (
            f"{text} If all runs were equally good, the best would exceed its true score by "
            f"{ranking.lead:.3f}."
        )
    nested, best = ranking.nested, ranking.table.iloc[0]
    chosen = ranking.table[ranking.table["folds_choosing"].fillna(0) > 0]
    folds = ", ".join(
        f"{run} in {count}"
        for run, count in chosen[["run", "folds_choosing"]].itertuples(index=False)
    )
    return (
        f"{best['run']} scores {best['macro_f1']:.3f} on the photos that it was chosen on. Nested "
        f"choice, which chooses on all folds but one and scores on that one, gives "
        f"{nested.macro_f1:.3f} ({nested.low:.3f} to {nested.high:.3f}): expect this of the best "
        f"of {len(nested.folds)}. Of {nested.folds.sum()} folds, it chooses {folds}."
    )
