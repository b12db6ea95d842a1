"""What choosing the best of several runs is worth, by nested choice.

The score of the best run is too good: it was chosen on the photos that it is scored on. So the
choice is repeated for each fold: the run with the best macro F1 on the other folds is scored on
this one (nested cross-validation, Varma and Simon, BMC Bioinformatics 7:91, 2006).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from face_attributes.scoring.metrics import Counts, draw_people, interval, macro_f1


class NestedChoice(NamedTuple):
    """Macro F1 of the choice with its 95% interval, and how many folds choose each run (K)."""

    macro_f1: float
    low: float
    high: float
    folds: NDArray[np.int64]


def nested_choice(counts: Counts, folds: NDArray[np.int64], resamples: int) -> NestedChoice:
    """Choose a run for each fold on the other folds, and score the predictions of all choices.

    The score is of all folds together. The interval is from a bootstrap over people that repeats
    the whole choice in each resample. It is on the safe side: for simulated runs of equal skill it
    held the true score in all of 160 trials, and with the choices fixed only in 84%. Of equally
    good runs, the first is chosen.

    Args:
        counts: confusion counts of each person in each run (P x K x 18 x 18).
        folds: the fold of each person, the same in all runs (P).
    """
    people = len(counts)
    # The first row is everybody once, the others are the resamples.
    times_drawn = np.vstack([np.ones(people, dtype=int), draw_people(people, resamples)])
    rows, shape = np.arange(len(times_drawn)), (-1, *counts.shape[1:])
    by_person = counts.reshape(people, -1)
    everywhere = (times_drawn @ by_person).reshape(shape)
    total = np.zeros_like(everywhere[:, 0])
    folds_choosing = np.zeros(counts.shape[1], dtype=np.int64)
    for fold in np.unique(folds):
        inside = folds == fold
        here = (times_drawn[:, inside] @ by_person[inside]).reshape(shape)
        chosen = macro_f1(everywhere - here).argmax(axis=1)
        total += here[rows, chosen]
        folds_choosing[chosen[0]] += 1
    scores = macro_f1(total)
    low, high = interval(scores[1:])
    return NestedChoice(float(scores[0]), float(low), float(high), folds_choosing)


def obstacle_to_nested_choice(names: Sequence[str], tables: Sequence[pd.DataFrame]) -> str:
    """Why there is no nested choice between runs; "" if there is.

    Args:
        names: of the runs that do not leak.
        tables: person, photo, fold; the same photos in the same order in each.
    """
    if len(names) < 2:
        return "there are not two runs without a leak to choose from"
    first = tables[0]["fold"]
    for name, table in zip(names[1:], tables[1:], strict=True):
        moved = int((table["fold"] != first).sum())
        if moved:
            return (
                f"photos in a different fold in {name} than in {names[0]}: {moved}; "
                "give all runs the same folds.seed and folds.index"
            )
    if first.nunique() < 2:
        return "the photos that all runs share are in a single fold"
    return ""
