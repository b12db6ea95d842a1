"""Aggregate: out-of-fold predictions of all folds -> metrics.json, tables and plots.

    python -m stages.aggregate data/train data/predict data/submission.csv \\
        data/sample/eval/answers.csv data/aggregate metrics.json

Each training photo is scored by the one network that was not trained on its person. The photos of
the holdout are scored by all networks together. Writes metrics.json and, to the output folder,
`out_of_fold.csv` (person, photo, fold, label, predicted, p0 to p17, calibrated on other people),
`confusion.csv`, `f1_per_class.csv` and `learning_curves.csv`, which DVC plots.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from face_attributes.command import stage_command
from face_attributes.files import write_json, write_table
from face_attributes.params import AggregateParams, read_params
from face_attributes.photos.labels import class_names
from face_attributes.photos.raw import read_answers
from face_attributes.photos.tables import PROBABILITIES, read_stage_table
from face_attributes.scoring.calibration import calibration_table, expected_calibration_error
from face_attributes.scoring.holdout import describe_leads, out_of_fold_leads
from face_attributes.scoring.logit_adjustment import choose_tau, predict_with_nested_tau
from face_attributes.scoring.metrics import (
    SCORES,
    Counts,
    Probabilities,
    confusion,
    counts_by_person,
    f1_per_class,
    interval,
    resample_people,
)
from face_attributes.scoring.out_of_fold import (
    calibrated_probabilities,
    fold_folders,
    read_fold_metrics,
    read_out_of_fold,
)
from face_attributes.scoring.temperature import fit_temperature


def score_out_of_fold(
    table: pd.DataFrame, names: Sequence[str], params: AggregateParams
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Scores of all out-of-fold photos with 95% intervals, and a table of F1 per class.

    Args:
        table: person, label, predicted; one row per photo.
        names: names of the 18 classes.
    """
    by_person = counts_by_person(table)
    counts = by_person.sum(axis=0)
    resampled = resample_people(by_person, params.bootstrap)
    scores = scores_with_intervals(counts, resampled)
    low, high = interval(f1_per_class(resampled))
    classes = pd.DataFrame(
        {
            "class": names,
            "f1": f1_per_class(counts),
            "low": low,
            "high": high,
            "photos": counts.sum(axis=1).astype(int),
        }
    )
    return scores, classes


def scores_with_intervals(counts: Counts, resampled: Counts) -> dict[str, Any]:
    """Scores from confusion counts (18 x 18), and their 95% intervals from resampled ones."""
    return {name: float(score(counts)) for name, score in SCORES.items()} | {
        "interval_95": {
            name: dict(zip(["low", "high"], map(float, interval(score(resampled))), strict=True))
            for name, score in SCORES.items()
        }
    }


def score_holdout(
    holdout: pd.DataFrame, out_of_fold: pd.DataFrame, params: AggregateParams
) -> dict[str, Any]:
    """Scores of the ensemble on the holdout, and how far out-of-fold scores lie above them.

    Args:
        holdout, out_of_fold: person, label, predicted; one row per photo.
    """
    by_person = counts_by_person(holdout)
    resampled = resample_people(by_person, params.bootstrap)
    return {
        **scores_with_intervals(by_person.sum(axis=0), resampled),
        "people": len(by_person),
        "photos": len(holdout),
        "out_of_fold_lead": out_of_fold_leads(
            counts_by_person(out_of_fold), by_person, params.bootstrap
        ),
    }


def score_folds(table: pd.DataFrame) -> dict[str, float]:
    """Mean and standard deviation (n - 1) of macro F1 and accuracy over the folds."""
    scores = pd.DataFrame(
        [
            {
                name: float(SCORES[name](confusion(fold["label"], fold["predicted"])))
                for name in ("macro_f1", "accuracy")
            }
            for _, fold in table.groupby("fold")
        ]
    )
    return {
        f"{name}_{statistic}": float(getattr(scores[name], statistic)())
        for name in scores
        for statistic in ("mean", "std")
    }


def mean_fold_scores(folds: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean training and validation scores over the folds, at the kept epoch of each."""
    return {
        part: {
            name: float(np.mean([fold[part][name] for fold in folds]))
            for name in ("loss", "macro_f1", "accuracy")
        }
        for part in ("train", "validation")
    }


def score_calibration(table: pd.DataFrame, calibrated: Probabilities) -> dict[str, float]:
    """Expected calibration error before and after scaling, and the temperature of all folds.

    Args:
        table: label, p0 to p17, uncalibrated.
        calibrated: the same probabilities (N x 18), calibrated on other people of the same fold.
    """
    labels, raw = table["label"].to_numpy(), table[PROBABILITIES].to_numpy()
    before, after = (
        expected_calibration_error(calibration_table(probabilities, labels))
        for probabilities in (raw, calibrated)
    )
    return {
        "temperature": fit_temperature(raw, labels),
        "expected_calibration_error_before": before,
        "expected_calibration_error_after": after,
    }


def score_tuned_tau(table: pd.DataFrame, calibrated: Probabilities) -> dict[str, float]:
    """Scores with tau tuned for each fold on the other folds, and the best tau on all folds.

    Args:
        table: fold, label, p0 to p17, uncalibrated.
        calibrated: as for `score_calibration`.
    """
    labels = table["label"].to_numpy()
    raw, folds = table[PROBABILITIES].to_numpy(), table["fold"].to_numpy()
    predicted = predict_with_nested_tau(raw, labels, folds)
    counts = confusion(table["label"], pd.Series(predicted))
    scores = {name: float(SCORES[name](counts)) for name in ("macro_f1", "accuracy")}
    return {"tau": choose_tau(calibrated, labels), **scores}


def read_answered(submission: Path, answers: Path) -> pd.DataFrame:
    """Predictions of the evaluation photos with answers: photo, label, predicted.

    Raises:
        UserError: if an answer is not a class, its photo was not predicted, or its photo has two
            rows; it names the row.
    """
    predicted = read_stage_table(submission)
    given = read_answers(answers, predicted["ImageID"])
    if 0 < len(given) < len(predicted):
        print(f"aggregate: {answers} has answers for {len(given)} of {len(predicted)} photos")
    if len(given) > 1 and given["ans"].nunique() == 1:
        print(
            f"warning: all answers in {answers} are {given['ans'].iloc[0]}: if they are not the "
            "true labels, as in the competition's info.csv, the evaluation scores mean nothing",
            file=sys.stderr,
        )
    of_photo = predicted.set_index("ImageID")["ans"]
    return pd.DataFrame(
        {
            "photo": given["ImageID"],
            "label": given["ans"],
            "predicted": of_photo.loc[given["ImageID"]].to_numpy(),
        }
    )


def score_evaluation(answered: pd.DataFrame) -> dict[str, float]:
    """Scores on the evaluation photos with answers (label, predicted); empty if there are none."""
    if answered.empty:
        return {}
    counts = confusion(answered["label"], answered["predicted"])
    return {name: float(score(counts)) for name, score in SCORES.items()}


def evaluation_calibration_error(
    answered: pd.DataFrame, probabilities: pd.DataFrame
) -> dict[str, float]:
    """Expected calibration error of the ensemble on the evaluation photos with answers.

    Empty if there are none.

    Args:
        answered: photo, label.
        probabilities: photo, p0 to p17; unreadable photos have none.
    """
    known = probabilities[probabilities["photo"].isin(answered["photo"])]
    if known.empty:
        return {}
    table = answered.merge(known, on="photo")
    bins = calibration_table(table[PROBABILITIES].to_numpy(), table["label"].to_numpy())
    return {"expected_calibration_error_evaluation": expected_calibration_error(bins)}


def confusion_table(
    labels: "pd.Series[int]", predicted: "pd.Series[int]", names: Sequence[str]
) -> pd.DataFrame:
    """All pairs of classes (324 rows): actual, predicted, photos, share of the actual class."""
    counts = confusion(labels, predicted)
    actual, guessed = (index.ravel() for index in np.indices(counts.shape))
    return pd.DataFrame(
        {
            "actual": np.take(names, actual),
            "predicted": np.take(names, guessed),
            "photos": counts.ravel().astype(int),
            "share": (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).ravel(),
        }
    )


def learning_curves(results: Path, index: Sequence[int]) -> pd.DataFrame:
    """Losses of all folds in long format: fold, epoch, curve ("training", "validation"), loss."""
    histories = [
        pd.read_csv(folder / "history.csv").assign(fold=fold)
        for fold, folder in zip(index, fold_folders(results, index), strict=True)
    ]
    curves = {"train_loss": "training", "validation_loss": "validation"}
    history = pd.concat(histories).rename(columns=curves)
    return history.melt(["fold", "epoch"], list(curves.values()), "curve", "loss")


@stage_command
def main(
    results: Path, predictions: Path, submission: Path, answers: Path, out: Path, metrics: Path
) -> None:
    """Score the folds in RESULTS and the ensemble's PREDICTIONS; write OUT and METRICS."""
    params = read_params()
    index = params.folds.index
    names = class_names(params.labels.age_edges)
    table = read_out_of_fold(results, index)
    table.insert(4, "predicted", table[PROBABILITIES].to_numpy().argmax(axis=1))
    calibrated = calibrated_probabilities(table)
    held_out = read_stage_table(predictions / "holdout.csv")
    held_out["predicted"] = held_out[PROBABILITIES].to_numpy().argmax(axis=1)
    answered = read_answered(submission, answers)

    scores, classes = score_out_of_fold(table, names, params.aggregate)
    all_scores = {
        **scores,
        "folds": score_folds(table),
        **mean_fold_scores(read_fold_metrics(results, index)),
        "f1_per_class": dict(zip(names, classes["f1"].fillna(0), strict=True)),
        "tuned_tau": score_tuned_tau(table, calibrated),
        "evaluation": score_evaluation(answered),
    }
    all_scores["calibration"] = {
        **score_calibration(table, calibrated),
        **evaluation_calibration_error(
            answered, read_stage_table(predictions / "probabilities.csv")
        ),
    }
    if len(held_out):
        all_scores["holdout"] = score_holdout(held_out, table, params.aggregate)
    table[PROBABILITIES] = calibrated
    write_table(out / "out_of_fold.csv", table, float_format="%.6g")
    confusion = confusion_table(table["label"], table["predicted"], names)
    write_table(out / "confusion.csv", confusion, float_format="%.4f")
    write_table(out / "f1_per_class.csv", classes, float_format="%.4f")
    write_table(out / "learning_curves.csv", learning_curves(results, index), float_format="%.5f")
    write_json(metrics, all_scores)
    low, high = scores["interval_95"]["macro_f1"].values()
    print(
        f"aggregate: macro F1 {scores['macro_f1']:.3f} (95% {low:.3f} to {high:.3f}), accuracy "
        f"{scores['accuracy']:.3f}, {len(table)} out-of-fold photos"
    )
    if len(held_out):
        low, high = all_scores["holdout"]["interval_95"]["macro_f1"].values()
        print(
            f"aggregate: holdout: macro F1 {all_scores['holdout']['macro_f1']:.3f} (95% {low:.3f} "
            f"to {high:.3f}), {len(held_out)} photos; "
            + describe_leads(all_scores["holdout"]["out_of_fold_lead"])
        )


if __name__ == "__main__":
    main()
