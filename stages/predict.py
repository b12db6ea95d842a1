"""Predict: label the evaluation photos, and the holdout, with the networks of all folds.

    python -m stages.predict data/train data/crop data/clean/evaluation.csv \\
        data/folds/folds.csv data/predict data/submission.csv

Writes to the output folder `probabilities.csv` (photo, p0 to p17 of readable photos: calibrated,
geometric mean of the networks) and `holdout.csv` (person, photo, fold, label, p0 to p17; no rows
without `folds.holdout`); and the submission (ImageID, ans): the rows of info.csv
in the same order. Unreadable photos get the most common class of the training set. `predict.tau`
applies to the calibrated probabilities.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from face_attributes.command import stage_command
from face_attributes.files import write_table
from face_attributes.inference.ensemble import ensemble_probabilities, read_networks
from face_attributes.networks.device import prepare_hardware
from face_attributes.params import read_params
from face_attributes.photos.packed import read_packed
from face_attributes.photos.tables import HOLDOUT, probability_table, read_stage_table
from face_attributes.scoring.logit_adjustment import choose_tau, class_prior, predict_with_tau
from face_attributes.scoring.out_of_fold import (
    calibrated_probabilities,
    fold_folders,
    read_out_of_fold,
    remove_stale_folds,
)


@stage_command
def main(results: Path, crop: Path, photos: Path, folds: Path, out: Path, submission: Path) -> None:
    """Predict the crops in CROP with the ensemble of RESULTS; write OUT and SUBMISSION."""
    params = read_params()
    evaluation = read_stage_table(photos)
    readable = (evaluation["rejected"] == "").to_numpy()
    training = read_stage_table(folds)
    in_holdout = (training["fold"] == HOLDOUT).to_numpy()

    remove_stale_folds(results, params.folds.index)
    hardware = prepare_hardware(params.train.device, params.train.precision)
    networks, recipes = read_networks(
        [folder / "network.safetensors" for folder in fold_folders(results, params.folds.index)],
        hardware,
    )
    predict = partial(
        ensemble_probabilities,
        networks,
        recipes=recipes,
        hardware=hardware,
        batch_size=params.predict.batch_size,
    )
    prior = class_prior(training.loc[~in_holdout, "label"].to_numpy())
    probabilities = predict(read_packed(crop / "evaluation"))

    table = probability_table(evaluation.loc[readable, ["photo"]], probabilities)
    write_table(out / "probabilities.csv", table, float_format="%.6g")
    holdout = training.loc[in_holdout, ["person", "photo", "fold", "label"]]
    held_out = predict(read_packed(crop / "train"), rows=np.flatnonzero(in_holdout))
    write_table(out / "holdout.csv", probability_table(holdout, held_out), float_format="%.6g")
    tau = params.predict.tau
    if tau == "auto":
        out_of_fold = read_out_of_fold(results, params.folds.index)
        tau = choose_tau(calibrated_probabilities(out_of_fold), out_of_fold["label"].to_numpy())
    answers = np.full(len(evaluation), prior.argmax())
    answers[readable] = predict_with_tau(probabilities, prior, tau)
    write_table(submission, pd.DataFrame({"ImageID": evaluation["photo"], "ans": answers}))
    print(
        f"predict: {len(evaluation)} photos, {len(networks)} networks, tau {tau:g} -> {submission}"
    )
    if in_holdout.any():
        print(f"predict: {in_holdout.sum()} photos of the holdout")
    if not readable.all():
        print(f"predict: {(~readable).sum()} unreadable photos get the most common class")


if __name__ == "__main__":
    main()
