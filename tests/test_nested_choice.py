"""Nested choice: what the best of several runs is worth, for luck and for skill."""

import numpy as np
import pandas as pd
import pytest

from face_attributes.photos.labels import NUM_CLASSES, Labels
from face_attributes.scoring.metrics import Counts, confusion_by_person, macro_f1
from face_attributes.scoring.nested_choice import nested_choice, obstacle_to_nested_choice
from face_attributes.scoring.paired_differences import rank_runs, worth_of_the_best
from tests.runs import LABELS, change_run, make_run, people_of, predict

MANY: Labels = np.arange(1080) % NUM_CLASSES
"""Labels of 360 people with three photos each."""
FOLDS = np.arange(360) % 5


def count(*runs: Labels, labels: Labels = MANY) -> Counts:
    """Confusion counts of each person in each run."""
    people = people_of(labels)
    return np.stack([confusion_by_person(labels, run, people) for run in runs], axis=1)


def test_a_nested_choice_calculated_by_hand() -> None:
    """Two folds of ten people each; each run is correct in one fold alone.

    The first run is correct in fold 0, so it is chosen for fold 1, where it is wrong; the second
    run likewise. Either run alone has half of the photos correct: F1 of its three classes is 1, 0,
    0.
    """
    folds = np.arange(20) // 10
    labels, people = folds, np.array([f"p{number:02}" for number in range(20)])
    counts = np.stack(
        [
            confusion_by_person(labels, np.where(folds == correct, labels, 2), people)
            for correct in (0, 1)
        ],
        axis=1,
    )
    assert macro_f1(counts.sum(axis=0)).tolist() == pytest.approx([1 / 3, 1 / 3])
    nested = nested_choice(counts, folds, 100)
    assert (nested.macro_f1, nested.low, nested.high) == (0, 0, 0)
    assert nested.folds.tolist() == [1, 1]


def test_if_the_best_is_only_lucky_its_choice_is_worth_the_average_run() -> None:
    nested, best, mean = [], [], []
    for seed in range(10):
        counts = count(*(predict(MANY, 0.5, 100 * seed + run) for run in range(10)))
        scores = macro_f1(counts.sum(axis=0))
        nested.append(nested_choice(counts, FOLDS, 100).macro_f1)
        best.append(scores.max())
        mean.append(scores.mean())
    assert np.mean(best) - np.mean(mean) > 0.03
    assert np.mean(nested) == pytest.approx(np.mean(mean), abs=0.01)


def test_if_one_run_is_truly_best_nested_choice_scores_the_same() -> None:
    counts = count(*(predict(MANY, skill, run) for run, skill in enumerate((0.4, 0.8, 0.5, 0.6))))
    nested = nested_choice(counts, FOLDS, 300)
    assert nested.folds.tolist() == [0, 5, 0, 0]
    assert nested.macro_f1 == pytest.approx(float(macro_f1(counts.sum(axis=0)).max()))
    assert nested.macro_f1 - 0.08 < nested.low < nested.macro_f1 < nested.high


def test_the_interval_covers_the_choice_too() -> None:
    """Of two runs that are hard to tell apart, each is chosen in some resamples."""
    counts = count(*(predict(MANY, 0.5, run) for run in range(2)))
    nested = nested_choice(counts, FOLDS, 1000)
    alone = nested_choice(counts[:, :1], FOLDS, 1000)
    assert nested.low < alone.macro_f1 < nested.high
    assert alone.macro_f1 == pytest.approx(float(macro_f1(counts[:, 0].sum(axis=0))))


def test_of_equal_runs_the_first_is_chosen() -> None:
    run = predict(MANY, 0.5, 0)
    assert nested_choice(count(run, run), FOLDS, 100).folds.tolist() == [5, 0]


def table(folds: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> pd.DataFrame:
    return pd.DataFrame({"fold": folds})


@pytest.mark.parametrize(
    ("folds", "moved"), [([0, 1, 0, 1], 0), ([0, 1, 1, 0], 2), ([0, 1, 2, 1], 1)]
)
def test_runs_with_other_folds_have_no_nested_choice(folds: list[int], moved: int) -> None:
    tables = [table(np.array([0, 1, 0, 1])), table(np.array(folds))]
    obstacle = obstacle_to_nested_choice(["first", "other"], tables)
    if not moved:
        assert obstacle == ""
    else:
        assert obstacle == (
            f"photos in a different fold in other than in first: {moved}; give all runs the same "
            "folds.seed and folds.index"
        )


def test_a_single_fold_and_a_single_run_leave_no_choice() -> None:
    one_fold = table(np.zeros(4, dtype=int))
    assert "in a single fold" in obstacle_to_nested_choice(["a", "b"], [one_fold, one_fold])
    assert "not two runs" in obstacle_to_nested_choice(["a"], [one_fold])


# --- in a ranking


def test_a_ranking_says_what_its_best_is_worth_and_which_folds_choose_it() -> None:
    runs = [
        make_run(LABELS, predict(LABELS, skill, seed), name)
        for seed, (name, skill) in enumerate({"poor": 0.2, "good": 0.9, "fair": 0.5}.items())
    ]
    leak = change_run(runs[0], "leak", fold=np.arange(120) % 5, predicted=LABELS)
    ranking = rank_runs([*runs, leak], 300)
    assert ranking.nested is not None
    by_name = ranking.table.set_index("run")["folds_choosing"]
    assert by_name[["good", "fair", "poor"]].to_list() == [5, 0, 0]
    assert by_name.isna()["leak"], "a run that leaks cannot be chosen"
    text = worth_of_the_best(ranking)
    assert text.startswith(f"good scores {ranking.table.iloc[0]['macro_f1']:.3f} on the photos")
    assert f"gives {ranking.table.iloc[0]['macro_f1']:.3f} (" in text
    assert text.endswith("expect this of the best of 3. Of 5 folds, it chooses good in 5.")


def test_a_ranking_without_a_nested_choice_says_why() -> None:
    first, second = (make_run(LABELS, predict(LABELS, 0.5, seed), f"run{seed}") for seed in (0, 1))
    moved = change_run(second, "moved", fold=(second.predictions["fold"] + 1) % 5)
    ranking = rank_runs([first, second, moved], 300)
    assert ranking.table["folds_choosing"].isna().all()
    text = worth_of_the_best(ranking)
    assert "photos in a different fold in moved than in run0: 120; give" in text
    assert f"would exceed its true score by {ranking.lead:.3f}" in text
    leaks = [change_run(first, name, fold=np.arange(120) % 5) for name in ("a", "b")]
    alone = worth_of_the_best(rank_runs([first, *leaks], 300))
    assert alone.endswith("there are not two runs without a leak to choose from.")
