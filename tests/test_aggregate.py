"""Scores of all folds together; tables, and scores on the evaluation photos."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from face_attributes.photos.tables import HOLDOUT, PROBABILITIES
from stages import aggregate
from tests.conftest import Change, Run


def write_fold(fold: int, correct: bool) -> None:
    """Write a fold's results to data/train: two people with all classes between them."""
    folder = Path(f"data/train/fold{fold}")
    folder.mkdir(parents=True)
    labels = np.arange(18)
    predicted = labels if correct else (labels + 6) % 18  # only the mask is wrong
    table = pd.DataFrame(
        {"person": [f"f{fold}p{label % 2}" for label in labels], "photo": "x", "fold": fold}
    )
    table["label"] = labels
    table[PROBABILITIES] = np.eye(18)[predicted]
    table.to_csv(folder / "out_of_fold.csv", index=False)
    scores = {"loss": 1.0 + fold, "macro_f1": 0.5, "accuracy": 0.5}
    (folder / "metrics.json").write_text(json.dumps({"train": scores, "validation": scores}))
    history = {"epoch": [0, 1], "train_loss": [2.0, 1.0], "validation_loss": [2.5, 1.5]}
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)


@pytest.fixture(autouse=True)
def two_folds(change: Change) -> None:
    """One fold all correct, one with every mask wrong; two predicted evaluation photos."""
    change("folds.index", [0, 1])
    change("aggregate.bootstrap", 200)
    write_fold(0, correct=True)
    write_fold(1, correct=False)
    write_holdout(people=0)
    pd.DataFrame({"ImageID": ["b.jpg", "a.jpg"], "ans": [3, 4]}).to_csv("s.csv", index=False)
    evaluation = pd.DataFrame({"photo": ["b.jpg", "a.jpg"]})
    evaluation[PROBABILITIES] = 0.1 / 16
    evaluation.loc[0, ["p3", "p5"]] = 0.7, 0.2
    evaluation.loc[1, ["p4", "p5"]] = 0.8, 0.1
    evaluation.to_csv("probabilities.csv", index=False)


def write_holdout(people: int) -> None:
    """Write holdout.csv: people with all classes each, the ages of every other one wrong."""
    labels = np.tile(np.arange(18), people)
    person = np.repeat(np.arange(people), 18)
    predicted = np.where(person % 2, labels - labels % 3 + (labels + 1) % 3, labels)
    table = pd.DataFrame({"person": [f"h{each}" for each in person], "photo": "x", "fold": HOLDOUT})
    table["label"] = labels
    table[PROBABILITIES] = np.eye(18)[predicted]
    table.to_csv("holdout.csv", index=False)


def run_aggregate(run: Run, answers: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """metrics.json and the output, with rows of the table of answers."""
    Path("answers.csv").write_text("ImageID,ans\n" + answers)
    arguments = ["data/train", ".", "s.csv", "answers.csv", "out", "metrics.json"]
    output = run(aggregate.main, *arguments, code=code).output
    return json.loads(Path("metrics.json").read_text()), output


def test_there_may_be_no_evaluation_photos(run: Run) -> None:
    for table in ("s.csv", "probabilities.csv"):
        Path(table).write_text(Path(table).read_text().splitlines()[0] + "\n")
    metrics, _ = run_aggregate(run, "")
    assert metrics["evaluation"] == {}
    assert "expected_calibration_error_evaluation" not in metrics["calibration"]


def test_unreadable_evaluation_photos_count_for_scores_and_not_for_calibration(run: Run) -> None:
    """No network has seen them: their answer is a guess without probabilities."""
    before, _ = run_aggregate(run, "a.jpg,4\nb.jpg,5\n")
    with Path("s.csv").open("a") as file:
        file.write("broken.jpg,3\n")
    after, _ = run_aggregate(run, "a.jpg,4\nbroken.jpg,0\nb.jpg,5\n")
    assert (before["evaluation"]["accuracy"], after["evaluation"]["accuracy"]) == (0.5, 0.333333)
    assert after["calibration"] == before["calibration"]


def test_metrics_and_tables_cover_all_folds(run: Run) -> None:
    metrics, _ = run_aggregate(run, "a.jpg,4\nb.jpg,5\n")
    assert metrics["accuracy"] == metrics["macro_f1"] == 0.5
    assert metrics["gender_macro_f1"] == metrics["age_macro_f1"] == 1
    assert metrics["mask_macro_f1"] == pytest.approx(0.5)
    assert metrics["folds"]["macro_f1_mean"] == 0.5
    assert metrics["folds"]["macro_f1_std"] == pytest.approx(np.std([0, 1], ddof=1), abs=1e-6)
    assert metrics["validation"]["loss"] == 1.5
    assert len(metrics["f1_per_class"]) == 18
    interval = metrics["interval_95"]["accuracy"]
    assert interval["low"] < 0.5 < interval["high"]
    assert metrics["evaluation"]["accuracy"] == 0.5

    table = pd.read_csv("out/out_of_fold.csv")
    assert len(table) == 36
    assert (table["predicted"] == table["label"]).sum() == 18
    confusion = pd.read_csv("out/confusion.csv")
    assert len(confusion) == 18 * 18
    assert confusion["photos"].sum() == 36
    correct = confusion[confusion["actual"] == confusion["predicted"]]
    assert len(correct) == 18 and correct["photos"].sum() == 18
    assert confusion.groupby("actual")["share"].sum().isin([0, 1]).all()
    classes = pd.read_csv("out/f1_per_class.csv")
    assert (classes["low"] <= classes["f1"]).all()
    assert (classes["f1"] <= classes["high"]).all()
    curves = pd.read_csv("out/learning_curves.csv")
    assert curves.groupby(["fold", "curve"]).size().to_dict() == {
        (fold, curve): 2 for fold in (0, 1) for curve in ("training", "validation")
    }


def test_the_holdout_is_scored_beside_the_folds_and_changes_no_other_score(run: Run) -> None:
    without, _ = run_aggregate(run, "")
    files = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    write_holdout(people=40)
    metrics, output = run_aggregate(run, "")
    holdout = metrics.pop("holdout")
    assert metrics == without
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == files

    assert (holdout["people"], holdout["photos"]) == (40, 720)
    assert holdout["accuracy"] == holdout["macro_f1"] == holdout["age_macro_f1"] == 0.5
    assert holdout["mask_macro_f1"] == holdout["gender_macro_f1"] == 1
    interval = holdout["interval_95"]["accuracy"]
    assert 0.3 < interval["low"] < 0.5 < interval["high"] < 0.7
    lead = holdout["out_of_fold_lead"]
    assert lead["macro_f1"]["difference"] == 0
    assert lead["mask_macro_f1"]["difference"] == pytest.approx(-0.5)
    assert lead["age_macro_f1"]["low"] > 0, "named in metrics.json alone"
    assert "aggregate: holdout: macro F1 0.500 (95%" in output
    assert "not above it by more than chance" in output


def test_without_a_holdout_there_are_no_scores_of_it(run: Run) -> None:
    metrics, output = run_aggregate(run, "")
    assert "holdout" not in metrics
    assert "holdout" not in output


def test_evaluation_scores_cover_the_photos_with_answers(run: Run) -> None:
    unanswered = run_aggregate(run, "")[0]
    assert unanswered["evaluation"] == {}
    assert "expected_calibration_error_evaluation" not in unanswered["calibration"]
    metrics, output = run_aggregate(run, "b.jpg,4\n")
    assert metrics["evaluation"]["accuracy"] == 0
    assert "answers.csv has answers for 1 of 2 photos" in output


def test_an_evaluation_photo_may_be_named_like_a_missing_value(run: Run) -> None:
    for path in map(Path, ("s.csv", "probabilities.csv")):
        path.write_text(path.read_text().replace("a.jpg", "NA"))
    metrics, _ = run_aggregate(run, "NA,4\nb.jpg,5\n")
    assert metrics["evaluation"]["accuracy"] == 0.5
    assert "expected_calibration_error_evaluation" in metrics["calibration"]


def test_answers_that_are_all_the_same_are_a_warning(run: Run) -> None:
    """The competition's info.csv has 0 in each row."""
    _, output = run_aggregate(run, "a.jpg,0\nb.jpg,0\n")
    assert "warning: all answers in answers.csv are 0: if they are not the true labels" in output
    assert "warning" not in run_aggregate(run, "a.jpg,0\nb.jpg,1\n")[1]


def test_the_calibration_error_covers_the_ensembles_probabilities(run: Run) -> None:
    """One photo is right with 0.8, one wrong with 0.7: in two bins."""
    metrics, _ = run_aggregate(run, "a.jpg,4\nb.jpg,5\n")
    error = metrics["calibration"]["expected_calibration_error_evaluation"]
    assert error == pytest.approx((0.2 + 0.7) / 2, abs=1e-5)


def test_out_of_fold_probabilities_are_calibrated_on_the_other_folds(run: Run) -> None:
    """Predictions with 0.5 that are right 9 times of 10: they become 0.9."""
    for fold in (0, 1):
        path = Path(f"data/train/fold{fold}/out_of_fold.csv")
        table = pd.read_csv(path).iloc[np.arange(180) % 18]
        predicted = (table["label"] + 6 * (np.arange(180) >= 162)) % 18
        table[PROBABILITIES] = 0.5 / 17
        table[PROBABILITIES] += (0.5 - 0.5 / 17) * np.eye(18)[predicted]
        table.to_csv(path, index=False)
    metrics, _ = run_aggregate(run, "")
    calibration = metrics["calibration"]
    assert calibration["expected_calibration_error_before"] == pytest.approx(0.4, abs=1e-5)
    assert calibration["expected_calibration_error_after"] < 0.001
    # (0.5 / (0.5 / 17)) ** (1 / T) are odds of 0.9 to 0.1 / 17.
    expected = np.log(17) / np.log(0.9 / (0.1 / 17))
    assert calibration["temperature"] == pytest.approx(expected, abs=1e-3)
    table = pd.read_csv("out/out_of_fold.csv")
    assert table[PROBABILITIES].max(axis=1).to_numpy() == pytest.approx(0.9, abs=1e-3)
    assert (table[PROBABILITIES].to_numpy().argmax(axis=1) == table["predicted"]).all()
    assert metrics["accuracy"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("a.jpg,4\nb.jpg,18\n", "answers.csv, row 3: ans '18' is not a class from 0 to 17"),
        ("a.jpg,4\nc.jpg,4\n", "answers.csv, row 3: photo 'c.jpg' is not in info.csv"),
        ("a.jpg,4\nb.jpg,4\na.jpg,4\n", "answers.csv, row 4: photo 'a.jpg' has an earlier row"),
    ],
)
def test_invalid_answers_stop_the_stage_without_output(
    run: Run, answers: str, message: str
) -> None:
    Path("metrics.json").write_text("{}")
    metrics, output = run_aggregate(run, answers, code=1)
    assert message in output
    assert metrics == {}
