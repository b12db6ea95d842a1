"""The holdout beside out-of-fold scores: differences between two groups of different people."""

from functools import partial

import numpy as np
import pytest

from face_attributes.scoring.holdout import describe_leads, out_of_fold_leads
from face_attributes.scoring.metrics import SCORES, Counts, confusion_by_person
from tests.runs import people_of, predict


def counts(people: int, accuracy: float, seed: int) -> Counts:
    """Confusion counts of people with three photos each, by person."""
    labels = np.arange(3 * people) % 18
    return confusion_by_person(labels, predict(labels, accuracy, seed), people_of(labels))


leads_of = partial(out_of_fold_leads, resamples=500)


def test_a_lead_calculated_by_hand() -> None:
    """Two people in the folds, one of them correct, and two in the holdout, both wrong.

    Accuracy of resampled folds is 0 in one of four cases, 1/2 in two and 1 in one; that of the
    holdout is always 0.
    """
    labels, people = np.array([0, 1]), np.array(["a", "b"])
    in_folds = confusion_by_person(labels, np.array([0, 0]), people)
    holdout = confusion_by_person(labels, np.array([1, 0]), people)
    leads = leads_of(in_folds, holdout)
    assert list(leads) == list(SCORES)
    assert leads["accuracy"] == {"difference": 0.5, "low": 0, "high": 1}
    # Macro F1: 2/3 of class 0 and 0 of class 1 in the folds, 0 of both in the holdout.
    assert leads["macro_f1"]["difference"] == pytest.approx(1 / 3)


def test_both_groups_are_resampled_independently() -> None:
    """The variance of a difference is the sum of both; the same draws for both would cancel."""
    group = counts(100, 0.6, 0)
    lead = leads_of(group, group, resamples=4000)["accuracy"]
    correct = np.trace(group, axis1=1, axis2=2) / 3
    expected = 1.96 * (2 * correct.var() / len(correct)) ** 0.5
    assert lead["difference"] == 0
    assert (lead["high"] - lead["low"]) / 2 == pytest.approx(expected, rel=0.05)


def test_equally_good_groups_rarely_differ_and_better_ones_do() -> None:
    def above(accuracy: float, seed: int) -> bool:
        leads = leads_of(counts(240, accuracy, seed), counts(60, 0.6, seed + 1000))
        return describe_leads(leads).startswith("out of fold lies above the holdout by more")

    assert sum(above(0.6, seed) for seed in range(30)) <= 3
    assert all(above(0.9, seed) for seed in range(5))
    assert not any(above(0.4, seed) for seed in range(5))


def test_the_remark_names_the_scores_that_lie_above_with_their_intervals() -> None:
    leads = dict.fromkeys(SCORES, {"difference": 0.01, "low": -0.02, "high": 0.04})
    assert describe_leads(leads) == (
        "out of fold minus holdout: macro F1, 18 classes +0.010 (-0.020 to +0.040): not above it "
        "by more than chance"
    )
    leads["accuracy"] = {"difference": 0.05, "low": 0.01, "high": 0.09}
    assert describe_leads(leads) == (
        "out of fold lies above the holdout by more than chance: accuracy +0.050 (+0.010 to "
        "+0.090): expect the holdout's scores for new people"
    )
