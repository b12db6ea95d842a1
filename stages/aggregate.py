"""Aggregate: all folds' out-of-fold predictions -> metrics.json, tables and plots.

    python -m stages.aggregate data/train data/submission.csv \\
        data/sample/eval/answers.csv data/aggregate metrics.json

Every training photo is scored by the one network that has not seen its person. Writes metrics.json
and, to the output folder: `out_of_fold.csv` (person, photo, fold, label, predicted, p0 to p17),
`confusion.csv`, `f1_per_class.csv` and `learning_curves.csv`, which DVC plots.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.command import stage_command
from stages.errors import UserError
from stages.files import write_json, write_table
from stages.params import AggregateParams, read_params
from stages.photos.labels import CLASSES, class_names
from stages.photos.tables import PROBABILITIES, read_text_table
from stages.scoring.metrics import (
    SCORES,
    confusion,
    counts_of,
    f1_per_class,
    interval,
    resample_people,
)
from stages.scoring.out_of_fold import fold_folders, read_fold_metrics, read_out_of_fold
from stages.scoring.tau import choose_tau, nested


def score_out_of_fold(
    table: pd.DataFrame, names: Sequence[str], params: AggregateParams
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Scores of all out-of-fold photos with 95% intervals, and F1 per class as a table.

    Args:
        table: person, label, predicted.
    """
    by_person = counts_of(table)
    counts = by_person.sum(axis=0)
    resampled = resample_people(by_person, params.bootstrap, params.seed)
    scores: dict[str, Any] = {name: float(score(counts)) for name, score in SCORES.items()}
    scores["interval_95"] = {
        name: dict(zip(["low", "high"], map(float, interval(score(resampled))), strict=True))
        for name, score in SCORES.items()
    }
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


def score_folds(table: pd.DataFrame) -> dict[str, float]:
    """Mean and standard deviation (n - 1) over the folds of macro F1 and accuracy."""
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
        f"{name}_{what}": float(getattr(scores[name], what)())
        for name in scores
        for what in ("mean", "std")
    }


def score_fit(folds: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the folds of training and validation scores at the epoch kept."""
    return {
        part: {
            name: float(np.mean([fold[part][name] for fold in folds]))
            for name in ("loss", "macro_f1", "accuracy")
        }
        for part in ("train", "validation")
    }


def score_tuned(table: pd.DataFrame) -> dict[str, float]:
    """Scores with tau tuned: for each fold on the others; and the tau that is best on all."""
    labels = table["label"].to_numpy()
    probabilities = table[PROBABILITIES].to_numpy()
    predicted = nested(probabilities, labels, table["fold"].to_numpy())
    counts = confusion(table["label"], pd.Series(predicted))
    scores = {name: float(SCORES[name](counts)) for name in ("macro_f1", "accuracy")}
    return {"tau": choose_tau(probabilities, labels), **scores}


def score_evaluation(submission: Path, answers: Path) -> dict[str, float]:
    """Scores on the evaluation photos, where the table of answers has any; else nothing.

    Raises:
        UserError: naming the row of an answer that is no class, or whose photo is not among those
            that were predicted or has an answer above.
    """
    given = read_text_table(answers, ["ImageID", "ans"])
    if given.empty:
        return {}
    for row, answer in given["ans"].items():
        if not answer.isdecimal() or int(answer) >= CLASSES:
            raise UserError(f"{answers}, row {row}: ans {answer!r} is not a class from 0 to 17")
    predicted = pd.read_csv(submission, dtype={"ImageID": str}).set_index("ImageID")["ans"]
    for row, photo in given["ImageID"].items():
        if photo not in predicted.index:
            raise UserError(f"{answers}, row {row}: info.csv has no photo {photo!r}")
    for row, again in given["ImageID"].duplicated().items():
        if again:
            raise UserError(f"{answers}, row {row}: its photo has a row above: keep one")
    if len(given) < len(predicted):
        print(f"aggregate: {answers} has answers for {len(given)} of {len(predicted)} photos")
    counts = confusion(given["ans"].astype(int), predicted.loc[given["ImageID"]])
    return {name: float(score(counts)) for name, score in SCORES.items()}


def confusion_table(
    labels: "pd.Series[int]", predicted: "pd.Series[int]", names: Sequence[str]
) -> pd.DataFrame:
    """Each class against each (324 rows): actual, predicted, photos, share of the actual class."""
    counts = confusion(labels, predicted)
    actual, guessed = (place.ravel() for place in np.indices(counts.shape))
    return pd.DataFrame(
        {
            "actual": np.take(names, actual),
            "predicted": np.take(names, guessed),
            "photos": counts.ravel().astype(int),
            "share": (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).ravel(),
        }
    )


def learning_curves(results: Path, index: Sequence[int]) -> pd.DataFrame:
    """Losses of all folds in long form: fold, epoch, curve (training or validation), loss."""
    histories = [
        pd.read_csv(folder / "history.csv").assign(fold=fold)
        for fold, folder in zip(index, fold_folders(results, index), strict=True)
    ]
    curves = {"train_loss": "training", "validation_loss": "validation"}
    long = pd.concat(histories).rename(columns=curves)
    return long.melt(["fold", "epoch"], list(curves.values()), "curve", "loss")


@stage_command
def main(results: Path, submission: Path, answers: Path, out: Path, metrics: Path) -> None:
    """Score the folds in RESULTS; write tables to OUT and the figures to METRICS."""
    params = read_params()
    index = params.folds.index
    names = class_names(params.labels.age_edges)
    table = read_out_of_fold(results, index)
    table.insert(4, "predicted", table[PROBABILITIES].to_numpy().argmax(axis=1))

    scores, classes = score_out_of_fold(table, names, params.aggregate)
    figures = {
        **scores,
        "folds": score_folds(table),
        **score_fit(read_fold_metrics(results, index)),
        "f1_per_class": dict(zip(names, classes["f1"].fillna(0), strict=True)),
        "tuned_tau": score_tuned(table),
        "evaluation": score_evaluation(submission, answers),
    }
    write_table(out / "out_of_fold.csv", table)
    confusion = confusion_table(table["label"], table["predicted"], names)
    write_table(out / "confusion.csv", confusion, float_format="%.4f")
    write_table(out / "f1_per_class.csv", classes, float_format="%.4f")
    write_table(out / "learning_curves.csv", learning_curves(results, index), float_format="%.5f")
    write_json(metrics, figures)
    low, high = scores["interval_95"]["macro_f1"].values()
    print(
        f"aggregate: macro F1 {scores['macro_f1']:.3f} (95% {low:.3f} to {high:.3f}), accuracy "
        f"{scores['accuracy']:.3f}, {len(table)} out-of-fold photos"
    )


if __name__ == "__main__":
    main()
