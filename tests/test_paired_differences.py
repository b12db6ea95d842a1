"""Paired differences between runs: values, intervals, verdicts, remarks, rankings."""

from functools import partial

import numpy as np
import pytest

from face_attributes.errors import UserError
from face_attributes.photos.labels import class_names
from face_attributes.scoring.metrics import (
    SCORES,
    Counts,
    Floats,
    accuracy,
    confusion_by_person,
    f1_per_class,
    interval,
    macro_f1,
)
from face_attributes.scoring.paired_differences import (
    lead_by_chance,
    paired_difference,
    rank_runs,
    remarks,
    shared_photos,
    simultaneous_interval,
    verdict,
)
from face_attributes.scoring.runs import Run
from tests.runs import LABELS, change_run, make_run, people_of, predict

RESAMPLES = 300

count = partial(confusion_by_person, LABELS, people=people_of(LABELS))
"""Confusion counts of predictions for LABELS, by person."""


# --- differences


def test_a_difference_calculated_by_hand() -> None:
    """Two people with a photo each; the second is correct only after.

    Of the four bootstrap samples, accuracy rises by 0 in one, 1/2 in two and 1 in one.
    """
    labels, people = np.array([0, 1]), np.array(["a", "b"])
    before = confusion_by_person(labels, np.array([0, 0]), people)
    after = confusion_by_person(labels, np.array([0, 1]), people)
    assert paired_difference(accuracy, before, after, 2000) == (0.5, 0, 1, 1)
    # Macro F1 before: F1 2/3 of class 0 and 0 of class 1. After: 1.
    assert paired_difference(macro_f1, before, after, 100).value == pytest.approx(2 / 3)
    assert paired_difference(macro_f1, after, before, 100).value == pytest.approx(-2 / 3)


def test_several_scores_at_once_equal_each_score_alone() -> None:
    before, after = (count(predict(LABELS, 0.6, seed)) for seed in (1, 2))
    scores = (macro_f1, accuracy)

    def both(counts: Counts) -> Floats:
        return np.stack([score(counts) for score in scores], axis=-1)

    together = paired_difference(both, before, after, RESAMPLES)
    for column, score in enumerate(scores):
        alone = paired_difference(score, before, after, RESAMPLES)
        assert [float(part[column]) for part in together] == pytest.approx(list(map(float, alone)))


def test_a_run_does_not_differ_from_itself() -> None:
    run = count(predict(LABELS, 0.5, 0))
    for score in SCORES.values():
        assert paired_difference(score, run, run, RESAMPLES) == (0, 0, 0, 0)
    assert verdict(0.0, 0.0, 0) == "no difference shown"


def test_pairing_makes_small_differences_significant() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 18, 700)
    people = people_of(labels, photos=7)
    base = np.where(rng.random(700) < 0.6, labels, rng.integers(0, 18, 700))
    better = np.where(rng.random(700) < 0.1, labels, base)
    before, after = (confusion_by_person(labels, run, people) for run in (base, better))
    value, low, high, _ = paired_difference(macro_f1, before, after, RESAMPLES)
    assert value == pytest.approx(float(macro_f1(after.sum(axis=0)) - macro_f1(before.sum(axis=0))))
    assert 0 < low < value < high < 0.1


@pytest.mark.filterwarnings("error")
def test_samples_without_a_class_are_ignored_for_its_f1() -> None:
    """One person has class 17: 37% of the samples lack it, and its F1 is undefined there."""
    labels = LABELS % 17
    labels[0] = 17
    people = people_of(labels)
    before = confusion_by_person(labels, np.where(labels == 17, 0, labels), people)
    after = confusion_by_person(labels, labels, people)
    value, low, high, changed = paired_difference(
        lambda counts: f1_per_class(counts)[..., 17], before, after, RESAMPLES
    )
    assert (value, low, high, changed) == (1, 1, 1, 1)
    assert verdict(float(low), float(high), int(changed)) == "too few people"


@pytest.mark.parametrize(
    ("low", "high", "people", "expected"),
    [
        (0.1, 0.2, 6, "better"),
        (-0.2, -0.1, 6, "worse"),
        (0.1, 0.2, 5, "too few people"),
        (-0.2, -0.1, 5, "too few people"),
        (0.0, 0.2, 40, "no difference shown"),
    ],
)
def test_a_verdict_needs_an_interval_without_0_and_six_people(
    low: float, high: float, people: int, expected: str
) -> None:
    """Five coins show the same side in one of 16 throws; the bootstrap alone would believe them."""
    assert verdict(low, high, people) == expected


# --- many runs


def test_simultaneous_intervals_equal_those_of_one_score_and_are_wider_for_many() -> None:
    scores = np.random.default_rng(0).normal(size=(4000, 6))
    one = simultaneous_interval(scores[:, :1])
    assert np.array(one) == pytest.approx(np.array(interval(scores[:, :1])), abs=0.01)
    low, high = simultaneous_interval(scores)
    inside = ((low <= scores) & (scores <= high)).all(axis=1).mean()
    assert 0.95 <= inside < 0.955
    # Of six independent scores, each must hold at 0.95 ** (1 / 6): 2.63 standard deviations.
    assert high == pytest.approx(np.full(6, 2.63), abs=0.2)
    with_constant = np.concatenate([scores, np.zeros((4000, 1))], axis=1)
    assert (simultaneous_interval(with_constant)[0] == [*low, 0]).all()


def test_the_best_of_many_is_lucky_and_a_single_run_is_not() -> None:
    scores = 0.7 + 0.1 * np.random.default_rng(0).normal(size=(20_000, 5))
    # The largest of five normal variables is expected 1.163 standard deviations above the mean.
    assert lead_by_chance(scores) == pytest.approx(0.1163, abs=0.002)
    assert lead_by_chance(scores[:, :1]) == pytest.approx(0)
    assert lead_by_chance(scores[:, [0, 0, 0]]) == pytest.approx(0)


def test_runs_are_ranked_against_the_first_and_leaking_ones_come_last() -> None:
    first = make_run(LABELS, predict(LABELS, 0.3, 0), "first")
    good = make_run(LABELS, predict(LABELS, 0.9, 1), "good")
    bad = make_run(LABELS, np.roll(LABELS, 1), "bad")
    leak = change_run(first, "leak", fold=np.arange(120) % 5, predicted=LABELS)
    ranking, lead, *_ = rank_runs([first, leak, bad, good], RESAMPLES)
    assert ranking["run"].to_list() == ["good", "first", "bad", "leak"]
    assert ranking["verdict"].to_list() == ["better", "the first", "worse", "leak: no verdict"]
    assert ranking["difference"].to_list()[1] == 0
    assert (ranking["difference_low"] <= ranking["difference"]).all()
    assert 0 < lead < 0.1
    before, after = (count(run.predictions["predicted"].to_numpy()) for run in (first, good))
    alone = paired_difference(macro_f1, before, after, RESAMPLES)
    best = ranking.iloc[0]
    assert best["difference"] == pytest.approx(float(alone.value))
    assert best["difference_high"] - best["difference_low"] >= alone.high - alone.low
    against_a_leak = rank_runs([leak, first, good], RESAMPLES).table
    assert set(against_a_leak["verdict"]) == {"the first", "leak: no verdict"}


def test_runs_with_different_age_groups_are_not_ranked() -> None:
    run = make_run(LABELS, LABELS, "before")
    other = Run("after", run.predictions, class_names([25, 60]))
    with pytest.raises(UserError, match="after and before have different age groups"):
        rank_runs([run, run, other], RESAMPLES)


# --- remarks


def test_photos_of_one_run_alone_are_ignored_with_a_remark() -> None:
    before = make_run(LABELS, LABELS, "before")
    after = Run("after", before.predictions.iloc[::-1].iloc[:-6], before.classes)
    assert remarks(before, after)[0] == "photos of before that are missing in after, ignored: 6"
    first, second = shared_photos([before.predictions, after.predictions])
    assert len(first) == 114
    assert first.equals(second)
    strangers = change_run(before, person="somebody")
    with pytest.raises(UserError, match="no photo in common"):
        remarks(before, strangers)


def test_other_labels_folds_and_age_groups_are_reported() -> None:
    before = make_run(LABELS, LABELS, "before")
    labels = np.where(np.arange(120) < 30, (LABELS + 3) % 18, LABELS)
    moved = (before.predictions["fold"] + 1) % 5
    after = change_run(before, label=labels, fold=moved)
    after = Run(after.name, after.predictions, class_names([25, 60]))
    assert [line[:50] for line in remarks(before, after)] == [
        "after has different age groups: only mask and gend",
        "photos with a different label in after: 30",
        "photos in a different fold in after: 120; each net",
        "after predicts the same as before for every photo",
    ]
    assert remarks(before, make_run(LABELS, predict(LABELS, 0.5, 0))) == []


def test_folds_by_photo_are_a_leak() -> None:
    before = make_run(LABELS, predict(LABELS, 0.2, 0), "before")
    by_photo = change_run(before, fold=np.arange(120) % 5, predicted=LABELS)
    for runs in ((before, by_photo), (by_photo, before)):
        (line,) = remarks(*runs)
        assert line.startswith("after leaks: its folds are by photo (40 people are in more")
